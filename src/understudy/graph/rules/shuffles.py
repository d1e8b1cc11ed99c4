"""Shuffles: channels change places among one another or run backwards, or become pixels and back."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import fx, nn

from understudy.graph.channels import Labelled
from understudy.graph.nodes import describe
from understudy.graph.rules.tables import for_calls, for_modules
from understudy.graph.walk import Walk


@for_modules(nn.ChannelShuffle)
def channel_shuffle_module(walk: Walk, node: fx.Node, module: Any, x: Labelled) -> Labelled:
    """As `channel_shuffle`."""
    return channel_shuffle(walk, node, x, module.groups)


@for_calls(F.channel_shuffle, torch.channel_shuffle)
def channel_shuffle(walk: Walk, node: fx.Node, x: Labelled, groups: int) -> Labelled:
    """Channels at the same place of each group go together, so groups stay equal."""
    labels = walk.channels(x, 1, node).reshape(groups, -1).T
    walk.bundle(labels, node)
    return Labelled.along(x.shape, 1, labels.reshape(-1))


@for_modules(nn.PixelShuffle, nn.PixelUnshuffle)
def pixel_module(walk: Walk, node: fx.Node, module: Any, x: Labelled) -> Labelled:
    """As the functions."""
    up = isinstance(module, nn.PixelShuffle)
    return (pixel_shuffle if up else pixel_unshuffle)(
        walk, node, x, module.upscale_factor if up else module.downscale_factor
    )


@for_calls(F.pixel_shuffle, torch.pixel_shuffle)
def pixel_shuffle(walk: Walk, node: fx.Node, x: Labelled, factor: int) -> Labelled:
    """The channels that become the pixels of one go together."""
    rows = walk.channels(x, -3, node).reshape(-1, factor**2)
    walk.bundle(rows, node)
    shape = (*x.shape[:-3], len(rows), x.shape[-2] * factor, x.shape[-1] * factor)
    return Labelled.along(shape, len(shape) - 3, rows[:, 0])


@for_calls(F.pixel_unshuffle, torch.pixel_unshuffle)
def pixel_unshuffle(walk: Walk, node: fx.Node, x: Labelled, factor: int) -> Labelled:
    """Each channel becomes as many as it has pixels in a block."""
    labels = np.repeat(walk.channels(x, -3, node), factor**2)
    shape = (*x.shape[:-3], len(labels), x.shape[-2] // factor, x.shape[-1] // factor)
    return Labelled.along(shape, len(shape) - 3, labels)


@for_calls(torch.flip, "flip")
def flip(walk: Walk, node: fx.Node, x: Labelled, *dims: Any) -> Labelled:
    """Channels run backwards with their elements."""
    flat = dims[0] if len(dims) == 1 and not isinstance(dims[0], int) else dims
    return Labelled(x.shape, np.flip(x.labels, tuple(flat)))


@for_calls(torch.fliplr, "fliplr", torch.flipud, "flipud")
def flip_of_matrix(walk: Walk, node: fx.Node, x: Labelled) -> Labelled:
    """As `flip` of the second dimension, or of the first."""
    return flip(walk, node, x, 1 if describe(node) == "fliplr" else 0)


@for_calls(torch.roll, "roll")
def roll(walk: Walk, node: fx.Node, x: Labelled, shifts: Any, dims: Any = None) -> Any:
    """Over space it keeps channels."""
    along = {d % len(x.shape) for d in ((dims,) if isinstance(dims, int) else dims or ())}
    if dims is None or along & set(x.varying):
        return walk.give_up(node, (x, shifts, dims), {}, "roll moves these channels by a written number")
    return x
