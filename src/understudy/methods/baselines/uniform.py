"""Uniform widths: the baseline that anybody would try first. No torch."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from understudy.config.methods import UniformWidth
from understudy.core.architecture import Architecture
from understudy.core.evaluation import Evaluation
from understudy.methods.base import Problem, Searcher
from understudy.methods.proposals import Scoring, calibrated

AT_A_TIME = 5
"""Students of one update of a baseline: as many as N2N's rollouts."""


class UniformSearcher(Searcher):
    """One factor for all widths, from the widest that keeps the budgets down in even steps; draws nothing."""

    def __init__(self, problem: Problem, settings: UniformWidth) -> None:
        super().__init__(problem)
        factors = np.linspace(_widest_factor(problem), 0.0, settings.students).tolist()
        self._left = list(dict.fromkeys(_uniform(problem, factor) for factor in factors))
        self._updates = -(-len(self._left) // AT_A_TIME)

    def propose(self) -> list[Architecture]:
        return self._left[:AT_A_TIME]

    def learn(self, evaluations: Sequence[Evaluation]) -> None:
        self._left = self._left[len(evaluations) :]

    @property
    def updates(self) -> int:
        return self._updates

    @property
    def stage(self) -> str:
        return "uniform"


def _widest_factor(problem: Problem) -> float:
    scoring = Scoring(problem.reward)
    return calibrated(lambda factor: [scoring.usage(problem.predict(_uniform(problem, factor)))], 0.0, 1.0)


def _uniform(problem: Problem, factor: float) -> Architecture:
    return problem.space.architecture(widths={g.name: problem.widths.of(g, factor) for g in problem.space.groups})
