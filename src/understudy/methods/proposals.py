"""What exact predicted costs give every searcher for free: proposals that fit the budgets. No torch."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import TypeVar

from understudy.config.widths import Widths
from understudy.core.answers import Answers
from understudy.core.architecture import Architecture, Layer, Space, Unit
from understudy.core.evaluation import Cost, Evaluation
from understudy.core.figures import FIGURE, FIGURES
from understudy.core.goal import Budgets, Reward
from understudy.methods.base import Predict

T = TypeVar("T")

CALIBRATION = 16  # draws whose median is led to the budgets
REMOVAL_BIAS = 12.0  # how far below its usual bias keeping is led
SHRINKAGE_BIAS = (-20.0, 20.0)  # between these, factors are led: nearly all the narrowest, nearly all the widest
_PEAK = 4.5  # how sharply factors gather where a budget leads them: half of 1 / variance, in `positions`
_STEPS = 8  # of a bisection
_SCALES = 12  # of the bisection of a scale of widths
_RESAMPLES = 20  # draws more for each student while what is drawn breaks a budget or was proposed before
_TRIES = 2  # draws that are repaired for each student that is missing
_FIELDS = tuple(figure.field for figure in FIGURES)  # of Cost
_LEAST_SHARE = 0.001  # below it, a first stage can do nothing about a figure and is not asked to


def offered_units(space: Space, granularity: str) -> list[Unit]:
    """Return the units that one removal takes: whole ones ("units") or single layers ("layers")."""
    return [unit for unit in space.units if (unit.kind == "layer") == (granularity == "layers")]


def nearest_kernel(layer: Layer, factor: float) -> int:
    """Return the legal kernel size nearest to that share of the layer's, the larger one of two equally near."""
    legal = [kernel for kernel in layer.kernels if kernel <= layer.kernel]
    return min(legal, key=lambda kernel: (abs(kernel - factor * layer.kernel), -kernel))


def positions(factors: Sequence[float]) -> list[float]:
    """Return where each factor stands between the smallest (-1) and the largest (1), by its logarithm."""
    logs = [math.log(factor) for factor in factors]
    middle, half = (max(logs) + min(logs)) / 2.0, max((max(logs) - min(logs)) / 2.0, 1e-9)
    return [(log - middle) / half for log in logs]


def gathered(factors: Sequence[float]) -> list[float]:
    """Return the logits of factors that gather in the middle; a bias moves where they gather.

    With a budget the widths of different layers should not be far apart before anything is learned: one narrow layer
    spoils a student, and uniform widths are a good one.
    """
    return [-_PEAK * position**2 for position in positions(factors)]


def usage(cost: Cost | None, budgets: Budgets) -> float:
    """Return the largest share of a budget that a predicted cost takes; above 1 breaks it.

    0 where no budget is set, infinity for an architecture that cannot be built (None).

    Raises:
        GoalError: there is a budget on latency, but the cost has not even an estimate of it.
    """
    if cost is None:
        return math.inf
    return max((used for _, used in budgets.used(cost)), default=0.0)


@dataclass(frozen=True, kw_only=True)
class Foresight:
    """Sees the cost that is left after a first stage as what a second one is expected to make of it.

    Where both stages together are asked for a reduction of F and the first for F to the power of s, a
    figure x of the teacher's X becomes `X (x / X)^(1/s)`, and 0 where s is: nothing is asked. So one goal
    and one reward serve both stages. No second stage gets below what is left at its narrowest: a figure is
    never less than that.
    """

    teacher: Cost
    shares: tuple[tuple[str, float], ...]  # field of Cost -> s
    narrowest: Predict = lambda architecture: None  # cost of the same units with all that is left at its narrowest

    def __call__(self, cost: Cost, architecture: Architecture | None = None) -> Cost:
        """Return the cost to expect in the end."""
        changes: dict[str, float] = {}
        for name, share in self.shares:
            own, left = getattr(self.teacher, name), getattr(cost, name)
            if own and left is not None:
                expected = own * (left / own) ** (1.0 / share) if share > 0.0 else 0 * own
                changes[name] = expected if isinstance(own, float) else math.ceil(expected - 1e-9)
        least = None if architecture is None else self.narrowest(architecture)
        if least is not None:
            known = {name: figure for name in _FIELDS if (figure := getattr(least, name)) is not None}
            changes |= {name: max(changes.get(name, 0), figure) for name, figure in known.items()}
        return replace(cost, **changes)  # type: ignore[arg-type]

    def of(self, evaluation: Evaluation) -> Evaluation:
        """Return the evaluation with the cost to expect in the end."""
        return (
            evaluation
            if evaluation.cost is None
            else replace(evaluation, cost=self(evaluation.cost, evaluation.architecture))
        )


def foresight(
    space: Space,
    units: Iterable[Unit],
    reward: Reward,
    predict: Predict,
    *,
    share: float,
    narrowest: Predict = lambda architecture: None,
) -> Foresight:
    """Return what a first stage that removes `units` is asked for, in view of a second one.

    Of a reduction of F: F to the power of `share`, or, where removing all units reaches less than F, what
    they reach to that power. `narrowest` is what `narrowest_of` returns.
    """
    teacher, least = reward.teacher_cost, _least(space, list(units), predict)
    shares = {"parameters": share}
    for limit, most in reward.budgets.limits():
        name = FIGURE[limit].field
        asked = (getattr(teacher, limit) or 0.0) / most
        if asked > 1.0:
            reached = (getattr(teacher, name) or 0.0) / (least.get(name) or math.inf) or math.inf
            possible = math.log(max(min(asked, reached), 1.0)) / math.log(asked)
            shares[name] = share * possible if share * possible > _LEAST_SHARE else 0.0
    return Foresight(teacher=teacher, shares=tuple(shares.items()), narrowest=narrowest)


def narrowest_of(space: Space, predict: Predict, widths: Widths) -> Predict:
    """Return a function that predicts an architecture at the smallest factor of all widths, with the least kernels."""
    narrow = {group.name: widths.of(group, min(widths.factors)) for group in space.groups}
    smallest = {layer.name: layer.kernels[0] for layer in space.layers if layer.kernels}
    known: dict[frozenset[str], Cost | None] = {}

    def narrowest(architecture: Architecture) -> Cost | None:
        removed = architecture.removed
        if removed not in known:
            known[removed] = predict(space.architecture(removed=removed, widths=narrow, kernels=smallest))
        return known[removed]

    return narrowest


def _least(space: Space, units: list[Unit], predict: Predict) -> dict[str, float]:
    """Return the least of each figure with all units removed, or all but those that make images smaller."""
    pools = {layer.name for layer in space.layers if layer.type == "pool"}
    choices = [units, [unit for unit in units if not pools.intersection(unit.layers)]]
    costs = [cost for removed in choices if (cost := predict(space.architecture(removed=[u.name for u in removed])))]
    known = [name for name in _FIELDS if costs and all(getattr(cost, name) is not None for cost in costs)]
    return {name: min(getattr(cost, name) for cost in costs) for name in known}


@dataclass(frozen=True)
class Scoring:
    """The reward of a stage; the first one's looks ahead to what the second will make of a student."""

    reward: Reward
    foresee: Foresight | None = None

    def usage(self, cost: Cost | None, architecture: Architecture | None = None) -> float:
        """Return the share of the stage's budgets that a predicted cost takes, that of the architecture if given."""
        expected = self.foresee(cost, architecture) if self.foresee and cost else cost
        return usage(expected, self.reward.budgets)

    def __call__(self, evaluation: Evaluation, *, update: int | None = None) -> float:
        """Return the reward at that update of the stage (None: after the phase)."""
        return self.reward(self.foresee.of(evaluation) if self.foresee else evaluation, update=update)

    def worth(self, cost: Cost | None, architecture: Architecture) -> float:
        """Return the reward of an architecture of that predicted cost at the score of the teacher."""
        evaluation = Evaluation(
            architecture=architecture,
            teacher="",
            data="",
            recipe="",
            cost=cost,
            score=self.reward.teacher_score,
            seconds=0.0,
            seed=0,
        )
        return self(evaluation)

    def merit(self, evaluation: Evaluation) -> tuple[float, bool, float]:
        """Return what a start of the next stage is chosen by: reward, then whether it fits, then score."""
        fits = evaluation.status != "failed" and self.usage(evaluation.cost, evaluation.architecture) <= 1.0
        return self(evaluation), fits, evaluation.score


def calibrated(usages_at: Callable[[float], Iterable[float]], low: float, high: float) -> float:
    """Return the largest number in `low..high` at which the median usage is at most 1, by bisection.

    Usages rise with the number. `high` if even that fits, `low` if nothing does.
    """

    def fits(number: float) -> bool:
        ordered = sorted(usages_at(number))
        return ordered[len(ordered) // 2] <= 1.0

    if fits(high):
        return high
    for _ in range(_STEPS):
        middle = (low + high) / 2.0
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def scaled(at: Callable[[float], Architecture], most: float, used: Callable[[Architecture], float]) -> Architecture:
    """Return the architecture at the largest scale, up to `most`, that keeps the budgets.

    What a draw says then is which widths are larger than others, and alike ones give uniform width exactly. Without
    budgets, and where no scale keeps them, it is the one at scale 1.

    Args:
        at: the architecture with all drawn widths times a scale.
        most: the largest scale that makes a difference.
        used: the share of the budgets that an architecture takes.
    """
    drawn = at(1.0)
    share = used(drawn)
    if share == 0.0 or math.isinf(share):
        return drawn
    low, high = (1.0, most) if share <= 1.0 else (0.0, 1.0)
    if used(at(high)) <= 1.0:
        return at(high)
    for _ in range(_SCALES):
        middle = (low + high) / 2.0
        low, high = (middle, high) if used(at(middle)) <= 1.0 else (low, middle)
    return at(low) if used(at(low)) <= 1.0 else drawn


class Proposals:
    """Picks, from draws of a searcher, architectures that fit the budgets and were not proposed before.

    Predicted costs are exact and free, students are not: what breaks a budget or was proposed before is drawn again,
    up to `resamples` times for each student.
    """

    def __init__(self, predict: Predict, *, resamples: int = _RESAMPLES) -> None:
        self._costs = Answers(predict)
        self._resamples = resamples
        self._seen: set[str] = set()

    def cost(self, architecture: Architecture) -> Cost | None:
        """Return the predicted cost, which is asked for once."""
        return self._costs(architecture)

    def macs(self, architecture: Architecture) -> float:
        """Return the predicted MACs, infinity for an architecture that cannot be built."""
        cost = self.cost(architecture)
        return cost.macs if cost else math.inf

    def pick(
        self,
        draws: Iterator[tuple[T, Architecture]],
        count: int,
        used: Callable[[Architecture], float],
        repair: Callable[[tuple[T, Architecture]], tuple[T, Architecture]] | None = None,
        *,
        order: Callable[[list[tuple[T, Architecture]]], list[tuple[T, Architecture]]] = list,
        among: int = 1,
    ) -> list[tuple[T, Architecture]]:
        """Return `count` of the draws; where the resamples run out, the cheapest of the others fill up.

        Args:
            draws: without end.
            count: how many.
            used: the share of the budgets that an architecture takes.
            repair: brings a draw that breaks a budget within it, if it can; those that can fill up first.
            order: puts those first that are to be picked among the draws that could be.
            among: how many such draws there should be for each that is picked.
        """
        found: list[tuple[T, Architecture]] = []
        refused: list[tuple[float, bool, int, tuple[T, Architecture]]] = []
        offered = set(self._seen)
        for number, draw in enumerate(islice(draws, count * (among + self._resamples))):
            share, seen = max(used(draw[1]), 1.0), draw[1].digest in offered
            if seen or share > 1.0:
                refused.append((share, seen, number, draw))
                continue
            offered.add(draw[1].digest)
            found.append(draw)
            if len(found) == count * among:
                break
        picked = order(found)[:count]
        self._seen.update(draw[1].digest for draw in picked)
        if len(picked) == count:
            return picked
        refused.sort(key=lambda refusal: refusal[:3])
        over = [draw for share, *_, draw in refused if share > 1.0]
        for draw in map(repair, over[: _TRIES * (count - len(picked))]) if repair else ():
            if len(picked) < count and draw[1].digest not in self._seen and used(draw[1]) <= 1.0:
                self._seen.add(draw[1].digest)
                picked.append(draw)
        for *_, draw in refused[: count - len(picked)]:
            self._seen.add(draw[1].digest)
            picked.append(draw)
        return picked
