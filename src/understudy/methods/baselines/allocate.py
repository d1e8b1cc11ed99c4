"""What each width costs alone, measured once, and an exact solver for any budget. No torch."""

from __future__ import annotations

import math
from collections.abc import Iterator

from understudy.config.methods import Allocate
from understudy.core.architecture import Architecture
from understudy.core.errors import ConfigError
from understudy.methods.base import Glance, Problem
from understudy.methods.baselines.budgeted import Options, solved
from understudy.methods.baselines.once import Once
from understudy.methods.proposals import Proposals, Scoring

STUDENTS = 5
"""How many it proposes: as many as one of N2N's updates."""
_DEPTHS = (0, 1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48)  # how many units may go


class AllocateSearcher(Once):
    """Proposes the students whose widths cost least in error, as a sum over groups, within the budgets.

    As HALP (Shen et al., 2022) and LANA (Molchanov et al., 2022) do: the error of each group at each width, everything
    else as in the teacher, is looked at once, without training; an integer program then gives the best widths for a
    budget. Errors of removed units do not add up, so depth goes by whole candidates: units in the order of what each
    costs alone for what it saves, so many at a time, each with widths of its own, and those that look best as they are
    are proposed.
    """

    def __init__(self, problem: Problem, settings: Allocate) -> None:
        super().__init__(problem)
        if not problem.reward.budgets.limits():
            raise ConfigError("method allocate must have a budget on cost to allocate, such as goal.params 4x")
        if problem.glance is None:
            raise ConfigError("method allocate must look at untrained students, but nothing here can")
        self._glance: Glance = problem.glance
        self._scoring, self._proposals = Scoring(problem.reward), Proposals(problem.predict)

    @property
    def stage(self) -> str:
        return "allocate"

    def best(self) -> list[Architecture]:
        """Return the candidates that look best, each once."""
        found = {architecture.digest: architecture for architecture in self._candidates()}
        if not found:  # the narrowest there is, which may break a budget as little as it can
            space = self.problem.space
            narrow = {group.name: options[0] for group, options in zip(space.groups, self._widths(), strict=True)}
            return [space.architecture(widths=narrow)]
        ranked = sorted(found.values(), key=lambda architecture: (self._glance(architecture), architecture.digest))
        return ranked[:STUDENTS]

    def _candidates(self) -> Iterator[Architecture]:
        """Yield the best widths for each number of units that go."""
        options = [
            self._options(group.name, widths)
            for group, widths in zip(self.problem.space.groups, self._widths(), strict=True)
        ]
        order = self._removals()
        for count in (depth for depth in _DEPTHS if depth <= len(order)):
            start = self.problem.space.architecture(removed=order[:count])
            architecture = solved(start, options, self.problem.reward.budgets, self._proposals.cost)
            if architecture is not None:
                yield architecture

    def _widths(self) -> list[list[int]]:
        """Return the widths (channels, rising) that each group may have, the teacher's last."""
        return [sorted({*self.problem.widths.options(group), group.width}) for group in self.problem.space.groups]

    def _options(self, name: str, widths: list[int]) -> Options:
        """Return what the widths of a group cost alone; a narrower one is taken to cost no less than a wider one."""
        full, errors = self.problem.space.full, [0.0]
        for width in reversed(widths[:-1]):
            errors.append(max(errors[-1], self._lost(full.with_width(name, width))))
        return Options(group=name, widths=tuple(widths), errors=tuple(reversed(errors)))

    def _lost(self, architecture: Architecture) -> float:
        """Return how much farther from the teacher a student is than one with nothing changed."""
        return self._glance(architecture) - self._glance(self.problem.space.full)

    def _removals(self) -> list[str]:
        """Return the units that can go together, in the order of what each costs for what it saves."""
        space = self.problem.space
        whole, worth = self._scoring.usage(self._proposals.cost(space.full)), dict[str, float]()
        for unit in (unit for unit in space.units if unit.kind != "layer"):
            left = space.full.without(unit.name)
            saved = whole - self._scoring.usage(self._proposals.cost(left))
            if saved > 0.0 and math.isfinite(error := self._lost(left)):
                worth[unit.name] = error / saved
        order, gone = list[str](), set[str]()
        for name in sorted(worth, key=lambda name: (worth[name], name)):
            layers = set(space.unit(name).layers)
            together = space.architecture(removed=[*order, name])
            if not layers & gone and self._proposals.cost(together) is not None:
                order.append(name)
                gone |= layers
        return order
