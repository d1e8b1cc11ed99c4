"""Write docs/tutorial.md as a notebook, examples/tutorial.ipynb, in which every block is a cell.

    python examples/notebook.py

A test holds the two together; the cells are the code that the tutorial's test runs.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
PAGE, NOTEBOOK = ROOT / "docs" / "tutorial.md", ROOT / "examples" / "tutorial.ipynb"
_BLOCK = re.compile(r'^```(\w+)(?: title="([^"\n]*)")?\n(.*?)^```$', re.MULTILINE | re.DOTALL)


def notebook(page: str) -> str:
    """Return a notebook as JSON: text, files that are written, commands of a shell; examples stay text."""
    cells: list[dict[str, Any]] = []
    text = ""
    for number, part in enumerate(_BLOCK.split(page)):
        kind = number % 4
        if kind == 0:
            text += part
        elif kind == 1:
            language = part
        elif kind == 2:
            title = part
        elif language == "bash" and title:
            text += f"```bash\n{part}```"
        else:
            cells += [_cell("markdown", text, len(cells))]
            cells += [
                _cell("code", f"%%bash\n{part}" if language == "bash" else f"%%writefile {title}\n{part}", len(cells))
            ]
            text = ""
    cells += [_cell("markdown", text, len(cells))]
    about = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}}
    return json.dumps({"cells": cells, "metadata": about, "nbformat": 4, "nbformat_minor": 5}, indent=1) + "\n"


def _cell(kind: str, text: str, number: int) -> dict[str, Any]:
    cell = {"cell_type": kind, "id": f"cell-{number}", "metadata": {}, "source": text.strip().splitlines(keepends=True)}
    return {**cell, "execution_count": None, "outputs": []} if kind == "code" else cell


if __name__ == "__main__":
    NOTEBOOK.write_text(notebook(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
