"""Where slots occur: in what layers bring into being, and in the dimensions of parameters."""

from __future__ import annotations

from collections import defaultdict

import numpy as np

from understudy.graph.channels import FIXED, Labels, Plan


def by_signature(emitted: dict[str, Labels], plan: Plan, slots: int) -> list[Labels]:
    """Return the slots that occur equally often in the same places: they are interchangeable."""
    places: list[Labels] = [*emitted.values()]
    places += [d for p in plan.parameters.values() for d in p.dims if isinstance(d, np.ndarray)]
    kinds, most = np.zeros(slots, dtype=np.int64), 0  # equal for slots that were alike in all places so far
    for labels in places:
        held, times = np.unique(labels[labels != FIXED], return_counts=True)
        if held.size:
            _, parted = np.unique(kinds[held] * (times.max() + 1) + times, return_inverse=True)
            kinds[held] = most + 1 + parted
            most = int(kinds[held].max())
    alike: dict[int, list[int]] = defaultdict(list)
    for slot, kind in enumerate(kinds.tolist()):
        alike[kind].append(slot)
    return [np.array(slots) for slots in alike.values()]


def first_emitters(emitted: dict[str, Labels], slots: int) -> Labels:
    """Return, for each slot, the place among all layers of the first one that emits it, (slots,)."""
    found = np.full(slots, len(emitted))
    for place, labels in reversed(list(enumerate(emitted.values()))):
        found[labels[labels != FIXED]] = place
    return found


def readers(plan: Plan, slots: set[int]) -> dict[int, list[str]]:
    """Return the layers whose parameters have each of some slots, in order."""
    found: dict[int, list[str]] = defaultdict(list)
    for name, parameter in plan.parameters.items():
        for dim in parameter.dims:
            if isinstance(dim, np.ndarray):
                for slot in slots.intersection(dim.ravel().tolist()):
                    found[slot].append(name.rpartition(".")[0])
    return found
