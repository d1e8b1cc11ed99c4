"""The yardsticks, random search and uniform widths. No torch."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from understudy.architecture import Architecture, Space
from understudy.config import N2N, RandomSearch, UniformWidth
from understudy.evaluation import Evaluation
from understudy.goal import Reward
from understudy.search.base import Searcher
from understudy.search.budget import (
    CALIBRATION,
    REMOVAL_LEAN,
    SHRINKAGE_LEAN,
    Predict,
    Proposals,
    Scoring,
    calibrated,
    foresight,
    nearest_kernel,
    offered_units,
)

_AT_A_TIME = 5
_START = N2N()  # whose untrained policies random search draws like


class RandomSearcher(Searcher):
    """Draws every unit, width and kernel independently, as the policies of N2N do before they have learned.

    It gets all of N2N's help that costs no training, so that what N2N does better is learned: the chance
    to keep a unit and the lean of the factors are calibrated on predicted costs, and what breaks a budget
    or was proposed before is drawn again.
    """

    def __init__(self, space: Space, reward: Reward, settings: RandomSearch, *, seed: int, predict: Predict) -> None:
        self._space, self._reward, self._settings = space, reward, settings
        self._numbers = np.random.default_rng(seed)
        self.proposals = Proposals(predict, redraws=settings.redraws)  # shared with a searcher that starts with this
        self._units = offered_units(space, "units")
        self._kernels = [layer for layer in space.layers if len(layer.kernels) > 1]
        self.left = self.students = settings.students  # to propose, now and in all
        self._bias, self._lean = _START.keep_bias, 0.0
        if reward.budgets.limits():
            self._calibrate(predict)

    def _calibrate(self, predict: Predict) -> None:
        shrinks = bool(self._space.groups or self._kernels)
        share = _START.stage_one_share if shrinks else 1.0
        ahead = foresight(self._space, self._units, self._reward, predict, share=share)
        first, last = Scoring(self._reward, ahead), Scoring(self._reward)
        draws = [self._draw() for _ in range(CALIBRATION)]

        def usages(scoring: Scoring, bias: float, lean: float | None) -> list[float]:
            return [scoring.usage(self.proposals.cost(self._decode(draw, bias, lean))) for draw in draws]

        self._bias = calibrated(lambda bias: usages(first, bias, None), self._bias - REMOVAL_LEAN, self._bias)
        if shrinks:
            self._lean = calibrated(lambda lean: usages(last, self._bias, lean), *SHRINKAGE_LEAN)

    def _draw(self) -> NDArray[np.float64]:
        """Return uniform numbers, one for each decision: units, groups, kernels."""
        return self._numbers.random(len(self._units) + len(self._space.groups) + len(self._kernels))

    def _decode(self, draw: NDArray[np.float64], bias: float, lean: float | None) -> Architecture:
        """Return what a draw means at that logit to keep and lean of the factors (None: full widths and kernels)."""
        keep, numbers = 1.0 / (1.0 + math.exp(-bias)), iter(draw.tolist())
        removed = [unit.name for unit in self._units if next(numbers) >= keep]
        if lean is None:
            return self._space.architecture(removed=removed)
        factors = np.array(_START.factors)
        chances = np.exp(lean * (2.0 * factors - factors.min() - factors.max()) / np.ptp(factors))
        below = np.cumsum(chances[:-1] / chances.sum())

        def factor() -> float:
            return float(factors[np.searchsorted(below, next(numbers), side="right")])

        settings = self._settings
        widths = {
            group.name: group.nearest(factor() * group.width, round_to=settings.round_to, minimum=settings.min_width)
            for group in self._space.groups
        }
        kernels = {layer.name: nearest_kernel(layer, factor()) for layer in self._kernels}
        return self._space.architecture(removed=removed, widths=widths, kernels=kernels)

    def drawn(self) -> Architecture:
        """Return an architecture, whatever it costs and whether or not it was proposed before."""
        return self._decode(self._draw(), self._bias, self._lean)

    def propose(self) -> list[Architecture]:
        count = min(_AT_A_TIME, self.left)
        if not count:
            return []

        def draws() -> Iterator[tuple[None, Architecture]]:
            while True:
                yield None, self.drawn()

        scoring = Scoring(self._reward)
        picked = self.proposals.pick(draws(), count, lambda a: scoring.usage(self.proposals.cost(a)))
        return [architecture for _, architecture in picked]

    def learn(self, evaluations: Sequence[Evaluation]) -> None:
        self.left -= len(evaluations)

    @property
    def updates(self) -> int:
        return -(-self._settings.students // _AT_A_TIME)

    @property
    def stage(self) -> str:
        return "random"

    def rewards(self, evaluations: Sequence[Evaluation]) -> list[float]:
        return [self._reward(evaluation) for evaluation in evaluations]


class UniformSearcher(Searcher):
    """One factor for all widths, from the widest that keeps the budgets down in even steps; draws nothing."""

    def __init__(self, space: Space, reward: Reward, settings: UniformWidth, *, predict: Predict) -> None:
        self._reward = reward
        rounding = {"round_to": settings.round_to, "minimum": settings.min_width}

        def at(factor: float) -> Architecture:
            return space.architecture(widths={g.name: g.nearest(factor * g.width, **rounding) for g in space.groups})

        scoring = Scoring(reward)
        widest = calibrated(lambda factor: [scoring.usage(predict(at(factor)))], 0.0, 1.0)
        factors = np.linspace(widest, 0.0, settings.students).tolist()
        self._left = list(dict.fromkeys(at(factor) for factor in factors))
        self._updates = -(-len(self._left) // _AT_A_TIME)

    def propose(self) -> list[Architecture]:
        return self._left[:_AT_A_TIME]

    def learn(self, evaluations: Sequence[Evaluation]) -> None:
        self._left = self._left[len(evaluations) :]

    @property
    def updates(self) -> int:
        return self._updates

    @property
    def stage(self) -> str:
        return "uniform"

    def rewards(self, evaluations: Sequence[Evaluation]) -> list[float]:
        return [self._reward(evaluation) for evaluation in evaluations]
