"""A recorded graph -> the calls of modules in it: what goes into each, what comes out, what happens inside."""

from __future__ import annotations

import operator
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import fx, nn

from understudy.core.errors import ExportError
from understudy.export.expressions import nodes_in, operands
from understudy.graph.fake import Signature
from understudy.graph.record import Recording


@dataclass(eq=False)
class Scope:
    """One call of a module whose forward pass was looked into; that of the whole network has the path ""."""

    key: str
    path: str
    parent: Scope | None = None
    items: list[fx.Node | Scope] = field(default_factory=list)
    given: Mapping[str, Any] = field(default_factory=dict)  # what it was called with, by name

    def nodes(self) -> Iterator[fx.Node]:
        """Yield the nodes of the call, those of calls in it as well, in the order of execution."""
        for item in self.items:
            if isinstance(item, Scope):
                yield from item.nodes()
            else:
                yield item

    def holds(self, other: Scope) -> bool:
        """Return whether the other call is this one or happens in it."""
        return other is self or (other.parent is not None and self.holds(other.parent))


class Calls:
    """All calls of one recording."""

    def __init__(self, recording: Recording) -> None:
        self.recording = recording
        self.root = Scope("", "")
        self.owner: dict[fx.Node, Scope] = {}
        self.output: fx.Node = recording.graph.output_node()
        self._dead = _dead(recording.graph)
        # What the example leaves at its default is a constant, and its placeholder only checked.
        self.inputs = [
            node
            for node in recording.graph.find_nodes(op="placeholder")
            if node in recording.given or any(user not in self._dead for user in node.users)
        ]
        for node in recording.graph.nodes:
            if node.op in ("placeholder", "output"):
                self.owner[node] = self.root
            elif node.op != "get_attr" and node not in self._dead:
                self._place(node)

    def _place(self, node: fx.Node) -> None:
        chain = [(key, path) for key, (path, _) in node.meta.get("nn_module_stack", {}).items()]
        if node.op == "call_module" and chain and chain[-1][1] == node.target:
            chain.pop()
        scope = self.root
        for key, path in chain:
            last = scope.items[-1] if scope.items else None
            if not isinstance(last, Scope) or last.key != key:
                last = Scope(key, path, scope, given=self.recording.calls.get(key, {}))
                scope.items.append(last)
            scope = last
        scope.items.append(node)
        self.owner[node] = scope

    @cached_property
    def by_path(self) -> dict[str, list[Scope]]:
        """The calls of each module."""
        found: dict[str, list[Scope]] = {"": [self.root]}
        waiting = [self.root]
        while waiting:
            scope = waiting.pop()
            inner = [item for item in scope.items if isinstance(item, Scope)]
            for item in inner:
                found.setdefault(item.path, []).append(item)
            waiting.extend(inner)
        return found

    @cached_property
    def called(self) -> frozenset[str]:
        """The paths of modules that were called, whether anything was computed there or not."""
        return frozenset(key.partition("@")[0] for key in self.recording.calls)

    @cached_property
    def leaves(self) -> frozenset[str]:
        """The paths of modules that were taken as one operation."""
        return frozenset(str(node.target) for node in self.recording.graph.find_nodes(op="call_module"))

    def used_by(self, scope: Scope) -> list[fx.Node]:
        """Return what a call uses that is computed outside of it, in the order of use, but for its own members."""
        found: dict[fx.Node, None] = {}
        for node in scope.nodes():
            for operand in operands(node):
                inside = scope.holds(self.owner[operand]) if operand in self.owner else self._is_member(operand, scope)
                if not inside:
                    found[operand] = None
        return list(found)

    def given_by(self, scope: Scope) -> list[fx.Node]:
        """Return what a call computes that is used outside of it, in the order of computation.

        What is used of another call of the module comes too: the last step of a cell gives what its first one does.
        """
        inner = list(scope.nodes())
        return [node for place, node in enumerate(inner) if place in self._given[scope.path, len(inner)]]

    @cached_property
    def _given(self) -> dict[tuple[str, int], set[int]]:
        """The places of what calls of a module, of so many operations, give."""
        found: dict[tuple[str, int], set[int]] = defaultdict(set)
        for path, calls in self.by_path.items():
            for scope in calls:
                inner = list(scope.nodes())
                used = self._used_outside(scope, set(inner))
                found[path, len(inner)].update(place for place, node in enumerate(inner) if used(node))
        return found

    def _used_outside(self, scope: Scope, inside: set[fx.Node]) -> Callable[[fx.Node], bool]:
        def is_used(node: fx.Node) -> bool:
            outside = any(user not in inside and user not in self._dead for user in node.users)
            return outside or any(
                not scope.holds(call) and not call.holds(scope) for call in self._handed.get(node, ())
            )

        return is_used

    @cached_property
    def _handed(self) -> dict[fx.Node, list[Scope]]:
        """The calls that are given a node in a list, of which they use but others."""
        found: dict[fx.Node, list[Scope]] = {}
        for scope in (call for calls in self.by_path.values() for call in calls):
            wanted = set(self.used_by(scope))
            for listed in (set(nodes_in(value)) for value in scope.given.values()):
                for node in listed - wanted if listed & wanted else ():
                    found.setdefault(node, []).append(scope)
        return found

    def _is_member(self, node: fx.Node, scope: Scope) -> bool:
        return member_path(self.recording.root, str(node.target), scope.path) is not None


def member_path(root: nn.Module, target: str, path: str) -> str | None:
    """Return a path below `path` that leads to the same module or tensor as `target`, or None."""
    if path == "":
        return target
    if target.startswith(f"{path}."):
        return target[len(path) + 1 :]
    wanted = operator.attrgetter(target)(root)
    inner = root.get_submodule(path)
    members = (*inner.named_modules(remove_duplicate=False), *inner.named_parameters(remove_duplicate=False))
    members = (*members, *inner.named_buffers(remove_duplicate=False))
    return next((name for name, value in members if value is wanted and name), None)


_CHECKS = (torch._assert, fx._symbolic_trace._assert_is_none)


def _dead(graph: fx.Graph) -> set[fx.Node]:
    """Return checks, and plain numbers that nothing uses: what the branches of the forward pass were decided by."""
    dead: set[fx.Node] = set()
    for node in reversed(graph.nodes):
        if node.op in ("placeholder", "output"):
            continue
        unused = all(user in dead for user in node.users)
        if node.target in _CHECKS or (unused and (node.op == "get_attr" or _is_plain(node))):
            dead.add(node)
    return dead


def _is_plain(node: fx.Node) -> bool:
    if node.op not in ("call_function", "call_method") or node.target is operator.setitem:
        return False
    reads = node.target in (operator.getitem, getattr)
    found: list[Any] = []
    fx.node.map_aggregate(node.meta.get("value"), found.append)
    return reads or (found != [None] and not any(isinstance(value, Signature) for value in found))


def is_chain(calls: Calls, scope: Scope) -> bool:
    """Return whether a call passes one value from each member of the module to the next, as nn.Sequential does."""
    module = calls.recording.root.get_submodule(scope.path)
    if not isinstance(module, nn.Sequential) or type(module).forward is not nn.Sequential.forward:
        return False
    previous: fx.Node | None = None
    for item in scope.items:
        if isinstance(item, Scope):
            takes, gives = calls.used_by(item), calls.given_by(item)
            if not takes and not gives:
                continue
        else:
            takes, gives = list(nodes_in((item.args, item.kwargs))), [item]
            if item.op != "call_module":
                return False
        if len(takes) != 1 or len(gives) != 1 or takes[0] not in (previous, takes[0] if previous is None else previous):
            return False
        previous = gives[0]
    return True


def same_results(path: str, counts: list[int]) -> int:
    """Return how many values a module gives, which must be as many in each call.

    Raises:
        ExportError: they differ.
    """
    if len(set(counts)) > 1:
        raise ExportError(
            f"model.py must have one forward for each module, but {path!r} gives {min(counts)} values in one call and "
            f"{max(counts)} in another; the other formats can still be written"
        )
    return counts[0]
