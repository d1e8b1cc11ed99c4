"""One network that learns together with its students: a student takes its slice of what many of them learned.

As once-for-all networks do (Cai et al., ICLR 2020), restricted to where a search looks: at every step the next of some
students, drawn at the budget, takes a batch with the channels that it would inherit from the teacher, and what its
weights are told goes to the places of the shared weights that they come from.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from understudy.core.architecture import Architecture
from understudy.graph.analysis import Analysis
from understudy.graph.channels import ParameterPlan
from understudy.graph.copies import copied
from understudy.graph.refit import same_dims
from understudy.surgery.build import build, kept_slots, sliced
from understudy.training.evaluator import Evaluator


class Elastic(nn.Module):
    """The shared weights; each call is of the next student.

    They start as the teacher's. A layer that gets other channels because the one before it was removed has weights of
    its own for those channels, which all students without that layer share.

    Args:
        analysis: of the teacher; which channels a width keeps is decided by the teacher's weights, as for any student.
        students: take turns.
    """

    def __init__(self, analysis: Analysis, students: Sequence[Architecture]) -> None:
        super().__init__()
        self.analysis, self.shared = analysis, nn.ParameterDict()
        self._before = analysis.groups.plan.parameters
        for name, parameter in copied(analysis.teacher).named_parameters():
            self.shared[_key(name)] = parameter
        self._students = [(build(analysis, each).train(), dict(self._places(each))) for each in students]
        self._turn = 0

    def forward(self, *inputs: Any) -> Any:
        """Return what the next student says."""
        student, places = self._students[self._turn % len(self._students)]
        self._turn += 1
        return torch.func.functional_call(student, self._weights(places), inputs)

    def student(self, architecture: Architecture) -> nn.Module:
        """Return a student with its slice of the shared weights."""
        found = build(self.analysis, architecture)
        weights = self._weights(dict(self._places(architecture)))
        with torch.no_grad():
            for name, parameter in found.named_parameters():
                parameter.copy_(weights.get(name, parameter))
        return found

    def _weights(self, places: dict[str, tuple[str, Tensor]]) -> dict[str, Tensor]:
        return {name: self.shared[key].flatten()[index] for name, (key, index) in places.items()}

    def _places(self, architecture: Architecture) -> Iterator[tuple[str, tuple[str, Tensor]]]:
        """Yield of each parameter which shared one it lies in, and where: flat indices of the parameter's shape."""
        kept = kept_slots(self.analysis, architecture)
        for name, plan in self.analysis.refit(architecture).plan.parameters.items():
            key = _key(name)
            if key not in self.shared:  # a buffer
                continue
            if not same_dims(self._before[name].dims, plan.dims):
                key = f"{key} {_digest(plan)}"
                if key not in self.shared:
                    self.shared[key] = self._drawn(name, plan, key)
            whole = self.shared[key]
            numbers = torch.arange(whole.numel()).view(whole.shape)
            yield name, (key, sliced(numbers, plan, kept, architecture))

    def _drawn(self, name: str, plan: ParameterPlan, key: str) -> nn.Parameter:
        """Return weights for channels that are not the teacher's: normal, of the deviation of the teacher's."""
        sizes = [len(d) if isinstance(d, np.ndarray) else d for d in plan.dims]
        numbers = torch.Generator().manual_seed(int(key[-8:], 16))
        deviation = float(self.analysis.teacher.get_parameter(name).detach().std())
        return nn.Parameter(deviation * torch.randn(prod(sizes), generator=numbers).view(sizes))


def _key(name: str) -> str:
    return name.replace(".", "/")  # which parameters' names must not have


def _digest(plan: ParameterPlan) -> str:
    """Return 8 hexadecimal digits of the channels that a parameter meets."""
    parts = [d.tobytes() if isinstance(d, np.ndarray) else str(d).encode() for d in plan.dims]
    return hashlib.sha256(b"|".join(parts)).hexdigest()[:8]


@dataclass(frozen=True, kw_only=True, eq=False)
class SharedEvaluator(Evaluator):
    """Evaluates students that start from shared weights."""

    elastic: Elastic

    def _built(self, architecture: Architecture, weights: object, seed: int) -> nn.Module:
        return self.elastic.student(architecture)
