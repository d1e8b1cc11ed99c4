"""One set of weights for all students: each takes its slice, and many in turn teach the whole.

As slimmable networks (Yu et al., ICLR 2019) and once-for-all networks (Cai et al., ICLR 2020) do, restricted to the
students that a search will look at. A group's channels go in one order, so what is narrower lies in what is wider.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
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
from understudy.surgery.build import Mask, build, kept_slots, sliced


class SharedWeights(nn.Module):
    """The weights that students take slices of. They start as the teacher's.

    A layer that gets other channels because the one before it was removed has weights of its own for those channels,
    which all students without that layer share; they are drawn when they are first met.

    Args:
        analysis: of the teacher, which is not touched. Its weights decide which channels a width keeps.
        tensors: what these weights were before, as `tensors` gave them; the teacher's unless given.
    """

    def __init__(self, analysis: Analysis, tensors: Mapping[str, Tensor] | None = None) -> None:
        super().__init__()
        self.analysis = analysis
        own = {_key(name): parameter for name, parameter in copied(analysis.teacher).named_parameters()}
        self.whole = nn.ParameterDict(own)
        for key, tensor in (tensors or {}).items():
            self.whole[key] = nn.Parameter(tensor)

    @property
    def tensors(self) -> dict[str, Tensor]:
        """All of them, to be kept."""
        return {key: parameter.detach() for key, parameter in self.whole.items()}

    def student(self, architecture: Architecture) -> nn.Module:
        """Return the student of an architecture with its slices.

        Raises:
            ArchitectureError, SurgeryError: as `build`.
        """
        student, slices = build(self.analysis, architecture), self.slices(architecture)
        with torch.no_grad():
            for name, parameter in student.named_parameters():
                if name in slices.plans:
                    parameter.copy_(slices.of(self, name))
        return student

    def slices(self, architecture: Architecture) -> Slices:
        """Return where the weights of a student lie in these."""
        before = self.analysis.groups.plan.parameters
        plans: dict[str, tuple[str, ParameterPlan]] = {}
        for name, plan in self.analysis.refit(architecture).plan.parameters.items():
            key = _key(name)
            if key not in self.whole:  # a buffer
                continue
            if not same_dims(before[name].dims, plan.dims):
                key = f"{key} {_digest(plan)}"
                if key not in self.whole:
                    self.whole[key] = self._drawn(name, plan, key)
            plans[name] = key, plan
        return Slices(architecture, kept_slots(self.analysis, architecture), plans)

    def _drawn(self, name: str, plan: ParameterPlan, key: str) -> nn.Parameter:
        """Return weights for channels that are not the teacher's, with mean and deviation of the teacher's."""
        teachers = self.analysis.teacher.get_parameter(name).detach().double()
        sizes = [len(d) if isinstance(d, np.ndarray) else d for d in plan.dims]
        sizes += teachers.shape[len(sizes) :]
        deviation, mean = torch.std_mean(teachers, correction=0)
        numbers = torch.Generator().manual_seed(int(key[-8:], 16))
        values = float(mean) + float(deviation) * torch.randn(prod(sizes), generator=numbers)
        return nn.Parameter(values.view(sizes), requires_grad=self.whole[_key(name)].requires_grad)


@dataclass(frozen=True, eq=False)
class Slices:
    """Where the weights of one student lie in the shared ones."""

    architecture: Architecture
    kept: Mask
    plans: Mapping[str, tuple[str, ParameterPlan]]  # by name of the parameter: which shared one, and how it is cut

    def of(self, weights: SharedWeights, name: str) -> Tensor:
        """Return the slice of one parameter; gradients go to where it lies."""
        key, plan = self.plans[name]
        return sliced(weights.whole[key], plan, self.kept, self.architecture)


class Turns(nn.Module):
    """A network whose calls are those of many students in turn, so that to train it is to train the shared weights.

    Args:
        weights: what the students take slices of, and what learns.
        students: take turns.
        device: where.
    """

    def __init__(self, weights: SharedWeights, students: Sequence[Architecture], device: torch.device) -> None:
        super().__init__()
        self.shared = weights
        self._turns = [self._prepared(each, device) for each in students]
        self.turn: Tensor
        self.register_buffer("turn", torch.zeros((), dtype=torch.long))  # kept where the weights are

    @property
    def students(self) -> Iterator[nn.Module]:
        """The students, whose weights have shapes and no values."""
        return (student for student, _ in self._turns)

    def forward(self, *inputs: Any, **named: Any) -> Any:
        """Return what the next student gives."""
        student, slices = self._turns[int(self.turn) % len(self._turns)]
        self.turn += 1
        found = {name: slices.of(self.shared, name) for name in slices.plans}
        return torch.func.functional_call(student, found, inputs, named)

    def _prepared(self, architecture: Architecture, device: torch.device) -> tuple[nn.Module, Slices]:
        slices = self.shared.slices(architecture)
        student = build(self.shared.analysis, architecture).to(device).train()
        given = {id(p): p for name, p in student.named_parameters() if name in slices.plans}
        empty = {known: nn.Parameter(torch.empty_like(p, device="meta")) for known, p in given.items()}
        for module in student.modules():
            for name, parameter in module._parameters.items():
                module._parameters[name] = empty.get(id(parameter), parameter)  # what is tied stays tied
        return student, slices


def _key(name: str) -> str:
    return name.replace(".", "/")  # which parameters' names must not have


def _digest(plan: ParameterPlan) -> str:
    """Return 8 hexadecimal digits of the channels that a parameter meets."""
    parts = [d.tobytes() if isinstance(d, np.ndarray) else str(d).encode() for d in plan.dims]
    return hashlib.sha256(b"|".join(parts)).hexdigest()[:8]
