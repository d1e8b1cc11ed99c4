from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from understudy.core.errors import RunError
from understudy.runs.predictions import Predictions


def predictions(**changed: Any) -> Predictions:
    sure = np.array([0.9, 0.8, 0.5], dtype=np.float32)
    values = {
        "classes": ("cat", "dog"), "labels": np.array([0, 1, 1]), "teacher": np.array([0, 1, 0]),
        "student": np.array([0, -1, 1]), "teacher_confidence": sure, "student_confidence": sure,
    }  # fmt: skip
    return Predictions(**{**values, **changed})


def test_what_is_written_comes_back(tmp_path: Path) -> None:
    predictions().write(tmp_path / "p.npz")
    found = Predictions.read(tmp_path / "p.npz")
    assert found.classes == ("cat", "dog") and found.student.tolist() == [0, -1, 1]
    assert found.teacher_confidence.tolist() == predictions().teacher_confidence.tolist()


def test_pictures_come_back_and_the_surest_mistakes_first(tmp_path: Path) -> None:
    found = predictions()
    assert found.lost.tolist() == [1] and found.gained.tolist() == [2]
    pictures = np.arange(24, dtype=np.uint8).reshape(2, 2, 2, 3)
    predictions(shown=np.array([1, 2]), pictures=pictures).write(tmp_path / "p.npz")
    again = Predictions.read(tmp_path / "p.npz")
    assert again.shown.tolist() == [1, 2] and np.array_equal(again.pictures, pictures)
    unsure = np.array([0.3, 0.4, 0.9], dtype=np.float32)
    wrong = predictions(teacher=np.array([0, 1, 1]), student=np.array([1, -1, 0]), student_confidence=unsure)
    assert wrong.lost.tolist() == [2, 1, 0] and wrong.gained.tolist() == []


@pytest.mark.parametrize(
    ("changed", "text"),
    [
        ({"labels": np.array([0, 1])}, "one for each example"),
        ({"labels": np.array([0, 1, 2])}, r"labels must be in 0\.\.1, but reach 2"),
        ({"shown": np.array([3]), "pictures": np.zeros((1, 2, 2, 3), np.uint8)}, "pictures must be of 3 examples"),
        ({"pictures": np.zeros((0, 2, 2, 3), np.float32)}, "must be grey or RGB bytes"),
        ({"student": np.array([0, 1, 5])}, r"guesses must be in -1\.\.1, but reach 5"),
    ],
)
def test_they_check_themselves(changed: Any, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        predictions(**changed)


@pytest.mark.parametrize("content", [b"", b"no zip", b"PK\x03\x04 cut short"])
def test_a_damaged_file_is_one_error(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "p.npz").write_bytes(content)
    with pytest.raises(RunError, match=r"p\.npz must be as it was written, but is damaged"):
        Predictions.read(tmp_path / "p.npz")
