"""The teacher with channels multiplied by zero: the yardstick that a sliced student must agree with."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from understudy.core.architecture import Architecture
from understudy.core.errors import ArchitectureError
from understudy.graph.analysis import Analysis
from understudy.graph.channels import Labelled
from understudy.surgery.build import kept_slots


class Masked(fx.Interpreter):
    """Runs the teacher's graph in evaluation mode with dropped channels zeroed where a layer reads them.

    A channel that only passes through (an activation, a norm, an addition) need not be zero there; what a
    convolution or a linear layer reads of it is. A layer norm over channels leaves the dropped ones out of its
    statistics, as a narrower one does. Call `run(*inputs)` for the teacher's output.

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
        """Run one node; one that reads channels gets them masked, a layer norm only those that stay."""
        stays = self._normalised(n)
        if stays is not None:
            return self._narrow_norm(n, stays)
        if not self._analysis.groups.plan.parts[n].work:
            return super().run_node(n)
        kept = {m: self.env[m] for m in n.all_input_nodes}
        try:
            self.env.update({m: self._masked(m, value) for m, value in kept.items()})
            return super().run_node(n)
        finally:
            self.env.update(kept)

    def _normalised(self, node: fx.Node) -> Tensor | None:
        """Return which channels stay, (C,), of a layer norm that loses some; None of any other node."""
        module = self.module.get_submodule(str(node.target)) if node.op == "call_module" else None
        if node.target is not F.layer_norm and not isinstance(module, nn.LayerNorm):
            return None
        labels = self._analysis.groups.plan.values[node].labels
        if labels.shape[-1] == 1:  # it is over space
            return None
        stays = self._kept[torch.from_numpy(labels.copy())]
        return None if bool(stays.all()) else stays.reshape(-1)

    def _narrow_norm(self, node: fx.Node, stays: Tensor) -> Tensor:
        args, kwargs = self.fetch_args_kwargs_from_env(node)
        if node.op == "call_module":
            module: Any = self.module.get_submodule(str(node.target))
            args = (*args, module.normalized_shape, module.weight, module.bias, module.eps)
        x, _, weight, bias, eps = _norm_arguments(*args, **kwargs)
        weight, bias = (None if value is None else value[stays] for value in (weight, bias))
        out = torch.zeros_like(x)
        out[..., stays] = F.layer_norm(x[..., stays], (int(stays.sum()),), weight, bias, eps)
        return out

    def _masked(self, node: fx.Node, value: Any) -> Any:
        known = self._analysis.groups.plan.values[node]
        if not isinstance(value, Tensor) or not isinstance(known, Labelled):
            return value
        return value * self._kept[torch.from_numpy(known.labels.copy())].to(value.device)


def _norm_arguments(
    input: Tensor, normalized_shape: Any, weight: Any = None, bias: Any = None, eps: float = 1e-5
) -> tuple[Tensor, Any, Any, Any, float]:
    """Return the arguments of `F.layer_norm` in their order."""
    return input, normalized_shape, weight, bias, eps


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
