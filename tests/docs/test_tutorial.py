"""The tutorial, block by block, in an empty folder, in its short form."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from examples.notebook import NOTEBOOK, PAGE, notebook
from tests.support.alone import run_alone
from tests.support.pages import blocks, run_page

# A picture goes through the server of service.py, where neither torch nor this library can be imported.
_ASK = """
import sys, threading, urllib.request
sys.path.insert(0, ".")
from service import HTTPServer, Service
server = HTTPServer(("127.0.0.1", 0), Service)
threading.Thread(target=server.serve_forever, daemon=True).start()
picture = open("photos/test/7/240.png", "rb").read()
with urllib.request.urlopen(f"http://127.0.0.1:{server.server_port}", data=picture) as answer:
    print(answer.read().decode())
"""


@pytest.mark.slow
def test_a_newcomer_gets_from_a_file_and_a_folder_to_a_service(tmp_path: Path) -> None:
    (tmp_path / "student").mkdir()
    ran = run_page(PAGE, tmp_path)
    steps = ("teach", "inspect", "compress", "compress", "report", "evaluate", "latency", "export", "verify")
    assert ran == ["photos.py", *steps]
    assert run_alone(_ASK, tmp_path, without=("torch", "safetensors")).startswith('{"class": "')
    tune = (tmp_path / "student" / "tune.py").read_text(encoding="utf-8")
    run_alone(f'import sys; sys.path.insert(0, ".")\n{tune}', tmp_path / "student", without=("onnxruntime",))


def test_the_notebook_is_the_tutorial() -> None:
    made = notebook(PAGE.read_text(encoding="utf-8"))
    assert NOTEBOOK.read_text(encoding="utf-8") == made, "python examples/notebook.py writes it anew"
    cells = [cell for cell in json.loads(made)["cells"] if cell["cell_type"] == "code"]
    run = [block for block in blocks(PAGE) if block.language == "python" or not block.title]
    assert ["".join(cell["source"]).partition("\n")[2] for cell in cells] == [block.text.strip() for block in run]
