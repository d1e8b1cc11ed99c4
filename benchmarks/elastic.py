"""One network that learns together with its students: a student inherits its slice of what many of them learned.

As once-for-all networks do (Cai et al., ICLR 2020), restricted to where a search looks: at every step the next of some
students, drawn at the budget, takes a batch with the channels that it would inherit from the teacher, and what its
weights are told goes to the places of the shared weights that they come from.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from understudy.core.architecture import Architecture
from understudy.graph.analysis import Analysis
from understudy.graph.copies import copied
from understudy.surgery.build import build, inherits_all, kept_slots


def pinned(analysis: Analysis, architecture: Architecture) -> Architecture:
    """Return the architecture with the very channels that its student inherits, whatever becomes of the weights."""
    kept, widths = kept_slots(analysis, architecture), dict(architecture.widths)
    channels = {
        group.name: np.flatnonzero(kept[slots]).tolist()
        for group, slots in zip(analysis.groups.groups, analysis.groups.slots_of, strict=True)
        if group.name in widths
    }
    return analysis.space.architecture(
        removed=architecture.removed, kernels=dict(architecture.kernels), channels=channels
    )


@dataclass(frozen=True, eq=False)
class _Slice:
    """A student, and where each of its weights lies in the shared ones."""

    student: nn.Module
    places: dict[str, Tensor]  # flat indices, of the shape of the student's parameter


class Elastic(nn.Module):
    """The shared weights, in the shape of the teacher; each call is of the next student.

    Args:
        analysis: of the teacher, whose weights they start from.
        students: take turns; those whose weights are not all slices of the teacher's are left out.

    Raises:
        ValueError: none is left, or a parameter has more than 2**24 places.
    """

    def __init__(self, analysis: Analysis, students: Sequence[Architecture]) -> None:
        super().__init__()
        self.whole = copied(analysis.teacher)
        numbered = analysis.of(_numbered(analysis.teacher))
        self._slices = [
            _sliced(analysis, numbered, pinned(analysis, each)) for each in students if inherits_all(analysis, each)
        ]
        self._turn = 0
        if not self._slices:
            raise ValueError(f"shared weights must have a student that inherits all, but none of {len(students)} does")

    def forward(self, *inputs: Any) -> Any:
        """Return what the next student says."""
        own = self._slices[self._turn % len(self._slices)]
        self._turn += 1
        shared = dict(self.whole.named_parameters())
        weights = {name: shared[name].flatten()[places] for name, places in own.places.items()}
        return torch.func.functional_call(own.student, weights, inputs)


def _numbered(teacher: nn.Module) -> nn.Module:
    """Return a copy whose parameters hold the numbers of their places, so that slices of it say where they are from."""
    network = copied(teacher).float()
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.numel() > 2**24:
                raise ValueError(f"float32 counts to 2**24, but a parameter has {parameter.numel():,} places")
            parameter.copy_(torch.arange(parameter.numel(), dtype=torch.float32).view(parameter.shape))
    return network


def _sliced(analysis: Analysis, numbered: Analysis, architecture: Architecture) -> _Slice:
    places = {name: p.detach().long() for name, p in build(numbered, architecture).named_parameters()}
    return _Slice(build(analysis, architecture).train(), places)
