"""Graph -> the rows of N2N's state, and what can be removed as one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from torch import fx, nn

from understudy.architecture import Layer, Unit
from understudy.errors import SurgeryError
from understudy.groups import Groups
from understudy.refit import Refit
from understudy.trace import Trace
from understudy.walk import Labelled, enclosing_modules, entry_nodes, inside

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_NORMS = (
    *(nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.GroupNorm, nn.LayerNorm),
    *(nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d),
)
_MAX_POOLS = (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d)
_POOLS = (
    *_MAX_POOLS,
    *(nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d),
    *(nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d),
    *(nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d),
)
_ACTIVATIONS = (
    *(nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish),
    *(nn.Sigmoid, nn.Tanh, nn.Softplus, nn.Hardswish, nn.Hardsigmoid, nn.Hardtanh),
)


def layers_of(groups: Groups) -> tuple[Layer, ...]:
    """Return one row per layer in the order of execution; layers without any effect on size are left out."""
    nodes = _layer_nodes(groups.trace)
    starts, ends = _skips(groups.trace, nodes)
    group_of = {int(s): g.name for g, slots in zip(groups.groups, groups.slots_of, strict=True) for s in slots}
    rows = []
    for index, node in enumerate(nodes):
        module = groups.trace.root.get_submodule(str(node.target))
        emitted = groups.emitted.get(str(node.target))
        owners = {group_of.get(int(s)) for s in np.unique(emitted)} if emitted is not None else {None}
        rows.append(
            Layer(
                name=str(node.target),
                type=layer_type(module),
                kernel=_number(getattr(module, "kernel_size", 0)),
                stride=_number(getattr(module, "stride", 0)),
                padding=_number(getattr(module, "padding", 0)),
                outputs=0 if emitted is None else len(emitted),
                parameters=sum(p.numel() for p in module.parameters()),
                skip_start=starts[index],
                skip_end=ends[index],
                group=owners.pop() if len(owners) == 1 else None,
                kernels=_legal_kernels(module),
            )
        )
    return tuple(rows)


def units_of(groups: Groups) -> tuple[Unit, ...]:
    """Return what can be removed: convolutions with norm and activation, max pooling, blocks, single layers.

    The first and the last layer, strided convolutions, average pooling and linear layers stay, as in the
    authors' code of N2N. A unit is offered only if the rest fits at any width; a single layer (kind
    "layer") also where it fits at full width only.
    """
    nodes = _layer_nodes(groups.trace)
    modules = {node: groups.trace.root.get_submodule(str(node.target)) for node in nodes}
    called = [str(n.target) for n in groups.trace.nodes if n.op == "call_module"]
    core = [n for n in nodes if isinstance(modules[n], (*_CONVOLUTIONS, nn.Linear))]
    ends = {str(n.target) for n in (core[:1] + core[-1:])}
    free = [n for n in nodes if str(n.target) not in ends and called.count(str(n.target)) == 1]
    convs = [n for n in free if isinstance(modules[n], _CONVOLUTIONS) and _number(modules[n].stride) == 1]
    pools = [n for n in free if isinstance(modules[n], _MAX_POOLS)]
    first = _chain(core[0], modules) if core else ()
    units = [Unit(name=str(n.target), kind="conv", layers=_chain(n, modules)) for n in convs]
    units += [Unit(name=str(n.target), kind="pool", layers=(str(n.target),)) for n in pools]
    units += _blocks(groups, ends)
    offered = [unit for unit in units if _fits(groups, unit, strict=True)]
    singles = [n for n in free if isinstance(modules[n], (*_NORMS, *_ACTIVATIONS)) and str(n.target) not in first]
    layers = [Unit(name=f"layer:{n.target}", kind="layer", layers=(str(n.target),)) for n in convs + pools + singles]
    offered += [unit for unit in layers if _fits(groups, unit, strict=False)]
    order = {str(node.target): index for index, node in enumerate(groups.trace.nodes)}
    return tuple(sorted(offered, key=lambda u: (order[u.layers[0]], -len(u.layers), u.kind)))


def removed_paths(unit: Unit) -> tuple[str, ...]:
    """Return the modules that an identity stands in for when the unit is removed."""
    return (unit.name,) if unit.kind == "block" else unit.layers


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


def _layer_nodes(trace: Trace) -> list[fx.Node]:
    """Return the first call of every leaf module that computes something."""
    found: dict[str, fx.Node] = {}
    for node in trace.graph.nodes:
        if node.op == "call_module":
            module = trace.root.get_submodule(str(node.target))
            if layer_type(module) != "other" or any(True for _ in module.parameters()):
                found.setdefault(str(node.target), node)
    return list(found.values())


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


def _chain(conv: fx.Node, modules: dict[fx.Node, Any]) -> tuple[str, ...]:
    """Return a convolution with the norm and activation that only it feeds, or that feed only it."""
    after = _follow(conv, modules, forward=True)
    before = [] if any(isinstance(modules[n], _NORMS) for n in after) else _follow(conv, modules, forward=False)
    return tuple(str(n.target) for n in (*reversed(before), conv, *after))


def _follow(conv: fx.Node, modules: dict[fx.Node, Any], *, forward: bool) -> list[fx.Node]:
    chain: list[fx.Node] = []
    wanted = [_NORMS, _ACTIVATIONS] if forward else [_ACTIVATIONS, _NORMS]
    node = conv
    for classes in wanted:
        near = list(node.users) if forward else node.all_input_nodes
        single = len(near) == 1 and len(near[0].users if not forward else near[0].all_input_nodes) == 1
        if single and isinstance(modules.get(near[0]), classes):
            chain.append(near[0])
            node = near[0]
    # Without a norm in front, the activation belongs to what comes before it.
    return chain if forward or any(isinstance(modules[n], _NORMS) for n in chain) else []


def _blocks(groups: Groups, ends: set[str]) -> Iterator[Unit]:
    """Yield the modules that turn one tensor into another of the same shape and the same channels."""
    trace, values = groups.trace, groups.plan.values
    members: dict[str, list[fx.Node]] = {}
    for node in trace.graph.nodes:
        for path in enclosing_modules(node):
            members.setdefault(path, []).append(node)
    rows = {str(n.target) for n in _layer_nodes(trace)}
    for path, nodes in members.items():
        layers = tuple(dict.fromkeys(str(n.target) for n in nodes if str(n.target) in rows))
        leaves = [n for n in layers if any(True for _ in trace.root.get_submodule(n).parameters())]
        if path == "" or "@" in path or len(leaves) < 2 or ends & set(layers) or f"{path}@1" in members:
            continue
        entries = entry_nodes(trace, path)
        exits = [n for n in nodes if any(not inside(user, path) for user in n.users)]
        if len(entries) == len(exits) == 1 and _alike(values[entries[0]], values[exits[0]]):
            yield Unit(name=path, kind="block", layers=layers)


def _alike(a: Any, b: Any) -> bool:
    both = isinstance(a, Labelled) and isinstance(b, Labelled)
    return both and a.shape == b.shape and not a.is_fixed and np.array_equal(a.labels, b.labels)


def _fits(groups: Groups, unit: Unit, *, strict: bool) -> bool:
    try:
        Refit(groups, frozenset(removed_paths(unit)), strict=strict).run()
    except SurgeryError:
        return False
    return True


def _skips(trace: Trace, layers: list[fx.Node]) -> tuple[list[int], list[int]]:
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
    rank = [position[layer] for layer in layers]
    starts, ends = [0] * len(layers), [0] * len(layers)
    for index, at in enumerate(rank):
        enclosing = [(e - s, s, e) for s, e in spans if s < at < e]
        if enclosing:
            _, start, end = min(enclosing)
            starts[index] = index - sum(r <= start for r in rank) + 1
            ends[index] = sum(r < end for r in rank) - index
    return starts, ends
