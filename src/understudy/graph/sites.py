"""Graph -> the layers of a network, each where the forward pass runs it first."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch import fx, nn

from understudy.graph.nodes import enclosing_modules
from understudy.graph.trace import Trace

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
NORMS = (
    *(nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.GroupNorm, nn.LayerNorm),
    *(nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d),
)
MAX_POOLS = (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d)
AVERAGE_POOLS = (nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d)
POOLS = (
    *MAX_POOLS,
    *AVERAGE_POOLS,
    *(nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d),
    *(nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d),
)
ACTIVATIONS = (
    *(nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish),
    *(nn.Sigmoid, nn.Tanh, nn.Softplus, nn.Hardswish, nn.Hardsigmoid, nn.Hardtanh),
)

# Layers that give nothing for nothing and zeros for zeros, in training as well.
PASSING = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.Identity)


@dataclass(frozen=True, eq=False)
class Site:
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
        return number(getattr(self.module, "stride", 0))


def sites_of(trace: Trace) -> list[Site]:
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
        found.append(Site(name, module, first, calls[name]))
    return sorted(found, key=lambda site: trace.order[site.nodes[0]])


def _layer_at(trace: Trace, node: fx.Node) -> str | None:
    """Return the outermost layer that a node belongs to; a later call of it has a name with "@"."""
    for path in enclosing_modules(node):
        module = trace.modules[path.partition("@")[0]]
        leaf = node.op == "call_module" and str(node.target) == path.partition("@")[0]
        if layer_type(module) != "other" or (leaf and any(True for _ in module.parameters())):
            return path
    return None


def layer_type(module: nn.Module) -> str:
    """Return "conv", "linear", "norm", "activation", "pool" or "other"."""
    kinds: tuple[tuple[str, Any], ...] = (
        ("conv", (*CONVOLUTIONS, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)),
        ("linear", nn.Linear),
        ("norm", NORMS),
        ("activation", ACTIVATIONS),
        ("pool", POOLS),
    )
    return next((name for name, classes in kinds if isinstance(module, classes)), "other")


def number(value: Any) -> int:
    """Return the first of several equal numbers; a padding by name is 0."""
    value = value[0] if isinstance(value, tuple) else value
    return int(value) if isinstance(value, int) else 0
