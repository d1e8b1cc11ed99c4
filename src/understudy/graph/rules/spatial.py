"""Operations behind the channels, each channel by itself: pooling, padding, resizing, means."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from understudy.graph.channels import Labelled
from understudy.graph.rules.tables import for_calls, for_modules
from understudy.graph.trace import Signature
from understudy.graph.walk import Walk, describe


@for_modules(
    *(nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d),
    *(nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d),
    *(nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d),
    *(nn.LPPool1d, nn.LPPool2d, nn.LPPool3d, nn.Upsample, nn.UpsamplingBilinear2d, nn.UpsamplingNearest2d),
    *(nn.ZeroPad1d, nn.ZeroPad2d, nn.ZeroPad3d, nn.ReflectionPad1d, nn.ReflectionPad2d, nn.ReflectionPad3d),
    *(nn.ReplicationPad1d, nn.ReplicationPad2d, nn.ReplicationPad3d),
    *(nn.ConstantPad1d, nn.ConstantPad2d, nn.ConstantPad3d),
)
def spatial_module(walk: Walk, node: fx.Node, module: nn.Module, x: Labelled) -> Any:
    """Changes sizes behind the channels, each channel by itself."""
    return _spatial(walk, node, x)


@for_calls(
    *(F.max_pool1d, F.max_pool2d, F.max_pool3d, F.avg_pool1d, F.avg_pool2d, F.avg_pool3d),
    *(F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_avg_pool3d),
    *(F.adaptive_max_pool1d, F.adaptive_max_pool2d, F.adaptive_max_pool3d, F.interpolate),
)
def spatial_call(walk: Walk, node: fx.Node, x: Labelled, *args: Any, **kwargs: Any) -> Any:
    """As `spatial_module`, for functions."""
    return _spatial(walk, node, x)


@for_calls(F.pad)
def pad(walk: Walk, node: fx.Node, x: Labelled, widths: Sequence[int], *args: Any, **kwargs: Any) -> Any:
    """Padding in space only; padded channels are frozen."""
    if len(widths) > 2 * (len(x.shape) - 2):
        return walk.give_up(node, (x, widths, *args), kwargs, "padding adds channels")
    return _spatial(walk, node, x)


def _spatial(walk: Walk, node: fx.Node, x: Labelled) -> Any:
    if not isinstance(walk.recorded(node), Signature):
        return walk.give_up(node, (x,), {}, f"no rule for {describe(node)} with several results")
    if any(d != 1 for d in x.varying):
        return walk.give_up(node, (x,), {}, f"{describe(node)} mixes channels outside of dimension 1")
    return Labelled((*x.shape[:2], *walk.spatial(node, x)), x.labels)


@for_calls(
    *(torch.mean, torch.sum, torch.amax, torch.amin, torch.std, torch.var, torch.logsumexp),
    *("mean", "sum", "amax", "amin", "std", "var", "logsumexp", "all", "any"),
)
def reduce(walk: Walk, node: fx.Node, x: Labelled, dim: Any = None, keepdim: bool = False, **kwargs: Any) -> Any:
    """Over space it keeps channels; over channels it freezes them."""
    if not isinstance(dim, int | tuple | list) and dim is not None:
        return walk.give_up(node, (x, dim, keepdim), kwargs, f"no rule for {describe(node)} with these arguments")
    rank = len(x.shape)
    dims = range(rank) if dim is None else [dim] if isinstance(dim, int) else dim
    reduced = {d % rank for d in dims}
    if reduced & set(x.varying):
        return walk.give_up(node, (x, dim, keepdim), kwargs, f"{describe(node)} runs over these channels")
    kept = [d for d in range(rank) if keepdim or d not in reduced]
    shape = tuple(1 if d in reduced else x.shape[d] for d in kept)
    return Labelled(shape, x.labels.reshape([x.labels.shape[d] for d in kept]))
