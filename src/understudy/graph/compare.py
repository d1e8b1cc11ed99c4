"""Whether two recordings of a forward pass do the same, but for how many channels there are."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import fx

from understudy.graph.channels import Labelled, ParameterUse
from understudy.graph.fake import Signature, flat, source_line
from understudy.graph.numbers import Number

Sizes = Callable[[fx.Node], list[tuple[int, ...]]]


def difference(one: fx.Graph, other: fx.Graph, *, sizes: Sizes | None = None, modes: bool = False) -> tuple[str, str]:
    """Return what the second recording does otherwise than the first and where, or two empty texts.

    Args:
        one: the recording that is compared with.
        other: of the same module or of a copy of it.
        sizes: the shapes that the tensors of a node of the first one must have in the second; by default its own.
        modes: leave out what only tells training from evaluation: flags, and statistics that are written.
    """
    ours, theirs = _steps(one, modes), _steps(other, modes)
    places = ({node: at for at, node in enumerate(ours)}, {node: at for at, node in enumerate(theirs)})
    for a, b in zip(ours, theirs, strict=False):
        if (a.op, a.target) != (b.op, b.target):
            return f"{_name(b)} is called in place of {_name(a)}", source_line(b)
        if not _same((a.args, a.kwargs), (b.args, b.kwargs), places, modes):
            return f"{_name(a)} gets another number", source_line(b)
        if (sizes or shapes_of)(a) != shapes_of(b):
            return f"{_name(a)} gives another shape", source_line(b)
    if len(ours) != len(theirs):
        more = (ours if len(ours) > len(theirs) else theirs)[min(len(ours), len(theirs))]
        return f"{_name(more)} is not always called", source_line(more)
    return "", ""


def twins(one: fx.Graph, other: fx.Graph) -> dict[fx.Node, fx.Node]:
    """Return the nodes of the first of two recordings that differ in modes only by those of the second."""
    return dict(zip(_steps(other, True), _steps(one, True), strict=True))


def shapes_of(node: fx.Node) -> list[tuple[int, ...]]:
    """Return the shapes of a node's tensors."""
    return [value.shape for value in flat(node.meta["value"]) if isinstance(value, Signature)]


def kept_sizes(value: Any, kept: npt.NDArray[np.bool_]) -> list[tuple[int, ...]]:
    """Return the shapes of the tensors of a walk's value where only some labels are kept."""
    parts = (part for part in flat(value) if isinstance(part, Labelled | ParameterUse))
    return [_kept(part, kept) if isinstance(part, Labelled) else part.shape for part in parts]


def _kept(x: Labelled, kept: npt.NDArray[np.bool_]) -> tuple[int, ...]:
    stays = kept[x.labels]
    around = [tuple(d for d in range(stays.ndim) if d != dim) for dim in range(stays.ndim)]
    return tuple(
        int(stays.any(axis=around[d]).sum()) if labels > 1 else size
        for d, (size, labels) in enumerate(zip(x.shape, x.labels.shape, strict=True))
    )


def _name(node: fx.Node) -> str:
    return str(node.target if node.op != "call_function" else getattr(node.target, "__name__", node.target))


def _steps(graph: fx.Graph, modes: bool) -> list[fx.Node]:
    return [node for node in graph.nodes if node.op != "get_attr" and not (modes and _writes_statistics(node))]


def _writes_statistics(node: fx.Node) -> bool:
    written = node.args[0] if node.args else None
    in_place = node.op == "call_method" and str(node.target).endswith("_") and not node.users
    return in_place and isinstance(written, fx.Node) and written.op == "get_attr"


def _same(a: Any, b: Any, places: tuple[dict[fx.Node, int], dict[fx.Node, int]], modes: bool) -> bool:
    def same(x: Any, y: Any) -> bool:
        return _same(x, y, places, modes)

    if isinstance(a, fx.Node) and isinstance(b, fx.Node):
        if a.op == b.op == "get_attr":
            return a.target == b.target and _same_constant(a.meta.get("constant"), b.meta.get("constant"))
        return a in places[0] and places[0][a] == places[1].get(b)
    if isinstance(a, Number) and isinstance(b, Number):
        return a.key == b.key  # where it does not follow the channels, the walk has frozen them
    if isinstance(a, tuple | list) and isinstance(b, tuple | list):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, dict) and isinstance(b, dict):
        return list(a) == list(b) and all(map(same, a.values(), b.values()))
    if isinstance(a, slice) and isinstance(b, slice):
        return all(map(same, (a.start, a.stop, a.step), (b.start, b.stop, b.step)))
    if isinstance(a, bool) and isinstance(b, bool):
        return modes or a == b
    if isinstance(a, float) and isinstance(b, float):
        return a == b or (math.isnan(a) and math.isnan(b))
    return type(a) is type(b) and (a is b or bool(a == b) or repr(a) == repr(b))


def _same_constant(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        return a.shape == b.shape and torch.equal(a.nan_to_num(), b.nan_to_num())
    return a is b
