"""What the JSON of a teacher's or a student's folder says of the network in it. No torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from understudy.core.errors import ModelError
from understudy.core.files import check_format, read_json

FORMAT = 1
FILES = {"student": "model.json", "teacher": "teacher.json"}
_ALWAYS = ("model", "arguments", "input", "classes", "mean", "std")


def read_card(folder: Path, kind: Literal["student", "teacher"]) -> dict[str, Any]:
    """Return what the folder of a teacher or of a student says of it.

    Raises:
        ModelError: there is no such folder or JSON in it, or it is damaged, of another kind or of a newer format.
    """
    file = folder / FILES[kind]
    if not folder.is_dir():
        raise ModelError(f"a {kind} must be in a folder, but there is no folder {folder}")
    if not file.is_file():
        started = folder / "teaching.json"
        found = f"only an unfinished training, {started.name}" if kind == "teacher" and started.is_file() else "none"
        raise ModelError(f"a {kind} folder must have a {file.name}, but {folder} has {found}")
    card = read_json(file, ModelError)
    if kind == "teacher" and "cost" in card:
        raise ModelError(f"a teacher folder must be one that `understudy teach` made, but {folder} is a run's")
    check_format(card.get("format"), FORMAT, what=f"the {kind} folder {folder}", error=ModelError)
    lacking = [name for name in _ALWAYS if name not in card]
    if lacking:
        raise ModelError(f"{file} must say what the network is, but lacks {', '.join(lacking)}")
    return card
