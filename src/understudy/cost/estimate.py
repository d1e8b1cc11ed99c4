"""What latency to expect of an architecture, from that of a few that were measured. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np


@dataclass(frozen=True, kw_only=True)
class Point:
    """A measured network."""

    layers: int  # convolutions and linear ones
    macs: int
    latency_ms: float


@dataclass(frozen=True, kw_only=True)
class LatencyEstimate:
    """Milliseconds as a sum of what a forward pass costs, what each layer costs and what MACs cost.

    Of a single measured network only MACs are taken to count: half of them take half the time.
    """

    start: float  # ms
    per_layer: float  # ms
    per_mac: float  # ms

    @classmethod
    def of(cls, points: Sequence[Point]) -> LatencyEstimate:
        """Return the estimate without negative costs that is nearest to measured points, in relative error."""
        if len(points) == 1:
            return cls(start=0.0, per_layer=0.0, per_mac=points[0].latency_ms / max(points[0].macs, 1))
        measured = np.array([point.latency_ms for point in points])
        columns = np.array([[1.0, point.layers, point.macs] for point in points]) / measured[:, None]
        best, least = np.zeros(3), np.inf
        # The solution of non-negative least squares is an unconstrained one of some of the columns.
        for used in (list(used) for count in (1, 2, 3) for used in combinations(range(3), count)):
            found = np.zeros(3)
            found[used] = np.linalg.lstsq(columns[:, used], np.ones(len(points)), rcond=None)[0]
            error = float(np.square(columns @ found - 1.0).sum())
            if found.min() >= 0.0 and error < least - 1e-12:
                best, least = found, error
        return cls(start=float(best[0]), per_layer=float(best[1]), per_mac=float(best[2]))

    def __call__(self, layers: int, macs: int) -> float:
        """Return the latency to expect (ms)."""
        return self.start + self.per_layer * layers + self.per_mac * macs
