"""Equal elements along a dimension: they may be channels, of which a student has as many as what they meet."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import fx

from understudy.graph.channels import Labelled
from understudy.graph.nodes import describe
from understudy.graph.numbers import Number
from understudy.graph.walk import Walk

# An argument as the graph has it, None for one size of a node that is several, and where it is.
Given = tuple[Any, tuple[int | str, ...]]
NONE = -1  # where there are no channels after all


def countable(walk: Walk, shape: tuple[int, ...], given: list[Given]) -> tuple[list[int], list[int]]:
    """Return the dimensions whose size is how many channels there are somewhere, and those whose size is written."""
    counted = [d for d, (size, _) in enumerate(given) if counts(walk, size, shape[d])]
    return counted, [d for d, (size, _) in enumerate(given) if type(size) is int and size > 1 and d > 0]


def equal(
    walk: Walk, node: fx.Node, shape: tuple[int, ...], given: list[Given], dims: tuple[list[int], list[int]], last: Any
) -> Labelled:
    """Return a tensor whose elements along `dims`, counted and written ones, are equal: channels along one of them.

    Where channels freeze along each, they are along `last`, if that is one.
    """
    counted, written = dims
    # A size of a tensor is that of channels; of numbers it is the largest, the last of such: (layers, batch, units).
    order = {d: (d in counted, isinstance(given[d][0], fx.Node), shape[d], d) for d in (*counted, *written)}
    able = sorted(order, key=order.__getitem__, reverse=True) + ([] if last is None else [last])
    dim = walk.choose(node, able, np.zeros(0, dtype=np.int64))
    if dim == NONE:
        return Labelled.fixed(shape)
    labels = walk.emit(f"{node.name}:made", shape[dim])
    walk.choose(node, able, labels)
    for other in counted:
        if other != dim:
            walk.leave(given[other][0])
    value, place = given[dim]
    if not walk.follow(value, labels, node) and not isinstance(value, fx.Node):
        walk.write(labels, f"{describe(node)} writes their number as {shape[dim]}", node)
    walk.sized(place, labels)
    return Labelled.along(shape, dim, labels)


def counts(walk: Walk, size: Any, count: int) -> bool:
    """Return whether a size is how many channels a module or another tensor has."""
    if isinstance(size, fx.Node):
        return count > 1 and walk.plan.sizes.get(size, np.zeros(0)).size == count
    return isinstance(size, Number) and count > 1


def measured(walk: Walk, size: Any) -> Labelled | None:
    """Return the tensor whose size as a whole an argument is, None where it is anything else."""
    shape = isinstance(size, fx.Node) and (size.target == "size" or size.args[1:] == ("shape",))
    whole = shape and (size.target != "size" or not (size.args[1:] or size.kwargs))
    value = walk.plan.values[size.args[0]] if whole else None
    return value if isinstance(value, Labelled) else None
