"""The folder that a student lives in, and how it comes back.

student.safetensors   its weights
architecture.json     what was decided
space.json            about which teacher
model.json            how the teacher is made, what goes in, what comes out, how good it is; where other students
                      were cut on the way, the architectures of those, first to last
code/                 the Python file of a model of the user's own, as text
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from torch import nn

from understudy.core.architecture import Architecture, Space
from understudy.core.caller import as_usual, outside_inference
from understudy.core.errors import ArchitectureError, ModelError
from understudy.core.files import path_of, read_json, remove, trouble_of, understood, write_whole
from understudy.graph.analysis import analyse
from understudy.graph.copies import copied
from understudy.models.card import StudentCard
from understudy.models.code import allowed, read_code, write_code
from understudy.models.inputs import blank
from understudy.models.spec import ModelSpec
from understudy.models.weights import read_weights, save_weights
from understudy.surgery import build as surgery

# The first one goes first and comes last: a folder that has it is whole.
_FILES = ("model.json", "student.safetensors", "space.json", "architecture.json")


def save_student(
    folder: str | Path,
    student: nn.Module,
    architecture: Architecture,
    card: StudentCard,
    code: Mapping[str, str] | None = None,
) -> None:
    """Write a student's folder.

    `code` are the texts of the teacher's Python files by name, if it is made by one. What an earlier student left goes,
    also where its writer was killed.

    Raises:
        ModelError: it cannot be written there.
    """
    folder = path_of(folder, "the folder of a student", ModelError)
    try:
        for name in _FILES:
            remove(folder / name)
        write_code(folder, code or {})
        save_weights(folder / "student.safetensors", student)
        write_whole(folder / "space.json", architecture.space.to_json())
        write_whole(folder / "architecture.json", architecture.to_json())
        card.write(folder)
    except OSError as error:
        raise ModelError(
            trouble_of(error) or f"the folder of a student must be writable, but {folder}: {error}"
        ) from error


@outside_inference
@as_usual
def load_student(
    folder: str | Path,
    teacher: nn.Module | None = None,
    *,
    trust_code: bool = False,
    model: str | None = None,
    leaf_modules: tuple[type[nn.Module], ...] = (),
) -> nn.Module:
    """Return the student of a folder, float32, in evaluation mode, on the CPU.

    Args:
        folder: what `Result.save` or a run left.
        teacher: a module of the teacher's class and size, for its structure only, where the teacher was
            not given by name; its weights do not matter and it is not touched. Of a student that was cut from another
            one, given to `compress` as a module (`start`), that one.
        trust_code: run the Python file in the folder that makes the teacher, if there is one.
        model: FILE.py:FACTORY, to run in its place.
        leaf_modules: as `compress` was given them.

    Raises:
        ModelError: the folder is not a student's or is damaged, the teacher is needed and not given, or it is made by
            code that may not be run.
        ArchitectureError, SurgeryError: the teacher is not of the structure that the student was made from.
    """
    folder = path_of(folder, "the folder of a student", ModelError)
    card = StudentCard.read(folder)
    if teacher is None:
        if card.model is None and model is None:
            raise ModelError(
                f"the teacher of {folder} was made in Python, so only Python can make it again: "
                "load_student(folder, teacher=the_same_module), or the module that was given as start= if one was"
            )
        name = allowed(folder, card.model or "", trust_code=trust_code, model=model)
        teacher = ModelSpec(name=name, arguments=card.arguments).build()
    teacher = copied(teacher).cpu().float()
    with understood(folder / "model.json", ModelError):
        example = blank(card.input, 2)
    for start in card.starts:
        cut = analyse(teacher, example, leaf_modules)
        teacher = surgery.build(cut, Architecture.from_json(cut.space, start), weights="fresh")
    analysis = analyse(teacher, example, leaf_modules)
    plan = folder / "architecture.json"
    architecture = _architecture(plan, analysis.space)
    if architecture.digest != card.name:
        raise ModelError(
            f"{plan} must be the one that model.json is about, {card.name}, but is another, {architecture.digest}"
        )
    with _saved_again(folder):
        weights = read_weights(folder / "student.safetensors", ours=True)
    return surgery.rebuild(analysis, architecture, weights).eval()


def _architecture(plan: Path, space: Space) -> Architecture:
    """Return what a student's architecture.json says.

    Raises:
        ArchitectureError: it is of another Space, so of another teacher.
        ModelError: it is damaged.
    """
    with _saved_again(plan.parent):
        found = read_json(plan, ModelError)
        try:
            return Architecture.from_json(space, json.dumps(found))
        except ArchitectureError as error:
            if found.get("space", space.family) != space.family:
                raise ArchitectureError(f"{error}. So says {plan}") from error
            raise ModelError(f"{plan} must be as it was written, but is damaged: {error}") from error


@contextmanager
def _saved_again(folder: Path) -> Iterator[None]:
    """Say of a damaged file where another one comes from."""
    try:
        yield
    except ModelError as error:
        raise ModelError(
            f"{error}. The run that {folder} is of saves its student again: understudy resume RUN, or result.save"
        ) from error


def student_folder(place: str | Path) -> Path:
    """Return the student's folder that is meant by a run or by the folder itself.

    Raises:
        ModelError: there is none.
    """
    place = path_of(place, "a start", ModelError)
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
    write_code(target, read_code(source))
    for name in ("student.safetensors", "space.json", "architecture.json", "model.json"):
        write_whole(target / name, (source / name).read_bytes())
