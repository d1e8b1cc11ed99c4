"""Sizes and other facts: plain numbers that the forward pass computes with."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from understudy.rules.tables import for_calls
from understudy.trace import Signature
from understudy.walk import Labelled, ParameterUse, Walk


@for_calls("size")
def size(walk: Walk, node: fx.Node, x: Labelled | ParameterUse, dim: int | None = None) -> Any:
    """Plain numbers."""
    return x.shape if dim is None else x.shape[dim]


@for_calls("dim", "numel", "get_device", "is_floating_point", torch._assert)
def fact(walk: Walk, node: fx.Node, *args: Any, **kwargs: Any) -> Any:
    """What does not depend on channels in a network that can be traced."""
    return walk.recorded(node)


@for_calls(getattr)
def attribute_of(walk: Walk, node: fx.Node, x: Any, name: str) -> Any:
    """The shape is computed; dtype, device and rank are the teacher's."""
    if name == "shape":
        return x.shape
    if isinstance(walk.recorded(node), Signature):
        return walk.give_up(node, (x, name), {}, f"no rule for the attribute {name}")
    return walk.recorded(node)
