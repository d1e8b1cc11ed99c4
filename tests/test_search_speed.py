"""What the benchmark of ways to evaluate builds upon: rank correlation, successive halving."""

from __future__ import annotations

from benchmarks.search_speed import Reading, climbed, tau


def test_who_is_left_after_rungs_and_what_they_took() -> None:
    cheap = [Reading(score=score, seconds=1.0) for score in (0.1, 0.4, 0.3, 0.2)]
    dear = [Reading(score=score, seconds=10.0) for score in (0.9, 0.5, 0.6, 0.7)]
    assert climbed([0, 1, 2, 3], [(cheap, 1)]) == (1, 4.0)
    assert climbed([0, 1, 2, 3], [(cheap, 2), (dear, 1)]) == (2, 24.0)
    assert climbed([0, 3], [(dear, 1)]) == (0, 20.0)


def test_tau() -> None:
    assert tau([1, 2, 3], [10, 20, 30]) == 1.0 and tau([1, 2, 3], [3, 2, 1]) == -1.0
    assert tau([1, 1, 1], [1, 2, 3]) == 0.0
