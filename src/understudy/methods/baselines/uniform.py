"""Uniform widths, the baseline that anybody would try first, and tapered ones. No torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from understudy.config.methods import UniformWidth
from understudy.core.architecture import Architecture
from understudy.core.evaluation import Cost, Evaluation
from understudy.methods.base import Problem, Searcher
from understudy.methods.firsts import tapered
from understudy.methods.proposals import Proposals, Scoring, calibrated

AT_A_TIME = 5
"""Students of one update of a baseline: as many as N2N's rollouts."""


class UniformSearcher(Searcher):
    """One factor for all widths, from the widest that keeps the budgets down in even steps; draws nothing.

    Tapered, a group's factor is larger where it takes more of the MACs than of the budgets.
    """

    def __init__(self, problem: Problem, settings: UniformWidth) -> None:
        super().__init__(problem)
        shares = _shares(problem, settings.taper)
        factors = np.linspace(_widest_factor(problem, shares), 0.0, settings.students).tolist()
        self._left = list(dict.fromkeys(_narrowed(problem, factor, shares) for factor in factors))
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


def _widest_factor(problem: Problem, shares: Mapping[str, float]) -> float:
    def usages(factor: float) -> list[float]:
        return [_usage(problem, problem.predict(_narrowed(problem, factor, shares)))]

    return calibrated(usages, 0.0, 1.0)


def _narrowed(problem: Problem, factor: float, shares: Mapping[str, float]) -> Architecture:
    widths = {g.name: problem.widths.of(g, min(factor * shares[g.name], 1.0)) for g in problem.space.groups}
    return problem.space.architecture(widths=widths)


def _shares(problem: Problem, taper: float) -> dict[str, float]:
    proposals = Proposals(problem.predict)

    def used(architecture: Architecture) -> float:
        return _usage(problem, proposals.cost(architecture))

    return tapered(problem.space.full, problem.widths, used=used, macs=proposals.macs, power=taper)


def _usage(problem: Problem, cost: Cost | None) -> float:
    return Scoring(problem.reward).usage(cost)
