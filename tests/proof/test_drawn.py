"""Networks that are drawn: whatever is offered holds, and hardly anything has to be taken back."""

from __future__ import annotations

import pytest

from benchmarks.random_networks import tried

FEW, MANY = range(24), range(24, 200)


@pytest.mark.parametrize("seed", FEW)
def test_no_student_of_a_random_network_is_wrong(seed: int) -> None:
    assert tried(seed).wrong == ""


@pytest.mark.slow
def test_no_student_of_many_random_networks_is_wrong() -> None:
    assert [found for seed in MANY if (found := tried(seed)).wrong] == []
