"""Seeding torch's global generators for a while."""

from __future__ import annotations

import torch

from understudy.graph.seeds import seeded


def test_seeding_gives_the_same_numbers_and_restores_the_state(device: torch.device) -> None:
    before, drawn = torch.get_rng_state(), []
    with seeded(7, device) as reseed:
        for _ in range(2):
            drawn.append((torch.rand(3), torch.rand(3, device=device)))
            reseed(7)
    assert torch.equal(drawn[0][0], drawn[1][0])
    assert torch.equal(drawn[0][1], drawn[1][1])
    assert torch.equal(torch.get_rng_state(), before)


def test_numbers_are_those_of_torchs_own_seed() -> None:
    with seeded(3):
        ours = torch.rand(5)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        assert torch.equal(torch.rand(5), ours)
