"""Records narrower copies of the teacher: what they compute otherwise than the walk predicted must keep its channels.

A walk knows the numbers that it has seen. Python lets some through unseen (`range(self.width)`, `math.log2`, a list's
index), so what the teacher's own code does with fewer channels is looked at as well: at one channel per group, where
any threshold shows, and at one less than all, where any divisor does.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import fx, nn

from understudy.core.memory import out_of_memory
from understudy.graph.channels import Attribute, ParameterUse, Standardised
from understudy.graph.compare import difference, kept_sizes
from understudy.graph.copies import tensor_at
from understudy.graph.fake import flat
from understudy.graph.groups import Groups
from understudy.graph.numbers import error_line
from understudy.graph.recorder import WAS
from understudy.graph.trace import Trace, copy_to_trace, record_example

Mask = npt.NDArray[np.bool_]
Found = tuple[str, str]  # what is done otherwise, and the line


def checked(groups: Groups) -> Groups:
    """Let those be for plain graphs that the forward pass of a narrower copy handles otherwise than predicted."""
    for fewest in (True, False):
        if not fewest and _does_unnamed(groups):
            return replace(groups, asked=frozenset())
        reasons = _culprits(groups, _copied(groups), fewest)
        while reasons:
            groups = groups.writing(reasons)
            reasons = _culprits(groups, _copied(groups), fewest)
    return groups


def _does_unnamed(groups: Groups) -> bool:
    """Return whether a narrower copy does as predicted though no layer is known by its class: no class is asked for."""
    names = _copied(groups)
    return bool(names) and _otherwise(groups, _kept(groups, names, False), _layers(groups.trace)) is None


def _copied(groups: Groups) -> list[str]:
    return [group.name for group in groups.groups if not group.plain]


def asked_types(groups: Groups) -> frozenset[str]:
    """Return the layers whose class the forward pass asks for, by path: `isinstance(self.pool, nn.MaxPool2d)`."""
    if groups.asked is not None:
        return groups.asked
    traced, layers = groups.trace, _layers(groups.trace)
    if _same_disguised(traced, layers):
        return frozenset()
    if not _same_disguised(traced, []):
        return frozenset(layers)  # the network does not do the same twice: each layer would be suspected, one by one
    return frozenset(_asked(traced, layers))


def _layers(traced: Trace) -> list[str]:
    return sorted({str(node.target) for graph in traced.graphs for node in graph.find_nodes(op="call_module")})


def _asked(traced: Trace, layers: list[str]) -> list[str]:
    """Return those of layers that are not passed by together whose class is asked for."""
    middle = len(layers) // 2
    halves = [half for half in (layers[:middle], layers[middle:]) if half and not _same_disguised(traced, half)]
    return [path for half in halves for path in _asked(traced, half)] if middle and halves else layers


def _same_disguised(traced: Trace, layers: list[str]) -> bool:
    shared = {id(tensor): tensor for tensor in (*traced.teacher.parameters(), *traced.teacher.buffers())}
    for graph in traced.graphs:
        copy = copy_to_trace(traced.teacher, shared).train(graph is traced.training)
        _disguise(copy, layers)
        try:
            again, _ = record_example(copy, traced.example, traced.leaf_modules)
        except Exception as error:
            if out_of_memory(error):
                raise
            return False
        if any(difference(graph, again)):
            return False
    return True


def _disguise(module: nn.Module, layers: Iterable[str]) -> None:
    for path in layers:
        part: Any = module.get_submodule(path)
        vars(part)[WAS], part.__class__ = part.__class__, Disguise


class Disguise(nn.Module):
    """What a layer is for a while, so that nobody knows it by its class."""

    __module__ = "torch.nn"  # tracing does not look into what comes from there

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run as the layer that it is."""
        me: Any = self
        me.__class__ = vars(self)[WAS]
        try:
            return me(*args, **kwargs)
        finally:
            me.__class__ = Disguise


def set_counts(module: nn.Module, attributes: Iterable[Attribute], kept: Mask) -> None:
    """Let the numbers of a module's parts count the channels that are kept, (slots + 1,)."""
    for attribute in attributes:
        number = int(kept[attribute.labels].sum()) // attribute.per
        part = module.get_submodule(attribute.module)
        before = getattr(part, attribute.name)
        if isinstance(before, tuple | list):
            several = (*before[: attribute.at], number, *before[attribute.at + 1 :])
            setattr(part, attribute.name, [*several] if isinstance(before, list) else several)
        else:
            setattr(part, attribute.name, number)


def _culprits(groups: Groups, names: list[str], fewest: bool) -> dict[str, Found]:
    """Return those of the named groups that must not shrink, each with what is done otherwise."""
    found = _otherwise(groups, _kept(groups, names, fewest)) if names else None
    if found is None or len(names) <= 1:
        return {} if found is None else {names[0]: found}
    middle = len(names) // 2
    halves = [_culprits(groups, half, fewest) for half in (names[:middle], names[middle:])]
    # Where each half does well alone, it takes both of them: neither may shrink.
    return {**halves[0], **halves[1]} or dict.fromkeys(names, found)


def _kept(groups: Groups, names: list[str], fewest: bool) -> Mask:
    kept = np.ones(groups.slots + 1, dtype=bool)
    for group, slots in zip(groups.groups, groups.slots_of, strict=True):
        if group.name in names:
            kept[slots[1:] if fewest else slots[-1:]] = False
    return kept


def _otherwise(groups: Groups, kept: Mask, disguised: Iterable[str] = ()) -> Found | None:
    traced = groups.trace
    for graph in traced.graphs:
        copy = _narrowed(groups, kept).train(graph is traced.training)
        _disguise(copy, disguised)
        try:
            again, _ = record_example(copy, traced.example, traced.leaf_modules)
        except Exception as error:
            if out_of_memory(error):
                raise
            return f"with fewer channels the forward pass fails: {str(error).partition(chr(10))[0]}", error_line(error)
        what, line = difference(graph, again, sizes=lambda node: _sizes(groups, node, kept))
        if what:
            return f"with fewer channels, {what}", line
    return None


def _sizes(groups: Groups, node: fx.Node, kept: Mask) -> list[tuple[int, ...]]:
    """Return the shapes that a node's tensors must have where only some slots are kept."""

    def sizes(name: str) -> tuple[int, ...]:
        dims = groups.parameters[name].dims
        return tuple(int(kept[d].sum()) if isinstance(d, np.ndarray) else d for d in dims)

    found: list[tuple[int, ...]] = []
    for part in flat(groups.plan.values[node]):
        if isinstance(part, Standardised):
            outputs, *others = sizes(part.name)
            found.append((1, outputs, math.prod(others)))
        elif isinstance(part, ParameterUse) and part.rows is None:
            found.append(part.seen_of(sizes))
        else:
            found += kept_sizes(part, kept)
    return found


def _narrowed(groups: Groups, kept: Mask) -> nn.Module:
    teacher = groups.trace.teacher
    instead = {id(tensor): tensor for tensor in (*teacher.parameters(), *teacher.buffers())}
    for name, plan in groups.parameters.items():
        tensor = tensor_at(teacher, name)
        sizes = [int(kept[d].sum()) if isinstance(d, np.ndarray) else d for d in plan.dims]
        if tuple(sizes) != tuple(tensor.shape):
            empty = torch.empty(sizes, dtype=tensor.dtype, device=tensor.device)
            instead[id(tensor)] = nn.Parameter(empty, False) if isinstance(tensor, nn.Parameter) else empty
    narrow = copy_to_trace(teacher, instead)
    set_counts(narrow, groups.plan.attributes, kept)
    return narrow
