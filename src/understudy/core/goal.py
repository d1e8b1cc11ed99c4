"""What the user wants, as numbers, and how well an evaluation serves it. No torch."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, replace
from typing import Literal

from understudy.core.errors import GoalError, check_kind, did_you_mean
from understudy.core.evaluation import Cost, Evaluation
from understudy.core.figures import BY_GOAL, FIGURE, FIGURES, digits, share

RUNTIMES = ("torch", "onnxruntime")
_UNITS = {"": 1.0, "K": 1e3, "M": 1e6, "G": 1e9, "B": 1e9}
_AMOUNT = re.compile(
    r"\s*([0-9]+\.?[0-9]*(?:e[+-]?[0-9]+)?|\.[0-9]+(?:e[+-]?[0-9]+)?)\s*([a-z]*)\s*", re.ASCII | re.IGNORECASE
)


@dataclass(frozen=True, kw_only=True)
class Goal:
    """Budgets on cost and score. An amount is a number ("1.7M", "500K", 74000) or a ratio ("10x")."""

    params: str | None = None
    """Maximum number of parameters: "1.7M", "74000", or "10x" for a tenth of the teacher's."""
    macs: str | None = None
    """Maximum multiply-accumulates for one example: "50M" or "4x"."""
    size_mb: str | None = None
    """Maximum size of the weights in megabytes (10^6 bytes): "2.5" or "10x"."""
    memory_mb: str | None = None
    """Maximum megabytes of activations alive at the same time, one image, float32: "0.5" or "2x"."""
    latency_ms: str | None = None
    """Maximum milliseconds of one forward pass on this machine and device, batch 1, one thread: "5" or "2x"."""
    score: float | None = None
    """Minimum score on the validation split, 0..1."""
    score_drop: float | None = None
    """Maximum drop below the teacher's validation score, 0..1 (0.01 is one percentage point)."""
    runtime: Literal["torch", "onnxruntime"] = "torch"
    """Runtime whose latency counts, as the student will be served: torch, or onnxruntime on the CPU."""
    int8: bool = False
    """Quantise the final students to 8 bits; their score, megabytes and latency then count, in onnxruntime."""

    def __post_init__(self) -> None:
        for figure in FIGURES:
            amount = getattr(self, figure.goal)
            if amount is not None:
                # A number is as good as its text: Goal(params=74000).
                object.__setattr__(self, figure.goal, str(amount))
                parse_amount(str(amount), of=1.0, name=figure.goal)
        for name in ("score", "score_drop"):
            share = getattr(self, name)
            if share is not None:
                object.__setattr__(self, name, _share(share, name))
        if not isinstance(self.runtime, str) or self.runtime not in RUNTIMES:
            meant = did_you_mean(str(self.runtime), RUNTIMES)
            raise GoalError(f"goal 'runtime' must be one of {', '.join(RUNTIMES)}, but got {self.runtime!r}{meant}")
        if not isinstance(self.int8, bool):
            raise GoalError(f"goal 'int8' must be true or false, but got {self.int8!r}")
        if self.int8 and self.runtime != "onnxruntime":
            raise GoalError(
                f"goal 'int8' is of students that ONNX Runtime runs, but goal 'runtime' is {self.runtime!r}: give "
                "runtime='onnxruntime' (--runtime onnxruntime) as well"
            )

    def budgets(self, cost: Cost, score: float) -> Budgets:
        """Return this goal in absolute numbers for a teacher of that cost and validation score.

        Raises:
            GoalError: that is no Cost or no score, or a cost without a figure that a budget is a factor of.
        """
        check_kind(cost, Cost, "budgets are of a Cost, such as us.predict(analysis, architecture)", GoalError)
        score = _share(score, "score")
        floors = [0.0 if self.score is None else self.score]
        if self.score_drop is not None:
            floors.append(lowered(score, self.score_drop))

        limits = {
            figure.name: parse_amount(amount, of=figure.of(cost), name=figure.goal)
            for figure in FIGURES
            if (amount := getattr(self, figure.goal)) is not None
        }
        return Budgets(**limits, score=max(floors))


@dataclass(frozen=True, kw_only=True)
class Budgets:
    """A goal in absolute numbers: upper limits on cost, a lower one on score."""

    parameters: float | None = None
    macs: float | None = None
    size_mb: float | None = None
    memory_mb: float | None = None
    latency_ms: float | None = None
    score: float = 0.0

    def limits(self) -> tuple[tuple[str, float], ...]:
        """Return the cost limits that are set, as pairs of a figure's name and its most."""
        return tuple((f.name, most) for f in FIGURES if (most := getattr(self, f.name)) is not None)

    def used(self, cost: Cost) -> tuple[tuple[str, float], ...]:
        """Return the share of each cost limit that a cost takes, above 1 where it is broken, by figure.

        Raises:
            GoalError: a figure with a limit was neither measured nor estimated.
        """
        return tuple((name, _known(name, cost) / most) for name, most in self.limits())

    def broken_by(self, cost: Cost, score: float | None = None) -> tuple[str, ...]:
        """Return the names of the limits that are not kept, in order; a score of None is not judged."""
        over = tuple(name for name, used in self.used(cost) if used > 1.0)
        below = score is not None and score < self.score
        return (*over, "score") if below else over


@dataclass(frozen=True, kw_only=True)
class Reward:
    """N2N's reward (Ashok et al., 2018, section 3.4): `R = C (2 - C) * A_student / A_teacher`.

    In the paper `C = 1 - P_student / P_teacher` for parameters P, and so it is here without a budget on cost. With
    budgets P is the figure that has one: a goal in MACs is pursued in MACs. Where several have one, what is left of
    the teacher is the geometric mean over them, so that a factor of two counts the same in each, whatever its unit
    and however hard its budget is. And what a figure saves beyond its budget earns nothing (ours): within the
    budgets the reward is the score times a constant, as the most accurate student within the budgets wins.
    A budget that asks for no reduction counts as none.

    A student that breaks a budget has its reward phased towards -1 over the first `phase_updates` updates: with
    `e = (1 - t / phase_updates)^4`, `(e - 1) + e * R`; once the phase is over the penalty stays. 0 updates mean
    the hard form from the start.

    Rewards are in -1..`most`, where `most` is 1 over the teacher's score: a student can be better than its
    teacher. A teacher that is never right (0) counts as 1.
    """

    teacher_cost: Cost
    teacher_score: float
    budgets: Budgets = Budgets()
    phase_updates: int = 15
    capped: bool = True  # False, as in the paper: what is saved beyond a budget earns more

    def __call__(self, evaluation: Evaluation, *, update: int | None = None) -> float:
        """Return the reward at that update of the search (None: after the phase), in -1..most."""
        plain, cost = self.plain(evaluation), evaluation.cost
        if plain < 0.0 or cost is None or not self.budgets.broken_by(cost, evaluation.score):
            return plain
        leniency = self._leniency(update)
        return (leniency - 1.0) + leniency * plain

    def plain(self, evaluation: Evaluation) -> float:
        """Return the reward as if every budget were kept: -1, or in 0..most."""
        cost = evaluation.cost
        if evaluation.status == "failed" or cost is None or self.left(cost) >= 1.0:
            return -1.0
        compression = max(1.0 - self._left(cost, capped=self.capped), 0.0)
        return compression * (2.0 - compression) * evaluation.score * self.most

    @property
    def of_candidates(self) -> Reward:
        """The same for candidates, as searchers and their progress see it.

        The score asked for is that of a student trained to convergence. A candidate's few epochs seldom reach it, and
        if none does, a penalty for all teaches nothing. So where budgets on cost bound the search already, score counts
        as a factor of the reward alone; the end of the search and the final choice hold to the floor.
        """
        return replace(self, budgets=replace(self.budgets, score=0.0)) if self.budgets.limits() else self

    @property
    def most(self) -> float:
        """The largest reward, that of a student which is always right and costs nothing."""
        return 1.0 / (self.teacher_score or 1.0)

    @property
    def doubts(self) -> tuple[str, ...]:
        """What is odd about the budgets, a sentence each."""
        nothing = bool(self.budgets.limits()) and not self.budgets.broken_by(self.teacher_cost)
        loose = "the teacher keeps every budget on cost itself: the student may be as large; ask for less"
        high = (
            f"the teacher itself has a score of {share(self.teacher_score)} on validation, but "
            f"{share(self.budgets.score)} is asked for: a student is seldom better than its teacher"
        )
        return (*(loose,) * nothing, *(high,) * (self.budgets.score > self.teacher_score))

    def left(self, cost: Cost) -> float:
        """Return what is left of the teacher's cost in the figures with a budget, 1 for all of it."""
        return self._left(cost, capped=False)

    def _left(self, cost: Cost, *, capped: bool) -> float:
        logs = []
        for name, most in self._pursued():
            own = _known(name, self.teacher_cost)
            left = max(_known(name, cost), most if capped else 0.0) / own
            logs.append(math.log(max(left, 1e-9)))
        return math.exp(sum(logs) / len(logs))

    def _pursued(self) -> tuple[tuple[str, float], ...]:
        """Return the figures to compress, each with what it is to be compressed to."""
        asked = tuple((name, most) for name, most in self.budgets.limits() if most < _known(name, self.teacher_cost))
        return asked or (("parameters", 0.0),)

    def _leniency(self, update: int | None) -> float:
        if update is None or update >= self.phase_updates:
            return 0.0
        return (1.0 - update / self.phase_updates) ** 4


def lowered(score: float, drop: float) -> float:
    """Return the floor of a score that may drop so much; a drop of exactly that keeps it, however floats round."""
    return score - drop - 1e-12


def _known(name: str, cost: Cost) -> float:
    number = FIGURE[name].of(cost)
    if number is None:
        raise GoalError(f"a budget on {name} is judged by costs that have it, but this one was not measured: {cost}")
    return number


def parse_amount(text: str, *, of: float | None, name: str) -> float:
    """Return "1.7M", "500K" or "74000" as a number, "3 ms" in the unit of that goal, and "10x" as a tenth of `of`.

    Raises:
        GoalError: the text is neither, is not positive, asks for more than the teacher has, or is a ratio of something
            unknown or of nothing.
    """
    unit = "" if _counts(name) else name.rpartition("_")[2]
    match = _AMOUNT.fullmatch(text)
    number, after = (float(match[1]), match[2]) if match else (0.0, "")
    factor = after in ("x", "X")
    if factor and 0.0 < number < 1.0:
        raise GoalError(
            f"goal {name!r} must be a factor of 1 or more, but got {text!r}: '2x' is half of the teacher's, and "
            f"{text!r} would be {digits(1.0 / number)} times as much as the teacher has"
        )
    own = _UNITS.get(after.upper()) if not unit else 1.0 if after.lower() in ("", unit) else None
    if not 0.0 < number < math.inf or (own is None and not factor):
        raise GoalError(_no_amount(text, name, unit))
    if not unit and not factor and number < 1.0 and own == 1.0:
        raise GoalError(
            f"goal {name!r} must be 1 or more, but got {text!r}: for that share of the teacher's, write it as "
            f"a factor, '{_factor(1.0 / number)}'"
        )
    if not factor:
        return number * (own or 1.0)
    if of is None:
        raise GoalError(f"goal {name!r} = {text!r} needs the teacher's own figure, which was not measured")
    if not of > 0.0:
        raise GoalError(f"goal {name!r} = {text!r} is a share of what the teacher has, but it has none: leave it out")
    return of / number


def _counts(name: str) -> bool:
    """Say whether a goal is about a whole number of things, which have no unit."""
    return name not in BY_GOAL or BY_GOAL[name].whole


def _factor(number: float) -> str:
    """Return a factor as a goal spells it."""
    return f"{digits(number).replace(',', '')}x"


def _no_amount(text: str, name: str, unit: str) -> str:
    """Return what is wrong with an amount, with the spelling that was meant where that can be told."""
    examples = f"'2.5' (in {unit.replace('mb', 'MB')})" if unit else "'1.7M', '74000'"
    rule = f"goal {name!r} must be a positive amount such as {examples} or '10x' (a tenth of the teacher's)"
    if "%" in text:
        return f"{rule}, but got {text!r}: write a percentage as a factor, '2x' for half of the teacher's"
    if re.search(r"[0-9][,_' ][0-9]|[.][0-9]+[.]", text):
        return f"{rule}, but got {text!r}: write digits without separators, and a point before decimals"
    return f"{rule}, but got {text!r}"


def _share(number: object, name: str) -> float:
    """Return a score as a plain number.

    Raises:
        GoalError: it is none, or not in 0..1.
    """
    try:
        share = math.nan if isinstance(number, str | bool) else float(number)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError, RuntimeError):  # the last one is torch's
        share = math.nan
    if not 0.0 <= share <= 1.0:
        percent = f" ({share:g}% is {share / 100:g})" if 1.0 < share <= 100.0 else ""
        raise GoalError(f"goal {name!r} must be a number in 0..1, but got {number!r}{percent}")
    return share
