"""What the JSON of a teacher's or a student's folder says of the network in it. No torch."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from understudy.core.errors import ModelError
from understudy.core.files import check_format, read_json, understood, write_whole
from understudy.core.summary import Asked, Network
from understudy.core.timing import Comparison

FORMAT = 1
_ALWAYS = ("model", "arguments", "input", "classes", "mean", "std")


@dataclass(frozen=True, kw_only=True)
class StudentCard:
    """What model.json says of a student: how its teacher is made, what goes in and comes out, and how good it is.

    Raises:
        ValueError: a field is impossible.
    """

    name: str  # its architecture's digest
    model: str | None  # how the teacher is made, as `ModelSpec.name`; None: in Python
    arguments: Mapping[str, Any]  # of `model`
    starts: tuple[str, ...]  # JSON of the architectures of the students that were cut on the way, first to last
    input: tuple[int, ...]  # channels, height and width of an image
    classes: tuple[str, ...]  # in the order of the logits
    mean: tuple[float, ...]  # of each channel, of pixels in 0..1
    std: tuple[float, ...]
    data_source: str  # name of the file or folder of the images
    data_digest: str
    teacher: Network
    student: Network
    latency: tuple[Comparison, ...]  # of teacher (first) and student (second)
    goal: tuple[Asked, ...]
    versions: Mapping[str, str]

    def __post_init__(self) -> None:
        if len(self.input) != 3 or not all(type(size) is int and size > 0 for size in self.input):
            raise ValueError(f"input must be channels, height and width, but got {self.input}")
        if not self.classes:
            raise ValueError("classes must be at least one, but there is none")
        if not len(self.mean) == len(self.std) == self.input[0]:
            raise ValueError(f"mean and std must be of {self.input[0]} channels, but got {self.mean} and {self.std}")
        if not all(map(math.isfinite, self.mean)) or not all(0 < value < math.inf for value in self.std):
            raise ValueError(f"mean must be finite and std above 0, but got {self.mean} and {self.std}")

    def to_json(self) -> dict[str, Any]:
        """Return plain values; `from_json` reads them."""
        plain = asdict(self)
        data = {"source": plain.pop("data_source"), "digest": plain.pop("data_digest")}
        return {"format": FORMAT, **plain, "data": data, "goal": [budget.to_json() for budget in self.goal]}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> StudentCard:
        """Return what `to_json` gave.

        Raises:
            KeyError, TypeError, ValueError: it is something else.
        """
        plain: dict[str, Any] = {name: values[name] for name in ("name", "model", "arguments", "versions")}
        plain |= {name: tuple(values[name]) for name in ("starts", "input", "classes")}
        if not (values["model"] is None or isinstance(values["model"], str)) or not isinstance(
            plain["arguments"], dict
        ):
            raise ValueError(f"model must be a name or null, with arguments by name, but got {values['model']!r}")
        if not all(isinstance(text, str) for text in (*plain["starts"], *plain["classes"])):
            raise ValueError(f"classes and starts must be texts, but got {plain['classes']}")
        return cls(
            **plain,
            mean=tuple(map(float, values["mean"])),
            std=tuple(map(float, values["std"])),
            data_source=values["data"]["source"],
            data_digest=values["data"]["digest"],
            teacher=Network.from_json(values["teacher"]),
            student=Network.from_json(values["student"]),
            latency=tuple(Comparison.from_json(pair) for pair in values["latency"]),
            goal=tuple(Asked.from_json(budget) for budget in values["goal"]),
        )

    @classmethod
    def read(cls, folder: Path) -> StudentCard:
        """Return what a student's folder says of it.

        Raises:
            ModelError: there is no such folder or JSON in it, or it is damaged or of a newer format.
        """
        values = _read(folder, "student", "model.json")
        with understood(folder / "model.json", ModelError):
            return cls.from_json(values)

    def write(self, folder: Path) -> None:
        """Write it into a student's folder."""
        write_whole(folder / "model.json", json.dumps(self.to_json(), indent=1) + "\n")


def read_teacher_card(folder: Path) -> dict[str, Any]:
    """Return what the folder of a teacher says of it.

    Raises:
        ModelError: there is no such folder or JSON in it, or it is damaged, of another kind or of a newer format.
    """
    return _read(folder, "teacher", "teacher.json")


def _read(folder: Path, kind: str, name: str) -> dict[str, Any]:
    file = folder / name
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
