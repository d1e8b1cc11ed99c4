"""Operations that take a tensor apart: equal parts, written and counted places, members of structures."""

from __future__ import annotations

import math
import operator
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import fx

from understudy.graph.channels import Arranged, Labelled, ParameterPlan, ParameterUse, Picked
from understudy.graph.numbers import Number
from understudy.graph.rules.movement import compressed, unsqueeze
from understudy.graph.rules.pointwise import meet
from understudy.graph.rules.tables import for_calls
from understudy.graph.rules.weights import is_only_matrices, is_table, member, spread
from understudy.graph.walk import Walk


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
def split(walk: Walk, node: fx.Node, x: Labelled, sizes: Any = None, dim: int = 0, **more: Any) -> Any:
    """Parts whose sizes a module holds can shrink, those of one size together; written sizes freeze."""
    sizes = more.get("split_size_or_sections", more.get("split_size", sizes))
    dim %= len(x.shape)
    whole = x.shape[dim]
    parts = [min(sizes, whole - at) for at in range(0, whole, sizes)] if isinstance(sizes, int) else list(sizes)
    if sum(parts) != whole:
        raise ValueError(f"parts of {[int(part) for part in parts]} channels cannot be taken of {whole}")
    ends = np.cumsum([int(part) for part in parts])
    results = tuple(_sliced(x, dim, int(end - part), int(end)) for part, end in zip(parts, ends, strict=True))
    if dim not in x.varying:
        return results
    labels = walk.channels(x, dim, node)
    place = _place(node, 1, "split_size_or_sections", "split_size", "split_sizes")
    owns = tuple(labels[end - part : end] for part, end in zip(parts, ends, strict=True))
    if isinstance(sizes, Number) and whole % sizes == 0:
        walk.bundle(labels.reshape(-1, sizes).T, node)
        walk.follow(sizes, labels[:sizes], node)
        walk.sized(place, owns)
        return results
    if isinstance(sizes, int):
        walk.sized(place, owns)
    for index, (part, own) in enumerate(zip(parts, owns, strict=True)):
        if isinstance(sizes, int) or not walk.follow(part, own, node):
            walk.write(own, "split writes the numbers of its parts", node)
        if not isinstance(sizes, int):
            walk.sized((*place, index), own)
    return results


@for_calls(torch.split_with_sizes, "split_with_sizes")
def split_with_sizes(walk: Walk, node: fx.Node, x: Labelled, split_sizes: Any, dim: int = 0) -> Any:
    """As `split`."""
    return split(walk, node, x, split_sizes, dim)


@for_calls(torch.select, "select")
def select(walk: Walk, node: fx.Node, x: Labelled, dim: int, index: Any) -> Labelled:
    """One place along a dimension, as a number between brackets; of channels it is a written one."""
    dim %= len(x.shape)
    if dim in x.varying:
        walk.freeze(x.labels, "select takes one of these channels", node)
        x = Labelled.fixed(x.shape)
    return Labelled((*x.shape[:dim], *x.shape[dim + 1 :]), x.labels.squeeze(dim))


@for_calls(torch.narrow, "narrow")
def narrow(walk: Walk, node: fx.Node, x: Labelled, dim: int, start: Any, length: Any) -> Any:
    """As a slice."""
    if not (isinstance(start, int) and isinstance(length, int)):
        return walk.give_up(node, (x, dim, start, length), {}, "no rule for narrow with these arguments")
    dim, start = dim % len(x.shape), start + (x.shape[dim] if start < 0 else 0)
    if start + length > x.shape[dim]:  # what a removal leaves
        raise ValueError(f"{int(length)} channels from {int(start)} on cannot be taken of {x.shape[dim]}")
    result = _sliced(x, dim, start, start + length)
    if dim in x.varying and (start, length) != (0, 0):  # of nothing there are as many in any student
        labels = walk.channels(x, dim, node)
        walk.write(labels, "narrow cuts these channels at written places", node)
        walk.sized(_place(node, 2, "start"), labels[:start])
        walk.sized(_place(node, 3, "length"), labels[start : start + length])
    return result


def _place(node: fx.Node, index: int, *names: str) -> tuple[int | str, ...]:
    """Return where an argument is that can be given by position or by name."""
    return (index,) if len(node.args) > index else (next(name for name in names if name in node.kwargs),)


@for_calls(torch.unbind, "unbind")
def unbind(walk: Walk, node: fx.Node, x: Labelled, dim: int = 0) -> Any:
    """The members along a dimension; there are as many as the code takes apart, so channels there freeze."""
    dim %= len(x.shape)
    if dim in x.varying:
        walk.freeze(x.labels, "unbind takes these channels apart", node)
    members = (_sliced(x, dim, at, at + 1) for at in range(x.shape[dim]))
    return tuple(Labelled(tuple(s for d, s in enumerate(m.shape) if d != dim), m.labels.squeeze(dim)) for m in members)


def _sliced(x: Labelled, dim: int, start: int, stop: int) -> Labelled:
    sizes = list(x.shape)
    sizes[dim] = stop - start
    index = [slice(None)] * len(sizes)
    if x.labels.shape[dim] > 1:
        index[dim] = slice(start, stop)
    return Labelled(tuple(sizes), x.labels[tuple(index)])


@for_calls(operator.getitem, arranged=True)
def getitem(walk: Walk, node: fx.Node, x: Any, key: Any) -> Any:
    """Of a tuple or dict: its member. Of a tensor: a slice, which freezes channels that it cuts."""
    of_weight = spread(node, x) or member(walk, node, x)
    if of_weight is not None:
        return of_weight
    if isinstance(x, ParameterUse) and is_table(walk, node, x):
        added = _new_dims(len(x.shape), key if isinstance(key, tuple) else (key,))
        if added is not None:
            for place in added:
                x = unsqueeze(walk, node, x, place)
            return x
    if isinstance(x, Arranged):
        x = walk.as_tensor(x, node)
    if isinstance(x, ParameterUse) and isinstance(key, Labelled | ParameterUse) and len(x.shape) == 2:
        return _looked_up(walk, node, x, key)
    if type(x) is ParameterUse and len(x.shape) == 3 and _is_row_of_each(node, key) and is_only_matrices(node):
        return Picked(x.name, (key.shape[0], *x.shape[1:]), of=x.shape[0])
    if isinstance(x, ParameterUse) and isinstance(key, slice) and key.step is None and is_part_of_linear(node):
        return _rows(walk, node, x, key)
    if isinstance(x, ParameterUse) and _is_column(x, key):
        return _looked_up(walk, node, x, key[1], dim=0)
    keys = key if isinstance(key, tuple) else (key,)
    x = walk.as_tensor(x, node, dim=_uncut(x, keys)) if isinstance(x, ParameterUse) else x
    if not isinstance(x, Labelled):
        return x[key]
    if isinstance(key, Labelled) and _is_mask(node.args[1]) and _is_of_rows(x, key):
        rows, behind = walk.outcome(node, (x, key), {}).shape[0], len(key.shape)
        return Labelled((rows, *x.shape[behind:]), x.labels.reshape((1, *x.labels.shape[behind:])))
    if not all(isinstance(k, int | slice) or k is None or k is Ellipsis for k in keys):
        return _indexed(walk, node, x, tuple(places(walk, node, k) for k in keys))
    if any(_is_computed(k) for k in keys):
        return _at_computed_places(walk, node, x, keys)
    return _slice(walk, node, x, keys)


def _slice(walk: Walk, node: fx.Node, x: Labelled, keys: tuple[Any, ...]) -> Labelled:
    """Return the part of a tensor that keys take; where channels are cut at written places, it is of a plain graph."""
    shape = np.broadcast_to(np.zeros((), dtype=bool), x.shape)[keys].shape
    labels = x.labels[_on_labels(x, keys)]
    if not _counted(walk, node, x, keys):
        cut = [(dim, index) for dim, index in _dims_of(x, keys) if dim in x.varying and keys[index] != slice(None)]
        if not all(_cut(walk, node, x, dim, index) for dim, index in cut):
            return Labelled.fixed(shape)
    return Labelled(shape, compressed(labels))


def _is_computed(key: Any) -> bool:
    """Return whether a slice begins or ends where a tensor says."""
    return isinstance(key, slice) and any(isinstance(end, Labelled) for end in (key.start, key.stop, key.step))


def _at_computed_places(walk: Walk, node: fx.Node, x: Labelled, keys: tuple[Any, ...]) -> Any:
    """A slice that ends where a tensor says: as long as in the teacher, where nothing else has another size."""
    uncut = tuple(slice(None) if _is_computed(k) else k for k in keys)
    dims = [dim for dim, index in _dims_of(x, keys) if _is_computed(keys[index])]
    was, found = walk.recorded(node.all_input_nodes[0]).shape, walk.recorded(node).shape
    if set(dims) & set(x.varying):
        return walk.give_up(node, (x, keys), {}, "a slice cuts these channels at computed places")
    if any(x.shape[d] != was[d] for d in dims):
        raise ValueError(f"a slice at computed places of {x.shape[dims[0]]} elements is known of {was[dims[0]]} alone")
    full = getitem(walk, node, x, uncut)
    teachers = np.broadcast_to(np.zeros((), dtype=bool), was)[uncut].shape
    return Labelled(
        tuple(own if cut == whole else cut for own, whole, cut in zip(full.shape, teachers, found, strict=True)),
        full.labels,
    )


@for_calls(operator.setitem)
def put_in(walk: Walk, node: fx.Node, x: Any, key: Any, value: Any) -> Any:
    """What is written into a part of a tensor has the same channels as that part."""
    if isinstance(x, Labelled) and isinstance(key, Labelled) and _is_mask(node.args[1]):
        return _put_where(walk, node, x, key, value)
    keys, written = key if isinstance(key, tuple) else (key,), node.args[1]
    masks = any(map(_is_mask, written if isinstance(written, tuple) else (written,)))
    part = _taken(x, tuple(places(walk, node, k) for k in keys)) if isinstance(x, Labelled) and not masks else None
    if part is None and isinstance(x, Labelled) and _is_slice_of_channels(x, keys):
        part = _slice(walk, node, x, keys)
    if part is None:
        return walk.give_up(node, (x, key, value), {}, "no rule for writing into a part of these channels")
    if isinstance(value, Labelled):
        meet(walk, node, part, value)
        over, own = (walk.alike(t.labels.reshape(-1)) for t in (part, value))
        if part.varying and value.varying and not np.array_equal(over, own):  # what a removal brings
            raise ValueError("other channels would be written over these, which are read as these")
    return None


def _is_slice_of_channels(x: Labelled, keys: tuple[Any, ...]) -> bool:
    """Return whether keys take channels in a row or every k-th, at places that no tensor says."""
    places = all(isinstance(k, int | slice) or k is Ellipsis for k in keys) and not any(map(_is_computed, keys))
    cut = [(keys[index], x.shape[dim]) for dim, index in _dims_of(x, keys) if dim in x.varying] if places else []
    known = (isinstance(k, slice) and (k.step in (None, 1) or _is_every(k, width)) for k, width in cut)
    return len(x.varying) == 1 and all(known) and bool(cut)


def _is_row_of_each(node: fx.Node, key: Any) -> bool:
    """Return whether it is one computed place for each row."""
    return isinstance(key, Labelled) and key.is_fixed and len(key.shape) == 1 and not _is_mask(node.args[1])


def _is_mask(key: Any) -> bool:
    return isinstance(key, fx.Node) and getattr(key.meta["value"], "dtype", None) is torch.bool


def _is_of_rows(x: Labelled, mask: Labelled) -> bool:
    """Return whether a mask is of the first dimensions, and depends on no channel."""
    first = len(mask.shape)
    return mask.is_fixed and mask.shape == x.shape[:first] and all(dim >= first for dim in x.varying)


def _put_where(walk: Walk, node: fx.Node, x: Labelled, mask: Labelled, value: Any) -> Any:
    """Where a mask of the first dimensions says so, there is one number, or one for each channel."""
    behind = (1,) * (len(x.shape) - len(mask.shape))
    over = Labelled(mask.shape + behind, mask.labels.reshape(mask.labels.shape + behind))
    single = not isinstance(value, Labelled) or math.prod(value.shape) == 1
    after = isinstance(value, Labelled) and value.shape == x.shape[len(mask.shape) :]
    if not (single or after) or x.shape[: len(mask.shape)] != mask.shape:
        return walk.give_up(node, (x, mask, value), {}, "no rule for writing into a part of these channels")
    found = meet(walk, node, x, over)
    found = found if single else meet(walk, node, found, value)
    if found.varying != x.varying:  # which it had not before
        walk.freeze(found.labels, "they are written into a tensor of fixed size", node)
    return None


def _uncut(x: ParameterUse, keys: tuple[Any, ...]) -> int | None:
    """Return the one dimension of a table that keys take whole, where its channels are: of as many positions as came.

    None where that is not one, or the table has a single dimension.
    """
    if x.rows is not None or not all(isinstance(k, int | slice) or k is None or k is Ellipsis for k in keys):
        return None
    cut = {dim for dim, index in _dims_of(Labelled.fixed(x.shape), keys) if keys[index] != slice(None)}
    wide = [dim for dim, size in enumerate(x.shape) if size > 1]
    whole = [dim for dim in wide if dim not in cut]
    return whole[0] if len(whole) == 1 < len(wide) else None


def _new_dims(rank: int, keys: tuple[Any, ...]) -> list[int] | None:
    """Return where keys put new dimensions, ascending; None where they do anything else, or nothing."""
    if None not in keys or not all(k is None or k is Ellipsis or k == slice(None) for k in keys):
        return None
    places, dim = [], 0
    for key in keys:
        if key is None:
            places.append(dim)
        dim += rank - sum(k == slice(None) for k in keys) if key is Ellipsis else 1
    return places


def _is_column(x: ParameterUse, key: Any) -> bool:
    """Return whether a key takes places, given as a tensor, out of each row of a table."""
    pair = isinstance(key, tuple) and len(key) == len(x.shape) == 2
    return pair and isinstance(key[1], Labelled | ParameterUse) and key[0] == slice(None)


def _on_labels(x: Labelled, keys: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return keys for the labels, which have one element along a dimension without channels whatever is taken."""
    chosen = list(keys)
    for dim, index in _dims_of(x, keys):
        if x.labels.shape[dim] == 1:
            chosen[index] = 0 if isinstance(keys[index], int) else slice(None)
    return tuple(chosen)


def is_part_of_linear(node: fx.Node) -> bool:
    """Return whether rows of a parameter are weights of linear layers, or biases beside the same rows of weights."""

    def takes_rows(user: fx.Node) -> bool:
        if user.target is not F.linear or node not in user.args[1:]:
            return False
        x, *parts = user.args
        same = all(_is_of_parameter(part, node.args[1]) for part in parts if part is not None)
        return same and isinstance(x, fx.Node) and x.op != "get_attr"

    return bool(node.users) and all(map(takes_rows, node.users))


def _is_of_parameter(node: Any, key: Any) -> bool:
    """Return whether a node is what a key takes of a parameter."""
    cut = isinstance(node, fx.Node) and node.target is operator.getitem and node.args[1] == key
    return cut and node.args[0].op == "get_attr"


def _rows(walk: Walk, node: fx.Node, x: ParameterUse, key: slice) -> ParameterUse:
    """Rows of a weight that holds several, (A + B, C), and the elements of its bias, in a plain graph."""
    start, stop, _ = key.indices(x.shape[0])
    weight: Any = next(iter(node.users)).args[1]
    labels = walk.emit(str(weight.args[0].target), x.shape[0])
    walk.write(labels, "a slice takes rows of a parameter at written places", node)
    for name, place in (("start", key.start), ("stop", key.stop)):
        if place:
            walk.sized((1, name), labels[: start if name == "start" else stop])
    return ParameterUse(x.name, (stop - start, *x.shape[1:]), (start, stop))


def _dims_of(x: Labelled, keys: tuple[Any, ...]) -> list[tuple[int, int]]:
    """Return the dimension that each key is for, with the key's place."""
    behind = keys[keys.index(Ellipsis) + 1 :] if Ellipsis in keys else ()
    found, dim = [], 0
    for index, key in enumerate(keys):
        if key is Ellipsis:
            dim = len(x.shape) - sum(k is not None for k in behind)
        elif key is not None:
            found.append((dim, index))
            dim += 1
    return found


def _cut(walk: Walk, node: fx.Node, x: Labelled, dim: int, index: int) -> bool:
    """Let a slice of channels end where they do in a plain graph; of every k-th one, k in a row go together.

    Single ones and other steps freeze them. Return whether they can go.
    """
    written: Any = node.args[1]
    place: tuple[int | str, ...] = (1,)
    if isinstance(written, tuple):
        written, place = written[index], (1, index)
    key = walk.value_of(written)
    if len(x.varying) == 1 and isinstance(written, slice) and _is_every(key, x.shape[dim]):
        walk.bundle(walk.channels(x, dim, node).reshape(-1, key.step), node)
        return True
    if len(x.varying) > 1 or not isinstance(key, slice) or key.step not in (None, 1) or isinstance(written, fx.Node):
        walk.freeze(x.labels, "a slice cuts these channels at written places", node)
        return False
    labels = walk.channels(x, dim, node)
    start, stop, _ = key.indices(len(labels))
    if (start, stop) in ((0, len(labels)), (0, 0)):  # of nothing there are as many in any student
        return True
    walk.write(labels, "a slice cuts these channels at written places", node)
    if key.start is not None:
        walk.sized((*place, "start"), labels[:start])
    if key.stop is not None:
        walk.sized((*place, "stop"), labels[:stop])
    return True


def _is_every(key: slice, width: int) -> bool:
    """Return whether a slice takes one of each k channels, as many of each (`x[..., 1::2]`)."""
    start, step, whole = key.start or 0, key.step or 1, key.stop is None
    return type(step) is int and step > 1 and type(start) is int and 0 <= start < step and whole and width % step == 0


def places(walk: Walk, node: fx.Node, key: Any) -> Any:
    """Return a buffer of places as a tensor, which has no channels."""
    if not isinstance(key, ParameterUse):
        return key
    walk.parameter(key.name, ParameterPlan(key.shape), node)
    return Labelled.fixed(key.shape)


def _indexed(walk: Walk, node: fx.Node, x: Labelled, keys: tuple[Any, ...]) -> Any:
    """Places along some dimensions, given as tensors or lists, leave channels along another one as they are."""
    found = _taken(x, keys)
    given = (x, keys if isinstance(node.args[1], tuple) else keys[0])
    if found is None or walk.outcome(node, given, {}).shape != found.shape:  # a mask, of whatever number
        return walk.give_up(node, (x, keys), {}, "no rule for an index that is a tensor")
    return found


def _taken(x: Labelled, keys: tuple[Any, ...]) -> Labelled | None:
    """Return what keys take of a tensor, places that are given as tensors among them; None where they cut channels."""
    if not all(isinstance(k, int | slice | list | Labelled) or k is None or k is Ellipsis for k in keys):
        return None
    if any(dim in x.varying and keys[index] != slice(None) for dim, index in _dims_of(x, keys)):
        return None
    picks = [k for k in keys if isinstance(k, list | Labelled)]
    if not picks:
        shape = np.broadcast_to(np.zeros((), dtype=bool), x.shape)[keys].shape
        return Labelled(shape, compressed(x.labels[_on_labels(x, keys)]))
    if len(x.varying) > 1 or not all(k.is_fixed for k in picks if isinstance(k, Labelled)):
        return None
    places = tuple(np.zeros(k.shape, dtype=np.int64) if isinstance(k, Labelled) else k for k in keys)
    channel = np.zeros((1,) * len(x.shape), dtype=np.int64)
    if x.varying:
        along = [1] * len(x.shape)
        along[x.varying[0]] = x.shape[x.varying[0]]
        channel = np.arange(x.shape[x.varying[0]]).reshape(along)
    found = np.broadcast_to(channel, x.shape)[places]
    return Labelled(found.shape, x.labels.reshape(-1)[compressed(found)])


def _looked_up(walk: Walk, node: fx.Node, table: ParameterUse, index: Labelled | ParameterUse, *, dim: int = 1) -> Any:
    """Places of a table (N, H) or (H, N), such as the bias of each of H heads by relative position: heads are channels.

    `dim` is where they are.
    """
    places = walk.as_tensor(index, node)
    whole, heads = walk.recorded(node), table.shape[dim]
    if not places.is_fixed or whole.shape != ((*places.shape, heads) if dim else (heads, *places.shape)):
        return walk.give_up(node, (table, index), {}, "no rule for an index that is a tensor")
    labels = walk.channels(walk.as_tensor(table, node, dim=dim), dim, node)
    return Labelled.along(whole.shape, len(places.shape) if dim else 0, labels)


def _counted(walk: Walk, node: fx.Node, x: Labelled, keys: tuple[Any, ...]) -> bool:
    """Let the numbers that a module holds and that cut the channels follow them; False if others cut them."""
    if len(x.varying) != 1 or x.varying[0] >= len(keys) or not all(isinstance(k, int | slice) for k in keys):
        return False
    cut = keys[x.varying[0]]
    if not isinstance(cut, slice) or cut.step not in (None, 1):
        return False
    places = [place for place in (cut.start, cut.stop) if place is not None]
    if not places or not all(isinstance(place, Number) and place > 0 for place in places if place != 0):
        return False
    labels = walk.channels(x, x.varying[0], node)
    if any(place > len(labels) for place in places):
        return False
    followed = [walk.follow(place, labels[:place], node) for place in places if place != 0]
    at = (1, x.varying[0]) if isinstance(node.args[1], tuple) else (1,)
    for name, place in (("start", cut.start), ("stop", cut.stop)):
        if place:
            walk.sized((*at, name), labels[:place])
    return all(followed)
