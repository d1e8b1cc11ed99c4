"""The main job: everything that decides its result. No torch."""

from __future__ import annotations

from dataclasses import dataclass, field

from understudy.config.checked import Checked
from understudy.config.methods import N2N, Method
from understudy.config.training import Augmentation, Candidates, Device, Final
from understudy.core.goal import Goal


@dataclass(frozen=True, kw_only=True)
class Compression(Checked):
    """The main job: everything that decides its result, and where it runs."""

    method: Method = field(default_factory=N2N)
    """How students are searched for."""
    goal: Goal = field(default_factory=Goal)
    """What is wanted of the student."""
    augmentation: Augmentation = field(default_factory=Augmentation)
    """How training images are varied, for candidates and final students."""
    candidates: Candidates = field(default_factory=Candidates)
    """How proposals are evaluated."""
    final: Final = field(default_factory=Final)
    """How the best are trained in the end."""
    device: Device = field(default_factory=Device)
    """Where things run."""
    seed: int = 0
    """Of the search and of every student in it."""
