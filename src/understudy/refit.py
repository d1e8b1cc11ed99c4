"""The pass over a teacher with units removed: what arrives at each layer, in slots of the analysis."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import fx

from understudy.errors import SurgeryError
from understudy.groups import Groups
from understudy.trace import source_line
from understudy.walk import FIXED, Labelled, Labels, Walk


class Refit(Walk):
    """Follows the change from the removed units on; what it does not reach is taken from the analysis.

    Channels of different groups may meet where a removal brings them together: `met` lists such places,
    which fit only if both sides end up with equally many. A strict pass refuses them.
    """

    def __init__(self, groups: Groups, removed: frozenset[str], *, strict: bool = False) -> None:
        super().__init__(groups.trace, removed=removed)
        self.met: list[tuple[Labels, Labels, fx.Node]] = []
        self._groups = groups
        self._strict = strict
        self._changed: set[fx.Node] = set()

    def visit(self, node: fx.Node) -> Any:
        """Return a node's value; the analysis's where nothing that it depends on has changed."""
        before = self._groups.plan.values[node]
        if not self._concerned(node):
            self.part = self._groups.plan.parts[node]
            for name, plan in self.part.parameters.items():
                self._known.setdefault(name, plan)
            return before
        value = super().visit(node)
        if not _same(before, value):
            self._changed.add(node)
        return value

    def emit(self, name: str, size: int) -> Labels:
        """Return the slots that the layer emits in the teacher."""
        return self._groups.emitted[name]

    def tie(self, a: Labels, b: Labels, node: fx.Node) -> Labels:
        """Pass equal slots; other ones meet if they are equally many."""
        if np.array_equal(a, b):
            return a
        if len(a) != len(b):
            raise SurgeryError(f"at node {node.name} ({source_line(node)}): {len(a)} and {len(b)} channels meet")
        if self._strict:
            raise SurgeryError(f"at node {node.name} ({source_line(node)}): channels of two groups would meet")
        self.met.append((a, b, node))
        return a

    def freeze(self, labels: Labels, reason: str, node: fx.Node) -> None:
        """Pass slots that stay anyway; others that a removal brings here must not shrink."""
        held = labels[labels != FIXED]
        if not np.setdiff1d(held, self._groups.held).size:
            return
        if self._strict:
            raise SurgeryError(f"at node {node.name} ({source_line(node)}): {reason}")
        self.met.append((held, np.full(held.size, FIXED), node))

    def _concerned(self, node: fx.Node) -> bool:
        return any(n in self._changed for n in node.all_input_nodes) or self.passes_by(node)

    def passes_by(self, node: fx.Node) -> bool:
        """Return whether a node is inside a removed module."""
        return self.bypass(node) is not None


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, Labelled) and isinstance(b, Labelled):
        return a is b or (a.shape == b.shape and np.array_equal(a.labels, b.labels))
    if isinstance(a, tuple | list) and isinstance(b, tuple | list):
        return len(a) == len(b) and all(_same(x, y) for x, y in zip(a, b, strict=True))
    return a is b or (not isinstance(a, Labelled) and not isinstance(b, Labelled) and bool(a == b))
