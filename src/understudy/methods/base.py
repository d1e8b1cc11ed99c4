"""The contract of a searcher."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

from understudy.core.architecture import Architecture
from understudy.core.evaluation import Evaluation


class Searcher(ABC):
    """Proposes architectures and learns from what became of them.

    It sees values only: a Space, a Reward, a function from Architecture to predicted Cost. It draws
    randomness from the generator that it owns and from nothing else, so that two searchers with the
    same seed that were told the same evaluations propose the same: a run is continued by replaying its
    stored evaluations. It may assume that `learn` gets exactly the evaluations of its last proposals,
    in their order, failed ones among them, before `propose` is called again.
    """

    @abstractmethod
    def propose(self) -> list[Architecture]:
        """Return the architectures of the next update; an empty list when the search is over."""

    @abstractmethod
    def learn(self, evaluations: Sequence[Evaluation]) -> None:
        """Learn from the evaluations of the last proposals, one for each, in order."""

    @property
    @abstractmethod
    def updates(self) -> int:
        """How many updates the whole search has, for progress and estimates."""

    @property
    @abstractmethod
    def stage(self) -> str:
        """What it is doing now, in a word or two, for progress: "removal", "shrinkage", "random"."""

    @abstractmethod
    def rewards(self, evaluations: Sequence[Evaluation]) -> list[float]:
        """Return the reward, in -1..1, that each evaluation earns at the present update (for progress)."""

    def state_dict(self) -> dict[str, object]:
        """Return tensors and numbers that make the policy up, for saving; empty if there is none."""
        return {}


@dataclass(frozen=True, kw_only=True)
class Update:
    """One turn of the loop, for progress and logs."""

    number: int  # from 1
    of: int
    stage: str
    evaluations: tuple[Evaluation, ...]  # one for each proposal, in order
    rewards: tuple[float, ...]  # of those, at this update
    trained: int  # how many were evaluated now; the others were known or asked for twice
