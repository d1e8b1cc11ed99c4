"""Graph -> what only concatenations read: the layers of a DenseNet, the branches of an Inception block."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from torch import fx

from understudy.core.architecture import Unit
from understudy.graph.channels import Labelled, Labels
from understudy.graph.groups import Groups
from understudy.graph.nodes import checks, describe
from understudy.graph.sites import PASSING, Site, layer_type

_JOINS = ("cat", "concat", "concatenate")
# Operations on one tensor that make nothing of nothing, whatever its channels are.
_ELEMENTWISE = ("relu", "relu_", "relu6", "leaky_relu", "elu", "gelu", "silu", "mish", "hardswish", "sigmoid", "tanh",
                "dropout", "contiguous")  # fmt: skip


def joined_units(groups: Groups, sites: list[Site], ends: set[str]) -> Iterator[Unit]:
    """Yield chains of layers whose output is joined to other tensors along its channels and read by nobody else.

    Without such a chain a concatenation has fewer channels. One of its operands always stays.
    """
    find = _Finder(groups, sites, ends)
    chains: dict[fx.Node, tuple[str, ...]] = {}
    for join in filter(_joins, groups.trace.nodes):
        operands = join.all_input_nodes
        for operand in operands:
            if operand not in chains:
                chains[operand] = find.chain(operand)
        if all(chains[operand] for operand in operands):
            chains[operands[0]] = ()
    yield from (Unit(name=f"joined:{c[0]}", kind="joined", layers=c) for c in chains.values() if c)


class _Finder:
    """Looks for the layers that lie between one tensor and an operand of concatenations, and serve nothing else."""

    def __init__(self, groups: Groups, sites: list[Site], ends: set[str]) -> None:
        self._groups, self._ends, self._values = groups, ends, groups.plan.values
        self._owner = {node: site for site in sites for node in groups.trace.members[site.name]}
        self._checks = checks(groups.trace.graph)

    def chain(self, operand: fx.Node) -> tuple[str, ...]:
        """Return the names of those layers in order, none if the operand may not go."""
        known = self._values[operand]
        if not isinstance(known, Labelled) or len(known.varying) != 1 or not self._is_only_joined(operand, known):
            return ()
        found, behind, node = list[Site](), operand, operand
        while _differs_at_most(self._values[node], known):
            inputs = [n for n in node.all_input_nodes if isinstance(self._values[n], Labelled)]
            if len(inputs) != 1 or (node is not operand and self._readers(node) != {behind}):
                break
            site = self._owner.get(node)
            if not (self._may_stay(node, behind=bool(found)) if site is None else self._may_go(site)):
                return ()
            if site is not None and site not in found:  # a subclass of torch's layers has several nodes
                found.insert(0, site)
            behind, node = node, inputs[0]
        layers = tuple(site.name for site in found)
        starts = _differs_at_most(self._values[node], known) and self._serves_others(node, behind)
        return layers if starts and self._own(layers, known.labels.reshape(-1)) else ()

    def _readers(self, node: fx.Node) -> set[fx.Node]:
        """Return who reads a tensor, but for what looks at its shape and comes to nothing."""
        looks = {user for user in node.users if user.target is getattr and not user.users}
        return set(node.users) - self._checks - looks

    def _is_only_joined(self, operand: fx.Node, known: Labelled) -> bool:
        along = known.varying[0]
        grown = (self._values[user].shape[along] > known.shape[along] for user in self._readers(operand))
        return all(map(_joins, self._readers(operand))) and all(grown)

    def _may_go(self, site: Site) -> bool:
        return site.calls == 1 and site.name not in self._ends and layer_type(site.module) != "other"

    def _may_stay(self, node: fx.Node, *, behind: bool) -> bool:
        """Return whether what is no layer can run on what passes by, or, behind the last layer, on nothing."""
        if behind:
            return not self._groups.plan.parts[node].work
        if node.op == "call_module":
            return isinstance(self._groups.trace.root.get_submodule(str(node.target)), PASSING)
        return describe(node) in _ELEMENTWISE

    def _serves_others(self, node: fx.Node, behind: fx.Node) -> bool:
        """Return whether all that is computed up to a node is there for others than the one behind it, too."""
        others = node.op == "placeholder" or self._readers(node) != {behind}
        return others or (_joins(node) and all(len(self._readers(n)) > 1 for n in node.all_input_nodes))

    def _own(self, layers: tuple[str, ...], labels: Labels) -> bool:
        """Return whether these channels are a whole group, which one of the layers alone emits and is named after."""
        groups, slots = self._groups, np.unique(labels)
        places = np.unique(groups.group_of[slots]) if slots[0] >= 0 else slots
        emitters = [name for name, own in groups.emitted.items() if np.isin(own, slots).any()]
        if len(emitters) != 1 or emitters[0] not in layers or len(places) != 1 or places[0] < 0:
            return False
        group = groups.groups[places[0]]
        return len(slots) == len(groups.slots_of[places[0]]) and group.name == emitters[0] and not group.plain


def _joins(node: fx.Node) -> bool:
    return node.op == "call_function" and describe(node) in _JOINS


def _differs_at_most(value: Any, known: Labelled) -> bool:
    """Return whether a tensor has the shape of another one but for the number of channels."""
    if not isinstance(value, Labelled) or len(value.shape) != len(known.shape):
        return False
    sizes = enumerate(zip(value.shape, known.shape, strict=True))
    return all(a == b for dim, (a, b) in sizes if dim not in known.varying)
