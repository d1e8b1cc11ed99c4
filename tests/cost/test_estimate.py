from __future__ import annotations

import pytest

from understudy.cost.estimate import LatencyEstimate, Point


def test_macs_stand_in_where_only_the_teacher_was_measured() -> None:
    estimate = LatencyEstimate.of([Point(layers=10, macs=1000, latency_ms=4.0)])
    assert estimate(10, 500) == estimate(3, 500) == 2.0


def test_what_a_pass_a_layer_and_macs_cost_is_found() -> None:
    points = [
        Point(layers=layers, macs=macs, latency_ms=0.5 + 0.1 * layers + 2e-6 * macs)
        for layers, macs in ((10, 1_000_000), (10, 100_000), (5, 400_000), (5, 50_000), (2, 10_000))
    ]
    estimate = LatencyEstimate.of(points)
    assert (estimate.start, estimate.per_layer, estimate.per_mac) == pytest.approx((0.5, 0.1, 2e-6))


def test_nothing_has_a_negative_cost() -> None:
    # The narrow ones take longer than the wide one: by MACs alone that would be a negative cost of MACs.
    points = [Point(layers=4, macs=macs, latency_ms=1e3 / macs) for macs in (100, 200, 400)]
    estimate = LatencyEstimate.of(points)
    assert min(estimate.start, estimate.per_layer, estimate.per_mac) >= 0.0
    assert estimate(4, 100) > 0.0
