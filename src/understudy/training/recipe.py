"""What students are trained on, from where, and how."""

from __future__ import annotations

from dataclasses import dataclass

from understudy.config.checked import checked_together
from understudy.config.training import FirstStart, Training
from understudy.data import AnySplit, Views
from understudy.training.teacher_logits import TeacherLogits

with checked_together():  # no epochs: nobody can ask for that
    UNTRAINED = Training(epochs=0, loss="ce")


@dataclass(frozen=True, kw_only=True, eq=False)
class Recipe:
    """What students are trained on, from where, and how: the same for all that are compared."""

    split: AnySplit
    views: Views
    logits: TeacherLogits | None  # None where the loss does not read them
    training: Training
    weights: FirstStart
    digest: str  # of all that decides a score, besides architecture, teacher and data
