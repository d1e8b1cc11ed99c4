"""The folder that a student lives in, and how it comes back.

student.safetensors   its weights
architecture.json     what was decided
space.json            about which teacher
model.json            how the teacher is made, what goes in, what comes out, how good it is; where other students
                      were cut on the way, the architectures of those, first to last
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from understudy.core.architecture import Architecture
from understudy.core.errors import ModelError
from understudy.core.files import write_whole
from understudy.graph.analysis import analyse
from understudy.models.spec import ModelSpec
from understudy.models.weights import read_weights, save_weights
from understudy.surgery import build as surgery

FORMAT = 1


def save_student(folder: str | Path, student: nn.Module, architecture: Architecture, card: Mapping[str, Any]) -> None:
    """Write a student's folder. `card` goes into model.json; `load_student` reads how it is made and "input" there."""
    folder = Path(folder)
    save_weights(folder / "student.safetensors", student)
    write_whole(folder / "space.json", architecture.space.to_json())
    write_whole(folder / "architecture.json", architecture.to_json())
    write_whole(folder / "model.json", json.dumps({"format": FORMAT, **card}, indent=1) + "\n")


def load_student(
    folder: str | Path, teacher: nn.Module | None = None, *, leaf_modules: tuple[type[nn.Module], ...] = ()
) -> nn.Module:
    """Return the student of a folder, in evaluation mode, on the CPU.

    Args:
        folder: what `Result.save` or a run left.
        teacher: a module of the teacher's class and size, for its structure only, where the teacher was
            not given by name; its weights do not matter and it is not touched.
        leaf_modules: as `compress` was given them.

    Raises:
        ModelError: the folder is not a student's, or the teacher is needed and not given.
        ArchitectureError, SurgeryError: the teacher is not of the structure that the student was made from.
    """
    folder = Path(folder)
    card = read_card(folder)
    if teacher is None:
        if card["model"] is None:
            raise ModelError(
                f"the teacher of {folder} was made in Python, so only Python can make it again: "
                "load_student(folder, teacher=the_same_module)"
            )
        teacher = ModelSpec(name=card["model"], arguments=card["arguments"]).build()
    example = torch.zeros(2, *card["input"])
    for start in card.get("starts", ()):
        cut = analyse(teacher, example, leaf_modules)
        teacher = surgery.build(cut, Architecture.from_json(cut.space, start), weights="fresh")
    analysis = analyse(teacher, example, leaf_modules)
    architecture = Architecture.from_json(analysis.space, (folder / "architecture.json").read_text(encoding="utf-8"))
    return surgery.rebuild(analysis, architecture, read_weights(folder / "student.safetensors")).eval()


def student_folder(place: str | Path) -> Path:
    """Return the student's folder that is meant by a run or by the folder itself.

    Raises:
        ModelError: there is none.
    """
    place = Path(place)
    found = [folder for folder in (place, place / "student") if (folder / "model.json").is_file()]
    if not found:
        raise ModelError(
            f"a start must be the folder of a student, or a finished run with student/ in it (result.save), "
            f"but {place} is neither"
        )
    return found[0]


def copy_student(source: Path, target: Path) -> None:
    """Copy a student's folder; model.json comes last, so a copy that has one is whole."""
    target.mkdir(exist_ok=True)
    for name in ("student.safetensors", "space.json", "architecture.json", "model.json"):
        write_whole(target / name, (source / name).read_bytes())


def read_card(folder: Path) -> dict[str, Any]:
    """Return what a student's model.json says.

    Raises:
        ModelError: there is none, or it is of a newer format.
    """
    if not (folder / "model.json").is_file():
        raise ModelError(f"a student folder must have a model.json, but there is none in {folder}")
    card: dict[str, Any] = json.loads((folder / "model.json").read_text(encoding="utf-8"))
    if card["format"] > FORMAT:
        raise ModelError(
            f"a student is read by the version that wrote it or a later one: {folder} has format {card['format']}, "
            f"this version reads up to {FORMAT}; pip install --upgrade understudy"
        )
    return card
