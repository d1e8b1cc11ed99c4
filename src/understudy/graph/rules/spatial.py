"""Operations behind the channels, each channel by itself: pooling, padding, resizing, means."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import fx, nn

from understudy.graph.channels import Labelled, ParameterUse
from understudy.graph.fake import Signature
from understudy.graph.nodes import describe
from understudy.graph.rules.pointwise import meet
from understudy.graph.rules.tables import for_calls, for_modules
from understudy.graph.rules.weights import CHANGING, statistic
from understudy.graph.walk import Walk

# How many last dimensions an operation is over; None: all behind the first two.
_MODULES: dict[type[nn.Module], int | None] = {
    **dict.fromkeys((nn.MaxPool1d, nn.AvgPool1d, nn.AdaptiveAvgPool1d, nn.AdaptiveMaxPool1d, nn.LPPool1d), 1),
    **dict.fromkeys((nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d, nn.LPPool2d), 2),
    **dict.fromkeys((nn.MaxPool3d, nn.AvgPool3d, nn.AdaptiveAvgPool3d, nn.AdaptiveMaxPool3d, nn.LPPool3d), 3),
    **dict.fromkeys((nn.Upsample, nn.UpsamplingBilinear2d, nn.UpsamplingNearest2d), None),
}
_CALLS: dict[Any, int | None] = {
    **dict.fromkeys((F.max_pool1d, F.avg_pool1d, F.adaptive_avg_pool1d, F.adaptive_max_pool1d, F.lp_pool1d), 1),
    **dict.fromkeys((F.max_pool2d, F.avg_pool2d, F.adaptive_avg_pool2d, F.adaptive_max_pool2d, F.lp_pool2d), 2),
    **dict.fromkeys((F.max_pool3d, F.avg_pool3d, F.adaptive_avg_pool3d, F.adaptive_max_pool3d, F.lp_pool3d), 3),
    **{getattr(F, f"{name}_max_pool{d}d_with_indices".lstrip("_")): d for name in ("", "adaptive") for d in (1, 2, 3)},
    **{getattr(torch, f"max_pool{d}d"): d for d in (1, 2, 3)},
    F.interpolate: None,
}
_PADS = (
    *(nn.ZeroPad1d, nn.ZeroPad2d, nn.ZeroPad3d, nn.ConstantPad1d, nn.ConstantPad2d, nn.ConstantPad3d),
    *(nn.ReflectionPad1d, nn.ReflectionPad2d, nn.ReflectionPad3d),
    *(nn.ReplicationPad1d, nn.ReplicationPad2d, nn.ReplicationPad3d),
    *(nn.CircularPad1d, nn.CircularPad2d, nn.CircularPad3d),
)


@for_modules(*_MODULES)
def spatial_module(walk: Walk, node: fx.Node, module: nn.Module, x: Labelled) -> Any:
    """Changes sizes behind the channels, each channel by itself."""
    return _spatial(walk, node, x, _MODULES[type(module)])


@for_calls(*_CALLS, arranged=True)
def spatial_call(walk: Walk, node: fx.Node, input: Any, *args: Any, **kwargs: Any) -> Any:
    """As `spatial_module`, for functions; a table has its channels where a tensor has them."""
    dims = _CALLS[node.target]
    if isinstance(input, ParameterUse):
        input = walk.as_tensor(input, node, 1 if dims is None or len(input.shape) == dims + 2 else None)
        walk.plan.values[node.all_input_nodes[0]] = input
    return _spatial(walk, node, input, dims)


@for_modules(*_PADS)
def pad_module(walk: Walk, node: fx.Node, module: Any, x: Labelled) -> Any:
    """Each channel by itself, wherever the channels are, if nothing is added to them or taken from them."""
    pairs = _pairs(module.padding, len(x.shape))
    if any(any(pairs[d]) for d in x.varying):
        return walk.give_up(node, (x,), {}, f"{describe(node)} runs over these channels")
    return Labelled(tuple(size + sum(pair) for size, pair in zip(x.shape, pairs, strict=True)), x.labels)


def _pairs(widths: Sequence[int], rank: int) -> list[tuple[int, int]]:
    """Return what is added before and behind each of so many dimensions; widths begin with those of the last."""
    pairs = [(0, 0)] * rank
    for i in range(len(widths) // 2):
        pairs[-1 - i] = (widths[2 * i], widths[2 * i + 1])
    return pairs


def _known(walk: Walk, node: fx.Node, x: Labelled, dim: int, pair: tuple[Any, Any]) -> tuple[int, int]:
    """Return what is added to a dimension; where a tensor says it, as many as in the teacher, at one of its ends."""
    if not any(isinstance(width, Labelled) for width in pair):
        return pair
    was, now = (walk.recorded(n).shape[dim] for n in (node.all_input_nodes[0], node))
    if dim in x.varying or x.shape[dim] != was:
        raise ValueError(f"what is computed to be added to {x.shape[dim]} elements is known of {was} others alone")
    return 0, now - was


@for_calls(F.pad)
def pad(walk: Walk, node: fx.Node, x: Labelled, widths: Sequence[Any], *args: Any, **kwargs: Any) -> Any:
    """Each channel by itself. Constants beside the channels are channels of their own, which a plain graph can lack."""
    mode = args[0] if args else kwargs.get("mode", "constant")
    pairs = [_known(walk, node, x, d, pair) for d, pair in enumerate(_pairs(widths, len(x.shape)))]
    beside = [d for d, pair in enumerate(pairs) if d in x.varying and any(pair)]
    if beside and (mode != "constant" or len(x.varying) > 1 or min(pairs[beside[0]]) < 0):
        return walk.give_up(node, (x, widths, *args), kwargs, "pad runs over these channels")
    shape = tuple(size + sum(pair) for size, pair in zip(x.shape, pairs, strict=True))
    if not beside:
        return Labelled(shape, x.labels)
    before, after = pairs[beside[0]]
    fresh = walk.emit(f"{node.name}:pad", before + after)
    fresh = np.broadcast_to(fresh, (before + after,))
    walk.write(fresh, "pad writes how many it adds", node)
    at = 2 * (len(x.shape) - 1 - beside[0])
    place: tuple[int | str, ...] = (1,) if len(node.args) > 1 else ("pad",)
    for index, labels in ((at, fresh[:before]), (at + 1, fresh[before:])):
        if len(labels):
            walk.sized((*place, index), labels)
    labels = np.concatenate([fresh[:before], walk.channels(x, beside[0], node), fresh[before:]])
    return Labelled.along(shape, beside[0], labels)


def _spatial(walk: Walk, node: fx.Node, x: Labelled, dims: int | None) -> Any:
    dims = len(x.shape) - 2 if dims is None else dims
    args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda n: walk.plan.values[n])
    if dims < 1 or any(d >= len(x.shape) - dims for d in x.varying):
        return walk.give_up(node, args, kwargs, f"{describe(node)} runs over these channels")
    found = Labelled((*x.shape[:-dims], *walk.spatial(node, x, dims)), x.labels)
    return found if isinstance(walk.recorded(node), Signature) else (found, found)  # with the places of the largest


@for_modules(nn.MaxUnpool1d, nn.MaxUnpool2d, nn.MaxUnpool3d, states=True)
def unpool_module(walk: Walk, node: fx.Node, module: Any, x: Labelled, indices: Labelled, *size: Any, **kw: Any) -> Any:
    """As the functions."""
    return _unpooled(walk, node, len(module.kernel_size), x, indices)


@for_calls(F.max_unpool1d, F.max_unpool2d, F.max_unpool3d)
def unpool(walk: Walk, node: fx.Node, input: Labelled, indices: Labelled, *args: Any, **kwargs: Any) -> Any:
    """Each channel goes where its own largest values were, over space."""
    return _unpooled(walk, node, int(describe(node)[-2]), input, indices)


def _unpooled(walk: Walk, node: fx.Node, dims: int, x: Labelled, indices: Labelled) -> Any:
    args, kwargs = walk.value_of((node.args, node.kwargs))
    if any(d >= len(x.shape) - dims for t in (x, indices) for d in t.varying):
        return walk.give_up(node, args, kwargs, f"{describe(node)} runs over these channels")
    labels = meet(walk, node, x, indices).labels
    return Labelled((*x.shape[:-dims], *walk.outcome(node, args, kwargs).shape[-dims:]), labels)


_STATISTICS = (
    *("mean", "sum", "std", "var", "linalg_vector_norm", "linalg_norm", "norm", "amax", "amin", "max", "min"),
    *("cosine_similarity", "pairwise_distance", "linalg_vecdot"),
)


@for_calls(
    *(torch.mean, torch.sum, torch.amax, torch.amin, torch.std, torch.var, torch.logsumexp),
    *("mean", "sum", "amax", "amin", "std", "var", "logsumexp", "all", "any"),
    *(torch.nanmean, "nanmean", torch.nansum, "nansum"),
    arranged=True,
)
def reduce(walk: Walk, node: fx.Node, x: Any, dim: Any = None, keepdim: bool = False, **kwargs: Any) -> Any:
    """Over space it keeps channels. A statistic of channels is of those that stay; what is none freezes them."""
    if isinstance(x, ParameterUse):
        found = statistic(walk, node, x, dim, keepdim) if describe(node) in _STATISTICS else None
        if found is not None:
            return found
        x = walk.as_tensor(x, node, len(x.shape) - 1 if sum(size > 1 for size in x.shape) == 2 else None)
    if not isinstance(dim, int | tuple | list) and dim is not None:
        return walk.give_up(node, (x, dim, keepdim), kwargs, f"no rule for {describe(node)} with these arguments")
    rank = len(x.shape)
    dims = range(rank) if dim is None else [dim] if isinstance(dim, int) else dim
    reduced = {d % rank for d in dims}
    over = reduced & set(x.varying)
    named = node.op == "call_module" or describe(node) in _STATISTICS
    able = named and isinstance(walk.plan.values[node.all_input_nodes[0]], Labelled | ParameterUse)
    if over and (not able or len(x.varying) > 1):
        return walk.give_up(node, (x, dim, keepdim), kwargs, f"{describe(node)} runs over these channels")
    if over:
        walk.part.statistic = tuple(over)
        x = Labelled.fixed(x.shape)
    kept = [d for d in range(rank) if keepdim or d not in reduced]
    shape = tuple(1 if d in reduced else x.shape[d] for d in kept)
    return Labelled(shape, x.labels.reshape([x.labels.shape[d] for d in kept]))


@for_calls(torch.var_mean, torch.std_mean, parameters=True)
def spread_and_mean(walk: Walk, node: fx.Node, x: Any, dim: Any = None, *rest: Any, **more: Any) -> Any:
    """Both over space, or of a weight; over channels they would be two statistics at once."""
    args, kwargs = walk.value_of((node.args, node.kwargs))
    if isinstance(x, ParameterUse):
        found = statistic(walk, node, x, dim, more.get("keepdim", rest[1] if len(rest) > 1 else False))
        if found is not None:
            return found, found
        x = walk.as_tensor(x, node)
    dims = (dim,) if isinstance(dim, int) else dim
    if not isinstance(dims, tuple | list) or {d % len(x.shape) for d in dims} & set(x.varying):
        return walk.give_up(node, args, kwargs, f"{describe(node)} runs over these channels")
    return (reduce(walk, node, x, dims, more.get("keepdim", rest[1] if len(rest) > 1 else False)),) * 2


@for_calls(torch.linalg.vector_norm, torch.norm, "norm", torch.linalg.norm, parameters=True)
def norm(walk: Walk, node: fx.Node, x: Any, ord: Any = 2, dim: Any = None, keepdim: bool = False, **_: Any) -> Any:
    """As a sum; one of matrices mixes what it is over."""
    if node.target is torch.linalg.norm and not isinstance(dim, int | None) and ord is not None:
        return walk.give_up(node, (x,), {}, "a norm of matrices mixes these channels with others")
    return reduce(walk, node, x, dim, keepdim)


CHANGING += [reduce, norm, spread_and_mean]
