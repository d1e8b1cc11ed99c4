"""Graph -> groups: which channels must keep the same indices, and which must stay."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
from torch import fx

from understudy.core.architecture import Frozen, Group
from understudy.graph import rules as _rules  # noqa: F401  fills the tables that Walk reads
from understudy.graph.channels import FIXED, Labelled, Labels, ParameterPlan, ParameterUse, Part, Plan, Standardised
from understudy.graph.compare import shapes_of
from understudy.graph.fake import flat, source_line
from understudy.graph.nodes import describe, each_once, enclosing_modules
from understudy.graph.numbers import Key
from understudy.graph.places import by_signature, first_emitters, readers
from understudy.graph.slots import Reasons, by_slot, renamed, renamed_plan
from understudy.graph.trace import Trace
from understudy.graph.walk import Walk


@dataclass(frozen=True, eq=False)
class Groups:
    """Which channels of a teacher go together. A slot is a set of channels that are tied, by number.

    `slots_of[i]` are the slots (ascending) of `groups[i]`; `emitted` are the slots of what each layer or
    parameter brings into being; `plan` is the pass over the whole teacher, in slots. `abandoned` are nodes whose rule
    failed, and how; `computed` are numbers of modules that the forward pass computes with; `asked` are layers whose
    class it asks for, None where that is not known yet.
    """

    trace: Trace
    plan: Plan
    emitted: dict[str, Labels]
    slots: int
    slots_of: tuple[Labels, ...]
    groups: tuple[Group, ...]
    frozen: tuple[Frozen, ...]
    abandoned: dict[fx.Node, str] = field(default_factory=dict)
    computed: frozenset[Key] = frozenset()
    chosen: Mapping[fx.Node, int] = field(default_factory=dict)
    constants: frozenset[str] = frozenset()
    asked: frozenset[str] | None = None

    def freezing(self, reasons: Mapping[str, tuple[str, str]]) -> Groups:
        """Return it with more groups frozen, each by its name for a reason and at a source line."""
        free = [(g, s) for g, s in zip(self.groups, self.slots_of, strict=True) if g.name not in reasons]
        more = [Frozen(name=g.name, width=g.width, reason=reasons[g.name][0], source=reasons[g.name][1])
                for g in self.groups if g.name in reasons]  # fmt: skip
        return replace(
            self,
            groups=tuple(group for group, _ in free),
            slots_of=tuple(slots for _, slots in free),
            frozen=(*self.frozen, *more),
        )

    def writing(self, reasons: Mapping[str, tuple[str, str]]) -> Groups:
        """Return it with more groups that only a plain graph can narrow, each by its name with reason and line."""
        if self.trace.draws:
            return self.freezing(reasons)
        groups = (replace(g, plain=_told(*reasons[g.name])) if g.name in reasons else g for g in self.groups)
        return replace(self, groups=tuple(groups))

    @cached_property
    def numbers(self) -> dict[Key, Labels]:
        """What each number of a module counts; the first use decides."""
        found: dict[Key, Labels] = {}
        for attribute in self.plan.attributes:
            found.setdefault((attribute.module, attribute.name), attribute.labels)
        return found

    @cached_property
    def parameters(self) -> dict[str, ParameterPlan]:
        """How each parameter is cut."""
        return self.plan.parameters

    @cached_property
    def sharers(self) -> dict[Any, list[fx.Node]]:
        """The nodes that use each parameter, or number of a module, that several use."""
        users: dict[Any, list[fx.Node]] = defaultdict(list)
        for node, part in self.plan.parts.items():
            for key in part.uses:
                users[key].append(node)
        return {key: nodes for key, nodes in users.items() if len(nodes) > 1}

    @cached_property
    def group_of(self) -> Labels:
        """The place of the group that each slot is of, -1 for those that always stay, (slots,)."""
        found = np.full(self.slots, -1)
        for place, slots in enumerate(self.slots_of):
            found[slots] = place
        return found

    @cached_property
    def held(self) -> Labels:
        """The slots that always stay."""
        free = np.concatenate([*self.slots_of, np.zeros(0, dtype=np.int64)])
        return np.setdiff1d(np.arange(self.slots), free)

    @cached_property
    def written(self) -> Labels:
        """The slots that only a plain graph can lack."""
        none = np.zeros(0, dtype=np.int64)
        return np.concatenate([none, *(s for g, s in zip(self.groups, self.slots_of, strict=True) if g.plain)])

    def without(self, names: set[str]) -> Groups:
        """Return the groups but those of these names, whose channels stay."""
        kept = [index for index, group in enumerate(self.groups) if group.name not in names]
        return replace(self, groups=tuple(self.groups[i] for i in kept), slots_of=tuple(self.slots_of[i] for i in kept))


class _Joiner(Walk):
    """The pass that ties: every channel starts as a label of its own, and ties join them."""

    def __init__(
        self,
        traced: Trace,
        before: _Joiner | None = None,
        tried: Mapping[fx.Node, int] | None = None,
        constants: frozenset[str] = frozenset(),
    ) -> None:
        super().__init__(traced)
        self._tried, self.constants = tried or {}, constants
        self.emitted: dict[str, Labels] = {}
        self.frozen: list[tuple[Labels, str, str]] = []
        self.written: list[tuple[Labels, str, str]] = []
        self.abandoned: dict[fx.Node, str] = {}
        self.closed: dict[str, Frozen] = {}  # layers that emit no channels, as nothing is known of them
        self.parted: dict[fx.Node, Labels] = {}  # channels that a node puts into several dimensions
        self.options: dict[fx.Node, int] = {}  # how many those are
        self.picked: dict[fx.Node, int] = {}  # along which they go
        self._parent: list[int] = []
        self._emitters: dict[str, Part] = {}
        self._before: dict[str, Labels] = {}
        if before is not None:  # what a pass was told by the one before is told in labels, so each name keeps its own
            self._before = {**before._before, **before.emitted}
            self._parent += range(len(before._parent))
            self.cuts = {name: cut for name, cut in before.plan.parameters.items() if name not in constants}
            self.counts = {key: labels for key, (labels, _, _) in before.counted.items()}

    def choose(self, node: fx.Node, dims: list[int], labels: Labels) -> int:
        if len(dims) > 1:
            self.parted[node], self.options[node] = labels, len(dims)
        place = self._tried.get(node, 0)
        self.picked[node] = dims[place if place < len(dims) else 0]
        return self.picked[node]

    def verify(self, node: fx.Node) -> None:
        predicted = [v.shape for v in flat(self.plan.values[node]) if isinstance(v, Labelled | ParameterUse)]
        if node not in self.abandoned and node.op != "get_attr" and predicted != shapes_of(node):
            raise ValueError(f"its rule predicts {predicted} for {shapes_of(node)}")

    def failed(self, node: fx.Node, error: Exception) -> Any:
        """Freeze whatever the node's rule may have touched."""
        reason = f"the rule for {describe(node)} failed: {error}"
        part, self.part = self.part, Part()
        cut = [labels for plan in part.parameters.values() for labels in plan.dims if isinstance(labels, np.ndarray)]
        emitted = [self.emitted[name] for name, emitter in self._emitters.items() if emitter is part]
        told = [self.plan.sizes[n] for n in node.all_input_nodes if n in self.plan.sizes]
        for labels in (*cut, *emitted, *told, *(attribute.labels for attribute in part.attributes)):
            self.freeze(labels, reason, node)
        self.abandoned[node] = reason
        return self.visit(node)

    def emit(self, name: str, size: int) -> Labels:
        if name not in self.emitted:
            known = self._before.get(name)
            self.emitted[name] = self._fresh(size) if known is None or len(known) != size else known
            self._emitters[name] = self.part
        return self.emitted[name]

    def _fresh(self, size: int) -> Labels:
        """Return new labels; a single channel cannot go, and broadcasts: it is no channel to decide on."""
        if size < 2:
            return np.full(1, FIXED)
        start = len(self._parent)
        self._parent += range(start, start + size)
        return np.arange(start, start + size)

    def tie(self, a: Labels, b: Labels, node: fx.Node) -> Labels:
        if np.array_equal(a, b):
            return a
        for x, y in zip(a.ravel().tolist(), b.ravel().tolist(), strict=True):
            if x == FIXED or y == FIXED:
                self.freeze(np.array([x, y]), "it is tied to channels of fixed size", node)
            elif x != y:
                self._join(x, y)
        return a

    def freeze(self, labels: Labels, reason: str, node: fx.Node, line: str = "") -> None:
        held = np.unique(labels)
        held = held[held != FIXED]
        if held.size:
            self.frozen.append((held, reason, line or source_line(node)))

    def close(self, node: fx.Node, reason: str) -> None:
        name, kind = str(node.target), describe(node)
        if node.op == "call_module":
            sizes = [p.shape[0] for p in self.trace.root.get_submodule(name).parameters() if p.dim() > 1]
        else:  # a weight that is computed, by a hook or in the forward pass
            name = next(reversed(enclosing_modules(node)), "") or self._made_of(node)
            computes = name and kind in ("linear", "conv1d", "conv2d", "conv3d")
            sizes = [self.recorded(node).shape[-1 if kind == "linear" else 1]] if computes else []
        if sizes:
            self.closed.setdefault(name, Frozen(name=name, width=sizes[0], reason=reason, source=source_line(node)))

    def _made_of(self, node: fx.Node) -> str:
        """Return the layer or parameter that a weight is computed from, in the forward pass of the network itself."""
        parameters = dict(self.trace.root.named_parameters())
        for first in each_once(node.all_input_nodes[1:], lambda made: made.all_input_nodes):
            if first.op == "get_attr" and first.target in parameters:
                return str(first.target).rpartition(".")[0] or str(first.target)
        return ""

    def write(self, labels: Labels, reason: str, node: fx.Node, line: str = "") -> None:
        if self.trace.draws:  # which no recorded graph repeats
            self.freeze(labels, reason, node, line)
        else:
            self.written.append((np.unique(labels[labels != FIXED]), reason, line or source_line(node)))

    def tied(self, labels: Labels) -> Labels:
        """Return the label that stands for all that each one is tied to so far, each once."""
        return np.unique(self.alike(labels))

    def alike(self, labels: Labels) -> Labels:
        """Return the label that stands for all that each one is tied to so far."""
        held, places = np.unique(labels, return_inverse=True)
        roots = [FIXED if label == FIXED else self._find(label) for label in held.tolist()]
        return np.array(roots, dtype=np.int64)[places].reshape(labels.shape)

    def stuck(self) -> list[fx.Node]:
        """Return the nodes that part channels, after which these freeze."""
        held = self._held() if self.parted else np.zeros(0, dtype=np.int64)
        return [node for node, labels in self.parted.items() if np.isin(self.tied(labels), held).any()]

    def _held(self) -> Labels:
        """Return what stands for channels that cannot go: frozen ones, and those of a layer that all go together."""
        roots = self.roots()
        found = (renamed(labels, roots) for labels in self.emitted.values())
        single = (own for own in found if own[0] != FIXED and (own == own[0]).all())
        frozen = (renamed(labels, roots) for labels, _, _ in self.frozen)
        return np.unique(np.concatenate([np.zeros(0, dtype=np.int64), *single, *frozen]))

    def in_the_way(self) -> frozenset[str]:
        """Return parameters and buffers whose channels freeze and were tied to several of one layer.

        Buffers come first, then the smallest: a bias of all channels, or a number for each head, may be tied to
        several only by what is behind it, say by the frequencies of a rotary embedding.
        """
        direct = {str(node.target) for graph in self.trace.graphs for node in graph.find_nodes(op="get_attr")}
        if direct.isdisjoint(self.emitted):
            return frozenset()
        held, roots = self._held(), self.roots()
        several: set[int] = set()
        for labels in self.emitted.values():
            found, times = np.unique(renamed(labels, roots), return_counts=True)
            several.update(found[times > 1].tolist())
        known = {name: np.unique(renamed(labels, roots)) for name, labels in self.emitted.items() if name in direct}
        tied = [n for n, own in known.items() if np.isin(own, held).all() and not several.isdisjoint(own.tolist())]
        learned = {name for name, _ in self.trace.root.named_parameters(remove_duplicate=False)}
        order = {name: (name in learned, len(self.emitted[name])) for name in tied}
        return frozenset(name for name in tied if order[name] == min(order.values()))

    def roots(self) -> Labels:
        """Return, for every label, the one that stands for all that it is tied to."""
        return np.array([self._find(label) for label in range(len(self._parent))], dtype=np.int64)

    def slots(self) -> Labels:
        """Return, for every label, the number of what it stays or goes with; FIXED where this pass did not meet it."""
        roots, none = self.roots(), np.zeros(0, dtype=np.int64)
        met = np.concatenate([none, *(labels[labels != FIXED] for labels in self.emitted.values())])
        together = np.unique(roots[met])
        found: Labels = np.where(np.isin(roots, together), np.searchsorted(together, roots), FIXED)
        return found

    def _find(self, label: int) -> int:
        while self._parent[label] != label:
            self._parent[label] = self._parent[self._parent[label]]
            label = self._parent[label]
        return label

    def _join(self, a: int, b: int) -> None:
        a, b = self._find(a), self._find(b)
        if a != b:
            self._parent[max(a, b)] = min(a, b)


def find_groups(traced: Trace) -> Groups:
    """Find out which channels of a traced teacher go together, and which must stay."""
    joiner = _Joiner(traced)
    joiner.run()
    joiner, tried = _yielded(traced, joiner)
    # The second pass knows from the start how parameters are cut whose shape is read before they are used.
    constants: frozenset[str] = frozenset()
    for _ in range(2):
        found = joiner.in_the_way()
        if not found:
            break
        constants |= found
        joiner = _Joiner(traced, joiner, tried, constants)
        joiner.run()
    # Where channels freeze along one dimension, it tries another, then a third, and the last keeps those that freed.
    tried |= dict.fromkeys(joiner.stuck(), 1)
    joiner = _Joiner(traced, joiner, tried, constants)
    plan = joiner.run()
    for place in (2, 0) if tried else ():
        still = [node for node in joiner.stuck() if place or tried.get(node) == 2]
        if still:
            tried |= {node: place if place < joiner.options[node] else 0 for node in still}
            joiner = _Joiner(traced, joiner, tried, constants)
            plan = joiner.run()
    slots = joiner.slots()
    total = int(slots.max()) + 1 if slots.size else 0
    emitted = {name: renamed(labels, slots) for name, labels in joiner.emitted.items()}
    plan = renamed_plan(plan, slots)
    reasons: Reasons = dict.fromkeys(range(total if traced.opaque else 0), (traced.opaque, ""))
    reasons |= {slot: why for slot, why in by_slot(joiner.frozen, slots).items() if slot not in reasons}
    members, written = by_signature(emitted, plan, total), by_slot(joiner.written, slots)
    groups, slots_of, frozen = _named(members, emitted, plan, (reasons, written), _varied(plan))
    told = {group.name for group in groups} | {found.name for found in frozen}
    frozen += tuple(closed for name, closed in joiner.closed.items() if name not in told)
    return Groups(
        trace=traced,
        plan=plan,
        emitted=emitted,
        slots=total,
        slots_of=slots_of,
        groups=groups,
        frozen=frozen,
        abandoned=joiner.abandoned,
        computed=joiner.computed,
        chosen=joiner.picked,
        constants=constants,
    )


def _yielded(traced: Trace, joiner: _Joiner) -> tuple[_Joiner, dict[fx.Node, int]]:
    """Return the pass after equal elements went along another dimension where that frees them, and which did.

    They meet channels that views and parameters have put there, so these come first: heads, say.
    """
    equal = [node for node in joiner.stuck() if f"{node.name}:made" in joiner.emitted]
    if not equal:
        return joiner, {}
    other = _Joiner(traced, joiner, dict.fromkeys(equal, 1))
    other.run()
    still = other.stuck()
    freed = dict.fromkeys((node for node in equal if node not in still), 1)
    if 0 < len(freed) < len(equal):
        other = _Joiner(traced, joiner, freed)
        other.run()
    return (other if freed else joiner), freed


def _told(reason: str, source: str) -> str:
    return f"{reason} ({source})" if source else reason


def _varied(plan: Plan) -> Iterator[Labels]:
    """Yield the slots over which a variance is taken: of a single one there is none.

    Those are the inputs of a 1x1 kernel that is standardised, and the channels of `torch.std` and `torch.var`.
    """
    for node, value in plan.values.items():
        if isinstance(value, Standardised):
            _, inputs, *kernel = plan.parameters[value.name].dims
            if isinstance(inputs, np.ndarray) and math.prod(kernel) == 1:
                yield inputs
        elif plan.parts[node].statistic is not None and describe(node) in ("std", "var", "std_mean", "var_mean"):
            over, first = plan.parts[node].statistic or (), node.all_input_nodes[0]
            sizes = first.meta["value"].shape
            for dim in over if isinstance(value, Labelled) or math.prod(sizes[d] for d in over[1:]) == 1 else ():
                yield plan.along(first, dim)


def _named(
    members: list[Labels],
    emitted: dict[str, Labels],
    plan: Plan,
    reasons: tuple[Reasons, Reasons],
    varied: Iterable[Labels],
) -> tuple[tuple[Group, ...], tuple[Labels, ...], tuple[Frozen, ...]]:
    groups: list[Group] = []
    slots_of: list[Labels] = []
    frozen: list[Frozen] = []
    taken: dict[str, int] = {}
    read_by = readers(plan, {int(slots[0]) for slots in members})
    emitted = dict(sorted(emitted.items(), key=lambda item: ":" in item[0]))  # named after layers, if any has them
    first, least = first_emitters(emitted, sum(map(len, members))), [np.sort(labels) for labels in varied]
    emitters = list(emitted)
    for slots in members:
        layers = tuple(dict.fromkeys(read_by.get(int(slots[0]), ())))
        if not layers:  # of a mask that no layer meets
            continue
        producer = emitters[first[slots].min()]
        step = int(np.isin(emitted[producer], slots).sum()) // len(slots)
        taken[producer] = taken.get(producer, 0) + 1
        name = producer if taken[producer] == 1 else f"{producer}#{taken[producer]}"
        # One frozen slot freezes all that cannot be told from it: a width says nothing of which ones go.
        why, written = (next((known[s] for s in slots.tolist() if s in known), None) for known in reasons)
        width, few = len(slots) * step, any(np.array_equal(slots, labels) for labels in least)
        if why is not None:
            frozen.append(Frozen(name=name, width=width, reason=why[0], source=why[1]))
        elif len(slots) == 2 and few:
            frozen.append(Frozen(name=name, width=width, reason="a variance is taken over these two channels"))
        elif len(slots) > 1:
            plain, fewest = "" if written is None else _told(*written), 2 * step if few else 1
            groups.append(Group(name=name, width=width, step=step, layers=layers, plain=plain, least=fewest))
            slots_of.append(slots)
        elif step > 1:
            frozen.append(Frozen(name=name, width=width, reason="all of these channels go together, so none can"))
    return tuple(groups), tuple(slots_of), tuple(frozen)
