"""Graph -> the rows of N2N's state, and what can be removed as one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from torch import fx, nn

from understudy.core.architecture import Layer, Unit
from understudy.core.errors import SurgeryError
from understudy.graph.channels import Labelled, Labels
from understudy.graph.groups import Groups
from understudy.graph.joined import joined_units
from understudy.graph.nodes import describe, enclosing_modules
from understudy.graph.refit import Refit
from understudy.graph.retrace import asked_types
from understudy.graph.sites import (
    ACTIVATIONS,
    AVERAGE_POOLS,
    CONVOLUTIONS,
    MAX_POOLS,
    NORMS,
    PASSING,
    POOLS,
    Site,
    layer_type,
    number,
    sites_of,
)
from understudy.graph.trace import Trace

_ADDITIONS = ("add", "add_", "iadd")
_PRODUCTS = ("mul", "mul_", "imul", "multiply")
# Operations on one tensor that give zeros for zeros, in training as well.
_KEEP_ZERO = ("relu", "relu_", "relu6", "gelu", "silu", "tanh", "neg", "dropout", "stochastic_depth", "contiguous")


def layers_of(groups: Groups) -> tuple[Layer, ...]:
    """Return one row per layer in the order of execution; layers without any effect on size are left out."""
    sites = sites_of(groups.trace)
    starts, ends = _skips(groups.trace, sites)
    group_of = {int(s): g.name for g, slots in zip(groups.groups, groups.slots_of, strict=True) for s in slots}
    rows = []
    for index, site in enumerate(sites):
        module = site.module
        emitted = groups.emitted.get(site.name)
        owners = {group_of.get(int(s)) for s in np.unique(emitted)} if emitted is not None else {None}
        rows.append(
            Layer(
                name=site.name,
                type=layer_type(module),
                kernel=number(getattr(module, "kernel_size", 0)),
                stride=site.stride,
                padding=number(getattr(module, "padding", 0)),
                outputs=0 if emitted is None else len(emitted),
                parameters=sum(p.numel() for p in module.parameters()),
                skip_start=starts[index],
                skip_end=ends[index],
                group=owners.pop() if len(owners) == 1 else None,
                kernels=_legal_kernels(module) if _owns_kernel(groups, site) else (),
            )
        )
    return tuple(rows)


def units_of(groups: Groups) -> tuple[Unit, ...]:
    """Return what can be removed, the units of each kind, in the order of execution.

    The first and the last layer and strided convolutions stay, as in the authors' code of N2N. A unit is
    offered only if the rest fits at any width; a single layer (kind "layer") also where it fits at full
    width only. Average pooling goes as a single layer. But for pooling layers, what leaves a larger network
    behind is not offered: a convolution that makes few channels of many, a layer whose output is joined to its input.
    """
    sites = sites_of(groups.trace)
    core = [s for s in sites if isinstance(s.module, (*CONVOLUTIONS, nn.Linear))]
    ends = {s.name for s in (core[:1] + core[-1:])}
    free = [s for s in sites if s.name not in ends and s.calls == 1]
    convs = [s for s in free if isinstance(s.module, CONVOLUTIONS) and s.stride == 1]
    pools = [s for s in free if isinstance(s.module, MAX_POOLS)]
    owner = {node: site for site in sites for node in site.nodes}
    first = _chain(core[0], owner) if core else ()
    units = [Unit(name=s.name, kind="conv", layers=_chain(s, owner)) for s in convs]
    units += [
        Unit(name=s.name, kind="linear", layers=_chain(s, owner)) for s in free if isinstance(s.module, nn.Linear)
    ]
    units += [Unit(name=s.name, kind="pool", layers=(s.name,)) for s in pools]
    blocks = list(_blocks(groups, sites, ends))
    units += blocks + list(_branches(groups, sites, ends, {unit.layers for unit in blocks}))
    units += joined_units(groups, sites, ends)
    asked = asked_types(groups)
    units = [unit for unit in units if not asked.intersection(removed_paths(unit))]
    offered = [unit for unit in units if _fits(groups, unit, strict=True)]
    alone = (*NORMS, *ACTIVATIONS, *AVERAGE_POOLS, nn.Linear)
    singles = [s for s in free if isinstance(s.module, alone) and s.name not in first]
    single = [s.name for s in convs + pools + singles if s.name not in asked]
    layers = [Unit(name=f"layer:{name}", kind="layer", layers=(name,)) for name in single]
    offered += [unit for unit in layers if _fits(groups, unit, strict=False)]
    order = {site.name: index for index, site in enumerate(sites)}
    return tuple(sorted(offered, key=lambda u: (order[u.layers[0]], -len(u.layers), u.kind)))


def removed_paths(unit: Unit) -> tuple[str, ...]:
    """Return the modules that an identity stands in for when the unit is removed."""
    return (unit.name,) if unit.kind == "block" else unit.layers


def silenced_path(unit: Unit) -> str | None:
    """Return the module that gives zeros when the unit is removed."""
    return unit.layers[-1] if unit.kind == "branch" else None


def emptied_path(unit: Unit) -> str | None:
    """Return the module that gives a tensor of no channels when the unit is removed."""
    return unit.layers[-1] if unit.kind == "joined" else None


def emptied_slots(groups: Groups, units: Iterable[Unit]) -> Labels:
    """Return the slots that nothing emits any more when the units are removed."""
    paths = (path for path in map(emptied_path, units) if path is not None)
    gone = [groups.plan.values[groups.trace.exits(path)[-1]].labels.reshape(-1) for path in paths]
    return np.unique(np.concatenate([np.zeros(0, dtype=np.int64), *gone]))


def refit_without(groups: Groups, units: Iterable[Unit], *, strict: bool = False) -> Refit:
    """Return the pass over the teacher without these units, not run yet."""
    units = tuple(units)
    removed = frozenset(path for unit in units for path in removed_paths(unit))
    return Refit(groups, removed, emptied=frozenset(filter(None, map(emptied_path, units))), strict=strict)


def _legal_kernels(module: nn.Module) -> tuple[int, ...]:
    """Return the odd sizes whose smaller padding leaves the output's size as it is."""
    if not isinstance(module, CONVOLUTIONS) or module.padding_mode != "zeros" or isinstance(module.padding, str):
        return ()
    parts = (module.kernel_size, module.padding, module.dilation)
    if any(len(set(part)) > 1 for part in parts) or module.kernel_size[0] % 2 == 0:
        return ()
    kernel, padding, dilation = (part[0] for part in parts)
    sizes = tuple(k for k in range(1, kernel + 1, 2) if padding >= dilation * (kernel - k) // 2)
    return sizes if len(sizes) > 1 else ()


def _owns_kernel(groups: Groups, site: Site) -> bool:
    """Return whether nothing but the layer's own call depends on its kernel's size."""
    name, trace = site.name, groups.trace
    weight = groups.parameters.get(f"{name}.weight")
    shared = list(trace.names.values()).count(f"{name}.weight") > 1 or f"{name}.weight" in trace.overlapping
    own = site.nodes[0].op == "call_module" and weight is not None and weight.kernel_of == name
    return own and not shared and name not in trace.read


def _chain(conv: Site, owner: dict[fx.Node, Site]) -> tuple[str, ...]:
    """Return a convolution with the norm and activation that only it feeds, or that feed only it."""
    after = _follow(conv, owner, forward=True)
    before = [] if any(isinstance(s.module, NORMS) for s in after) else _follow(conv, owner, forward=False)
    return tuple(s.name for s in (*reversed(before), conv, *after))


def _follow(conv: Site, owner: dict[fx.Node, Site], *, forward: bool) -> list[Site]:
    chain: list[Site] = []
    site = conv
    for classes in [NORMS, ACTIVATIONS] if forward else [ACTIVATIONS, NORMS]:
        near = site.users if forward else site.entries
        other = owner.get(near[0]) if len(near) == 1 else None
        single = other is not None and other.calls == 1 and len(other.entries if forward else other.users) == 1
        if other is not None and single and isinstance(other.module, classes):
            chain.append(other)
            site = other
    # Without a norm in front, the activation belongs to what comes before it.
    return chain if forward or any(isinstance(s.module, NORMS) for s in chain) else []


def _blocks(groups: Groups, sites: list[Site], ends: set[str]) -> Iterator[Unit]:
    """Yield the modules that turn one tensor into another of the same shape and the same channels."""
    trace, values = groups.trace, groups.plan.values
    inner: dict[str, list[Site]] = {}
    for site in sites:
        for path in enclosing_modules(site.nodes[0]):
            inner.setdefault(path, []).append(site)
    for path, members in inner.items():
        layers = tuple(site.name for site in members)
        heavy = [site for site in members if any(True for _ in site.module.parameters())]
        if path == "" or "@" in path or len(heavy) < 2 or ends & set(layers) or f"{path}@1" in trace.members:
            continue
        entries, exits = trace.entries(path), trace.exits(path)
        alike = bool(entries) and len(exits) == 1 and _alike(values[entries[0]], values[exits[0]])
        if alike and not _is_held_elsewhere(trace, path):
            yield Unit(name=path, kind="block", layers=layers)


def _has_state(module: nn.Module) -> bool:
    return any(True for _ in (*module.parameters(), *module.buffers()))


def _is_held_elsewhere(trace: Trace, path: str) -> bool:
    """Return whether a part of a module is a part of another one as well, which goes on to need its weights.

    An activation has none: one that all blocks share goes with none of them.
    """
    names = [name for name, module in trace.modules.items() if module is trace.modules[path]]
    within = {name for name in trace.modules if any(name.startswith(f"{own}.") for own in names)}
    parts = {id(trace.modules[name]) for name in within if _has_state(trace.modules[name])}
    return any(id(module) in parts for name, module in trace.modules.items() if name not in within)


def _branches(groups: Groups, sites: list[Site], ends: set[str], blocks: set[tuple[str, ...]]) -> Iterator[Unit]:
    """Yield what additions add to their own input, where no module holds just that.

    Such a branch can go if all that it computes comes from that input, serves only the addition, lies in layers, and
    is zero where its last layer gives zeros.
    """
    trace, values = groups.trace, groups.plan.values
    owner = {node: site for site in sites for node in site.nodes}
    for node in trace.nodes:
        inputs = [n for n in node.all_input_nodes if isinstance(values[n], Labelled)]
        if node.op == "call_module" or describe(node) not in _ADDITIONS or len(inputs) != 2:
            continue
        for start, branch in (inputs, inputs[::-1]):
            region = _between(trace, start, branch) if _alike(values[start], values[branch]) else set()
            members = [site for site in sites if region.issuperset(site.nodes)]
            layers = tuple(site.name for site in members)
            outside = (user for n in region for user in n.users if user is not node and user not in region)
            works = (n for n in region if n not in owner and groups.plan.parts[n].work)
            known = all(site.calls == 1 and layer_type(site.module) != "other" for site in members)
            if len(layers) < 2 or layers in blocks or ends & set(layers) or not known or any(outside) or any(works):
                continue
            if branch in _silent(trace, members[-1], sorted(region, key=trace.order.__getitem__)):
                yield Unit(name=f"branch:{layers[0]}", kind="branch", layers=layers)


def _between(trace: Trace, start: fx.Node, end: fx.Node) -> set[fx.Node]:
    """Return the nodes from behind `start` to `end`, parameters aside; none if anything else comes in."""
    first, found, waiting = trace.order[start], set[fx.Node](), [end]
    while waiting:
        node = waiting.pop()
        if node is start or node in found or node.op == "get_attr":
            continue
        if trace.order[node] < first:
            return set()
        found.add(node)
        waiting += node.all_input_nodes
    return found


def _silent(trace: Trace, last: Site, region: list[fx.Node]) -> set[fx.Node]:
    """Return the nodes of a region that are zero if a layer's output is."""
    silent = set(last.nodes)
    for node in region:
        inputs = [n for n in node.all_input_nodes if n.op != "get_attr"]
        name = "" if node.op == "call_module" else describe(node)
        product = name in _PRODUCTS and any(n in silent for n in inputs)
        dropout = node.op == "call_module" and isinstance(trace.root.get_submodule(str(node.target)), PASSING)
        if product or ((dropout or name in _KEEP_ZERO) and len(inputs) == 1 and inputs[0] in silent):
            silent.add(node)
    return silent


def _alike(a: Any, b: Any) -> bool:
    both = isinstance(a, Labelled) and isinstance(b, Labelled)
    return both and a.shape == b.shape and not a.is_fixed and np.array_equal(a.labels, b.labels)


def _fits(groups: Groups, unit: Unit, *, strict: bool) -> bool:
    if not all(_can_be_left_out(groups.trace, path) for path in removed_paths(unit)):
        return False
    refit = refit_without(groups, [unit], strict=strict)
    try:
        refit.run()
    except SurgeryError:
        return False
    pools = all(isinstance(groups.trace.root.get_submodule(name), POOLS) for name in unit.layers)
    return pools or not refit.grows


def _can_be_left_out(trace: Trace, path: str) -> bool:
    """Return whether an identity can stand in for a module: nobody reads of it, one tensor is given first and comes."""
    if path in trace.read:
        return False
    entries = {node.name for graph in trace.graphs for node in trace.entries(path, graph)[:1]}
    return all(call.gives_one and (call.is_plain or call.first in entries) for call in trace.calls.get(path, ()))


def _skips(trace: Trace, sites: list[Site]) -> tuple[list[int], list[int]]:
    """Return, per layer, how many layers back its innermost skip starts and how many ahead it ends.

    A skip is a place where two tensors meet that have a common ancestor: it spans from there to here.
    """
    nodes = trace.nodes
    position = {node: index for index, node in enumerate(nodes)}
    ancestors: dict[fx.Node, int] = {}
    spans: list[tuple[int, int]] = []
    for node in nodes:
        own = 1 << position[node]
        inputs = [n for n in node.all_input_nodes if isinstance(n.meta["value"], object)]
        for n in inputs:
            own |= ancestors[n]
        ancestors[node] = own
        tensors = [n for n in inputs if n.op != "get_attr" and hasattr(n.meta["value"], "dtype")]
        if len(tensors) == 2 and node.op != "output":
            common = ancestors[tensors[0]] & ancestors[tensors[1]]
            if common:
                spans.append((common.bit_length() - 1, position[node]))
    rank = [position[site.nodes[0]] for site in sites]
    starts, ends = [0] * len(sites), [0] * len(sites)
    for index, at in enumerate(rank):
        enclosing = [(e - s, s, e) for s, e in spans if s < at < e]
        if enclosing:
            _, start, end = min(enclosing)
            starts[index] = index - sum(r <= start for r in rank) + 1
            ends[index] = sum(r < end for r in rank) - index
    return starts, ends
