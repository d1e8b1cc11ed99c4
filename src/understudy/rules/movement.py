"""Operations that move elements: labels move with them."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import fx, nn

from understudy.rules.pointwise import meet
from understudy.rules.tables import for_calls, for_modules
from understudy.walk import FIXED, Labelled, Labels, ParameterUse, Walk, count, describe


@for_modules(nn.Flatten)
def flatten_module(walk: Walk, node: fx.Node, module: Any, x: Labelled) -> Labelled:
    """As `flatten`."""
    return flatten(walk, node, x, module.start_dim, module.end_dim)


@for_calls(torch.flatten, "flatten")
def flatten(walk: Walk, node: fx.Node, x: Labelled, start_dim: int = 0, end_dim: int = -1) -> Labelled:
    """Joins dimensions; every element of the new one knows its channel."""
    rank = len(x.shape)
    start, end = start_dim % rank, end_dim % rank
    middle = count(x.shape[start : end + 1])
    return _reshaped(x, (*x.shape[:start], middle, *x.shape[end + 1 :]))


@for_calls(torch.reshape, "view", "reshape")
def reshape(walk: Walk, node: fx.Node, x: Labelled, *sizes: Any, **kwargs: Any) -> Any:
    """Sizes that the forward pass computes follow the student; those written as numbers do not.

    Channels that end up in a written size are frozen, or, beside a computed one, tied along it.
    """
    if kwargs or not isinstance(x, Labelled) or not _are_sizes(sizes):
        return walk.give_up(node, (x, sizes), kwargs, f"no rule for {describe(node)} with these arguments")
    flat = tuple(sizes[0]) if len(sizes) == 1 and not isinstance(sizes[0], int) else tuple(sizes)
    written = [isinstance(s, int) and s != -1 for s in _written_sizes(node, len(flat))]
    shape = tuple(np.empty(x.shape, dtype=bool).reshape(flat).shape)
    result = _reshaped(x, shape)
    literal = [d for d in result.varying if written[d] and shape[d] > 1]
    if literal and len(literal) == len(result.varying):
        walk.freeze(result.labels, f"{describe(node)} writes their number as {shape[literal[0]]}", node)
    elif len(result.varying) > 1:
        _tie_across(walk, node, result, literal)
    return result


def _are_sizes(sizes: tuple[Any, ...]) -> bool:
    flat = sizes[0] if len(sizes) == 1 and isinstance(sizes[0], list | tuple) else sizes
    return all(isinstance(s, int) for s in flat)


def _written_sizes(node: fx.Node, number: int) -> tuple[Any, ...]:
    """Return the sizes as the graph has them: nodes where they are computed."""
    sizes = node.args[1:] if len(node.args) > 1 else (node.kwargs.get("shape"),)
    if len(sizes) == 1 and isinstance(sizes[0], list | tuple):
        return tuple(sizes[0])
    return tuple(sizes) if len(sizes) == number else (None,) * number


def _tie_across(walk: Walk, node: fx.Node, x: Labelled, literal: list[int]) -> None:
    """Channels that lie in several dimensions can go only by whole slices of the computed one."""
    free = [d for d in x.varying if d not in literal]
    if len(free) != 1:
        walk.freeze(x.labels, f"{describe(node)} spreads them over several computed dimensions", node)
        return
    walk.bundle(np.moveaxis(x.labels, free[0], 0).reshape(x.labels.shape[free[0]], -1), node)


def _reshaped(x: Labelled, shape: tuple[int, ...]) -> Labelled:
    """Return x in another shape; dimensions that both shapes begin or end with are not expanded."""
    front = 0
    while front < min(len(shape), len(x.shape)) and shape[front] == x.shape[front]:
        front += 1
    back = 0
    while back < min(len(shape), len(x.shape)) - front and shape[-1 - back] == x.shape[-1 - back]:
        back += 1
    end = len(x.shape) - back
    outline = (*x.labels.shape[:front], *x.shape[front:end], *x.labels.shape[end:])
    middle = shape[front : len(shape) - back]
    labels = np.broadcast_to(x.labels, outline)
    labels = labels.reshape((*x.labels.shape[:front], *middle, *x.labels.shape[end:]))
    return Labelled(shape, _compressed(labels))


def _compressed(labels: Labels) -> Labels:
    for d, size in enumerate(labels.shape):
        if size > 1:
            first = labels.take([0], axis=d)
            if (labels == first).all():
                labels = first
    return labels


@for_calls(torch.permute, "permute")
def permute(walk: Walk, node: fx.Node, x: Labelled, *dims: Any) -> Labelled:
    """Channels move with their dimension."""
    order = dims[0] if len(dims) == 1 and not isinstance(dims[0], int) else dims
    order = [d % len(x.shape) for d in order]
    return Labelled(tuple(x.shape[d] for d in order), x.labels.transpose(order))


@for_calls(torch.transpose, torch.swapaxes, "transpose", "swapaxes")
def transpose(walk: Walk, node: fx.Node, x: Labelled, a: int, b: int) -> Labelled:
    """Channels move with their dimension."""
    order = list(range(len(x.shape)))
    order[a], order[b] = order[b], order[a]
    return permute(walk, node, x, order)


@for_calls(torch.unsqueeze, "unsqueeze")
def unsqueeze(walk: Walk, node: fx.Node, x: Labelled, dim: int) -> Labelled:
    """A new dimension of size 1."""
    at = dim % (len(x.shape) + 1)
    return Labelled((*x.shape[:at], 1, *x.shape[at:]), np.expand_dims(x.labels, at))


@for_calls(torch.squeeze, "squeeze")
def squeeze(walk: Walk, node: fx.Node, x: Labelled, dim: Any = None) -> Labelled:
    """Dimensions of size 1 go."""
    rank = len(x.shape)
    dims = range(rank) if dim is None else [dim] if isinstance(dim, int) else dim
    gone = {d % rank for d in dims if x.shape[d] == 1}
    kept = [d for d in range(rank) if d not in gone]
    return Labelled(tuple(x.shape[d] for d in kept), x.labels.reshape([x.labels.shape[d] for d in kept]))


@for_calls(torch.cat, torch.concat)
def concatenate(walk: Walk, node: fx.Node, tensors: Sequence[Any], dim: int = 0, **kwargs: Any) -> Any:
    """Along channels their labels follow one another; along space the channels meet."""
    dim = kwargs.get("axis", dim)
    parts = [t for t in tensors if isinstance(t, Labelled)]
    if len(parts) != len(tensors):
        return walk.give_up(node, (tensors, dim), {}, "a parameter is concatenated")
    dim %= len(parts[0].shape)
    sizes = list(parts[0].shape)
    sizes[dim] = sum(p.shape[dim] for p in parts)
    across = [any(d != dim for d in p.varying) for p in parts]
    if any(across):
        outlines = [p.labels.take([0], axis=dim) if p.labels.shape[dim] > 1 else p.labels for p in parts]
        slices = [
            Labelled(tuple(1 if d == dim else s for d, s in enumerate(p.shape)), o)
            for p, o in zip(parts, outlines, strict=True)
        ]
        if any(dim in p.varying for p in parts):
            return walk.give_up(node, (tensors, dim), {}, "cat joins channels of two dimensions")
        result = slices[0]
        for other in slices[1:]:
            result = meet(walk, node, result, other)
        return Labelled(tuple(sizes), result.labels)
    expanded = []
    for part in parts:
        outline = list(part.labels.shape)
        outline[dim] = part.shape[dim]
        expanded.append(np.broadcast_to(part.labels, outline))
    return Labelled(tuple(sizes), _compressed_if_fixed(np.concatenate(expanded, axis=dim)))


def _compressed_if_fixed(labels: Labels) -> Labels:
    return labels if (labels != FIXED).any() else _compressed(labels)


@for_calls(torch.chunk, "chunk")
def chunk(walk: Walk, node: fx.Node, x: Labelled, chunks: int, dim: int = 0) -> Any:
    """Equal parts: the channels at the same place of each part go together, so parts stay equal."""
    dim %= len(x.shape)
    if dim in x.varying and x.shape[dim] % chunks == 0:
        walk.bundle(walk.channels(x, dim, node).reshape(chunks, -1).T, node)
    elif dim in x.varying:
        return walk.give_up(node, (x, chunks, dim), {}, "chunk cuts them into unequal parts")
    size = -(-x.shape[dim] // chunks)
    return tuple(_sliced(x, dim, start, min(start + size, x.shape[dim])) for start in range(0, x.shape[dim], size))


@for_calls(torch.split, "split")
def split(walk: Walk, node: fx.Node, x: Labelled, sizes: Any, dim: int = 0) -> Any:
    """Parts of written sizes freeze their channels."""
    dim %= len(x.shape)
    if dim in x.varying:
        walk.freeze(x.labels, "split writes the numbers of its parts", node)
    whole = x.shape[dim]
    parts = [min(sizes, whole - at) for at in range(0, whole, sizes)] if isinstance(sizes, int) else sizes
    ends = np.cumsum(parts)
    return tuple(_sliced(x, dim, int(end - part), int(end)) for part, end in zip(parts, ends, strict=True))


def _sliced(x: Labelled, dim: int, start: int, stop: int) -> Labelled:
    sizes = list(x.shape)
    sizes[dim] = stop - start
    index = [slice(None)] * len(sizes)
    if x.labels.shape[dim] > 1:
        index[dim] = slice(start, stop)
    return Labelled(tuple(sizes), x.labels[tuple(index)])


@for_calls(operator.getitem)
def getitem(walk: Walk, node: fx.Node, x: Any, key: Any) -> Any:
    """Of a tuple or dict: its member. Of a tensor: a slice, which freezes channels that it cuts."""
    if not isinstance(x, Labelled):
        return x[key] if not isinstance(x, ParameterUse) else walk.give_up(node, (x, key), {}, "a parameter is sliced")
    keys = key if isinstance(key, tuple) else (key,)
    plain = all(isinstance(k, int | slice) or k is None or k is Ellipsis for k in keys)
    if not plain:
        return walk.give_up(node, (x, key), {}, "no rule for an index that is a tensor")
    flat = np.broadcast_to(x.labels, x.shape)[key]
    untouched = np.isin(np.unique(x.labels), np.unique(flat)).all() and _whole(x, keys)
    if not untouched:
        walk.freeze(x.labels, "a slice cuts these channels at written places", node)
    return Labelled(flat.shape, _compressed(flat))


def _whole(x: Labelled, keys: tuple[Any, ...]) -> bool:
    """Return whether no dimension with channels is cut."""
    if any(k is None or k is Ellipsis for k in keys):
        return not x.varying or all(k in (None, Ellipsis) or k == slice(None) for k in keys)
    return all(k == slice(None) for d, k in enumerate(keys) if d in x.varying)
