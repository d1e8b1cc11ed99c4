"""Torch's global generators: seeded for a while, and left as they were."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

_CPU = torch.device("cpu")


@contextmanager
def seeded(seed: int = 0, device: torch.device = _CPU) -> Iterator[Callable[[int], None]]:
    """Seed torch's generators of the CPU and of a device inside, and restore them afterwards.

    Dropout and initialisation draw from them; nothing else here does. The function that it gives seeds them again.
    `torch.manual_seed` would seed those of all devices, and for each that is not in use yet keep the stack of the call:
    on a CPU, where it takes longer than a small layer.
    """
    there = getattr(torch, device.type, None) if device.type != "cpu" else None
    before, before_there = torch.get_rng_state(), there.get_rng_state() if there else None

    def reseed(seed: int) -> None:
        torch.default_generator.manual_seed(seed)
        if there:
            there.manual_seed(seed)

    try:
        reseed(seed)
        yield reseed
    finally:
        torch.set_rng_state(before)
        if there:
            there.set_rng_state(before_there)
