"""Products of two tensors that the forward pass computes, attention most of all: whole heads can go."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch.nn.functional as F
from torch import fx

from understudy.graph.channels import FIXED, Labelled, Work
from understudy.graph.flops import counting
from understudy.graph.nodes import describe
from understudy.graph.rules.pointwise import meet
from understudy.graph.rules.tables import for_calls
from understudy.graph.walk import Walk


def product(walk: Walk, node: fx.Node, a: Labelled, b: Labelled) -> Any:
    """A sum over channels that both have, or a product for each head, each row or each column by itself."""
    if not (isinstance(a, Labelled) and isinstance(b, Labelled) and min(len(a.shape), len(b.shape)) > 1):
        return walk.give_up(node, (a, b), {}, f"no rule for {describe(node)} with these arguments")
    if a.shape[-1] != b.shape[-2]:
        raise ValueError(f"tensors of {a.shape} and {b.shape} cannot be multiplied")
    a, b = _summed(walk, node, a, -1, not _varies(b, -2)), _summed(walk, node, b, -2, not _varies(a, -1))
    shape = (*np.broadcast_shapes(a.shape[:-2], b.shape[:-2]), a.shape[-2], b.shape[-1])
    macs = math.prod(shape) * a.shape[-1]
    inner = _varies(a, -1), _varies(b, -2)
    kinds = any(inner), bool(_outer(a).varying or _outer(b).varying), _varies(a, -2), _varies(b, -1)
    if sum(kinds) > 1 or sum(inner) == 1 or _is_one(a) or _is_one(b):
        return walk.give_up(node, (a, b), {}, f"{describe(node)} mixes these channels with others")
    if any(inner):
        labels = walk.tie(walk.channels(a, -1, node), walk.channels(b, -2, node), node)
        result = Labelled.fixed(shape)
    else:
        around = (1,) * (len(shape) - 2)
        heads = meet(walk, node, _outer(a), _outer(b)).labels if kinds[1] else np.full(around, FIXED)
        side = a.labels if kinds[2] else b.labels if kinds[3] else None
        outline = (*heads.shape, 1, 1) if side is None else (*around, *side.shape[-2:])
        result = Labelled(shape, (heads if side is None else side).reshape(outline))
        labels = result.labels.reshape(-1)
    walk.part.work.append(Work(describe(node), macs // labels.size, (labels,)))
    return result


def _summed(walk: Walk, node: fx.Node, x: Labelled, dim: int, alone: bool) -> Labelled:
    """Return a side without the channels that are summed over where it `alone` has any."""
    if not alone or x.varying != (dim % len(x.shape),):
        return x
    walk.freeze(x.labels, f"{describe(node)} sums them with a tensor of fixed size", node)
    return Labelled.fixed(x.shape)


@for_calls(F.scaled_dot_product_attention)
def attention(
    walk: Walk,
    node: fx.Node,
    query: Labelled,
    key: Labelled,
    value: Labelled,
    attn_mask: Labelled | None = None,
    *rest: Any,
    enable_gqa: bool = False,
    **more: Any,
) -> Any:
    """Heads go whole: those of queries, keys, values and of the bias together. The width of a head stays."""
    args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda n: walk.plan.values[n])
    if not all(isinstance(x, Labelled) for x in (query, key, value)):
        return walk.give_up(node, args, kwargs, f"no rule for {describe(node)} with these arguments")
    heads, *shared = (_heads(walk, node, x) for x in (query, key, value))
    if enable_gqa:
        shared = [_repeated(x, heads.shape[-1]) for x in shared]
    bias = () if attn_mask is None else (_heads(walk, node, attn_mask),)
    for other in (*shared, *bias):
        heads = meet(walk, node, heads, other)
    shape = (*heads.shape, query.shape[-2], value.shape[-1])
    result = Labelled(shape, heads.labels.reshape((*heads.labels.shape, 1, 1)))
    with counting() as counter:
        walk.rerun(node, args, kwargs)
    if flops := counter.get_total_flops():  # torch counts none on a CPU
        labels = result.labels.reshape(-1)
        walk.part.work.append(Work(describe(node), flops // 2 // len(labels), (labels,)))
    return result


def _heads(walk: Walk, node: fx.Node, x: Labelled) -> Labelled:
    """Return what lies before the last two dimensions; channels that lie in these stay."""
    if _varies(x, -1) or _varies(x, -2) or _is_one(x):
        walk.freeze(x.labels, f"{describe(node)} runs over these channels", node)
        return Labelled.fixed(x.shape[:-2])
    return _outer(x)


def _varies(x: Labelled, dim: int) -> bool:
    return dim % len(x.shape) in x.varying


def _is_one(x: Labelled) -> bool:
    """Return whether the whole tensor is one channel."""
    return not x.varying and not x.is_fixed


def _outer(x: Labelled) -> Labelled:
    """Return what lies before the last two dimensions, where these have no channels."""
    return Labelled(x.shape[:-2], x.labels[..., 0, 0])


def _repeated(x: Labelled, heads: int) -> Labelled:
    """Return heads of keys or values that several queries share, once for each query; a single one serves any."""
    if x.shape[-1] in (1, heads):
        return x
    times = heads // x.shape[-1]
    labels = np.repeat(x.labels, times, -1) if x.labels.shape[-1] > 1 else x.labels
    return Labelled((*x.shape[:-1], heads), labels)
