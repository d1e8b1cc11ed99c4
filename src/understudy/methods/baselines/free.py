"""What is known for nothing: the draw with the most MACs within the budgets. Every search must beat it. No torch."""

from __future__ import annotations

from understudy.config.methods import Free, RandomSearch
from understudy.core.architecture import Architecture
from understudy.methods.base import Problem
from understudy.methods.baselines.once import Once
from understudy.methods.baselines.random import RandomSearcher
from understudy.methods.proposals import Scoring

_DRAWS = 1000
_FILLED = 20  # draws with the most MACs, whose widths are scaled until they just fit


class FreeSearcher(Once):
    """Proposes one student, chosen by predicted costs alone: of random search's draws the one with the most MACs.

    Its only evaluation is the short training that every candidate gets; no choice depends on it.
    """

    def __init__(self, problem: Problem, settings: Free) -> None:
        super().__init__(problem)

    @property
    def stage(self) -> str:
        return "free"

    def best(self) -> list[Architecture]:
        random, scoring = RandomSearcher(self.problem, RandomSearch(students=1)), Scoring(self.problem.reward)

        def macs(architecture: Architecture) -> tuple[float, int]:
            """Return what to maximise: budgets kept first, then MACs."""
            cost = random.proposals.cost(architecture)
            return -max(scoring.usage(cost), 1.0), 0 if cost is None else cost.macs

        draws = sorted((random.drawn() for _ in range(_DRAWS)), key=macs, reverse=True)
        return [max((random.filled(draw) for draw in draws[:_FILLED]), key=macs)]
