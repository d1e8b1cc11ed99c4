"""Plain values that tell how many channels there are: sizes of tensors and parameters, and numbers of modules."""

from __future__ import annotations

import operator
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import fx, nn

from understudy.graph.channels import FIXED, Labelled, Labels, ParameterPlan, ParameterUse
from understudy.graph.fake import flat, map_structure
from understudy.graph.nodes import describe
from understudy.graph.numbers import Number, plain

if TYPE_CHECKING:
    from understudy.graph.walk import Walk

# Operations that give sizes to what they get; any other one that gets a size computes with it.
_RESIZING = frozenset(
    ("view", "reshape", "expand", "broadcast_to", "view_as", "reshape_as", "expand_as", "layer_norm", "rms_norm")
) | {f"{name}{d}d" for name in ("max_unpool", "MaxUnpool") for d in (1, 2, 3)}
_MAKING = frozenset(("zeros", "ones", "full", "new_zeros", "new_ones", "new_full", "new_empty"))
_NONE = np.zeros(0, dtype=np.int64)
# What a layer says of a dimension of its weight.
_LAYERS: dict[tuple[type[nn.Module], str, int], str] = {
    (nn.Embedding, "weight", 1): "embedding_dim",
    (nn.Linear, "weight", 0): "out_features",
    (nn.Linear, "weight", 1): "in_features",
}


def tell_layer(walk: Walk, name: str, dim: int, labels: Labels, node: fx.Node) -> None:
    """Let a layer say how wide its weight is that the forward pass reads past it."""
    path, _, own = name.rpartition(".")
    number = _LAYERS.get((type(walk.trace.root.get_submodule(path)), own, dim))
    if number is not None:
        walk.count_in((path, number), labels, node)


def follow_sizes(walk: Walk, node: fx.Node) -> None:
    """Note whose number a plain value tells; channels stay if theirs is used as a value, or for other tensors."""
    counted = [walk.plan.sizes[n] for n in node.all_input_nodes if n in walk.plan.sizes]
    value = walk.plan.values[node]
    makes = _any_tensor(value)
    told = _NONE if makes else _told(walk, node, counted)
    if node.meta.get("escapes"):
        walk.write(told, "Python computes with their number", node)
    if node.meta.get("counted"):
        walk.write(_sizes_of(walk, value, 0), "Python asks for their number by len", node)
    if makes and counted and node.op != "output" and walk.bypass(node) is None:
        module = walk.trace.modules[str(node.target)] if node.op == "call_module" else None
        labels, name = np.concatenate(counted), describe(node) if module is None else type(module).__name__
        inputs = [walk.plan.values[n] for n in node.all_input_nodes]
        own = np.concatenate([_NONE, *(_channels_of(walk, value) for value in inputs)])
        # Of places, which go along the channels of what is taken by them.
        repeats = name in ("expand", "repeat") and (own == FIXED).all()
        if name in _MAKING or repeats:
            own = _channels_of(walk, value)
        if name not in _RESIZING and not ((name in _MAKING or repeats) and own.size):
            walk.write(labels, f"{name} computes with their number", node)
        else:
            walk.sized_by.append((labels, own, node))
    if told.size and describe(node) in ("numel", "nelement") and isinstance(walk.value_of(node.args[0]), Labelled):
        walk.freeze(told, "the number of all elements, those of all examples, is computed with", node)
    if told.size or node in walk.plan.sizes:
        walk.plan.sizes[node] = np.unique(told)


def _told(walk: Walk, node: fx.Node, counted: list[Labels]) -> Labels:
    """Return the channels whose number a plain value was computed from."""
    near = node.args[0] if node.args else None
    if isinstance(near, fx.Node) and describe(node) == "getitem":
        found = _told_at(walk, near, _place(walk, node))
        if found is not None:
            return found
    measured = _measured(walk, node)
    if measured is not None:
        dim = node.args[1] if describe(node) == "size" and len(node.args) > 1 else node.kwargs.get("dim")
        return _sizes_of(walk, measured, dim if isinstance(dim, int) else range(len(measured.shape)))
    numbers = [v for v in flat((node.args, node.kwargs)) if isinstance(v, Number)]
    return np.concatenate([_NONE, *counted, *(walk.counts.get(number.key, _NONE) for number in numbers)])


def _told_at(walk: Walk, sizes: Any, place: Any) -> Labels | None:
    """Return the channels that a place of several sizes counts, None where that is not known."""
    if isinstance(sizes, tuple | list) and isinstance(place, int):
        member = sizes[place]
        return walk.plan.sizes.get(member, _NONE) if isinstance(member, fx.Node) else _NONE
    measured, dims = _sizes_in(walk, sizes) if isinstance(sizes, fx.Node) else (None, range(0))
    if measured is not None and isinstance(place, int | slice):
        return _sizes_of(walk, measured, dims[place])
    joined = joined_sizes(sizes, place)
    return None if joined is None else _told_at(walk, *joined)


def joined_sizes(sizes: Any, place: Any) -> tuple[Any, int] | None:
    """Return which of the two that were joined has a place, and where: `x.shape[:2] + (heads, -1)`; None of others."""
    joined = isinstance(sizes, fx.Node) and sizes.target is operator.add and isinstance(sizes.meta["value"], tuple)
    if not joined or not isinstance(place, int):
        return None
    first, second = sizes.args
    front = len(first.meta["value"] if isinstance(first, fx.Node) else first)
    place = range(len(sizes.meta["value"]))[place]
    return (first, place) if place < front else (second, place - front)


def _sizes_in(walk: Walk, node: fx.Node) -> tuple[Labelled | ParameterUse | None, range]:
    """Return the tensor or parameter that a shape, or a slice of one, is of, and which of its dimensions that tells."""
    measured = _measured(walk, node)
    if measured is not None:
        return measured, range(len(measured.shape))
    near: Any = node.args[0] if describe(node) == "getitem" else None
    place = _place(walk, node) if isinstance(near, fx.Node) else None
    if not isinstance(place, slice) or not isinstance(near.meta["value"], tuple):
        return None, range(0)
    measured, dims = _sizes_in(walk, near)
    return measured, dims[place]


def _place(walk: Walk, node: fx.Node) -> Any:
    return map_structure(walk.value_of(node.args[1]), plain)


def _measured(walk: Walk, node: fx.Node) -> Labelled | ParameterUse | None:
    """Return the tensor or parameter whose shape, size or number of elements a node is."""
    shape = node.op == "call_function" and node.target is getattr and node.args[1] == "shape"
    if shape or (node.op == "call_method" and node.target in ("size", "numel", "nelement")):
        value = walk.plan.values[node.args[0]]  # type: ignore[index]
        return value if isinstance(value, Labelled | ParameterUse) else None
    return None


def _sizes_of(walk: Walk, value: Any, dims: Any) -> Labels:
    """Return the channels that a tensor or parameter has along one dimension or several."""
    if isinstance(value, Labelled):
        return _along(value, dims)
    if not isinstance(value, ParameterUse):
        return _NONE
    plan = walk.cuts.get(value.name) or walk.known.get(value.name) or ParameterPlan(())
    asked = [dims] if isinstance(dims, int) else dims
    seen = value.seen(plan.dims) if plan.dims else ()
    along = [seen[dim] for dim in asked if seen]
    told: Labels = np.concatenate([_NONE, *(labels for labels in along if isinstance(labels, np.ndarray))])
    told = told[told != FIXED]
    if told.size or value.name not in walk.cuts:
        walk.plan.measured.add(value.name)
    return told


def _channels_of(walk: Walk, value: Any) -> Labels:
    if isinstance(value, ParameterUse):
        dims = (walk.known.get(value.name) or walk.cuts.get(value.name) or ParameterPlan(())).dims
        return np.concatenate([_NONE, *(labels for labels in dims if isinstance(labels, np.ndarray))])
    labels: Labels = value.labels.reshape(-1) if isinstance(value, Labelled) else _NONE
    return labels


def _along(x: Labelled, dims: Any) -> Labels:
    """Return the channels that a tensor has along one dimension or several."""
    asked = {d % len(x.shape) for d in ([dims] if isinstance(dims, int) else dims)}
    return x.labels[x.labels != FIXED] if asked & set(x.varying) else _NONE


def _any_tensor(value: Any) -> bool:
    return any(isinstance(v, Labelled | ParameterUse) for v in flat(value))
