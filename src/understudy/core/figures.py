"""The figures of a network: what each is called, its unit, and how numbers are read. No torch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from understudy.core.evaluation import Cost


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One figure of what a network costs; a goal can limit it."""

    name: str  # attribute of Cost, and field of Budgets
    goal: str  # field of Goal
    field: str  # field of Cost that it is read from, in another unit perhaps
    label: str  # what tables call it
    unit: str  # what follows a number in a sentence
    whole: bool = False  # a count, of which every digit is told
    measured: bool = False  # or predicted exactly, from the architecture alone
    stand_in: str | None = None  # predicted figure that it is taken to be proportional to, where only that is known

    def of(self, cost: Cost) -> float | None:
        """Return this figure of a cost, None where it was not measured."""
        number: float | None = getattr(cost, self.name)
        return number

    def number(self, number: float) -> str:
        """Return a number as tables have it, such as "74,000"."""
        return f"{number:,.0f}" if self.whole else digits(number)

    def text(self, number: float) -> str:
        """Return a number with its unit, such as "74,000 parameters"."""
        told = self.number(number)
        return f"{told} {self.unit.removesuffix('s') if self.whole and told == '1' else self.unit}"


FIGURES = (
    Figure(name="parameters", goal="params", field="parameters", label="parameters", unit="parameters", whole=True),
    Figure(name="macs", goal="macs", field="macs", label="MACs", unit="MACs", whole=True),
    Figure(name="size_mb", goal="size_mb", field="weight_bytes", label="MB of weights", unit="MB"),
    Figure(
        name="memory_mb",
        goal="memory_mb",
        field="peak_activation_bytes",
        label="MB of activations",
        unit="MB of activations",
    ),
    Figure(
        name="latency_ms",
        goal="latency_ms",
        field="latency_ms",
        label="ms for 1 example, 1 thread",
        unit="ms",
        measured=True,
        stand_in="macs",
    ),
)
"""Every figure that a goal can limit, in the order of tables and messages. Another one is a line here and the fields
that it names in Cost, Budgets and Goal."""

FIGURE = {figure.name: figure for figure in FIGURES}
BY_GOAL = {figure.goal: figure for figure in FIGURES}


def amount(number: float) -> str:
    """Return a count in three digits: 24300 is "24.3K"."""
    if number < 999.5:
        return f"{number:.0f}"
    unit, size = next((pair for pair in (("K", 1e3), ("M", 1e6)) if number < 999.5 * pair[1]), ("G", 1e9))
    scaled = number / size
    return f"{scaled:.3g}{unit}" if scaled < 999.5 else f"{scaled:,.0f}{unit}"


def digits(number: float) -> str:
    """Return a number in three digits, a larger one as a whole number: 1234.5 is "1,234" and not "1.23e+03"."""
    return f"{number:.3g}" if abs(number) < 999.5 else f"{number:,.0f}"


def share(number: float | None) -> str:
    """Return a score as percents."""
    return "-" if number is None else f"{100 * number:.2f}%"


def standard_error(score: float, examples: int) -> float:
    """Return the standard error of a score (0..1) that was measured on so many examples."""
    return math.sqrt(max(score * (1.0 - score), 0.0) / max(examples, 1))


def duration(seconds: float) -> str:
    """Return a time as "3h 05m", "4m 10s" or "12s"."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes_left = divmod(minutes, 60)
    if hours:
        return f"{hours}h {minutes_left:02d}m"
    return f"{minutes}m {rest:02d}s" if minutes else f"{rest}s"
