"""Seeding the global generators for a while."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
import torch

from understudy.graph.analysis import analyse
from understudy.graph.seeds import seeded
from understudy.proof.prove import prove


def test_seeding_gives_the_same_numbers_and_restores_the_state(device: torch.device) -> None:
    before, drawn = torch.get_rng_state(), []
    with seeded(7, device) as reseed:
        for _ in range(2):
            drawn.append((torch.rand(3), torch.rand(3, device=device)))
            reseed(7)
    assert torch.equal(drawn[0][0], drawn[1][0])
    assert torch.equal(drawn[0][1], drawn[1][1])
    assert torch.equal(torch.get_rng_state(), before)


def test_of_several_devices_of_a_kind_that_one_is_seeded(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[object] = []

    @contextmanager
    def current(index: int | None) -> Iterator[None]:
        seen.append(f"current {index}")
        yield

    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "device_index", current)
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda device="cuda": f"state of {device}")
    monkeypatch.setattr(torch.cuda, "set_rng_state", lambda state, device="cuda": seen.append(f"{state} to {device}"))
    monkeypatch.setattr(torch.cuda, "manual_seed", lambda seed: seen.append(seed))
    with seeded(7, torch.device("cuda:1")):
        pass
    assert seen == ["current 1", 7, "state of cuda:1 to cuda:1"]


def test_numbers_of_numpy_and_python_are_seeded_too() -> None:
    before, drawn = (random.getstate(), np.random.get_state()[1].tolist()), []  # type: ignore[index]
    with seeded(2**40 + 7) as reseed:
        for _ in range(2):
            drawn.append((random.random(), np.random.rand()))
            reseed(2**40 + 7)
    assert drawn[0] == drawn[1]
    assert before == (random.getstate(), np.random.get_state()[1].tolist())  # type: ignore[index]


def test_numbers_are_those_of_torchs_own_seed() -> None:
    with seeded(3):
        ours = torch.rand(5)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        assert torch.equal(torch.rand(5), ours)


class Scaled(torch.nn.Module):
    """Multiplies by what Python draws, which is a constant of the recorded graph."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = torch.nn.Linear(4, 8), torch.nn.Linear(8, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.relu(self.stem(x)) * random.random())


def test_a_number_that_was_drawn_as_a_network_was_recorded_is_noticed() -> None:
    _, proof = prove(analyse(Scaled().eval(), torch.zeros(2, 4)))
    assert "computes something else than its recorded forward pass" in proof.refused[0].reason
