"""What a student gives beside what it should give: its outputs, and those of its layers."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from understudy.surgery.masked import Masked, tensors_of

Heard = dict[str, list[Tensor]]


def listen(student: nn.Module) -> tuple[Heard, list[Any]]:
    """Let what each layer gives be written down, call after call; return that and what ends it."""
    heard: Heard = {}

    def hook(name: str) -> Callable[..., None]:
        def listen(module: nn.Module, args: Any, output: Any) -> None:
            if isinstance(output, Tensor):
                heard.setdefault(name, []).append(output.detach().clone())

        return listen

    return heard, [module.register_forward_hook(hook(name)) for name, module in student.named_modules() if name]


def pairs_of(masked: Masked, wanted: Any, found: Any, heard: Heard) -> dict[str, tuple[Any, Any]]:
    """Return what the masked teacher gives and what the student does, by layer, in their order; "" are the outputs.

    Args:
        masked: the teacher, which has run with a record.
        wanted: its outputs.
        found: the student's.
        heard: what the student's layers gave.
    """
    gone, pairs = tuple(f"{path}." for path in masked.removed), dict[str, tuple[Any, Any]]()
    for name, values in masked.layers.items():
        if len(values) != len(heard.get(name, ())) or f"{name}.".startswith(gone):
            continue  # a layer that others take the place of; the outputs decide
        stay = [(masked.kept(*value), own) for value, own in zip(values, heard[name], strict=True)]
        known = [(kept, own) for kept, own in stay if kept is not None]
        pairs[name] = [kept for kept, _ in known], [own for _, own in known]
    return {**pairs, "": (wanted, found)}


def unlike(wanted: Any, found: Any, tolerance: float) -> str:
    """Return how two outputs differ, "" if they are equal up to a tolerance, of the largest value."""
    shapes = [[tuple(t.shape) for t in tensors_of(output)] for output in (wanted, found)]
    if shapes[0] != shapes[1]:
        return f"shapes {shapes[1]} where {shapes[0]} were expected"
    worst = apart(wanted, found)
    return "" if worst <= tolerance else f"by {worst:.2g} of the largest value"


def apart(wanted: Any, found: Any) -> float:
    """Return the largest difference between two outputs of the same shapes, of the largest value of each tensor."""
    pairs = zip(tensors_of(wanted), tensors_of(found), strict=True)
    return max((difference(a, b) for a, b in pairs), default=0.0)


def difference(a: Tensor, b: Tensor) -> float:
    """Return the largest difference between two tensors of one shape, of the largest value of the first."""
    if a.is_complex() or b.is_complex():
        a, b = torch.view_as_real(a.resolve_conj()), torch.view_as_real(b.resolve_conj())
    a, b = a.detach().double(), b.detach().double()
    if not a.numel():
        return 0.0
    scale, worst = float(a.abs().max()), float((a - b).abs().max())
    if math.isfinite(scale) and math.isfinite(worst):
        return worst / scale if scale else worst
    finite = a.isfinite()
    alike = finite.equal(b.isfinite()) and torch.equal(a[~finite].nan_to_num(nan=0.5), b[~finite].nan_to_num(nan=0.5))
    return difference(a[finite], b[finite]) if alike and not finite.all() else float("inf")
