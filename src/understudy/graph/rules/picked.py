"""Operations that pick elements at places which are computed, or put them there."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import fx

from understudy.graph.channels import Labelled
from understudy.graph.nodes import describe
from understudy.graph.rules.pointwise import meet
from understudy.graph.rules.tables import for_calls
from understudy.graph.walk import Walk


@for_calls(torch.gather, "gather")
def gather(walk: Walk, node: fx.Node, x: Labelled, dim: int, index: Any, **more: Any) -> Any:
    """Places along one dimension, which depend on no channel; those along others are as they were."""
    dim %= len(x.shape)
    if isinstance(index, Labelled) and index.varying == x.varying and dim not in x.varying and not more:
        along = x.varying[0] if len(x.varying) == 1 else -1  # places for each channel
        if along >= 0:
            walk.tie(walk.channels(x, along, node), walk.channels(index, along, node), node)
            return Labelled(index.shape, x.labels)
    fixed = isinstance(index, Labelled) and index.is_fixed and not more
    if not fixed or dim in x.varying or any(index.shape[d] != x.shape[d] for d in x.varying):
        return walk.give_up(node, (x, dim, index), more, "no rule for gather with these arguments")
    return Labelled(index.shape, x.labels)


_PUTTING = ("index_add", "index_copy", "scatter", "scatter_add", "scatter_reduce")


@for_calls(*(f for name in _PUTTING for f in (getattr(torch, name), name, f"{name}_")))
def put(walk: Walk, node: fx.Node, x: Labelled, dim: int, index: Any, src: Any, *args: Any, **kwargs: Any) -> Any:
    """Rows go to places along one dimension that depend on no channel; channels along others are those of both."""
    dim %= len(x.shape)
    both = (x, src) if isinstance(src, Labelled) else (x,)
    along = {d for t in both for d in t.varying}
    # A scatter has a place for each element: places that are repeated for each channel are as many as these.
    each = along if "scatter" in describe(node) else set()
    able = isinstance(index, Labelled) and set(index.varying) == each and isinstance(src, Labelled | int | float)
    if not able or dim in along or any(len(t.varying) > 1 for t in (*both, index)):
        reason = f"no rule for {describe(node)} with these arguments"
        return walk.give_up(node, (x, dim, index, src, *args), kwargs, reason)
    for d in each:
        walk.tie(walk.channels(index, d, node), walk.channels(next(t for t in both if t.varying), d, node), node)
    ends = [Labelled(tuple(1 if d == dim else n for d, n in enumerate(t.shape)), t.labels) for t in both]
    return Labelled(x.shape, meet(walk, node, ends[0], ends[-1]).labels)


@for_calls(torch.masked_scatter, "masked_scatter", "masked_scatter_")
def masked_scatter(walk: Walk, node: fx.Node, x: Labelled, mask: Any, source: Any) -> Any:
    """Whole rows go where a mask takes rows, as those of images into a text: both have the same channels."""
    last, given = len(x.shape) - 1, node.args[1] if len(node.args) > 1 else node.kwargs["mask"]
    sides = [t for t in (x, source) if isinstance(t, Labelled) and t.varying in ((), (len(t.shape) - 1,))]
    rows = isinstance(given, fx.Node) and _is_of_rows(walk, given) and mask.shape[:-1] == x.shape[:-1]
    if not rows or len(sides) < 2 or source.shape[-1] != x.shape[-1]:
        return walk.give_up(node, (x, mask, source), {}, "no rule for masked_scatter with these arguments")
    ends = [Labelled(t.shape[-1:], t.labels.reshape(-1)) for t in (*sides, mask) if t.shape[-1] > 1]
    for end in ends[1:]:
        ends[0] = meet(walk, node, ends[0], end)
    return Labelled(x.shape, ends[0].labels.reshape((1,) * last + ends[0].labels.shape)) if ends else x


def _is_of_rows(walk: Walk, mask: fx.Node) -> bool:
    """Return whether a mask is the same along its last dimension: of size 1, or repeated."""
    value, name = walk.plan.values[mask], describe(mask)
    if not isinstance(value, Labelled) or value.shape[-1:] == (1,):
        return isinstance(value, Labelled)
    first: Any = mask.args[0] if mask.args else None
    inner = walk.plan.values.get(first) if isinstance(first, fx.Node) else None
    if name in ("to", "bool", "contiguous", "clone", "detach"):
        return _is_of_rows(walk, first)
    single = isinstance(inner, Labelled) and inner.shape[-1:] == (1,)
    return single and name in ("expand", "expand_as", "repeat", "broadcast_to")


@for_calls(torch.index_select, "index_select")
def index_select(walk: Walk, node: fx.Node, x: Labelled, dim: int, index: Any) -> Any:
    """As `gather`."""
    dim %= len(x.shape)
    if not (isinstance(index, Labelled) and index.is_fixed) or dim in x.varying:
        return walk.give_up(node, (x, dim, index), {}, "no rule for index_select with these arguments")
    return Labelled((*x.shape[:dim], *index.shape, *x.shape[dim + 1 :]), x.labels)


@for_calls(torch.take_along_dim, "take_along_dim")
def take_along_dim(walk: Walk, node: fx.Node, input: Labelled, indices: Any, dim: Any = None) -> Any:
    """As `gather`, with places that may be the same for all channels."""
    x, index = input, indices
    able = isinstance(index, Labelled) and isinstance(dim, int) and index.is_fixed
    if not able or dim % len(x.shape) in x.varying or any(index.shape[d] not in (1, x.shape[d]) for d in x.varying):
        return walk.give_up(node, (input, indices), {}, "no rule for take_along_dim with these arguments")
    outline = [1 if d == dim % len(x.shape) else size for d, size in enumerate(x.shape)]
    shape = np.broadcast_shapes(tuple(outline), index.shape)
    return Labelled(shape, x.labels)
