"""Operations that move elements: labels move with them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import fx, nn

from understudy.graph.channels import (
    FIXED,
    Arranged,
    Attribute,
    Labelled,
    Labels,
    ParameterUse,
    Squeezed,
    Standardised,
)
from understudy.graph.nodes import describe
from understudy.graph.numbers import Number
from understudy.graph.rules.equal import NONE, Given, countable, equal, measured
from understudy.graph.rules.pointwise import meet
from understudy.graph.rules.standardised import begun, ended, is_standardised
from understudy.graph.rules.tables import for_calls, for_modules
from understudy.graph.rules.weights import arranged, asks, is_kernel, kernel, rows, spread
from understudy.graph.told import joined_sizes
from understudy.graph.walk import Walk


@for_modules(nn.Flatten)
def flatten_module(walk: Walk, node: fx.Node, module: Any, x: Labelled) -> Any:
    """As `flatten`."""
    return flatten(walk, node, x, module.start_dim, module.end_dim)


@for_calls(torch.flatten, "flatten", parameters=True)
def flatten(walk: Walk, node: fx.Node, x: Any, start_dim: int = 0, end_dim: int = -1) -> Labelled | ParameterUse:
    """Joins dimensions; every element of the new one knows its channel."""
    if isinstance(x, ParameterUse):
        found = rows(walk, node, x)
        if found is not None:
            return found
        x = walk.as_tensor(x, node)
    rank = len(x.shape)
    start, end = start_dim % rank, end_dim % rank
    middle = math.prod(x.shape[start : end + 1])
    return _reshaped(x, (*x.shape[:start], middle, *x.shape[end + 1 :]))


@for_calls(torch.reshape, "view", "reshape", parameters=True)
def reshape(walk: Walk, node: fx.Node, x: Any, *sizes: Any, **kwargs: Any) -> Any:
    """Sizes that the forward pass computes follow the student; those written as numbers do so in a plain graph."""
    if isinstance(x, ParameterUse):
        if is_standardised(node):
            return begun(walk, node, x, sizes[1])
        of_rows = rows(walk, node, x) or spread(node, x)
        if of_rows is not None:
            return of_rows
        x = walk.as_tensor(x, node, _whole(x.shape, walk.recorded(node).shape))
    if kwargs or not isinstance(x, Labelled) or not _are_sizes(sizes):
        return walk.give_up(node, (x, sizes), kwargs, f"no rule for {describe(node)} with these arguments")
    flat = tuple(sizes[0]) if len(sizes) == 1 and not isinstance(sizes[0], int) else tuple(sizes)
    shape = tuple(np.broadcast_to(np.zeros((), dtype=bool), x.shape).reshape(flat).shape)
    return _sized(walk, node, _reshaped(x, shape), given_sizes(node, sizes))


@for_calls("unflatten", torch.unflatten)
def unflatten(walk: Walk, node: fx.Node, x: Labelled, dim: int, sizes: Any) -> Labelled:
    """As `reshape` of one dimension."""
    dim %= len(x.shape)
    inner = np.broadcast_to(np.zeros((), dtype=bool), x.shape[dim : dim + 1]).reshape(tuple(sizes)).shape
    around: list[Given] = [(-1, ())] * len(x.shape)
    written = node.args[2] if len(node.args) > 2 else node.kwargs["sizes"]
    place: tuple[int | str, ...] = (2,) if len(node.args) > 2 else ("sizes",)
    given = [
        (v, (*place, i)) for i, v in enumerate(written if isinstance(written, list | tuple) else (None,) * len(inner))
    ]
    shape = (*x.shape[:dim], *inner, *x.shape[dim + 1 :])
    return _sized(walk, node, _reshaped(x, shape), [*around[:dim], *given, *around[dim + 1 :]])


@for_modules(nn.Unflatten)
def unflatten_module(walk: Walk, node: fx.Node, module: Any, x: Labelled) -> Any:
    """As `unflatten`; that of its sizes along which channels go is how many there are."""
    sizes = tuple(module.unflattened_size)
    if not all(isinstance(n, int) for n in (module.dim, *sizes)):
        return walk.give_up(node, (x,), {}, "Unflatten names dimensions")
    dim = module.dim % len(x.shape)
    inner = np.broadcast_to(np.zeros((), dtype=bool), x.shape[dim : dim + 1]).reshape(sizes).shape
    shape = (*x.shape[:dim], *inner, *x.shape[dim + 1 :])
    result = _sized(walk, node, _reshaped(x, shape), [(None, ())] * len(shape))
    for d in result.varying:
        if 0 <= d - dim < len(sizes) and sizes[d - dim] != -1:
            labels = walk.channels(result, d, node)
            walk.part.attributes.append(Attribute(str(node.target), "unflattened_size", labels, at=d - dim))
    return result


@for_calls("reshape_as", "view_as", parameters=True)
def reshape_as(walk: Walk, node: fx.Node, x: Any, other: Any) -> Any:
    """As `reshape` to sizes of another tensor, whose channels these then are."""
    if isinstance(x, Standardised):
        return ended(x, other)
    x, other = walk.as_tensor(x, node), walk.as_tensor(other, node)
    result = _reshaped(x, other.shape)
    if len(result.varying) > 1:
        walk.freeze(result.labels, f"{describe(node)} spreads them over several computed dimensions", node)
    for d in result.varying:
        walk.tie(walk.channels(result, d, node), walk.channels(other, d, node), node)
    return result


def given_sizes(node: fx.Node, sizes: tuple[Any, ...]) -> list[Given]:
    """Return the sizes that follow a node's first argument, positional ones."""
    if len(sizes) != 1 or isinstance(sizes[0], int):
        return [(value, (index,)) for index, value in enumerate(node.args) if index > 0]
    return [(_member(node.args[1], index), (1, index)) for index in range(len(sizes[0]))]


def _member(sizes: Any, index: int) -> Any:
    """Return one of several sizes as the code writes it, None if it reads them together: `x.shape[:-1] + (64,)`."""
    if isinstance(sizes, list | tuple):
        return sizes[index]
    joined = joined_sizes(sizes, index)
    return None if joined is None else _member(*joined)


def _are_sizes(sizes: tuple[Any, ...]) -> bool:
    flat = sizes[0] if len(sizes) == 1 and isinstance(sizes[0], list | tuple) else sizes
    return all(isinstance(s, int) for s in flat)


def _sized(walk: Walk, node: fx.Node, x: Labelled, given: list[Given]) -> Labelled:
    """Let each size along channels be their number; those that lie in several dimensions go by slices of one."""
    along = x.varying
    if len(along) > 1:
        along = (_parted(walk, node, x, given),)
        walk.bundle(np.moveaxis(x.labels, along[0], 0).reshape(x.labels.shape[along[0]], -1), node)
        x = Labelled(x.shape, compressed(walk.alike(x.labels)))
        along = along if along[0] in x.varying else x.varying
    for d in along:
        value = given[d][0]
        if _is_written(value):
            labels = np.moveaxis(x.labels, d, 0).reshape(x.labels.shape[d], -1)[:, 0]
            walk.write(labels, f"{describe(node)} writes their number as {x.shape[d]}", node)
        size(walk, node, x, d, given[d])
    return x


def size(walk: Walk, node: fx.Node, x: Labelled, dim: int, given: Given) -> None:
    """Let an argument be the number of channels along a dimension."""
    value, place = given
    if place and not (isinstance(value, int) and value == -1):
        labels = np.moveaxis(x.labels, dim, 0).reshape(x.labels.shape[dim], -1)[:, 0]
        walk.follow(value, labels, node)
        walk.sized(place, labels)


def _parted(walk: Walk, node: fx.Node, x: Labelled, given: list[Given]) -> int:
    """Return the dimension along which channels can go that lie in several: whole heads, say, and of each as many."""
    able = [d for d in x.varying if _follows(walk, x, given[d][0])]
    others = [d for d in x.varying if d not in able]
    if len(others) > 1 and len(x.varying) > 2 and others[0] == x.varying[0]:  # queries, keys and values before heads
        others = [*others[1:], others[0]]
    return walk.choose(node, [*able, *others], x.labels)


def _follows(walk: Walk, x: Labelled, size: Any) -> bool:
    """Return whether a size is of a module, or computed from the number of these channels, so that it can follow."""
    if isinstance(size, fx.Node):
        told = walk.tied(walk.plan.sizes.get(size, np.zeros(0, dtype=np.int64)))
        return bool(told.size and np.isin(told, walk.tied(x.labels.reshape(-1))).all())
    return isinstance(size, Number) or size in (-1, None)


def _is_written(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, Number) and value != -1


def _whole(old: tuple[int, ...], new: tuple[int, ...]) -> int | None:
    """Return the one of several dimensions of a table that a reshape leaves as it is, None if that is not one."""
    front, back = (sum(_alike(old[::step], new[::step])) for step in (1, -1))
    wide = [d for d, size in enumerate(old) if size > 1]
    kept = [d for d in wide if d < front or d >= len(old) - back]
    return kept[0] if len(kept) == 1 < len(wide) else None


def _alike(old: tuple[int, ...], new: tuple[int, ...]) -> Iterator[bool]:
    return itertools.takewhile(bool, (a == b for a, b in zip(old, new, strict=False)))


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
    return Labelled(shape, compressed(labels))


def compressed(labels: Labels) -> Labels:
    """Return labels with size 1 along each dimension where they do not differ."""
    for d, size in enumerate(labels.shape):
        if size > 1:
            first = labels.take([0], axis=d)
            if (labels == first).all():
                labels = first
    return labels


@for_calls(torch.permute, "permute", arranged=True)
def permute(walk: Walk, node: fx.Node, x: Any, *dims: Any) -> Labelled | Arranged:
    """Channels move with their dimension."""
    x = arranged(walk, node, x)
    order = dims[0] if len(dims) == 1 and not isinstance(dims[0], int) else dims
    order = [d % len(x.shape) for d in order]
    shape = tuple(x.shape[d] for d in order)
    if isinstance(x, Arranged):
        return Arranged(x.name, shape, dims=tuple(x.dims[d] for d in order))
    return Labelled(shape, x.labels.transpose(order))


def transpose(walk: Walk, node: fx.Node, x: Any, a: int, b: int) -> Labelled | Arranged:
    """Channels move with their dimension."""
    order = list(range(len(x.shape)))
    order[a], order[b] = order[b], order[a]
    return permute(walk, node, x, order)


@for_calls(torch.movedim, torch.moveaxis, "movedim", "moveaxis")
def movedim(walk: Walk, node: fx.Node, x: Labelled, source: Any, destination: Any) -> Labelled | Arranged:
    """Channels move with their dimension."""
    order = np.moveaxis(np.empty(tuple(range(len(x.shape)))), source, destination).shape
    return permute(walk, node, x, order)


@for_calls("expand", torch.broadcast_to, arranged=True)
def expand(walk: Walk, node: fx.Node, x: Any, *sizes: Any) -> Labelled:
    """Repeats along dimensions of size 1; a written number of channels stays.

    A parameter with several other dimensions is one of several tokens, whose channels are in the last.
    """
    x = kernel(walk, node, x)
    if isinstance(x, ParameterUse):
        wide = [d for d, n in enumerate(x.shape) if n > 1 and (not isinstance(x, Arranged) or x.dims[d] is not None)]
        x = walk.as_tensor(x, node, wide[-1] if len(wide) > 1 else None)
    flat = tuple(sizes[0]) if len(sizes) == 1 and not isinstance(sizes[0], int) else sizes
    new = len(flat) - len(x.shape)
    labels = x.labels.reshape((1,) * new + x.labels.shape)
    shape = tuple(x.shape[d - new] if size == -1 else size for d, size in enumerate(flat))
    given, whole = given_sizes(node, sizes), measured(walk, node.args[1])
    if whole is not None and whole.shape == shape:
        return Labelled(shape, meet(walk, node, x, whole).labels)
    result = _repeated(walk, node, x, Labelled(shape, labels), given)
    for d in result.varying if not x.is_fixed else ():
        if _is_written(given[d][0]):
            walk.write(labels, f"expand writes their number as {shape[d]}", node)
        size(walk, node, result, d, given[d])
    return result


def _repeated(walk: Walk, node: fx.Node, was: Labelled, result: Labelled, given: list[Given]) -> Labelled:
    """Return what repeats a tensor that has no channels, such as a mask, with those of what it meets from here on."""
    new = len(result.shape) - len(was.shape)
    first = 0 if is_kernel(node) else 1  # where examples are, but of kernels
    single = {d for d, n in enumerate(result.shape) if d >= first and n > 1 and (d < new or was.shape[d - new] == 1)}
    counted, written = ([d for d in dims if d in single] for dims in countable(walk, result.shape, given))
    if not was.is_fixed or not (counted or written):
        return result
    return equal(walk, node, result.shape, given, (counted, written), NONE)


@for_calls("repeat", torch.tile, "tile", arranged=True)
def repeat(walk: Walk, node: fx.Node, x: Any, *times: Any) -> Labelled | Arranged:
    """Channels follow one another as often as they are repeated."""
    flat = tuple(times[0]) if len(times) == 1 and not isinstance(times[0], int) else times
    flat = (1,) * (len(x.shape) - len(flat)) + tuple(flat)
    rank, x = len(flat), arranged(walk, node, kernel(walk, node, x))
    if isinstance(x, Arranged):
        dims = (None,) * (rank - len(x.shape)) + x.dims
        sizes = (1,) * (rank - len(x.shape)) + x.shape
        if all(n == 1 for n, d in zip(flat, dims, strict=True) if d is not None):
            return Arranged(x.name, tuple(s * n for s, n in zip(sizes, flat, strict=True)), dims=dims)
        x = walk.as_tensor(x, node)
    shape = (1,) * (rank - len(x.shape)) + x.shape
    labels = x.labels.reshape((1,) * (rank - len(x.shape)) + x.labels.shape)
    tiles = tuple(n if labels.shape[d] > 1 else 1 for d, n in enumerate(flat))
    result = Labelled(tuple(s * n for s, n in zip(shape, flat, strict=True)), np.tile(labels, tiles))
    given = given_sizes(node, times)
    return _repeated(walk, node, x, result, [(1, ())] * (rank - len(given)) + given)


@for_calls(torch.repeat_interleave, "repeat_interleave", arranged=True)
def repeat_interleave(walk: Walk, node: fx.Node, x: Any, repeats: Any, dim: Any = None, **more: Any) -> Any:
    """Each channel follows itself; those of a table lie along its other dimension."""
    if isinstance(x, ParameterUse):
        others = [d for d, size in enumerate(x.shape) if size > 1 and dim is not None and d != dim % len(x.shape)]
        x = walk.as_tensor(x, node, others[0] if len(others) == 1 else None)
    if not isinstance(repeats, int) or dim is None:
        return walk.give_up(node, (x, repeats, dim), more, "no rule for repeat_interleave with these arguments")
    dim %= len(x.shape)
    shape = tuple(s * repeats if d == dim else s for d, s in enumerate(x.shape))
    return Labelled(shape, np.repeat(x.labels, repeats, dim) if x.labels.shape[dim] > 1 else x.labels)


@for_calls(torch.unsqueeze, "unsqueeze", arranged=True)
def unsqueeze(walk: Walk, node: fx.Node, x: Any, dim: int) -> Labelled | ParameterUse:
    """A new dimension of size 1."""
    if isinstance(x, Squeezed):
        return ParameterUse(x.name, x.whole)
    x = arranged(walk, node, x)
    at = dim % (len(x.shape) + 1)
    shape = (*x.shape[:at], 1, *x.shape[at:])
    if isinstance(x, Arranged):
        return Arranged(x.name, shape, dims=(*x.dims[:at], None, *x.dims[at:]))
    return Labelled(shape, np.expand_dims(x.labels, at))


@for_calls(torch.squeeze, "squeeze", parameters=True)
def squeeze(walk: Walk, node: fx.Node, x: Labelled | ParameterUse, dim: Any = None) -> Labelled | ParameterUse:
    """Dimensions of size 1 go; of a weight it may come back (`F.conv1d(x, weight.squeeze(1).unsqueeze(1))`)."""
    if type(x) is ParameterUse and isinstance(dim, int) and _comes_back(node, dim % len(x.shape), len(x.shape)):
        at = dim % len(x.shape)
        return Squeezed(x.name, (*x.shape[:at], *x.shape[at + 1 :]), at=at)
    x, rank = walk.as_tensor(x, node), len(x.shape)
    dims = range(rank) if dim is None else [dim] if isinstance(dim, int) else dim
    if any(d % rank in x.varying for d in dims):
        walk.freeze(x.labels, "squeeze would drop the dimension of a single channel", node)
    gone = {d % rank for d in dims if x.shape[d] == 1}
    kept = [d for d in range(rank) if d not in gone]
    return Labelled(tuple(x.shape[d] for d in kept), x.labels.reshape([x.labels.shape[d] for d in kept]))


def _comes_back(node: fx.Node, at: int, rank: int) -> bool:
    """Return whether a dimension of size 1 that a parameter loses comes back in all that reads its elements."""

    def gives(user: fx.Node) -> bool:
        named = (*user.args[1:], user.kwargs.get("dim"))
        return user.target in ("unsqueeze", torch.unsqueeze) and named[0] in (at, at - rank)

    readers = [user for user in node.users if not asks(user)]
    whole = node.all_input_nodes[0].meta["value"].shape
    return whole[at] == 1 and bool(readers) and all(map(gives, readers))


@for_calls("unsqueeze_", "squeeze_")
def changed(walk: Walk, node: fx.Node, x: Labelled, *dims: Any, dim: Any = None) -> Any:
    """As without the underscore; whatever else reads the tensor finds it with these dimensions."""
    if len(node.all_input_nodes[0].users) > 1:
        return walk.give_up(node, (x, *dims), {}, f"{describe(node)} changes a tensor that is read elsewhere")
    dim = dims[0] if dims else dim
    return unsqueeze(walk, node, x, dim) if node.target == "unsqueeze_" else squeeze(walk, node, x, dim)


@for_calls(torch.stack)
def stack(walk: Walk, node: fx.Node, tensors: Sequence[Any], dim: int = 0) -> Any:
    """Tensors beside one another have the same channels."""
    if not all(isinstance(t, Labelled) for t in tensors):
        return walk.give_up(node, (tensors, dim), {}, "no rule for stack with these arguments")
    dim %= len(tensors[0].shape) + 1
    return concatenate(walk, node, [unsqueeze(walk, node, t, dim) for t in tensors], dim)


@for_calls(torch.cat, torch.concat, torch.concatenate, parameters=True)
def concatenate(walk: Walk, node: fx.Node, tensors: Sequence[Any], dim: int = 0) -> Any:
    """Along channels their labels follow one another; along space the channels meet.

    Rows of a table that are joined to others have their channels along its other dimension.
    """
    tensors = [_beside_others(walk, node, t, dim) if isinstance(t, ParameterUse) else t for t in tensors]
    parts = [t for t in tensors if isinstance(t, Labelled)]
    if len(parts) != len(tensors):
        return walk.give_up(node, (tensors, dim), {}, "a parameter is concatenated")
    parts = [part for part in parts if part.shape != (0,)] or parts  # as torch leaves out what a cache begins with
    dim %= len(parts[0].shape)
    sizes = list(parts[0].shape)
    for part in parts[1:]:
        if (*part.shape[:dim], *part.shape[dim + 1 :]) != (*sizes[:dim], *sizes[dim + 1 :]):
            raise ValueError(f"tensors of {tuple(sizes)} and {part.shape} cannot be joined along dimension {dim}")
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
    walk.joins(sizes[dim], dim, node)
    expanded = []
    for part in parts:
        outline = list(part.labels.shape)
        outline[dim] = part.shape[dim]
        expanded.append(np.broadcast_to(part.labels, outline))
    return Labelled(tuple(sizes), _compressed_if_fixed(np.concatenate(expanded, axis=dim)))


def _beside_others(walk: Walk, node: fx.Node, use: ParameterUse, dim: int) -> Labelled:
    wide = [d for d, size in enumerate(use.shape) if size > 1]
    others = [d for d in wide if d != dim % len(use.shape)]
    return walk.as_tensor(use, node, others[0] if len(wide) == 2 and len(others) == 1 else None)


@for_calls(torch.hstack, torch.vstack, torch.column_stack)
def stacked(walk: Walk, node: fx.Node, tensors: Sequence[Any]) -> Any:
    """As `concatenate`; vectors, which torch gives a dimension first, do not come."""
    name, rank = describe(node), len(tensors[0].shape)
    if rank < 2 and name != "hstack":
        return walk.give_up(node, (tensors,), {}, f"no rule for {name} of vectors")
    return concatenate(walk, node, tensors, 0 if name == "vstack" else min(1, rank - 1))


def _compressed_if_fixed(labels: Labels) -> Labels:
    return labels if (labels != FIXED).any() else compressed(labels)
