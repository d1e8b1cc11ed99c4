"""A student's figures on a split."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import nn

from understudy.core.errors import DataError
from understudy.core.summary import Score
from understudy.core.timing import Timing
from understudy.cost.measure import latency
from understudy.data import Data
from understudy.data.data import first_images
from understudy.models.card import StudentCard
from understudy.models.student import load_student
from understudy.training.aim import Aim, aimed
from understudy.training.builtin import BUILT_IN
from understudy.training.compute import Compute
from understudy.training.scoring import scored


@dataclass(frozen=True, kw_only=True)
class Measured:
    """A student's figures on a split."""

    score: Score
    parameters: int
    latency: Timing  # ms of one forward pass of one image, 1 thread


def measure(
    folder: str | Path,
    data: Data,
    split: Literal["test", "val"],
    *,
    trust_code: bool = False,
    model: str | None = None,
) -> Measured:
    """Measure the student of a folder on a split, in float32 with one thread.

    `trust_code` and `model` are those of `load_student`.

    Raises:
        ModelError: as `load_student`.
        DataError: there is no such split, or the data are not what the student takes.
    """
    card = StudentCard.read(Path(folder))
    student = load_student(folder, trust_code=trust_code, model=model)
    pixels = data.are_images and data.train.dtype == torch.uint8
    fitted = data.with_normalisation(card.mean, card.std) if pixels else data
    examples = fitted.test if split == "test" else fitted.val
    if examples is None:
        raise DataError(f"the data must have a test split to evaluate on, but {data.source} has none")
    aim = _aim(card, student, fitted)
    return Measured(
        score=Score(
            value=scored(student, examples, normalise=fitted.normalise, compute=Compute(), aim=aim),
            examples=len(examples),
        ),
        parameters=sum(p.numel() for p in student.parameters()),
        latency=latency(student, first_images(fitted, examples, 1)),
    )


def _aim(card: StudentCard, student: nn.Module, data: Data) -> Aim:
    if not data.has_targets:
        raise DataError(f"a student is scored by targets, but {data.source} has none: the teacher stood for them")
    if card.objective not in BUILT_IN:
        raise DataError("an objective of your own scores students in Python alone, in the run that they are from")
    return aimed(BUILT_IN[card.objective], student, data)
