"""Sizes and other facts: plain numbers that the forward pass computes with."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import fx

from understudy.graph.channels import Labelled, ParameterUse
from understudy.graph.fake import flat
from understudy.graph.numbers import Number
from understudy.graph.rules.movement import transpose
from understudy.graph.rules.tables import for_calls
from understudy.graph.walk import Walk

# What torch asks before it takes a fused kernel, which it does not while a graph is recorded.
_FAST_PATHS = (torch._nested_tensor_from_mask_left_aligned,)


@for_calls("size", parameters=True)
def size(walk: Walk, node: fx.Node, x: Labelled | ParameterUse, dim: int | None = None) -> Any:
    """Plain numbers."""
    return x.shape if dim is None else x.shape[dim]


@for_calls("dim", "get_device", "is_floating_point", "is_contiguous", torch._assert, *_FAST_PATHS, parameters=True)
def fact(walk: Walk, node: fx.Node, *args: Any, **kwargs: Any) -> Any:
    """What does not depend on channels in a network that can be traced."""
    return walk.recorded(node)


@for_calls("numel", "nelement", parameters=True)
def numel(walk: Walk, node: fx.Node, x: Labelled | ParameterUse) -> int:
    """The product of the sizes."""
    return math.prod(x.shape)


@for_calls("new_zeros", "new_ones", "new_full", "new_empty", parameters=True)
def made_new(walk: Walk, node: fx.Node, x: Any, *args: Any, **kwargs: Any) -> Labelled:
    """A tensor that has only the dtype and the device in common."""
    return Labelled.fixed(walk.outcome(node, (x, *args), kwargs).shape)


@for_calls(torch.zeros, torch.ones, making=True)
def made(walk: Walk, node: fx.Node, *args: Any, **kwargs: Any) -> Labelled:
    """Equal elements: along a size that a module holds there are as many as there are channels."""
    shape = walk.outcome(node, args, kwargs).shape
    written = enumerate(node.args[0] if node.args and isinstance(node.args[0], tuple | list) else node.args)
    counted = [(d, size) for d, size in written if isinstance(size, Number) and size > 1]
    if len(counted) != 1 or "size" in kwargs:
        for value in flat((args, kwargs)):
            walk.leave(value)
        return Labelled.fixed(shape)
    dim, number = counted[0]
    labels = walk.emit(f"{node.name}:made", shape[dim])
    walk.follow(number, labels, node)
    walk.sized((0, dim) if isinstance(node.args[0], tuple | list) else (dim,), labels)
    return Labelled.along(shape, dim, labels)


# Attributes of a tensor that are the same for any number of channels.
_FACTS = frozenset(
    ("dtype", "device", "ndim", "layout", "requires_grad", "is_nested", "is_cuda", "is_sparse", "is_quantized", "names")
)


@for_calls(getattr, parameters=True)
def attribute_of(walk: Walk, node: fx.Node, x: Any, name: str) -> Any:
    """The shape is computed; dtype, device and rank are the teacher's. Others may tell how many channels there are."""
    if name == "shape":
        return x.shape
    if name == "mT" and isinstance(x, Labelled):
        return transpose(walk, node, x, -2, -1)
    if name not in _FACTS:
        return walk.give_up(node, (x, name), {}, f"no rule for the attribute {name}")
    return walk.recorded(node)
