"""The widths of least error within budgets, exactly, as an integer program. No torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import csr_array

from understudy.core.architecture import Architecture
from understudy.core.evaluation import Cost
from understudy.core.figures import FIGURE
from understudy.core.goal import Budgets
from understudy.methods.base import Predict
from understudy.methods.proposals import calibrated, usage

Floats = npt.NDArray[np.float64]

_SUMS = ("parameters", "macs", "size_mb")  # figures that are sums of products of widths
_WORST = 1e6  # error that stands for an infinite one
_GAP = 1e-4  # of the best error, at which an answer is good enough
_NODES = 20_000  # of the search tree: a limit on time would depend on the machine
_TIGHTENINGS = 4
_ROUNDING = 1e-12  # of the whole cost, below which a coefficient is none


@dataclass(frozen=True, kw_only=True)
class Options:
    """The widths (channels) that a group may have, rising, the teacher's last, and the error that each costs."""

    group: str
    widths: tuple[int, ...]
    errors: tuple[float, ...]


def solved(start: Architecture, options: Sequence[Options], budgets: Budgets, predict: Predict) -> Architecture | None:
    """Return an architecture with other widths whose sum of errors is the least that keeps the budgets.

    Parameters, MACs and bytes of weights are quadratic in the widths, and their coefficients follow from predicted
    costs. A budget on another figure is kept by the largest budget on MACs that does. The answer is checked by its
    predicted cost; where that is no such sum (products of three widths), budgets are tightened by what they were
    broken by.

    Args:
        start: an architecture with all widths as in the teacher.
        options: of each group; one that the architecture does not have is left alone.
        budgets: at least one on cost.
        predict: the cost of an architecture.

    Returns:
        None where there is no such architecture, or it was not found.
    """
    known = _Quadratic.of(start, options, predict)
    if known is None:
        return None
    limits = {name: most for name, most in budgets.limits() if name in _SUMS}

    def within(limits: Mapping[str, float]) -> Architecture | None:
        """Return the best within limits on sums, tightened by what it breaks them by."""
        asked = dict(limits)
        for _ in range(_TIGHTENINGS):
            found = known.best(start, asked)
            over = np.inf if found is None else usage(predict(found), Budgets(**limits))
            if over <= 1.0 or found is None:
                return found
            asked = {name: most / over for name, most in asked.items()}
        return None

    if len(limits) == len(budgets.limits()):
        return within(limits)
    tried: dict[float, Architecture | None] = {}

    def used(share: float) -> list[float]:
        """Return the share of the budgets that the best with at most this share of the MACs takes."""
        tried[share] = within({**limits, "macs": min(share * known.full["macs"], limits.get("macs", np.inf))})
        found = tried[share]
        return [0.0 if found is None else usage(predict(found), budgets)]

    return tried[largest] if (largest := calibrated(used, 0.0, 1.0)) in tried else None


@dataclass(frozen=True, eq=False)
class _Quadratic:
    """Sums of error and cost as functions of which of its widths each of G groups has (K of them in all).

    A cost is `full + alone @ x` and, for each pair of groups, `pairs[g, h]` times the channels that both lose. Products
    of two choices are made linear: beside the choice x of a width stands a number z that is what the group's partners
    lose where x is 1 and 0 where it is 0.
    """

    options: tuple[Options, ...]
    full: dict[str, float]
    alone: dict[str, Floats]  # by figure, (K,): what each width changes
    pairs: dict[str, Floats]  # by figure, (G, G), symmetric

    @classmethod
    def of(cls, start: Architecture, options: Sequence[Options], predict: Predict) -> _Quadratic | None:
        """Return what predicted costs are made of, from one and two groups changed; None if some are impossible."""
        there = tuple(o for o in options if start.with_width(o.group, o.widths[0]) != start)
        narrow = [start.with_width(o.group, o.widths[0]) for o in there]
        asked = [start.with_width(o.group, width) for o in there for width in o.widths]
        both = [one.with_width(o.group, o.widths[0]) for i, one in enumerate(narrow) for o in there[:i]]
        costs = [predict(architecture) for architecture in (start, *narrow, *asked, *both)]
        if None in costs:
            return None
        lost = np.array([o.widths[-1] - o.widths[0] for o in there], dtype=float)
        full, alone, pairs = {}, {}, {}
        below = np.tril_indices(len(there), -1)
        for name in _SUMS:
            values = np.array([_figure(name, cost) for cost in costs])
            full[name] = float(values[0])
            ends = np.cumsum([1, len(there), len(asked)])
            single, alone[name] = values[1 : ends[1]], values[ends[1] : ends[2]] - values[0]
            matrix = np.zeros((len(there), len(there)))
            matrix[below] = values[ends[2] :] - single[below[0]] - single[below[1]] + values[0]
            pairs[name] = (matrix + matrix.T) / np.outer(lost, lost)
        return cls(there, full, alone, pairs)

    def best(self, start: Architecture, limits: Mapping[str, float]) -> Architecture | None:
        """Return the architecture with the least sum of errors within limits, None if there is none."""
        if not self.options:
            return start if all(self.full[name] <= most for name, most in limits.items()) else None
        sizes = [len(o.widths) for o in self.options]
        owner = np.repeat(np.arange(len(sizes)), sizes)
        errors = np.minimum(np.concatenate([o.errors for o in self.options]), _WORST)
        program = _Program(errors)
        choose = np.zeros((len(sizes), len(owner)))
        choose[owner, np.arange(len(owner))] = 1.0
        program.add(choose, {}, 1.0, 1.0)
        lost = np.concatenate([o.widths[-1] - np.array(o.widths, dtype=float) for o in self.options])
        for name, most in limits.items():
            self._limit(program, name, most, owner=owner, lost=lost)
        chosen = program.solved()
        if chosen is None:
            return None
        at = np.split(chosen, np.cumsum(sizes)[:-1])
        widths = {o.group: o.widths[int(part.argmax())] for o, part in zip(self.options, at, strict=True)}
        return start.space.architecture(removed=start.removed, widths=widths)

    def _limit(self, program: _Program, name: str, most: float, *, owner: npt.NDArray[np.int64], lost: Floats) -> None:
        """Add a limit on a figure, with the numbers that stand beside choices."""
        scale = 1.0 / self.full[name]
        pairs = np.where(self.pairs[name] > _ROUNDING * self.full[name], self.pairs[name], 0.0)
        degrees = (pairs > 0.0).sum(1)
        # Each pair belongs to the one of its groups that has fewer partners: so few numbers stand for all of them.
        order = np.lexsort((np.arange(len(degrees)), degrees))
        rank = np.argsort(order)
        owned = np.where(rank[:, None] < rank[None, :], pairs, 0.0) * scale  # (G, G): of g, what h adds
        partners = owned[:, owner] * lost  # (G, K): what each choice of a partner adds for a channel that g loses
        total = scale * self.alone[name]
        beside: dict[int, float] = {}
        for g in np.flatnonzero(partners.any(1)):
            mine = np.flatnonzero(owner == g)
            bounds = [[pick(partners[g, owner == h]) for h in range(len(degrees))] for pick in (np.min, np.max)]
            low, high = float(np.sum(bounds[0])), float(np.sum(bounds[1]))
            size = max(abs(low), abs(high))  # numbers are in units of it, since solvers know absolute tolerances
            low, high, row_of_partners = low / size, high / size, partners[g] / size
            numbers = [program.number(min(low, 0.0), max(high, 0.0)) for _ in mine]
            for choice, number in zip(mine, numbers, strict=True):
                row = np.zeros(len(owner))
                row[choice] = 1.0
                program.add(-low * row[None], {number: 1.0}, 0.0, np.inf)  # z >= low x
                program.add(-high * row[None], {number: 1.0}, -np.inf, 0.0)  # z <= high x
                beside[number] = size * float(lost[choice])
            program.add(
                -row_of_partners[None], dict.fromkeys(numbers, 1.0), 0.0, 0.0
            )  # their sum is what partners lose
        program.add(total[None], beside, -np.inf, most * scale - 1.0)


class _Program:
    """An integer program: choices that are 0 or 1, and numbers beside them."""

    def __init__(self, objective: Floats) -> None:
        self._objective = objective
        self._bounds: list[tuple[float, float]] = []  # of the numbers
        self._rows: list[tuple[Floats, dict[int, float], float, float]] = []

    def number(self, low: float, high: float) -> int:
        """Return a new number between two bounds."""
        self._bounds.append((low, high))
        return len(self._bounds) - 1

    def add(self, choices: Floats, numbers: Mapping[int, float], low: float, high: float) -> None:
        """Hold `choices @ x + numbers @ z` between two bounds, (rows, K) of them that share the numbers."""
        self._rows += [(row, dict(numbers), low, high) for row in choices]

    def solved(self) -> Floats | None:
        """Return the best choices (K,), None if there are none."""
        size = len(self._objective)
        data, rows, columns = list[float](), list[int](), list[int]()
        for index, (choices, numbers, _, _) in enumerate(self._rows):
            at = np.flatnonzero(choices)
            data += [*choices[at].tolist(), *numbers.values()]
            columns += [*at.tolist(), *(size + number for number in numbers)]
            rows += [index] * (len(at) + len(numbers))
        shape = (len(self._rows), size + len(self._bounds))
        held = np.array([row[2:] for row in self._rows])
        bounds = np.array([(0.0, 1.0)] * size + self._bounds)
        answer = milp(
            np.concatenate([self._objective, np.zeros(len(self._bounds))]),
            integrality=np.concatenate([np.ones(size), np.zeros(len(self._bounds))]),
            bounds=Bounds(bounds[:, 0], bounds[:, 1]),
            constraints=LinearConstraint(csr_array((data, (rows, columns)), shape=shape), held[:, 0], held[:, 1]),
            options={"mip_rel_gap": _GAP, "node_limit": _NODES},
        )
        return None if answer.x is None else np.asarray(answer.x[:size], dtype=np.float64)


def _figure(name: str, cost: Cost | None) -> float:
    value = None if cost is None else FIGURE[name].of(cost)
    assert value is not None, f"{name} is predicted for every architecture"
    return float(value)
