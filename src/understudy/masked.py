"""The teacher with channels multiplied by zero: the yardstick that a sliced student must agree with."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, fx, nn

from understudy.analysis import Analysis
from understudy.architecture import Architecture
from understudy.errors import ArchitectureError
from understudy.labels import Labelled
from understudy.surgery import kept_slots


class Masked(fx.Interpreter):
    """Runs the teacher's graph in evaluation mode with dropped channels zeroed where a layer reads them.

    A channel that only passes through (an activation, a norm, an addition) need not be zero there; what a
    convolution or a linear layer reads of it is. Call `run(*inputs)` for the teacher's output.

    Raises:
        ArchitectureError: the architecture removes units or shrinks kernels, which no mask can do.
    """

    def __init__(self, analysis: Analysis, architecture: Architecture) -> None:
        if architecture.removed or architecture.kernels:
            raise ArchitectureError("only widths can be masked, but this architecture removes units or shrinks kernels")
        super().__init__(analysis.trace.root, graph=analysis.trace.graph)
        self._analysis = analysis
        self._kept = torch.from_numpy(kept_slots(analysis, architecture))

    def run_node(self, n: fx.Node) -> Any:
        """Run one node; one that reads channels gets them masked."""
        if not self._analysis.groups.plan.parts[n].work:
            return super().run_node(n)
        kept = {m: self.env[m] for m in n.all_input_nodes}
        try:
            self.env.update({m: self._masked(m, value) for m, value in kept.items()})
            return super().run_node(n)
        finally:
            self.env.update(kept)

    def _masked(self, node: fx.Node, value: Any) -> Any:
        known = self._analysis.groups.plan.values[node]
        if not isinstance(value, Tensor) or not isinstance(known, Labelled):
            return value
        return value * self._kept[torch.from_numpy(known.labels.copy())].to(value.device)


def relative_error(analysis: Analysis, architecture: Architecture, student: nn.Module, x: Tensor) -> float:
    """Return the largest difference between a student and the masked teacher, in evaluation mode on x (B, ...).

    It is relative to the largest output of the teacher.
    """
    with torch.no_grad():
        masked = tensors_of(Masked(analysis, architecture).run(x))
        sliced = tensors_of(student(x))
        scale = max(float(t.abs().max()) for t in tensors_of(analysis.trace.root(x)))
        worst = max(float((a - b).abs().max()) for a, b in zip(masked, sliced, strict=True))
    return worst / scale if scale else worst


def tensors_of(output: Any) -> Iterator[Tensor]:
    """Yield the tensors of a module's output, whatever holds them."""
    if isinstance(output, Tensor):
        yield output
    elif isinstance(output, dict):
        yield from tensors_of(tuple(output.values()))
    elif isinstance(output, tuple | list):
        for part in output:
            yield from tensors_of(part)
