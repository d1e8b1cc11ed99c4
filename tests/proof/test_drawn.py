"""Networks that are drawn: whatever is offered holds, and hardly anything has to be taken back."""

from __future__ import annotations

import pytest

from benchmarks.random_networks import tried

FEW, MANY, TOGETHER = range(24), range(24, 200), 16


@pytest.mark.parametrize("seed", FEW)
def test_no_student_of_a_random_network_is_wrong(seed: int) -> None:
    assert tried(seed).wrong == ""


@pytest.mark.slow
@pytest.mark.parametrize("first", MANY[::TOGETHER])  # in parts, which several workers can share
def test_no_student_of_many_random_networks_is_wrong(first: int) -> None:
    assert [found for seed in range(first, first + TOGETHER) if (found := tried(seed)).wrong] == []


@pytest.mark.nightly
@pytest.mark.parametrize("first", range(MANY.stop, MANY.stop + 10_000, 250))
def test_no_student_of_ten_thousand_random_networks_is_wrong(first: int) -> None:
    assert [found for seed in range(first, first + 250) if (found := tried(seed, draws=10)).wrong] == []


def test_a_norm_without_channels_that_a_removal_brings_some_is_built() -> None:
    found = tried(30892)  # without a convolution the channels of an earlier one come to an RMS norm of tokens
    assert (found.wrong, found.back) == ("", "")
