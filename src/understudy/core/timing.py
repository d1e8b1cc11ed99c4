"""Measured times and what may be said of them. No torch."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from understudy.core.figures import digits


@dataclass(frozen=True, kw_only=True)
class Timing:
    """A median with its quartiles, of times (ms) or of ratios."""

    median: float
    low: float
    high: float

    def __post_init__(self) -> None:
        if not 0.0 <= self.low <= self.median <= self.high:
            raise ValueError(f"quartiles must be ordered and not negative, but got {self}")

    @classmethod
    def of(cls, numbers: Sequence[float]) -> Timing:
        """Return that of at least two numbers."""
        low, median, high = statistics.quantiles(numbers, n=4, method="inclusive")
        return cls(median=median, low=low, high=high)

    @property
    def spread(self) -> float:
        """The interquartile range."""
        return self.high - self.low

    def __str__(self) -> str:
        """Return the median, and the quartiles in parentheses."""
        return f"{digits(self.median)} ({digits(self.low)}-{digits(self.high)})"


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Two networks timed in turns, so that what slows the machine down for a while slows both."""

    where: str  # "1 thread", "8 threads", "cuda:0"
    first: Timing  # ms of one forward pass
    second: Timing  # likewise
    ratio: Timing  # how many times faster the second is, from pairs of neighbouring times

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Comparison:
        """Return what `dataclasses.asdict` gave."""
        timings = {name: Timing(**values[name]) for name in ("first", "second", "ratio")}
        return cls(where=values["where"], **timings)

    @property
    def measurable(self) -> bool:
        """Whether the networks differ by more than the noise: most of the pairs say so, and say which is faster."""
        return not self.ratio.low <= 1.0 <= self.ratio.high

    def __str__(self) -> str:
        """Return how the second compares with the first, in words."""
        if not self.measurable:
            return "no measurable difference"
        ratio = self.ratio.median
        return f"{digits(ratio)}x faster" if ratio > 1.0 else f"{digits(1.0 / ratio)}x slower"
