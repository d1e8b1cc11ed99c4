"""The pass over a teacher with units removed: what arrives at each layer, in slots of the analysis."""

from __future__ import annotations

import heapq
import math
from collections import ChainMap
from collections.abc import Iterable
from typing import Any

import numpy as np
from torch import fx
from torch.nn.modules.batchnorm import _NormBase

from understudy.core.errors import SurgeryError
from understudy.graph.channels import FIXED, Labelled, Labels, ParameterPlan, Plan, Work
from understudy.graph.fake import Signature, flat, source_line
from understudy.graph.groups import Groups
from understudy.graph.nodes import enclosing_modules
from understudy.graph.numbers import Key
from understudy.graph.walk import Walk

_COPIES = 400  # joined channels may be so many times those of the whole teacher
_NONE = np.zeros(0, dtype=np.int64)


class Refit(Walk):
    """Follows the change from the removed units on; what it does not reach is taken from the analysis.

    Channels of different groups may meet where a removal brings them together: `met` lists such places,
    which fit only if both sides end up with equally many, and where what reads them inherits its weights only if all of
    them stay, as then each meets the right one. Where some of a group's channels are left apart from the
    others, as half of them are behind a split, its width says nothing of how many of those stay: such groups, by their
    places in `whole`, fit at full width only. A strict pass refuses both. Removed modules that are `emptied` give the
    channels that they gave before, none of which stays.
    """

    def __init__(
        self,
        groups: Groups,
        removed: frozenset[str],
        *,
        emptied: frozenset[str] = frozenset(),
        strict: bool = False,
    ) -> None:
        super().__init__(groups.trace, removed=removed)
        self._emptied = emptied
        self.met: list[tuple[Labels, Labels, fx.Node]] = []
        self.whole: set[int] = set()
        self._groups = groups
        self._looked_at: list[fx.Node] = []
        self.abandoned, self.cuts, self.counts = groups.abandoned, groups.parameters, groups.numbers
        self._strict = strict
        self.chosen, self.constants = groups.chosen, groups.constants
        before = groups.plan
        self.plan = Plan(
            values=ChainMap({}, before.values), parts=ChainMap({}, before.parts), sizes=ChainMap({}, before.sizes)
        )

    def run(self) -> Plan:
        """Visit the removed units and whatever the change reaches, in order.

        Raises:
            SurgeryError: what a removal left does not fit, with the node and both shapes.
        """
        order = self.trace.order
        waiting = [order[node] for path in self._removed for node in self.trace.members[path]]
        nodes, seen = list(order), set(waiting)
        heapq.heapify(waiting)

        def push(near: Iterable[fx.Node]) -> None:
            for other in near:
                if order[other] not in seen:
                    seen.add(order[other])
                    heapq.heappush(waiting, order[other])

        while waiting:
            node = nodes[heapq.heappop(waiting)]
            self._looked_at.append(node)
            self.step(node)
            # A parameter that is used twice is cut in one way, so all its uses are looked at again.
            for key in self.part.uses & self._groups.sharers.keys():
                push(self._groups.sharers[key])
            before, now = self._groups.plan, self.plan
            counted = np.array_equal(before.sizes.get(node, _NONE), now.sizes.get(node, _NONE))
            if not (counted and _same(before.values[node], now.values[node])):
                push(node.users)
        return self.plan

    def verify(self, node: fx.Node) -> None:
        """Refuse another number where Python computes with it, unseen by the graph, and tensors that are wrong."""
        now, was = self.plan.values[node], node.meta["value"]
        if isinstance(now, Labelled) and self.bypass(node) is None:
            examples = was.shape[:1] == (self.trace.batch,) != now.shape[:1]  # a view took channels for some
            if examples or (0 in now.shape and 0 not in was.shape):  # or a slice cut beyond the end
                raise SurgeryError(f"at node {node.name} ({source_line(node)}): {was.shape} would be {now.shape}")
        if node.op == "output" and _shapes(now) != _shapes(was):
            raise SurgeryError(f"at node {node.name}: outputs of {_shapes(was)} would be {_shapes(now)}")
        if node.meta.get("escapes") and type(now) in (int, float, bool, tuple) and now != was:
            raise SurgeryError(f"at node {node.name} ({source_line(node)}): Python computes with {was}, but gets {now}")

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
        was = self._groups.plan.values[node]
        for labels in (a, b):
            self._count(labels, node)
            if isinstance(was, Labelled) and np.isin(a, was.labels).all():  # what reads them inherits, so the very ones
                for place in np.unique(self._groups.group_of[labels[labels != FIXED]]).tolist():
                    if place >= 0:
                        self._hold(place, node)
        return a

    def _count(self, labels: Labels, node: fx.Node) -> None:
        """Hear that the number of these channels counts, which is known of whole groups alone."""
        slots, times = np.unique(labels[labels != FIXED], return_counts=True)
        of = self._groups.group_of[slots]
        for place in np.unique(of[of >= 0]).tolist():
            own, size = times[of == place], len(self._groups.slots_of[place])
            if place in self.whole or (len(own) == size and (own == own[0]).all()):
                continue
            if self._strict:
                raise SurgeryError(f"at node {node.name} ({source_line(node)}): a part of a group's channels is left")
            self._hold(place, node)

    def _hold(self, place: int, node: fx.Node) -> None:
        """Demand that all channels of a group stay."""
        if place not in self.whole:
            self.whole.add(place)
            self.met.append((self._groups.slots_of[place], np.full(len(self._groups.slots_of[place]), FIXED), node))

    def parameter(self, name: str, plan: ParameterPlan, node: fx.Node) -> None:
        """As a pass over the teacher; a parameter whose shape is read keeps its channels."""
        super().parameter(name, plan, node)
        name = self.trace.names.get(name, name)
        before = self._groups.parameters.get(name)
        if before is None or same_dims(before.dims, plan.dims):
            return
        for labels in plan.dims:
            if isinstance(labels, np.ndarray):
                self._count(labels, node)
        if name in self._groups.plan.measured:
            raise SurgeryError(f"at node {node.name} ({source_line(node)}): the shape of {name} is read elsewhere")
        if node.op != "call_module" and self._holds_values(name):
            raise SurgeryError(f"at node {node.name} ({source_line(node)}): {name} has no values for other channels")

    def _holds_values(self, name: str) -> bool:
        """Return whether it is a buffer that nothing draws or resets, such as a mask."""
        owner = self.trace.root.get_submodule(name.rpartition(".")[0])
        return name.rpartition(".")[2] in owner._buffers and not isinstance(owner, _NormBase)

    def count_in(self, key: Key, labels: Labels, node: fx.Node, *, per: int = 1) -> None:
        """As a pass over the teacher; a number that the forward pass computes with keeps what it counts."""
        super().count_in(key, labels, node, per=per)
        before = self._groups.numbers.get(key)
        if key in self._groups.computed and not (before is not None and np.array_equal(before, labels)):
            raise SurgeryError(f"at node {node.name} ({source_line(node)}): {key[1]} of {key[0]} is computed with")

    def freeze(self, labels: Labels, reason: str, node: fx.Node, line: str = "") -> None:
        """Pass slots that stay anyway; other groups of which a removal brings some here fit at full width only."""
        held = np.setdiff1d(labels[labels != FIXED], self._groups.held)
        if not held.size:
            return
        if self._strict:
            raise SurgeryError(f"at node {node.name} ({source_line(node)}): {reason}")
        of = self._groups.group_of[held]
        for place in np.unique(of[of >= 0]).tolist():
            self._hold(place, node)

    def write(self, labels: Labels, reason: str, node: fx.Node, line: str = "") -> None:
        """Pass slots that only a plain graph lacks, or that stay; others that a removal brings here must not shrink."""
        self.freeze(labels[~np.isin(labels, self._groups.written)], reason, node, line)

    def joins(self, size: int, dim: int, node: fx.Node) -> None:
        """Refuse many copies of channels: each layer that goes where it is joined to its input doubles them."""
        most = _COPIES * max(self._groups.slots, self.recorded(node).shape[dim])
        if size > most:
            raise SurgeryError(
                f"at node {node.name} ({source_line(node)}): at most {most} channels can be joined, but got {size}: "
                "removals left copies of the same ones"
            )

    @property
    def grows(self) -> bool:
        """Whether the whole network without these modules has more parameters or MACs, and fewer of neither.

        What reads past a layer that made few channels of many then needs more weights than went with it.
        """
        added = [0, 0]
        for sign, plan in ((-1, self._groups.plan), (1, self.plan)):
            parts = [plan.parts[node] for node in self._looked_at]
            parameters = {name: found.dims for part in parts for name, found in part.parameters.items()}
            added[0] += sign * sum(math.prod(map(_size, dims)) for dims in parameters.values())
            added[1] += sign * sum(self._macs(work) for part in parts for work in part.work)
        return min(added) >= 0 and max(added) > 0

    def _macs(self, work: Work) -> int:
        kernel: Any = self.trace.modules[work.kernel_of].kernel_size if work.kernel_of is not None else ()
        return math.prod((work.constant, *kernel, *map(len, work.factors)))

    def visit(self, node: fx.Node) -> Any:
        """As a pass over the teacher; what an emptied module gives has its own channels and the other sizes of now."""
        value, dim = super().visit(node), self.empties(node)
        return value if dim is None else Labelled.along(value.shape, dim, self._groups.plan.along(node, dim))

    def empties(self, node: fx.Node) -> int | None:
        """Return the dimension along which a removed module gives nothing, None for any other node."""
        path = next((p for p in enclosing_modules(node) if p in self._removed), None) if self._emptied else None
        known = self._groups.plan.values.get(node) if path in self._emptied and node.op.startswith("call_") else None
        return int(known.varying[0]) if isinstance(known, Labelled) and len(known.varying) == 1 else None

    @property
    def removed(self) -> frozenset[str]:
        """The paths of the removed modules."""
        return self._removed

    def passes_by(self, node: fx.Node) -> bool:
        """Return whether a node is inside a removed module."""
        return self.bypass(node) is not None


def same_dims(one: tuple[Labels | int, ...], other: tuple[Labels | int, ...]) -> bool:
    """Return whether a parameter is cut alike in two ways of cutting it."""
    return len(one) == len(other) and all(map(_same_dim, one, other))


def _same_dim(a: Labels | int, b: Labels | int) -> bool:
    if isinstance(a, np.ndarray) and isinstance(b, np.ndarray):
        return a is b or np.array_equal(a, b)
    return not isinstance(a, np.ndarray) and not isinstance(b, np.ndarray) and a == b


def _shapes(value: Any) -> list[tuple[int, ...]]:
    return [tuple(v.shape) for v in flat(value) if isinstance(v, Labelled | Signature)]


def _size(dim: Labels | int) -> int:
    return len(dim) if isinstance(dim, np.ndarray) else dim


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, Labelled) and isinstance(b, Labelled):
        return a is b or (a.shape == b.shape and np.array_equal(a.labels, b.labels))
    if isinstance(a, tuple | list) and isinstance(b, tuple | list):
        return len(a) == len(b) and all(_same(x, y) for x, y in zip(a, b, strict=True))
    return a is b or (not isinstance(a, Labelled) and not isinstance(b, Labelled) and bool(a == b))
