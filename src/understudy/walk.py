"""One pass over the teacher's graph that knows, for every tensor, which channels it carries.

Beside each tensor stands an integer array that broadcasts to its shape: the label of every element
that belongs to a channel, `FIXED` for what never changes. Views, slices and concatenations are the same
operations on labels; what must keep the same indices is tied. The rules (`understudy.rules`) are written once
and serve two passes: `groups.py` finds out what is tied, `surgery.py` refits what a removal leaves.
"""

from __future__ import annotations

import math
import operator
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from understudy.errors import SurgeryError
from understudy.trace import Signature, Trace, map_structure, run_fake, source_line

Labels = npt.NDArray[np.int64]
FIXED = -1


@dataclass(frozen=True, eq=False)
class Labelled:
    """A tensor of the pass: its shape, and labels of as many dimensions, each of full size or 1."""

    shape: tuple[int, ...]
    labels: Labels

    @classmethod
    def fixed(cls, shape: Iterable[int]) -> Labelled:
        """A tensor without channels."""
        shape = tuple(shape)
        return cls(shape, np.full((1,) * len(shape), FIXED))

    @classmethod
    def along(cls, shape: Iterable[int], dim: int, labels: Labels) -> Labelled:
        """A tensor with channels along one dimension; its size there is the number of labels."""
        sizes = list(shape)
        sizes[dim] = len(labels)
        outline = [1] * len(sizes)
        outline[dim] = len(labels)
        return cls(tuple(sizes), labels.reshape(outline))

    @property
    def varying(self) -> tuple[int, ...]:
        """The dimensions along which labels differ."""
        return tuple(d for d, size in enumerate(self.labels.shape) if size > 1)

    @property
    def is_fixed(self) -> bool:
        """True if no element belongs to a channel."""
        return bool((self.labels == FIXED).all())


@dataclass(frozen=True)
class ParameterUse:
    """A parameter or buffer that the forward pass uses directly, not yet tied to anything."""

    name: str
    shape: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class ParameterPlan:
    """How one parameter or buffer is cut: per dimension the labels along it, or a size that stays."""

    dims: tuple[Labels | int, ...]
    kernel_of: str | None = None  # the layer whose kernel size the dimensions from `kernel_from` on have
    kernel_from: int = 0


@dataclass(frozen=True, eq=False)
class Attribute:
    """A number of a module that counts channels: `labels` kept, divided by `per`."""

    module: str
    name: str
    labels: Labels
    per: int = 1


@dataclass(frozen=True, eq=False)
class Work:
    """MACs of one operation for the whole example: `constant` times the count of each of `factors`."""

    layer: str
    constant: int
    factors: tuple[Labels, ...] = ()
    kernel_of: str | None = None  # the layer whose kernel size takes part, `kernel_dims` times
    kernel_dims: int = 0


@dataclass(eq=False)
class Part:
    """What one node asks for: how its parameters are cut, which numbers follow, what it computes."""

    parameters: dict[str, ParameterPlan] = field(default_factory=dict)
    attributes: list[Attribute] = field(default_factory=list)
    work: list[Work] = field(default_factory=list)


@dataclass(eq=False)
class Plan:
    """What a pass found: everything that building and costing a student needs."""

    values: dict[fx.Node, Any] = field(default_factory=dict)
    parts: dict[fx.Node, Part] = field(default_factory=dict)

    @property
    def parameters(self) -> dict[str, ParameterPlan]:
        """How each parameter and buffer that the forward pass reaches is cut; the first use decides."""
        found: dict[str, ParameterPlan] = {}
        for part in self.parts.values():
            for name, plan in part.parameters.items():
                found.setdefault(name, plan)
        return found

    @property
    def attributes(self) -> list[Attribute]:
        """All numbers of modules that follow the channels."""
        return [attribute for part in self.parts.values() for attribute in part.attributes]

    @property
    def work(self) -> list[Work]:
        """All operations that MACs are counted for, in order."""
        return [work for part in self.parts.values() for work in part.work]


Rule = Callable[..., Any]
# Operation -> rule, filled by `understudy.rules`: a module class, a function, or the name of a tensor method.
MODULE_RULES: dict[type[nn.Module], Rule] = {}
CALL_RULES: dict[Any, Rule] = {}


class Walk(ABC):
    """Runs the rules over a graph, node by node, with `removed` modules passed by."""

    def __init__(self, trace: Trace, *, removed: frozenset[str] = frozenset()) -> None:
        self.trace = trace
        self.plan = Plan()
        self.part = Part()
        self._known: dict[str, ParameterPlan] = {}
        self._removed = removed
        self._entries = {path: entry_nodes(trace, path)[0] for path in removed}

    @abstractmethod
    def emit(self, name: str, size: int) -> Labels:
        """Return the labels (size,) of what a layer or parameter of that name brings into being."""

    @abstractmethod
    def tie(self, a: Labels, b: Labels, node: fx.Node) -> Labels:
        """Demand that two arrays of labels keep the same indices; return the one to go on with."""

    @abstractmethod
    def freeze(self, labels: Labels, reason: str, node: fx.Node) -> None:
        """Demand that every channel in `labels` stays."""

    def bundle(self, rows: Labels, node: fx.Node) -> None:
        """Demand that the labels of each row (R, n) stay or go together."""
        for column in range(1, rows.shape[1]):
            self.tie(rows[:, 0], rows[:, column], node)

    def parameter(self, name: str, plan: ParameterPlan, node: fx.Node) -> None:
        """Record how a parameter is cut; one that is used twice is cut in one way."""
        self.part.parameters[name] = plan
        known = self._known.setdefault(name, plan)
        if known is plan:
            return
        for a, b in zip(known.dims, plan.dims, strict=True):
            if isinstance(a, np.ndarray) and isinstance(b, np.ndarray):
                self.tie(a, b, node)
            elif isinstance(a, np.ndarray) or isinstance(b, np.ndarray):
                labels = a if isinstance(a, np.ndarray) else b
                self.freeze(np.asarray(labels), "a parameter is shared with a place of fixed size", node)

    def channels(self, x: Labelled, dim: int, node: fx.Node) -> Labels:
        """Return the labels along one dimension (shape[dim],); labels along others are frozen."""
        dim %= len(x.shape)
        if any(d != dim for d in x.varying):
            self.freeze(x.labels, f"{describe(node)} needs its channels along dimension {dim}", node)
            return np.full(x.shape[dim], FIXED)
        return np.ascontiguousarray(np.broadcast_to(x.labels.reshape(-1), (x.shape[dim],)))

    def run(self) -> Plan:
        """Walk the whole graph.

        Raises:
            SurgeryError: what a removal left does not fit, with the node and both shapes.
        """
        for node in self.trace.graph.nodes:
            self.part = Part()
            try:
                self.plan.values[node] = self.visit(node)
            except SurgeryError:
                raise
            except (ValueError, RuntimeError, IndexError) as error:
                raise SurgeryError(f"at node {node.name} ({source_line(node)}): {error}") from error
            self.plan.parts[node] = self.part
        return self.plan

    def recorded(self, node: fx.Node) -> Any:
        """Return the teacher's value at a node: a Signature, a plain value, or a structure of them."""
        return node.meta["value"]

    def rerun(self, node: fx.Node, args: Any, kwargs: Any) -> Any:
        """Run an operation of the teacher on other shapes; return a structure of shapes and values."""
        mode = FakeTensorMode(allow_non_fake_inputs=True)
        device = next((p.device for p in self.trace.root.parameters()), torch.device("cpu"))

        def fake(value: Any) -> Any:
            if isinstance(value, Labelled | ParameterUse):
                with mode:
                    return torch.empty(value.shape, device=device)
            return value

        args, kwargs = (map_structure(x, fake) for x in (args, kwargs))
        out = run_fake(self._target(node), args, kwargs, mode)
        return map_structure(out, lambda v: Signature(tuple(v.shape), v.dtype) if isinstance(v, Tensor) else v)

    def outcome(self, node: fx.Node, args: Any, kwargs: Any) -> Any:
        """Return the operation's result for these inputs: as recorded where the shapes are the teacher's."""
        now = map_structure((args, kwargs), _shape_of)
        was = map_structure(fx.node.map_arg((node.args, node.kwargs), lambda n: n.meta["value"]), _shape_of)
        return self.recorded(node) if now == was else self.rerun(node, args, kwargs)

    def spatial(self, node: fx.Node, x: Labelled) -> tuple[int, ...]:
        """Return the output's sizes behind dimension 1 of an operation that keeps channels apart."""
        was = self.recorded(node.all_input_nodes[0])
        if x.shape[2:] == was.shape[2:]:
            return tuple(self.recorded(node).shape[2:])
        teachers = Labelled.fixed((*was.shape[:2], *x.shape[2:]))
        args = fx.node.map_arg((node.args, node.kwargs), lambda n: self.plan.values[n])
        args = map_structure(args, lambda v: teachers if v is x else v)
        return tuple(self.rerun(node, *args).shape[2:])

    def give_up(self, node: fx.Node, args: Any, kwargs: Any, reason: str) -> Any:
        """Freeze whatever an operation touches and return its result without channels."""
        map_structure((args, kwargs), lambda v: self._freeze_value(v, reason, node))
        with FlopCounterMode(display=False) as counter:
            outcome = self.rerun(node, args, kwargs)
        if counter.get_total_flops():
            self.part.work.append(Work(describe(node), counter.get_total_flops() // 2))
        return map_structure(outcome, lambda v: Labelled.fixed(v.shape) if isinstance(v, Signature) else v)

    def _freeze_value(self, value: Any, reason: str, node: fx.Node) -> Any:
        if isinstance(value, Labelled):
            self.freeze(value.labels, reason, node)
        return value

    def visit(self, node: fx.Node) -> Any:
        """Return a node's value and record its part."""
        if node.op == "placeholder":
            value = self.recorded(node)
            return map_structure(value, lambda v: Labelled.fixed(v.shape) if isinstance(v, Signature) else v)
        if node.op == "get_attr":
            value = self.recorded(node)
            return ParameterUse(str(node.target), value.shape) if isinstance(value, Signature) else value
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda n: self.plan.values[n])
        if node.op == "output":
            return map_structure(args[0], lambda v: self._freeze_value(v, "it is an output", node))
        bypass = self.bypass(node)
        if bypass is not None:
            return self.plan.values[bypass]
        return self._apply(node, args, kwargs)

    def bypass(self, node: fx.Node) -> fx.Node | None:
        """Return the node whose value stands in for one inside a removed module."""
        return next((self._entries[path] for path in enclosing_modules(node) if path in self._removed), None)

    def _apply(self, node: fx.Node, args: Any, kwargs: Any) -> Any:
        if node.op == "call_module":
            module = self.trace.root.get_submodule(str(node.target))
            rule = MODULE_RULES.get(type(module))
            if rule is not None:
                return rule(self, node, module, *args, **kwargs)
            return self.give_up(node, args, kwargs, f"no rule for the module {type(module).__name__}")
        rule = CALL_RULES.get(node.target)
        flat: list[Any] = []
        map_structure((args, kwargs), flat.append)
        if not any(isinstance(v, Labelled | ParameterUse) for v in flat):
            return self._plain(node, args, kwargs)
        if rule is not None:
            return rule(self, node, *args, **kwargs)
        return self.give_up(node, args, kwargs, f"no rule for the operation {describe(node)}")

    def _plain(self, node: fx.Node, args: Any, kwargs: Any) -> Any:
        """Sizes and other plain values are computed; tensors made of nothing have no channels."""
        recorded = self.recorded(node)
        if isinstance(recorded, Signature):
            return Labelled.fixed(self.outcome(node, args, kwargs).shape)
        return self._target(node)(*args, **kwargs)

    def _target(self, node: fx.Node) -> Callable[..., Any]:
        if node.op == "call_module":
            return self.trace.root.get_submodule(str(node.target))
        if node.op == "call_method":
            return lambda self, *args, **kwargs: getattr(self, str(node.target))(*args, **kwargs)
        return node.target  # type: ignore[return-value]


def describe(node: fx.Node) -> str:
    """Return the name of a node's operation as a user would write it."""
    if node.op == "call_function":
        return str(getattr(node.target, "__name__", node.target))
    return str(node.target)


def enclosing_modules(node: fx.Node) -> tuple[str, ...]:
    """Return the paths of the modules whose forward a node belongs to, outermost first."""
    return tuple(node.meta.get("nn_module_stack", {}))


def inside(node: fx.Node, path: str) -> bool:
    """Return whether a node belongs to the forward of the module at `path`."""
    return path in enclosing_modules(node)


def entry_nodes(trace: Trace, path: str) -> tuple[fx.Node, ...]:
    """Return the nodes outside a module whose values its forward reads, parameters aside."""
    members = [node for node in trace.graph.nodes if inside(node, path)]
    outside = (n for member in members for n in member.all_input_nodes if not inside(n, path) and n.op != "get_attr")
    return tuple(dict.fromkeys(outside))


def _shape_of(value: Any) -> Any:
    return tuple(value.shape) if isinstance(value, Labelled | ParameterUse | Signature) else value


def count(sizes: Iterable[int]) -> int:
    """Return the product of sizes."""
    return math.prod(sizes)


def attribute(root: nn.Module, path: str) -> Any:
    """Return the parameter, buffer or module at a dotted path."""
    return operator.attrgetter(path)(root) if path else root
