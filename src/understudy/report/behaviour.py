"""How a student behaves beside its teacher: flipped predictions, accuracy per class, calibration. No torch."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from understudy.runs.predictions import Numbers, Predictions

_BINS = 10


@dataclass(frozen=True, kw_only=True)
class Flip:
    """Guesses that changed from one class to another."""

    teacher: str
    student: str
    count: int
    lost: int  # of these, where the teacher was right
    gained: int  # and where the student is


@dataclass(frozen=True, kw_only=True)
class ClassScore:
    """How often both are right about the examples of a class, 0..1."""

    name: str
    examples: int
    teacher: float
    student: float


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """How often a network is right (0..1) beside how sure it is, by equal steps of confidence; empty steps left out."""

    confidence: tuple[float, ...]
    accuracy: tuple[float, ...]
    examples: tuple[int, ...]

    @property
    def error(self) -> float:
        """The expected calibration error, 0..1 (Guo et al., ICML 2017, equation 5)."""
        gaps = zip(self.confidence, self.accuracy, self.examples, strict=True)
        return sum(abs(sure - right) * count for sure, right, count in gaps) / sum(self.examples)


@dataclass(frozen=True, kw_only=True)
class Behaviour:
    """Teacher and student on the same examples."""

    examples: int
    both_right: int
    lost: int  # only the teacher is right
    gained: int  # only the student is
    both_wrong: int
    agree: int  # the same guess
    flips: tuple[Flip, ...]  # the most frequent first
    classes: tuple[ClassScore, ...]
    teacher: Calibration
    student: Calibration

    @classmethod
    def of(cls, found: Predictions) -> Behaviour:
        """Return that of predictions."""
        taught, learned = found.teacher == found.labels, found.student == found.labels
        return cls(
            examples=len(found.labels),
            both_right=int((taught & learned).sum()),
            lost=int((taught & ~learned).sum()),
            gained=int((~taught & learned).sum()),
            both_wrong=int((~taught & ~learned).sum()),
            agree=int((found.teacher == found.student).sum()),
            flips=_flips(found),
            classes=tuple(
                ClassScore(
                    name=name,
                    examples=int(members.sum()),
                    teacher=float(taught[members].mean()),
                    student=float(learned[members].mean()),
                )
                for number, name in enumerate(found.classes)
                if (members := found.labels == number).any()
            ),
            teacher=_calibration(found.teacher_confidence, taught),
            student=_calibration(found.student_confidence, learned),
        )


def _flips(found: Predictions) -> tuple[Flip, ...]:
    names = (*found.classes, "(none)")  # -1 is the last one
    counted: dict[tuple[int, int], list[int]] = {}
    changed = found.teacher != found.student
    columns = (each[changed].tolist() for each in (found.teacher, found.student, found.labels))
    for was, now, label in zip(*columns, strict=True):
        counts = counted.setdefault((was, now), [0, 0, 0])
        for place, happened in enumerate((True, was == label, now == label)):
            counts[place] += happened
    ordered = sorted(counted.items(), key=lambda pair: (-pair[1][0], pair[0]))
    return tuple(
        Flip(teacher=names[was], student=names[now], count=count, lost=lost, gained=gained)
        for (was, now), (count, lost, gained) in ordered
    )


def _calibration(sure: Numbers, right: Numbers) -> Calibration:
    bins = np.minimum((sure * _BINS).astype(int), _BINS - 1)
    used = [step for step in range(_BINS) if (bins == step).any()]
    return Calibration(
        confidence=tuple(float(sure[bins == step].mean()) for step in used),
        accuracy=tuple(float(right[bins == step].mean()) for step in used),
        examples=tuple(int((bins == step).sum()) for step in used),
    )
