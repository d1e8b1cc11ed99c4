"""Global random generators, torch's, NumPy's and Python's: seeded for a while, and left as they were."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch

_CPU = torch.device("cpu")


@contextmanager
def seeded(seed: int = 0, device: torch.device = _CPU) -> Iterator[Callable[[int], None]]:
    """Seed the generators inside, torch's of the CPU and of a device among them, and restore them afterwards.

    Dropout, initialisation and what else a network draws come from them; nothing else here draws from them. The
    function that it gives seeds them again.
    `torch.manual_seed` would seed those of all devices, and for each that is not in use yet keep the stack of the call:
    on a CPU, where it takes longer than a small layer.
    """
    there = getattr(torch, device.type, None) if device.type != "cpu" and torch.accelerator.is_available() else None
    python, numpy_state = random.getstate(), np.random.get_state()
    before, before_there = torch.get_rng_state(), there.get_rng_state(device) if there else None

    def reseed(seed: int) -> None:
        random.seed(seed)
        np.random.seed(seed % 2**32)  # which takes no more
        torch.default_generator.manual_seed(seed)
        if there:
            with torch.accelerator.device_index(device.index):  # torch seeds the current one of its kind
                there.manual_seed(seed)

    try:
        reseed(seed)
        yield reseed
    finally:
        random.setstate(python)
        np.random.set_state(numpy_state)
        torch.set_rng_state(before)
        if there:
            there.set_rng_state(before_there, device)
