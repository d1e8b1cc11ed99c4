"""Sizes and other facts: plain numbers that the forward pass computes with."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import fx

from understudy.graph.channels import Labelled, ParameterUse
from understudy.graph.fake import Packed, flat
from understudy.graph.nodes import describe
from understudy.graph.numbers import Number
from understudy.graph.rules.sums import turned
from understudy.graph.rules.tables import for_calls
from understudy.graph.rules.weights import is_overwritten_weight
from understudy.graph.walk import Walk

# What torch asks before it takes a fused kernel, which it does not while a graph is recorded.
_FAST_PATHS = (torch._nested_tensor_from_mask_left_aligned,)


@for_calls("size", arranged=True)
def size(walk: Walk, node: fx.Node, x: Labelled | ParameterUse, dim: int | None = None) -> Any:
    """Plain numbers."""
    return x.shape if dim is None else x.shape[dim]


@for_calls("dim", "get_device", "is_floating_point", "is_contiguous", torch._assert, *_FAST_PATHS, arranged=True)
def fact(walk: Walk, node: fx.Node, *args: Any, **kwargs: Any) -> Any:
    """What does not depend on channels in a network that can be traced."""
    return walk.recorded(node)


@for_calls("numel", "nelement", parameters=True)
def numel(walk: Walk, node: fx.Node, x: Labelled | ParameterUse) -> int:
    """The product of the sizes."""
    return math.prod(x.shape)


@for_calls("new_zeros", "new_ones", "new_full", "new_empty", parameters=True)
def made_new(walk: Walk, node: fx.Node, x: Any, *args: Any, **kwargs: Any) -> Labelled:
    """As `made`: a tensor that has only the dtype and the device in common."""
    given = fx.node.map_arg(node.args[1:], lambda n: n)
    given = given[:1] if describe(node) == "new_full" else given
    return _made(walk, node, given, walk.outcome(node, (x, *args), kwargs).shape, ((x, *args), kwargs))


@for_calls(torch.zeros, torch.ones, torch.full, making=True)
def made(walk: Walk, node: fx.Node, *args: Any, **kwargs: Any) -> Labelled:
    """Equal elements: along a size that a module or another tensor holds there are as many as there are channels."""
    given = node.args[:1] if describe(node) == "full" else node.args
    return _made(walk, node, given, walk.outcome(node, args, kwargs).shape, (args, kwargs))


def _made(walk: Walk, node: fx.Node, given: Any, shape: Any, values: Any) -> Labelled:
    like = walk.plan.values.get(_measured(given[0])) if given else None
    if isinstance(like, Labelled) and like.shape == shape:  # made of another tensor's size as a whole
        return Labelled(shape, like.labels)
    listed = bool(given) and isinstance(given[0], tuple | list)
    sizes = list(given[0] if listed else given)[: len(shape)]
    first = 1 if node.op == "call_method" else 0
    counted = [d for d, size in enumerate(sizes) if _counts(walk, size, shape[d])]
    written = [d for d, size in enumerate(sizes) if type(size) is int and size > 1 and d > 0]
    if not (counted or written) or "size" in node.kwargs or len(sizes) != len(shape):
        for value in flat(values):
            walk.leave(value)
        return Labelled.fixed(shape)
    # A size of a tensor is that of channels; of numbers it is the largest, the last of such: (layers, batch, units).
    order = {d: (d in counted, isinstance(sizes[d], fx.Node), shape[d], d) for d in (*counted, *written)}
    dims = sorted(order, key=order.__getitem__, reverse=True)
    dim = walk.choose(node, dims, np.zeros(0, dtype=np.int64))
    labels = walk.emit(f"{node.name}:made", shape[dim])
    walk.choose(node, dims, labels)
    for other in counted:
        if other != dim:
            walk.leave(sizes[other])
    if not walk.follow(sizes[dim], labels, node) and not isinstance(sizes[dim], fx.Node):
        walk.write(labels, f"{describe(node)} writes their number as {shape[dim]}", node)
    walk.sized((first, dim) if listed else (first + dim,), labels)
    return Labelled.along(shape, dim, labels)


def _measured(size: Any) -> Any:
    """Return the node of the tensor whose size or shape that is."""
    shape = isinstance(size, fx.Node) and (size.target == "size" or size.args[1:] == ("shape",))
    return size.args[0] if shape and (size.target != "size" or not (size.args[1:] or size.kwargs)) else None


def _counts(walk: Walk, size: Any, count: int) -> bool:
    """Return whether a size is how many channels a module or another tensor has."""
    if isinstance(size, fx.Node):
        return count > 1 and walk.plan.sizes.get(size, np.zeros(0)).size == count
    return isinstance(size, Number) and count > 1


# Attributes of a tensor that are the same for any number of channels.
_FACTS = frozenset(
    ("dtype", "device", "ndim", "layout", "requires_grad", "is_nested", "is_cuda", "is_sparse", "is_quantized", "names")
)


@for_calls(getattr, arranged=True)
def attribute_of(walk: Walk, node: fx.Node, x: Any, name: str) -> Any:
    """The shape is computed; dtype, device and rank are the teacher's. Others may tell how many channels there are."""
    if isinstance(x, Packed):
        return getattr(x, name)
    if name == "shape":
        return x.shape
    if (isinstance(x, Labelled) and name in ("data", "real", "imag")) or is_overwritten_weight(node):
        return x
    if (name in ("mT", "T") and len(x.shape) == 2) or (name == "mT" and isinstance(x, Labelled)):
        return turned(walk, node, x, -2, -1)
    if name not in _FACTS:
        return walk.give_up(node, (x, name), {}, f"no rule for the attribute {name}")
    return walk.recorded(node)
