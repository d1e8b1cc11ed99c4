"""The contract of a searcher, and what it works on. No torch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from understudy.config.widths import Widths
from understudy.core.architecture import Architecture, Space
from understudy.core.evaluation import Cost, Evaluation
from understudy.core.goal import Reward

Predict = Callable[[Architecture], Cost | None]
"""The exact cost of an architecture; None if it cannot be built."""

Glance = Callable[[Architecture], float]
"""How far an untrained student is from the teacher, small is good; infinity if it cannot be built. Seconds each."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Problem:
    """What a searcher works on: values only."""

    space: Space  # what the teacher allows
    reward: Reward  # of an evaluation, with the budgets of the search
    predict: Predict  # exact and free, where an evaluation is a training
    widths: Widths = field(default_factory=Widths)
    seed: int = 0  # of the searcher's own generators
    glance: Glance | None = None  # None: students are known by their evaluations alone
    policy: Mapping[str, Any] | None = None  # what another search's `state_dict` gave, to start from


class Searcher(ABC):
    """Proposes architectures and learns from what became of them.

    Two methods make one: `propose` and `learn`. It sees values only: a Space, a Reward, a function from Architecture to
    predicted Cost. It draws randomness from generators that it owns, seeded with `problem.seed`, and from nothing else,
    so that two searchers that were told the same evaluations propose the same: a run is continued by replaying its
    stored evaluations. It may assume that `learn` gets exactly the evaluations of its last proposals, in their order,
    failed ones among them, before `propose` is called again. What was proposed before may be proposed again: it is not
    trained again.
    """

    def __init__(self, problem: Problem) -> None:
        self.problem = problem

    @abstractmethod
    def propose(self) -> list[Architecture]:
        """Return the architectures of the next update; an empty list when the search is over."""

    @abstractmethod
    def learn(self, evaluations: Sequence[Evaluation]) -> None:
        """Learn from the evaluations of the last proposals, one for each, in order."""

    @property
    def updates(self) -> int:
        """How many updates the whole search has, for progress and estimates; 0: not known."""
        return 0

    @property
    def stage(self) -> str:
        """What it is doing now, in a word or two, for progress: "removal", "shrinkage", "random"."""
        return "search"

    def rewards(self, evaluations: Sequence[Evaluation]) -> list[float]:
        """Return the reward that each evaluation earns at the present update."""
        return [self.problem.reward(evaluation) for evaluation in evaluations]

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
    trained: int  # how many were evaluated now; the others were known or asked for twice
