"""The main job: everything that decides its result. No torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from understudy.config.checked import Checked, Seed
from understudy.config.methods import N2N, Method
from understudy.config.training import Augmentation, Candidates, Device, Final
from understudy.config.widths import Widths
from understudy.core.goal import Goal

ObjectiveName = Literal[
    "auto",
    "classification",
    "multilabel",
    "regression",
    "segmentation",
    "pixels",
    "embedding",
    "retrieval",
    "language",
    "agreement",
    "own",
]


@dataclass(frozen=True, kw_only=True)
class Job(Checked):
    """What a compression is set by besides its method, in Python as in files and flags."""

    seed: Seed = 0
    """Random seed of the search and of every student in it."""
    objective: ObjectiveName = "auto"
    """What outputs are for, and so how students are scored, 0..1: classification (accuracy), multilabel (F1),
    regression (R2), segmentation (mean IoU), pixels (the share that is right), embedding (cosine), retrieval (the same
    nearest neighbours as in the teacher), language (1 / perplexity), agreement (with the teacher, without labels).
    auto: classification where there are classes, agreement where there are no labels; own: given in Python."""
    policy_from: str | None = None
    """Warm-start the search: a run folder of the same method (n2n, archcomp), or its policy.safetensors. What its
    policy or embedding has learned and what its students scored carries over to another teacher, data or goal (an
    embedding: to the same teacher's structure)."""
    goal: Goal = field(default_factory=Goal)
    """Budgets on the student."""
    widths: Widths = field(default_factory=Widths)
    """The widths that students may have."""
    augmentation: Augmentation = field(default_factory=Augmentation)
    """Augmentation of the training images, for candidates and final students."""
    candidates: Candidates = field(default_factory=Candidates)
    """Evaluation of candidates during the search."""
    final: Final = field(default_factory=Final)
    """Training of the best candidates to convergence."""
    device: Device = field(default_factory=Device)
    """Device, precision, threads and workers."""


@dataclass(frozen=True, kw_only=True)
class Compression(Job):
    """The main job: everything that decides its result, and where it runs."""

    method: Method = field(default_factory=N2N)
    """Search method."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.method, Method):  # else it is found by the check of the whole
            object.__setattr__(self, "widths", self.widths.with_default(self.method.multiple))
