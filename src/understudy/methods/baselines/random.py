"""Random search, the baseline of all others. No torch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import count

import numpy as np
from numpy.typing import NDArray

from understudy.config.methods import RandomSearch
from understudy.core.architecture import Architecture
from understudy.core.evaluation import Evaluation
from understudy.methods.base import Problem, Searcher
from understudy.methods.baselines.uniform import AT_A_TIME
from understudy.methods.decisions import UNIT_OPTIONS, Decisions, kernel_options
from understudy.methods.firsts import first_students
from understudy.methods.proposals import (
    CALIBRATION,
    SHRINKAGE_BIAS,
    Proposals,
    Scoring,
    calibrated,
    gathered,
    offered_units,
    positions,
    scaled,
)

_KEEP = 0.9  # chance to keep a unit or a kernel; N2N, whose draws are ranked, changes twice as many


class RandomSearcher(Searcher):
    """Draws every unit, width and kernel independently, as N2N does before it has learned.

    It starts where N2N starts, but that half as many units and kernels change, and with `fill` uses budgets up as N2N
    does, so that what N2N does better is learned. With a budget widths gather around a factor that is calibrated on
    predicted costs, so that the median of what is drawn keeps the budgets, units and kernels go where that is not
    enough, the first students are uniform ones of several depths, and what breaks a budget or was proposed before is
    drawn again.
    """

    def __init__(self, problem: Problem, settings: RandomSearch, *, students: int | None = None) -> None:
        super().__init__(problem)
        space = self._space = problem.space
        self._settings, self._widths = settings, problem.widths
        self._numbers = np.random.default_rng(problem.seed)
        self.proposals = Proposals(problem.predict)  # shared with a searcher that starts with this
        kernels = {("kernel", layer.name): legal for layer in space.layers if len(legal := kernel_options(layer)) > 1}
        self._decided = Decisions(
            space,
            {
                **{("unit", unit.name): UNIT_OPTIONS for unit in offered_units(space, "units")},
                **{("width", group.name): self._widths.options(group) for group in space.groups},
                **kernels,
            },
        )
        self.left = self.students = settings.students if students is None else students  # to propose, now and in all
        self._keep, self._logits = _KEEP, np.zeros(len(self._widths.factors))
        self._first: list[Architecture] = []  # to be proposed before any that are drawn
        if problem.reward.budgets.limits():
            self._calibrate()

    def _calibrate(self) -> None:
        draws, scoring = [self._draw() for _ in range(CALIBRATION)], Scoring(self.problem.reward)
        peak, slope = np.array(gathered(self._widths.factors)), np.array(positions(self._widths.factors))

        def usages(keep: float, bias: float) -> list[float]:
            self._keep, self._logits = keep, peak + bias * slope
            return [scoring.usage(self.proposals.cost(self._decode(draw))) for draw in draws]

        keep = self._keep
        bias = calibrated(lambda bias: usages(keep, bias), *SHRINKAGE_BIAS)
        self._keep = calibrated(lambda keep: usages(keep, bias), 0.0, keep)
        self._logits = peak + bias * slope
        units = [unit.name for unit in offered_units(self._space, "units")]
        self._first = first_students(self._space.full, units, self._widths, used=self._usage, macs=self.proposals.macs)

    def _draw(self) -> NDArray[np.float64]:
        """Return uniform numbers, one for each decision: units, groups, kernels."""
        return self._numbers.random(len(self._decided.names))

    def _decode(self, draw: NDArray[np.float64]) -> Architecture:
        """Return what a draw means at the present chance to keep and logits of the factors."""
        chances = np.exp(self._logits - self._logits.max())
        below, keep = np.cumsum(chances[:-1] / chances.sum()), self._keep
        choices = []
        for number, ((kind, _), options) in zip(draw.tolist(), self._decided.options.items(), strict=True):
            if kind == "width":
                choices.append(int(np.searchsorted(below, number, side="right")))
            else:  # the last option is the teacher's, the others are as likely as one another
                last = len(options) - 1
                choices.append(last if number < keep else int((number - keep) / (1.0 - keep) * last))
        return self._decided.architecture(choices)

    def drawn(self) -> Architecture:
        """Return an architecture, whatever it costs and whether or not it was proposed before."""
        return self._decode(self._draw())

    def filled(self, architecture: Architecture) -> Architecture:
        """Return an architecture whose widths, times one factor for all, use the budgets up."""
        groups = self._space.groups

        def at(scale: float) -> Architecture:
            widths = {g.name: self._widths.nearest(g, min(scale * architecture.width(g.name), g.width)) for g in groups}
            return architecture.with_widths(widths)

        return scaled(at, 1.0 / self._widths.factors[0], self._usage) if groups else architecture

    def _usage(self, architecture: Architecture) -> float:
        return Scoring(self.problem.reward).usage(self.proposals.cost(architecture))

    def _draws(self) -> Iterator[tuple[None, Architecture]]:
        while self._first:
            yield None, self._first.pop(0)
        for number in count():
            drawn = self.drawn()
            yield None, self.filled(drawn) if self._settings.fill and number % 2 else drawn

    def begin_with(self, students: Sequence[Architecture]) -> None:
        """Propose these before any other."""
        self._first = [*students, *self._first]

    def propose(self) -> list[Architecture]:
        students = min(AT_A_TIME, self.left)
        if not students:
            return []
        picked = self.proposals.pick(self._draws(), students, self._usage)
        return [architecture for _, architecture in picked]

    def learn(self, evaluations: Sequence[Evaluation]) -> None:
        self.left -= len(evaluations)

    @property
    def updates(self) -> int:
        return -(-self.students // AT_A_TIME)

    @property
    def stage(self) -> str:
        return "random"
