"""The code of README.md and of every page is run, and each command that they show is one."""

from __future__ import annotations

import contextlib
import io
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import understudy as us
from tests.support.pages import HISTORY, PAGES, ROOT, Block, blocks, commands, run_page
from tests.support.tiny import CANDIDATES, DEVICE, FINAL, METHOD, WIDTHS
from understudy.cli.entry import parse
from understudy.models.weights import save_weights

ALL = [block for page in PAGES if page != HISTORY for block in blocks(page)]
WITH_PYTHON = sorted({block.page for block in ALL if block.language == "python" and not block.title})
SHOWN = {  # what is true at the end of a page
    "README": "Path('student/model.json').is_file() and smaller.width('conv1') == 4",
    "continue": "again.summary == result.summary",
    "own-searcher": "issubclass(Annealing, us.Method)",
    "tasks": "smaller.boxes is not detector.boxes and result.summary.metric == 'score' and data.test is None",
    "untraceable": "product({'images': example})['logits'].shape == (2, 10) and smaller != analysis.space.full",
}
MODEL = """
from torch import nn

def make(classes=2):
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, 4), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 32, 3, 4), nn.ReLU(), nn.Flatten(),
        nn.Linear(512, classes),
    )
"""


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that README.md asks for: photos of two classes, in which the present folder is."""
    numbers = np.random.default_rng(0)
    for split, count in (("train", 40), ("val", 10), ("test", 10)):
        for label, level in (("dark", 60), ("light", 190)):
            folder = tmp_path / "photos" / split / label
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = numbers.integers(level - 60, level + 60, (64, 64, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{number}.png")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def commands_of(block: Block) -> list[list[str]]:
    """Return the words of what begins with `understudy`; "..." stands for a model and its data."""
    if block.language not in ("bash", ""):
        return []
    lines = block.text.replace("\\\n", " ").replace("compress ...", "compress zoo:resnet20 --data digits").splitlines()
    ours = Block(block.page, "bash", "", "\n".join(line for line in lines if line.startswith("understudy ")))
    return [words for words in commands(ours) if words[1:] != ["--help"]]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_page_holds_no_unresolved_merge(page: Path) -> None:
    lines = page.read_text(encoding="utf-8").splitlines()
    assert [line for line in lines if line.startswith(("<<<<<<< ", ">>>>>>> "))] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_command_on_a_page_is_one(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    for words in [words for block in ALL if block.page == page for words in commands_of(block)]:
        error = io.StringIO()
        with contextlib.redirect_stderr(error):
            try:
                parse(words[1:])
            except SystemExit:
                pytest.fail(f"{' '.join(words)}: {error.getvalue()}")


def test_the_commands_of_the_demo_are_some() -> None:
    lines = (ROOT / "Makefile").read_text(encoding="utf-8").replace("\\\n", " ").splitlines()
    shown = [line.split()[1:] for line in lines if line.startswith("\t$(BIN)/understudy ")]
    assert [type(parse(words)).__name__ for words in shown] == ["Teach", "Compress"]


@pytest.mark.slow
def test_the_commands_of_the_readme_run(photos: Path) -> None:
    (photos / "model.py").write_text(MODEL)
    names: dict[str, Any] = {}
    exec(MODEL, names)
    save_weights(photos / "weights.safetensors", names["make"]())
    ran = run_page(ROOT / "README.md", photos)
    assert ran == ["inspect", "compress", "resume", "runs", "report", "evaluate", "export", "teach", "compress"]


@pytest.mark.parametrize("page", WITH_PYTHON, ids=lambda page: page.stem)
def test_the_python_of_a_page_runs(
    page: Path, photos: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With a small teacher, its data, and searches of a second."""
    short = {"widths": WIDTHS, "candidates": CANDIDATES, "final": FINAL, "device": DEVICE, "untrained": True}
    monkeypatch.setattr(us, "compress", partial(us.compress, method=METHOD, progress=False, **short))
    names: dict[str, Any] = {"us": us, "Path": Path, "data": us.Data.from_folder("photos/", size=64)}
    exec(MODEL, names)
    names["teacher"] = names["make"]()
    for block in blocks(page):
        if block.language == "python" and not block.title:
            if "from_inputs(loader)" in block.text:
                names |= {"model": nn.ModuleDict({"backbone": names["teacher"]}), "loader": torch.randn(64, 3, 64, 64)}
            if "stages." in block.text:
                names |= {"teacher": us.zoo.create("resnet20", width=8), "example": torch.zeros(2, 3, 32, 32)}
            exec(compile(block.text, str(page), "exec"), names)
    assert eval(SHOWN[page.stem], names)
