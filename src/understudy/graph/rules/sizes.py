"""Sizes and other facts: plain numbers that the forward pass computes with."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import fx

from understudy.graph.channels import Labelled, ParameterUse, Picked
from understudy.graph.fake import Packed, flat
from understudy.graph.nodes import describe
from understudy.graph.rules.equal import Given, countable, equal, measured
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
    like = measured(walk, given[0]) if given else None
    if like is not None and like.shape == shape:  # made of another tensor's size as a whole
        return Labelled(shape, like.labels)
    listed = bool(given) and isinstance(given[0], tuple | list)
    sizes = list(given[0] if listed else given)[: len(shape)]
    first = 1 if node.op == "call_method" else 0
    places: list[Given] = [(size, (first, d) if listed else (first + d,)) for d, size in enumerate(sizes)]
    dims = countable(walk, shape, places)
    if not any(dims) or len(sizes) != len(shape):
        for value in flat(values):
            walk.leave(value)
        return Labelled.fixed(shape)
    return equal(walk, node, shape, places, dims, None)


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
    if (name in ("mT", "T") and len(x.shape) == 2) or (name == "mT" and isinstance(x, Labelled | Picked)):
        return turned(walk, node, x, -2, -1)
    if name not in _FACTS:
        return walk.give_up(node, (x, name), {}, f"no rule for the attribute {name}")
    return walk.recorded(node)
