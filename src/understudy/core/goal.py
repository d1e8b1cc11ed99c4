"""What the user wants, as numbers, and how well an evaluation serves it. No torch."""

from __future__ import annotations

import re
from dataclasses import dataclass, fields

from understudy.core.errors import GoalError
from understudy.core.evaluation import Cost, Evaluation

_UNITS = {"": 1.0, "K": 1e3, "M": 1e6, "G": 1e9, "B": 1e9}


@dataclass(frozen=True, kw_only=True)
class Goal:
    """Budgets on cost and accuracy. An amount is a number ("1.7M", "500K", 74000) or a ratio ("10x")."""

    params: str | None = None
    """Most parameters: "1.7M", "74000", or "10x" for a tenth of the teacher's."""
    macs: str | None = None
    """Most multiply-accumulates of one example: "50M" or "4x"."""
    size_mb: str | None = None
    """Most megabytes of weights (10^6 bytes): "2.5" or "10x"."""
    memory_mb: str | None = None
    """Most megabytes of activations alive at the same time, one example, float32: "0.5" or "2x"."""
    latency_ms: str | None = None
    """Most milliseconds of one forward pass on this machine, batch 1, one thread, in the median: "5" or "2x"."""
    accuracy: float | None = None
    """Least accuracy on the validation split, in 0..1."""
    accuracy_drop: float | None = None
    """Largest drop below the teacher's validation accuracy, in 0..1 (0.01 is one point)."""

    def __post_init__(self) -> None:
        for name in ("params", "macs", "size_mb", "memory_mb", "latency_ms"):
            amount = getattr(self, name)
            if amount is not None:
                # A number is as good as its text: Goal(params=74000).
                object.__setattr__(self, name, str(amount))
                parse_amount(str(amount), of=1.0, name=name)
        for name in ("accuracy", "accuracy_drop"):
            share = getattr(self, name)
            if share is not None and not 0.0 <= share <= 1.0:
                raise GoalError(f"goal {name!r} must be in 0..1, but got {share}")

    def budgets(self, cost: Cost, accuracy: float) -> Budgets:
        """Return this goal in absolute numbers for a teacher of that cost and validation accuracy."""
        floors = [0.0 if self.accuracy is None else self.accuracy]
        if self.accuracy_drop is not None:
            floors.append(accuracy - self.accuracy_drop)

        def limit(amount: str | None, of: float | None, name: str) -> float | None:
            return None if amount is None else parse_amount(amount, of=of, name=name)

        return Budgets(
            parameters=limit(self.params, cost.parameters, "params"),
            macs=limit(self.macs, cost.macs, "macs"),
            size_mb=limit(self.size_mb, cost.size_mb, "size_mb"),
            memory_mb=limit(self.memory_mb, cost.memory_mb, "memory_mb"),
            latency_ms=limit(self.latency_ms, cost.latency_ms, "latency_ms"),
            accuracy=max(floors),
        )


@dataclass(frozen=True, kw_only=True)
class Budgets:
    """A goal in absolute numbers: upper limits on cost, a lower one on accuracy."""

    parameters: float | None = None
    macs: float | None = None
    size_mb: float | None = None
    memory_mb: float | None = None
    latency_ms: float | None = None
    accuracy: float = 0.0

    def broken_by(self, cost: Cost, accuracy: float | None = None) -> tuple[str, ...]:
        """Return the names of the limits that are not kept, in order; an accuracy of None is not judged."""
        over = tuple(name for name, most in self.limits() if (getattr(cost, name) or 0) > most)
        below = accuracy is not None and accuracy < self.accuracy
        return (*over, "accuracy") if below else over

    def limits(self) -> tuple[tuple[str, float], ...]:
        """Return the cost limits that are set, as pairs of a field of Cost and its most."""
        names = (f.name for f in fields(self) if f.name != "accuracy")
        return tuple((name, getattr(self, name)) for name in names if getattr(self, name) is not None)


@dataclass(frozen=True, kw_only=True)
class Reward:
    """N2N's reward (Ashok et al., 2018, section 3.4): `R = C (2 - C) * A_student / A_teacher`.

    `C = 1 - P_student / P_teacher`. With budgets, a violating student's reward is phased towards -1 over
    the first `phase_updates` updates: with `e = (1 - t / phase_updates)^4`, `(e - 1) + e * R`; once the
    phase is over the penalty stays. 0 updates mean the hard form from the start.
    """

    teacher_cost: Cost
    teacher_accuracy: float
    budgets: Budgets = Budgets()
    phase_updates: int = 15

    def __call__(self, evaluation: Evaluation, *, update: int | None = None) -> float:
        """Return the reward at that update of the search (None: after the phase), in -1..1."""
        cost = evaluation.cost
        if evaluation.status == "failed" or cost is None or cost.parameters >= self.teacher_cost.parameters:
            return -1.0
        compression = 1.0 - cost.parameters / self.teacher_cost.parameters
        plain = compression * (2.0 - compression) * evaluation.accuracy / self.teacher_accuracy
        if not self.budgets.broken_by(cost, evaluation.accuracy):
            return plain
        leniency = self._leniency(update)
        return (leniency - 1.0) + leniency * plain

    def _leniency(self, update: int | None) -> float:
        if update is None or update >= self.phase_updates:
            return 0.0
        return (1.0 - update / self.phase_updates) ** 4


def parse_amount(text: str, *, of: float | None, name: str) -> float:
    """Return "1.7M", "500K" or "74000" as a number, and "10x" as a tenth of `of`.

    Raises:
        GoalError: the text is neither, is not positive, or is a ratio of something unknown.
    """
    match = re.fullmatch(r"\s*([0-9]*\.?[0-9]+(?:[eE][+-]?[0-9]+)?)\s*([KMGBx]?)\s*", text)
    number = float(match[1]) if match else 0.0
    if match is None or number <= 0:
        raise GoalError(f"goal {name!r} must be a positive amount such as '1.7M', '74000' or '10x', but got {text!r}")
    if match[2] != "x":
        return number * _UNITS[match[2]]
    if of is None:
        raise GoalError(f"goal {name!r} = {text!r} needs the teacher's own figure, which was not measured")
    return of / number
