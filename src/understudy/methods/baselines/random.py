"""The yardsticks, random search and uniform widths. No torch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import count

import numpy as np
from numpy.typing import NDArray

from understudy.config.methods import N2N, RandomSearch, UniformWidth
from understudy.core.architecture import Architecture, Group, Space
from understudy.core.evaluation import Evaluation
from understudy.core.goal import Reward
from understudy.methods.base import Searcher
from understudy.methods.proposals import (
    CALIBRATION,
    SHRINKAGE_LEAN,
    Predict,
    Proposals,
    Scoring,
    calibrated,
    gathered,
    grown,
    offered_units,
    positions,
)

_AT_A_TIME = 5
_START = N2N(revisit=0.1)  # whose untrained policies random search draws like; fewer removals, as none are ranked


class RandomSearcher(Searcher):
    """Draws every unit, width and kernel independently, as N2N does before it has learned.

    It starts where N2N starts, but that half as many units and kernels change, and with `fill` uses budgets up as N2N
    does, so that what N2N does better is learned. With a budget widths gather around a factor that is calibrated on
    predicted costs, so that the median of what is drawn keeps the budgets, units and kernels go where that is not
    enough, the first student is the widest uniform one, and what breaks a budget or was proposed before is drawn again.
    """

    def __init__(self, space: Space, reward: Reward, settings: RandomSearch, *, seed: int, predict: Predict) -> None:
        self._space, self._reward, self._settings = space, reward, settings
        self._numbers = np.random.default_rng(seed)
        self.proposals = Proposals(predict, redraws=settings.redraws)  # shared with a searcher that starts with this
        self._units = offered_units(space, "units")
        self._kernels = [layer for layer in space.layers if len(layer.kernels) > 1]
        self.left = self.students = settings.students  # to propose, now and in all
        self._keep, self._logits = 1.0 - _START.revisit, np.zeros(len(_START.factors))
        self._first: list[Architecture] = []
        self._ladders = {
            group.name: sorted({_width(group, factor, settings) for factor in _START.factors}) for group in space.groups
        }
        if reward.budgets.limits():
            self._calibrate()

    def _calibrate(self) -> None:
        draws, scoring = [self._draw() for _ in range(CALIBRATION)], Scoring(self._reward)
        peak, slope = np.array(gathered(_START.factors)), np.array(positions(_START.factors))

        def usages(keep: float, lean: float) -> list[float]:
            self._keep, self._logits = keep, peak + lean * slope
            return [scoring.usage(self.proposals.cost(self._decode(draw))) for draw in draws]

        keep = self._keep
        lean = calibrated(lambda lean: usages(keep, lean), *SHRINKAGE_LEAN)
        self._keep = calibrated(lambda keep: usages(keep, lean), 0.0, keep)
        self._logits = peak + lean * slope
        uniform = widest_uniform(self._space, self._reward, self._settings, self.proposals.cost)
        first = self.filled(uniform) if self._settings.fill else uniform
        self._first = [first] if scoring.usage(self.proposals.cost(first)) <= 1.0 else []

    def _draw(self) -> NDArray[np.float64]:
        """Return uniform numbers, one for each decision: units, groups, kernels."""
        return self._numbers.random(len(self._units) + len(self._space.groups) + len(self._kernels))

    def _decode(self, draw: NDArray[np.float64]) -> Architecture:
        """Return what a draw means at the present chance to keep and logits of the factors."""
        keep, numbers, settings = self._keep, iter(draw.tolist()), self._settings
        removed = [unit.name for unit in self._units if next(numbers) >= keep]
        chances = np.exp(self._logits - self._logits.max())
        below = np.cumsum(chances[:-1] / chances.sum())
        widths = {
            group.name: _width(
                group, _START.factors[int(np.searchsorted(below, next(numbers), side="right"))], settings
            )
            for group in self._space.groups
        }
        kernels = dict[str, int]()
        for layer in self._kernels:
            smaller, number = [kernel for kernel in layer.kernels if kernel < layer.kernel], next(numbers)
            if smaller and number >= keep:
                kernels[layer.name] = smaller[int((number - keep) / (1.0 - keep) * len(smaller))]
        return self._space.architecture(removed=removed, widths=widths, kernels=kernels)

    def drawn(self) -> Architecture:
        """Return an architecture, whatever it costs and whether or not it was proposed before."""
        return self._decode(self._draw())

    def filled(self, architecture: Architecture) -> Architecture:
        """Return an architecture that uses the budgets up: widths grow in turn, a factor at a time, while they fit."""

        def wider(now: Architecture, name: str) -> Architecture | None:
            width = next((width for width in self._ladders[name] if width > now.width(name)), None)
            wide = now if width is None else now.with_width(name, width).canonical()
            return None if wide == now else wide  # a group that is gone cannot grow

        return grown(architecture, self._ladders, wider, lambda itself: itself, self._usage)

    def _usage(self, architecture: Architecture) -> float:
        return Scoring(self._reward).usage(self.proposals.cost(architecture))

    def _draws(self) -> Iterator[tuple[None, Architecture]]:
        while self._first:
            yield None, self._first.pop()
        for number in count():
            drawn = self.drawn()
            yield None, self.filled(drawn) if self._settings.fill and number % 2 else drawn

    def propose(self) -> list[Architecture]:
        students = min(_AT_A_TIME, self.left)
        if not students:
            return []
        picked = self.proposals.pick(self._draws(), students, self._usage)
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


def widest_uniform(
    space: Space, reward: Reward, settings: RandomSearch | UniformWidth, predict: Predict
) -> Architecture:
    """Return the architecture with the largest factor for all widths that keeps the budgets, else the narrowest."""
    return _uniform(space, _widest_factor(space, reward, settings, predict), settings)


def _widest_factor(space: Space, reward: Reward, settings: RandomSearch | UniformWidth, predict: Predict) -> float:
    scoring = Scoring(reward)
    return calibrated(lambda factor: [scoring.usage(predict(_uniform(space, factor, settings)))], 0.0, 1.0)


def _uniform(space: Space, factor: float, settings: RandomSearch | UniformWidth) -> Architecture:
    return space.architecture(widths={group.name: _width(group, factor, settings) for group in space.groups})


def _width(group: Group, factor: float, settings: RandomSearch | UniformWidth) -> int:
    return group.nearest(factor * group.width, round_to=settings.round_to, minimum=settings.min_width)


class UniformSearcher(Searcher):
    """One factor for all widths, from the widest that keeps the budgets down in even steps; draws nothing."""

    def __init__(self, space: Space, reward: Reward, settings: UniformWidth, *, predict: Predict) -> None:
        self._reward = reward
        widest = _widest_factor(space, reward, settings, predict)
        factors = np.linspace(widest, 0.0, settings.students).tolist()
        self._left = list(dict.fromkeys(_uniform(space, factor, settings) for factor in factors))
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
