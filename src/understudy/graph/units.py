"""Graph -> the rows of N2N's state, and what can be removed as one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from torch import fx, nn

from understudy.core.architecture import Layer, Unit
from understudy.core.errors import SurgeryError
from understudy.graph.channels import Labelled
from understudy.graph.groups import Groups
from understudy.graph.nodes import describe, enclosing_modules, inside
from understudy.graph.refit import Refit
from understudy.graph.retrace import asked_types
from understudy.graph.trace import Trace

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_NORMS = (
    *(nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.GroupNorm, nn.LayerNorm),
    *(nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d),
)
_MAX_POOLS = (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d)
_AVERAGE_POOLS = (nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d)
_POOLS = (
    *_MAX_POOLS,
    *_AVERAGE_POOLS,
    *(nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d),
    *(nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d),
)
_ACTIVATIONS = (
    *(nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish),
    *(nn.Sigmoid, nn.Tanh, nn.Softplus, nn.Hardswish, nn.Hardsigmoid, nn.Hardtanh),
)
_ADDITIONS = ("add", "add_", "iadd")
_PRODUCTS = ("mul", "mul_", "imul", "multiply")
# Operations on one tensor that give zeros for zeros, in training as well.
_KEEP_ZERO = ("relu", "relu_", "relu6", "gelu", "silu", "tanh", "neg", "dropout", "stochastic_depth", "contiguous")
_KEEPING_ZERO = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.Identity)


@dataclass(frozen=True, eq=False)
class _Site:
    """A layer where the forward pass runs it first: one call, or what a subclass of torch's layers does."""

    name: str
    module: Any
    nodes: tuple[fx.Node, ...]
    calls: int

    @cached_property
    def entries(self) -> list[fx.Node]:
        """The nodes before it whose values it reads, parameters aside."""
        own = set(self.nodes)
        read = (n for node in self.nodes for n in node.all_input_nodes if n not in own and n.op != "get_attr")
        return list(dict.fromkeys(read))

    @cached_property
    def users(self) -> list[fx.Node]:
        """The nodes behind it that read its values."""
        own = set(self.nodes)
        return list(dict.fromkeys(user for node in self.nodes for user in node.users if user not in own))

    @property
    def stride(self) -> int:
        """Its stride, 0 if it has none."""
        return _number(getattr(self.module, "stride", 0))


def layers_of(groups: Groups) -> tuple[Layer, ...]:
    """Return one row per layer in the order of execution; layers without any effect on size are left out."""
    sites = _sites(groups.trace)
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
                kernel=_number(getattr(module, "kernel_size", 0)),
                stride=site.stride,
                padding=_number(getattr(module, "padding", 0)),
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
    sites = _sites(groups.trace)
    core = [s for s in sites if isinstance(s.module, (*_CONVOLUTIONS, nn.Linear))]
    ends = {s.name for s in (core[:1] + core[-1:])}
    free = [s for s in sites if s.name not in ends and s.calls == 1]
    convs = [s for s in free if isinstance(s.module, _CONVOLUTIONS) and s.stride == 1]
    pools = [s for s in free if isinstance(s.module, _MAX_POOLS)]
    owner = {node: site for site in sites for node in site.nodes}
    first = _chain(core[0], owner) if core else ()
    units = [Unit(name=s.name, kind="conv", layers=_chain(s, owner)) for s in convs]
    units += [
        Unit(name=s.name, kind="linear", layers=_chain(s, owner)) for s in free if isinstance(s.module, nn.Linear)
    ]
    units += [Unit(name=s.name, kind="pool", layers=(s.name,)) for s in pools]
    blocks = list(_blocks(groups, sites, ends))
    units += blocks + list(_branches(groups, sites, ends, {unit.layers for unit in blocks}))
    asked = asked_types(groups)
    units = [unit for unit in units if not asked.intersection(removed_paths(unit))]
    offered = [unit for unit in units if _fits(groups, unit, strict=True)]
    alone = (*_NORMS, *_ACTIVATIONS, *_AVERAGE_POOLS, nn.Linear)
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


def layer_type(module: nn.Module) -> str:
    """Return "conv", "linear", "norm", "activation", "pool" or "other"."""
    kinds: tuple[tuple[str, Any], ...] = (
        ("conv", (*_CONVOLUTIONS, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)),
        ("linear", nn.Linear),
        ("norm", _NORMS),
        ("activation", _ACTIVATIONS),
        ("pool", _POOLS),
    )
    return next((name for name, classes in kinds if isinstance(module, classes)), "other")


def _sites(trace: Trace) -> list[_Site]:
    """Return every layer that computes something, in the order of execution."""
    nodes: dict[str, list[fx.Node]] = {}
    calls: dict[str, int] = {}
    for node in trace.nodes:
        name = _layer_at(trace, node)
        if name is not None:
            path = name.partition("@")[0]
            calls.setdefault(path, 0)
            if name not in nodes or (node.op == "call_module" and node.target == path):
                calls[path] += 1
            nodes.setdefault(name, []).append(node)
    modules = {name: trace.root.get_submodule(name) for name in calls if name in nodes}
    found = []
    for name, module in modules.items():
        leaf = nodes[name][0].op == "call_module" and str(nodes[name][0].target) == name
        first = tuple(nodes[name][:1] if leaf else (n for n in nodes[name] if n.op != "get_attr"))
        found.append(_Site(name, module, first, calls[name]))
    return sorted(found, key=lambda site: trace.order[site.nodes[0]])


def _layer_at(trace: Trace, node: fx.Node) -> str | None:
    """Return the outermost layer that a node belongs to; a later call of it has a name with "@"."""
    for path in enclosing_modules(node):
        module = trace.modules[path.partition("@")[0]]
        leaf = node.op == "call_module" and str(node.target) == path.partition("@")[0]
        if layer_type(module) != "other" or (leaf and any(True for _ in module.parameters())):
            return path
    return None


def _number(value: Any) -> int:
    """Return the first of several equal numbers; a padding by name is 0."""
    value = value[0] if isinstance(value, tuple) else value
    return int(value) if isinstance(value, int) else 0


def _legal_kernels(module: nn.Module) -> tuple[int, ...]:
    """Return the odd sizes whose smaller padding leaves the output's size as it is."""
    if not isinstance(module, _CONVOLUTIONS) or module.padding_mode != "zeros" or isinstance(module.padding, str):
        return ()
    parts = (module.kernel_size, module.padding, module.dilation)
    if any(len(set(part)) > 1 for part in parts) or module.kernel_size[0] % 2 == 0:
        return ()
    kernel, padding, dilation = (part[0] for part in parts)
    sizes = tuple(k for k in range(1, kernel + 1, 2) if padding >= dilation * (kernel - k) // 2)
    return sizes if len(sizes) > 1 else ()


def _owns_kernel(groups: Groups, site: _Site) -> bool:
    """Return whether nothing but the layer's own call depends on its kernel's size."""
    name, trace = site.name, groups.trace
    weight = groups.parameters.get(f"{name}.weight")
    shared = list(trace.names.values()).count(f"{name}.weight") > 1 or f"{name}.weight" in trace.overlapping
    own = site.nodes[0].op == "call_module" and weight is not None and weight.kernel_of == name
    return own and not shared and name not in trace.read


def _chain(conv: _Site, owner: dict[fx.Node, _Site]) -> tuple[str, ...]:
    """Return a convolution with the norm and activation that only it feeds, or that feed only it."""
    after = _follow(conv, owner, forward=True)
    before = [] if any(isinstance(s.module, _NORMS) for s in after) else _follow(conv, owner, forward=False)
    return tuple(s.name for s in (*reversed(before), conv, *after))


def _follow(conv: _Site, owner: dict[fx.Node, _Site], *, forward: bool) -> list[_Site]:
    chain: list[_Site] = []
    site = conv
    for classes in [_NORMS, _ACTIVATIONS] if forward else [_ACTIVATIONS, _NORMS]:
        near = site.users if forward else site.entries
        other = owner.get(near[0]) if len(near) == 1 else None
        single = other is not None and other.calls == 1 and len(other.entries if forward else other.users) == 1
        if other is not None and single and isinstance(other.module, classes):
            chain.append(other)
            site = other
    # Without a norm in front, the activation belongs to what comes before it.
    return chain if forward or any(isinstance(s.module, _NORMS) for s in chain) else []


def _blocks(groups: Groups, sites: list[_Site], ends: set[str]) -> Iterator[Unit]:
    """Yield the modules that turn one tensor into another of the same shape and the same channels."""
    trace, values = groups.trace, groups.plan.values
    inner: dict[str, list[_Site]] = {}
    for site in sites:
        for path in enclosing_modules(site.nodes[0]):
            inner.setdefault(path, []).append(site)
    for path, members in inner.items():
        layers = tuple(site.name for site in members)
        heavy = [site for site in members if any(True for _ in site.module.parameters())]
        if path == "" or "@" in path or len(heavy) < 2 or ends & set(layers) or f"{path}@1" in trace.members:
            continue
        entries = trace.entries(path)
        nodes = [n for n in trace.members[path] if n.graph is trace.graph]
        exits = [n for n in nodes if any(not inside(user, path) for user in n.users)]
        if entries and len(exits) == 1 and _alike(values[entries[0]], values[exits[0]]):
            yield Unit(name=path, kind="block", layers=layers)


def _branches(groups: Groups, sites: list[_Site], ends: set[str], blocks: set[tuple[str, ...]]) -> Iterator[Unit]:
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


def _silent(trace: Trace, last: _Site, region: list[fx.Node]) -> set[fx.Node]:
    """Return the nodes of a region that are zero if a layer's output is."""
    silent = set(last.nodes)
    for node in region:
        inputs = [n for n in node.all_input_nodes if n.op != "get_attr"]
        name = "" if node.op == "call_module" else describe(node)
        product = name in _PRODUCTS and any(n in silent for n in inputs)
        dropout = node.op == "call_module" and isinstance(trace.root.get_submodule(str(node.target)), _KEEPING_ZERO)
        if product or ((dropout or name in _KEEP_ZERO) and len(inputs) == 1 and inputs[0] in silent):
            silent.add(node)
    return silent


def _alike(a: Any, b: Any) -> bool:
    both = isinstance(a, Labelled) and isinstance(b, Labelled)
    return both and a.shape == b.shape and not a.is_fixed and np.array_equal(a.labels, b.labels)


def _fits(groups: Groups, unit: Unit, *, strict: bool) -> bool:
    if not all(_can_be_left_out(groups.trace, path) for path in removed_paths(unit)):
        return False
    refit = Refit(groups, frozenset(removed_paths(unit)), strict=strict)
    try:
        refit.run()
    except SurgeryError:
        return False
    pools = all(isinstance(groups.trace.root.get_submodule(name), _POOLS) for name in unit.layers)
    return pools or not refit.grows


def _can_be_left_out(trace: Trace, path: str) -> bool:
    """Return whether an identity can stand in for a module: nobody reads of it, one tensor is given first and comes."""
    if path in trace.read:
        return False
    entries = {node.name for graph in trace.graphs for node in trace.entries(path, graph)[:1]}
    return all(call.gives_one and (call.is_plain or call.first in entries) for call in trace.calls.get(path, ()))


def _skips(trace: Trace, sites: list[_Site]) -> tuple[list[int], list[int]]:
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
