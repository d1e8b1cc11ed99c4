"""What the JSON of a teacher's or a student's folder says of the network in it. No torch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from understudy.core.errors import ModelError
from understudy.core.files import check_format, read_json, understood, write_json
from understudy.core.summary import Asked, Network
from understudy.core.timing import Comparison

FORMAT = 2  # 1: `accuracy` where `score` is now
_ALWAYS = ("model", "arguments", "input", "classes", "mean", "std")


@dataclass(frozen=True, kw_only=True)
class NetworkCard:
    """What a folder says of the network in it: how it is made, what goes in and what comes out.

    Raises:
        ValueError: a field is impossible.
    """

    model: str | None  # how the teacher is made, as `ModelSpec.name`; None: in Python
    arguments: Mapping[str, Any]  # of `model`
    input: Any  # channels, height and width of an image; of other inputs as `models.inputs` has it
    classes: tuple[str, ...]  # in the order of the logits; none where outputs are something else
    mean: tuple[float, ...]  # of each channel, of pixels in 0..1; () where inputs are no images
    std: tuple[float, ...]
    data_source: str  # name of the file or folder of the images
    data_digest: str
    versions: Mapping[str, str]
    objective: str = "classification"
    metric: str = "accuracy"  # what the score is

    def __post_init__(self) -> None:
        if not (self.model is None or isinstance(self.model, str)) or not isinstance(self.arguments, dict):
            raise ValueError(f"model must be a name or null, with arguments by name, but got {self.model!r}")
        if isinstance(self.input, tuple) and not all(type(size) is int and size > 0 for size in self.input):
            raise ValueError(f"input must be channels, height and width, or other sizes, but got {self.input}")
        if self.mean and (not isinstance(self.input, tuple) or len(self.input) != 3):
            raise ValueError(f"input must be channels, height and width, but got {self.input}")
        needed = self.mean and self.objective == "classification"
        if (needed and not self.classes) or not all(isinstance(text, str) for text in self.classes):
            raise ValueError(f"classes must be at least one, and texts, but got {self.classes}")
        if len(self.mean) != len(self.std) or (self.mean and len(self.mean) != self.input[0]):
            raise ValueError(f"mean and std must be of {self.input[0]} channels, but got {self.mean} and {self.std}")
        if not all(map(math.isfinite, self.mean)) or not all(0 < value < math.inf for value in self.std):
            raise ValueError(f"mean must be finite and std above 0, but got {self.mean} and {self.std}")

    def to_json(self) -> dict[str, Any]:
        """Return plain values; `from_json` reads them."""
        plain = asdict(self)
        data = {"source": plain.pop("data_source"), "digest": plain.pop("data_digest")}
        return {"format": FORMAT, **plain, "data": data}


def _common(values: Mapping[str, Any]) -> dict[str, Any]:
    return {
        **{name: values[name] for name in ("model", "arguments", "versions", "objective")},
        "metric": values.get("metric", "accuracy"),
        "input": values["input"] if isinstance(values["input"], dict) else tuple(values["input"]),
        "classes": tuple(values["classes"]),
        **{name: tuple(map(float, values[name])) for name in ("mean", "std")},
        "data_source": values["data"]["source"],
        "data_digest": values["data"]["digest"],
    }


@dataclass(frozen=True, kw_only=True)
class StudentCard(NetworkCard):
    """What model.json says of a student, which is made from its teacher.

    Raises:
        ValueError: a field is impossible.
    """

    name: str  # its architecture's digest
    starts: tuple[str, ...]  # JSON of the architectures of the students that were cut on the way, first to last
    teacher: Network
    student: Network
    latency: tuple[Comparison, ...]  # of teacher (first) and student (second)
    goal: tuple[Asked, ...]

    def __post_init__(self) -> None:
        super().__post_init__()
        if not all(isinstance(text, str) for text in self.starts):
            raise ValueError(f"starts must be texts, but got {self.starts}")

    def to_json(self) -> dict[str, Any]:
        """Return plain values; `from_json` reads them."""
        return {**super().to_json(), "goal": [budget.to_json() for budget in self.goal]}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> StudentCard:
        """Return what `to_json` gave.

        Raises:
            KeyError, TypeError, ValueError: it is something else.
        """
        return cls(
            **_common(values),
            name=values["name"],
            starts=tuple(values["starts"]),
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
        write_json(folder / "model.json", self.to_json())


@dataclass(frozen=True, kw_only=True)
class TeacherCard(NetworkCard):
    """What teacher.json says of a teacher that `teach` trained.

    Raises:
        ValueError: a field is impossible.
    """

    teaching: Mapping[str, Any]  # the settings of its training
    compute: str  # device, precision and memory format
    start: str | None  # digest of the weights that it started from
    val: float | None  # accuracy on the validation split, 0..1
    test: float | None  # on the test split
    seconds: float  # of training

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.model is None:
            raise ValueError("model must be a name, but got None")
        for name, value in (("val", self.val), ("test", self.test)):
            if not (value is None or 0 <= value <= 1):
                raise ValueError(f"score of {name} must be in 0..1 or null, but got {value}")

    def to_json(self) -> dict[str, Any]:
        """Return plain values; `from_json` reads them."""
        plain = super().to_json()
        return {**plain, "score": {"val": plain.pop("val"), "test": plain.pop("test")}}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> TeacherCard:
        """Return what `to_json` gave.

        Raises:
            KeyError, TypeError, ValueError: it is something else.
        """
        own = {name: values[name] for name in ("teaching", "compute", "start", "seconds")}
        return cls(**_common(values), **own, val=values["score"]["val"], test=values["score"]["test"])

    @classmethod
    def read(cls, folder: Path) -> TeacherCard:
        """Return what the folder of a teacher says of it.

        Raises:
            ModelError: there is no such folder or JSON in it, or it is damaged, of another kind or of a newer format.
        """
        values = _read(folder, "teacher", "teacher.json")
        with understood(folder / "teacher.json", ModelError):
            return cls.from_json(values)

    def write(self, folder: Path) -> None:
        """Write it into a teacher's folder."""
        write_json(folder / "teacher.json", self.to_json())


def _read(folder: Path, kind: str, name: str) -> dict[str, Any]:
    file = folder / name
    if not folder.is_dir():
        raise ModelError(f"a {kind} must be in a folder, but there is no folder {folder}")
    if not file.is_file():
        started = folder / "teaching.json"
        found = f"only an unfinished training, {started.name}" if kind == "teacher" and started.is_file() else "none"
        if (folder / kind / name).is_file():
            found += f"; {folder / kind} has"
        raise ModelError(f"a {kind} folder must have a {file.name}, but {folder} has {found}")
    card = read_json(file, ModelError)
    if kind == "teacher" and "cost" in card:
        raise ModelError(f"a teacher folder must be one that `understudy teach` made, but {folder} is a run's")
    check_format(card.get("format"), FORMAT, what=f"the {kind} folder {folder}", error=ModelError)
    lacking = [name for name in _ALWAYS if name not in card]
    if lacking:
        raise ModelError(f"{file} must say what the network is, but lacks {', '.join(lacking)}")
    return card
