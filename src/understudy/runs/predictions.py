"""What teacher and student answered on the test split, kept in a run folder (predictions.npz). No torch."""

from __future__ import annotations

import io
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from understudy.core.errors import DamageError
from understudy.core.files import understood, write_whole

Numbers = np.ndarray[Any, np.dtype[Any]]
_SHOWN = 12  # pictures of each kind
_PICTURES = ("shown", "pictures")
_FIELDS = ("labels", "teacher", "student", "teacher_confidence", "student_confidence")


@dataclass(frozen=True, kw_only=True, eq=False)
class Predictions:
    """The first guess of both networks for each example, and how probable they held it to be.

    Labels and guesses are numbers of classes (n,), -1 for a guess that is no number; confidences (n,) are the largest
    probability of the softmax, 0..1. That is all that per-class score, flipped predictions and calibration need,
    and 20 bytes an example whatever the number of classes. A few examples have a picture (k, h, w, c), bytes.
    """

    classes: tuple[str, ...]
    labels: Numbers
    teacher: Numbers
    student: Numbers
    teacher_confidence: Numbers
    student_confidence: Numbers
    shown: Numbers = field(default_factory=lambda: np.zeros(0, np.int64))  # (k,), places of the examples with pictures
    pictures: Numbers = field(default_factory=lambda: np.zeros((0, 1, 1, 1), np.uint8))

    def __post_init__(self) -> None:
        if self.pictures.dtype != np.uint8 or self.pictures.shape[3:] not in {(1,), (3,)}:
            raise ValueError(f"pictures must be grey or RGB bytes (k, h, w, c), but are {self.pictures.shape}")
        if len(self.shown) != len(self.pictures) or (len(self.shown) and self.shown.max() >= len(self.labels)):
            raise ValueError(f"pictures must be of {len(self.labels)} examples, but there are {len(self.pictures)}")
        shapes = {np.shape(getattr(self, name)) for name in _FIELDS}
        if len(shapes) != 1 or len(self.labels.shape) != 1 or not len(self.labels):
            raise ValueError(f"predictions must be one for each example, but their shapes are {shapes}")
        if not 0 <= self.labels.min() <= self.labels.max() < len(self.classes):
            raise ValueError(f"labels must be in 0..{len(self.classes) - 1}, but reach {self.labels.max()}")
        for guessed in (self.teacher, self.student):
            if not -1 <= guessed.min() <= guessed.max() < len(self.classes):
                raise ValueError(f"guesses must be in -1..{len(self.classes) - 1}, but reach {guessed.max()}")

    @property
    def lost(self) -> Numbers:
        """Places (k,) of a few examples that only the teacher gets right; first where the student is surest."""
        return _surest((self.teacher == self.labels) & (self.student != self.labels), self.student_confidence)

    @property
    def gained(self) -> Numbers:
        """Places (k,) of a few examples that only the student gets right; first where the teacher is surest."""
        return _surest((self.teacher != self.labels) & (self.student == self.labels), self.teacher_confidence)

    def write(self, path: Path) -> None:
        """Write the file, whole or not at all."""
        buffer = io.BytesIO()
        arrays = {name: getattr(self, name) for name in (*_FIELDS, *_PICTURES)}
        np.savez_compressed(buffer, classes=np.array(self.classes, dtype=np.str_), **arrays)
        write_whole(path, buffer.getvalue())

    @classmethod
    def read(cls, path: Path) -> Predictions:
        """Return what `write` wrote.

        Raises:
            RunError: the file is damaged.
        """
        try:
            with understood(path, DamageError), np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as found:
                classes = tuple(map(str, found["classes"]))
                names = (*_FIELDS, *(name for name in _PICTURES if name in found))  # earlier runs have no pictures
                return cls(classes=classes, **{name: found[name] for name in names})
        except (OSError, EOFError, zipfile.BadZipFile) as error:
            raise DamageError(f"{path} must be as it was written, but is damaged: {error}") from error


def _surest(which: Numbers, confidence: Numbers) -> Numbers:
    places = np.flatnonzero(which)
    return places[np.argsort(-confidence[places], kind="stable")][:_SHOWN]
