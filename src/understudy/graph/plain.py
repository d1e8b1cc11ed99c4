"""The recorded forward pass of a student: the teacher's graph with the numbers of channels that the student has.

What the code computes with a number of channels is what it computed in the teacher; only where the number is the size
of channels it is the student's. So what the teacher's class cannot express (a written size, a head's width that is
computed from a layer's) needs nothing but other constants.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import fx

from understudy.graph.channels import Labelled, Size
from understudy.graph.fake import Signature, flat
from understudy.graph.nodes import checks, enclosing_modules, inside, is_overwritten
from understudy.graph.numbers import plain
from understudy.graph.refit import Refit
from understudy.graph.told import joined_sizes
from understudy.graph.trace import Trace

Mask = npt.NDArray[np.bool_]


def rewritten(graph: fx.Graph, refit: Refit, kept: Mask, silenced: Iterable[str] = ()) -> fx.Graph:
    """Return a recording of the teacher's as the student's of these channels, without the removed modules.

    Args:
        graph: of the refit's trace, `flagged` as well.
        refit: the pass over the teacher with those modules removed.
        kept: which slots stay, (slots + 1,).
        silenced: the removed modules in whose place there are zeros.
    """
    return _Writer(graph, refit, kept, frozenset(silenced)).run()


class _Writer:
    def __init__(self, graph: fx.Graph, refit: Refit, kept: Mask, silenced: frozenset[str]) -> None:
        self._graph, self._refit, self._kept, self._silenced = graph, refit, kept, silenced
        self._trace: Trace = refit.trace
        self._theirs = {ours: theirs for theirs, ours in self._trace.twins.items()}
        self._checks = checks(graph)
        self._new = fx.Graph()
        self._copies: dict[fx.Node, Any] = {}
        self._passed: dict[tuple[fx.Node, str], Any] = {}

    def run(self) -> fx.Graph:
        for node in self._graph.nodes:
            if node.op == "output":
                self._new.output(self._copied(node.args[0]))
            elif not self._is_gone(node):
                self._copies[node] = self._written(node)
        _forget_unused(self._new)
        return self._new

    def _is_gone(self, node: fx.Node) -> bool:
        """Return whether a node is an input at its default, looks at one, or writes statistics of a removed module."""
        if node.op == "placeholder":
            return self._is_left_out(node)
        if node not in self._trace.order and node not in self._trace.twins:  # only training mode has it
            removed = any(inside(node, path) for path in self._refit.removed)
            return removed or any(other not in self._copies for other in node.all_input_nodes)
        # What stands in for a node of a removed module is an earlier node, whatever became of the module's own inputs.
        return self._bypass(node) is None and any(other not in self._copies for other in node.all_input_nodes)

    def _is_left_out(self, node: fx.Node) -> bool:
        """Return whether an input is one that the example leaves at its default, which was recorded as a constant."""
        used = any(user not in self._checks for user in node.users)
        return bool(node.args) and not used and not any(isinstance(v, Signature) for v in flat(node.meta["value"]))

    def _twin(self, node: fx.Node) -> fx.Node:
        return self._trace.twins.get(node, node)

    def _bypass(self, node: fx.Node) -> fx.Node | None:
        return self._refit.bypass(self._twin(node)) if node.op not in ("placeholder", "get_attr") else None

    def _written(self, node: fx.Node) -> Any:
        entry = self._bypass(node)
        if entry is not None:
            return self._stand_in(node, self._theirs.get(entry, entry) if node not in self._trace.order else entry)
        told = self._told(node)
        if told is not None:
            return told
        args, kwargs = self._copied(node.args), self._copied(node.kwargs)
        part = self._refit.plan.parts.get(self._twin(node))
        for size in part.sizes if part is not None else ():
            args, kwargs = self._sized(node, args, kwargs, size)
        if not flat((args, kwargs)) or node.op in ("placeholder", "get_attr", "call_module") or _any_node(args, kwargs):
            return self._new.create_node(node.op, node.target, args, kwargs, node.name)
        if node.op == "call_function" and isinstance(node.meta["value"], int | float | bool):
            return node.target(*args, **kwargs)  # type: ignore[operator]
        return self._new.create_node(node.op, node.target, args, kwargs, node.name)

    def _told(self, node: fx.Node) -> Any:
        """Return the teacher's number where a node reads how many channels a tensor has, None where it does not."""
        value = node.meta["value"]
        reads = type(value) is int and self._refit.plan.sizes.get(self._twin(node), np.zeros(0)).size
        if not reads:
            return None
        if node.op == "call_method" and node.target == "size":
            dim = node.args[1] if len(node.args) > 1 else node.kwargs["dim"]
            return self._measured(node.args[0], dim, value)
        if node.op == "call_method":
            all_of_it = isinstance(self._refit.plan.values.get(self._twin(node.args[0])), Labelled)  # type: ignore[arg-type]
            return value if node.target in ("numel", "nelement") and not all_of_it else None
        if node.target is not operator.getitem or not _is_of_shape(node.args[0], node.args[1]):
            return None
        shape: Any = node.args[0]
        return self._measured(shape.args[0], node.args[1], value) if _is_shape(shape) else value

    def _measured(self, of: Any, dim: Any, value: int) -> Any:
        """Return the teacher's size of a tensor along a dimension of channels.

        The first one counts examples as well, where heads lie beside them: it is computed from the student's own.
        """
        x = self._refit.plan.values.get(self._twin(of))
        if not isinstance(x, Labelled) or not isinstance(dim, int) or dim % len(x.shape) or 0 not in x.varying:
            return value
        labels = x.labels.reshape(x.labels.shape[0], -1)[:, 0]
        own = self._new.call_method("size", (self._copies[of], dim))
        return self._scaled(own, len(labels), int(self._kept[labels].sum()))

    def _stand_in(self, node: fx.Node, entry: fx.Node) -> Any:
        path = next(path for path in enclosing_modules(node) if path in self._refit.removed)
        if (entry, path) not in self._passed:
            passed = self._copies[entry]
            dim = self._refit.empties(self._twin(node))
            if dim is not None:
                passed = self._new.call_method("narrow", (passed, dim, 0, 0))
            elif path in self._silenced:
                passed = self._new.call_function(torch.zeros_like, (passed,))
            elif is_overwritten(self._trace, path, self._refit.removed):
                passed = self._new.call_method("clone", (passed,))
            self._passed[entry, path] = passed
        return self._passed[entry, path]

    def _copied(self, value: Any) -> Any:
        return fx.node.map_aggregate(value, lambda v: self._copies[v] if isinstance(v, fx.Node) else plain(v))

    def _sized(self, node: fx.Node, args: Any, kwargs: Any, size: Size) -> tuple[Any, Any]:
        first, *rest = size.place
        if isinstance(first, int):
            written, held = node.args[first], args[first]
            changed = self._changed(node, written, held, rest, size)
            return (*args[:first], changed, *args[first + 1 :]), kwargs
        changed = self._changed(node, node.kwargs[first], kwargs[first], rest, size)
        return args, {**kwargs, first: changed}

    def _changed(self, node: fx.Node, written: Any, held: Any, place: list[int | str], size: Size) -> Any:
        """Return an argument with the number at a place below it changed."""
        if not place:
            return self._number(held, size)
        step, *rest = place
        if isinstance(held, slice):
            parts = {name: getattr(held, name) for name in ("start", "stop", "step")}
            parts[str(step)] = self._number(parts[str(step)], size)
            return slice(parts["start"], parts["stop"], parts["step"])
        if isinstance(held, fx.Node):  # several sizes in one
            number = len(written.meta["value"])
            held = tuple(self._member(written, held, index) for index in range(number))
        index = int(step)
        inner = written[index] if isinstance(written, list | tuple) else None
        changed = self._changed(node, inner, held[index], rest, size)
        return type(held)((*held[:index], changed, *held[index + 1 :]))

    def _member(self, written: fx.Node, held: fx.Node, index: int) -> Any:
        of: Any = written.args[0] if written.args else None
        measured = self._refit.plan.values.get(self._twin(of)) if _is_shape(written) else None
        if isinstance(measured, Labelled) and index in measured.varying:
            return self._measured(of, index, written.meta["value"][index])
        return self._new.call_function(operator.getitem, (held, index))

    def _number(self, held: Any, size: Size) -> Any:
        """Return how many channels stay, as a share of the teacher's number where the student computes that."""
        if isinstance(size.labels, tuple):
            return [int(self._kept[labels].sum()) for labels in size.labels]
        stay, all_of_them = int(self._kept[size.labels].sum()), len(size.labels)
        if not isinstance(held, fx.Node):
            return stay // size.per
        return self._scaled(held, stay, all_of_them)

    def _scaled(self, number: fx.Node, by: int, per: int) -> fx.Node:
        """Return a number that the student computes times a fraction."""
        if by == per:
            return number
        shared = math.gcd(by, per)
        product = self._new.call_function(operator.mul, (number, by // shared))
        return self._new.call_function(operator.floordiv, (product, per // shared))


def _is_shape(node: Any) -> bool:
    if not isinstance(node, fx.Node):
        return False
    reads = node.op == "call_function" and node.target is getattr and node.args[1] == "shape"
    return reads or (node.op == "call_method" and node.target == "size" and isinstance(node.meta["value"], tuple))


def _is_of_shape(node: Any, place: Any) -> bool:
    """Return whether a node is a shape or several sizes of one, at one place of them at least."""
    joined = joined_sizes(node, place)
    if joined is not None:
        return _is_of_shape(*joined)
    if isinstance(node, fx.Node) and node.target is operator.getitem and isinstance(node.args[1], slice):
        return _is_shape(node.args[0])
    return _is_shape(node)


def _any_node(*values: Any) -> bool:
    return any(isinstance(v, fx.Node) for v in flat(values))


def _forget_unused(graph: fx.Graph) -> None:
    """Erase what gives plain values that nothing needs any more, and parameters that nothing reads."""
    for node in reversed(graph.nodes):
        reads = node.target in (getattr, operator.getitem) or node.op == "get_attr"
        sized = node.op == "call_method" and node.target in ("size", "dim", "numel", "mean")  # weights of attention
        counted = node.target in (operator.mul, operator.floordiv, operator.add, operator.sub)
        if not node.users and (reads or sized or counted) and node.op not in ("output", "placeholder"):
            graph.erase_node(node)
