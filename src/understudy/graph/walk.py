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
from dataclasses import is_dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from understudy.core.errors import SurgeryError
from understudy.graph.channels import FIXED, Attribute, Labelled, Labels, ParameterPlan, ParameterUse, Part, Plan, Work
from understudy.graph.numbers import Key, Number, plain
from understudy.graph.trace import Signature, Trace, map_structure, run_fake, source_line

# Operations whose result shares its input's memory.
VIEWS = frozenset(
    (
        *("flatten", "view", "reshape", "permute", "transpose", "unsqueeze", "squeeze", "getitem", "chunk"),
        *("split", "detach", "unbind", "expand", "expand_as", "view_as", "movedim", "swapaxes"),
    )
)
# Operations that give sizes to what they get; any other one that gets a size computes with it.
_RESIZING = frozenset(("view", "reshape", "expand", "broadcast_to", "view_as", "reshape_as", "expand_as"))
_NONE = np.zeros(0, dtype=np.int64)
Rule = Callable[..., Any]
# Operation -> rule, filled by `understudy.rules`: a module class, a function, or the name of a tensor method.
MODULE_RULES: dict[type[nn.Module], Rule] = {}
# A function of a library that the core does not import goes by its qualified name.
CALL_RULES: dict[Any, Rule] = {}
# Rules that read parameters of several dimensions; the others get them as tensors.
PARAMETER_RULES: set[Rule] = set()


class Walk(ABC):
    """Runs the rules over a graph, node by node, with `removed` modules passed by."""

    def __init__(self, trace: Trace, *, removed: frozenset[str] = frozenset()) -> None:
        self.trace = trace
        self.plan = Plan()
        self.part = Part()
        self._known: dict[str, ParameterPlan] = {}
        self._counted: dict[Key, tuple[Labels, int, fx.Node]] = {}
        self._read: set[Key] = set()
        self._pinned: set[Key] = set()
        self._removed = removed

    @abstractmethod
    def emit(self, name: str, size: int) -> Labels:
        """Return the labels (size,) of what a layer or parameter of that name brings into being."""

    @abstractmethod
    def tie(self, a: Labels, b: Labels, node: fx.Node) -> Labels:
        """Demand that two arrays of labels keep the same indices; return the one to go on with."""

    @abstractmethod
    def freeze(self, labels: Labels, reason: str, node: fx.Node) -> None:
        """Demand that every channel in `labels` stays."""

    def joins(self, size: int, dim: int, node: fx.Node) -> None:  # noqa: B027  most passes allow any
        """Hear how many channels a concatenation is about to make along one dimension."""

    def tied(self, labels: Labels) -> Labels:
        """Return what stands for these labels and all that is known to be tied to them, ascending, each once."""
        return np.unique(labels)

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

    def count_in(self, key: Key, labels: Labels, node: fx.Node, *, per: int = 1) -> None:
        """Let a number of a module be how many of `labels` stay, divided by `per`."""
        self.part.attributes.append(Attribute(*key, labels, per))
        known, times, _ = self._counted.setdefault(key, (labels, per, node))
        if times == per and len(known) == len(labels):
            self.tie(known, labels, node)
        else:
            self.freeze(known, f"{key[1]} counts several kinds of channels", node)
            self.freeze(labels, f"{key[1]} counts several kinds of channels", node)

    def follow(self, number: Any, labels: Labels, node: fx.Node, *, per: int = 1) -> bool:
        """As `count_in` for a number that an operation was given; False if it is written in the code."""
        if not isinstance(number, Number):
            return False
        self._read.add(number.key)
        self.count_in(number.key, labels, node, per=per)
        return True

    def leave(self, number: Any) -> None:
        """Say that an operation is right with a number of a module whatever its channels are."""
        if isinstance(number, Number):
            self._read.add(number.key)

    def as_tensor(self, value: Labelled | ParameterUse, node: fx.Node) -> Labelled:
        """Return a parameter as a tensor: it has channels if one dimension has several elements."""
        if isinstance(value, Labelled):
            return value
        wide = [d for d, size in enumerate(value.shape) if size > 1]
        if len(wide) != 1:
            self.parameter(value.name, ParameterPlan(value.shape), node)
            return Labelled.fixed(value.shape)
        labels = self.emit(value.name, value.shape[wide[0]])
        dims = tuple(labels if d == wide[0] else size for d, size in enumerate(value.shape))
        self.parameter(value.name, ParameterPlan(dims), node)
        return Labelled.along(value.shape, wide[0], labels)

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
        for graph in self.trace.graphs:
            for node in graph.nodes:
                self.step(node)
        for key in self._pinned | self.trace.spoiled:
            if key in self._counted:
                labels, _, node = self._counted[key]
                self.freeze(labels, f"{key[1]} is used for something else as well", node)
        return self.plan

    def step(self, node: fx.Node) -> None:
        """Visit one node and keep its value and part; what only training runs costs nothing."""
        self.part, self._read = Part(), set()
        try:
            self.plan.values[node] = self.visit(node)
        except SurgeryError:
            raise
        except (ValueError, RuntimeError, IndexError, TypeError) as error:
            raise SurgeryError(f"at node {node.name} ({source_line(node)}): {error}") from error
        self._follow_sizes(node)
        if node.graph is not self.trace.graph:
            self.part.work = []
        self.plan.parts[node] = self.part

    def _follow_sizes(self, node: fx.Node) -> None:
        """Note whose number a plain value tells; channels stay if theirs is used as a value, or for other tensors."""
        counted = [self.plan.sizes[n] for n in node.all_input_nodes if n in self.plan.sizes]
        makes = _any_tensor(self.plan.values[node])
        told = _NONE if makes else self._told(node, counted)
        if node.meta.get("escapes"):
            self.freeze(told, "Python computes with their number", node)
        if makes and counted and node.op != "output" and self.bypass(node) is None:
            labels, name = np.concatenate(counted), describe(node)
            inputs = [self.plan.values[n] for n in node.all_input_nodes]
            own = np.concatenate([_NONE, *(v.labels.ravel() for v in inputs if isinstance(v, Labelled))])
            if name not in _RESIZING:
                self.freeze(labels, f"{name} computes with their number", node)
            elif not np.isin(self.tied(labels), self.tied(own)).all():
                self.freeze(np.concatenate([labels, own]), f"{name} sizes other channels by their number", node)
        if told.size or node in self.plan.sizes:
            self.plan.sizes[node] = np.unique(told)

    def _told(self, node: fx.Node, counted: list[Labels]) -> Labels:
        """Return the channels whose number a plain value was computed from."""
        near = node.args[0] if node.args else None
        if isinstance(near, fx.Node) and describe(node) == "getitem" and (measured := self._measured(near)) is not None:
            return _along(measured, range(len(measured.shape))[node.args[1]])  # type: ignore[index]
        measured = self._measured(node)
        if measured is not None:
            dim = node.args[1] if describe(node) == "size" and len(node.args) > 1 else node.kwargs.get("dim")
            return _along(measured, range(len(measured.shape)) if dim is None else dim)
        return np.concatenate([_NONE, *counted])

    def _measured(self, node: fx.Node) -> Labelled | None:
        """Return the tensor whose shape, size or number of elements a node is."""
        shape = node.op == "call_function" and node.target is getattr and node.args[1] == "shape"
        if shape or (node.op == "call_method" and node.target in ("size", "numel")):
            value = self.plan.values[node.args[0]]  # type: ignore[index]
            return value if isinstance(value, Labelled) else None
        return None

    def recorded(self, node: fx.Node) -> Any:
        """Return the teacher's value at a node: a Signature, a plain value, or a structure of them."""
        return node.meta["value"]

    def rerun(self, node: fx.Node, args: Any, kwargs: Any) -> Any:
        """Run an operation of the teacher on other shapes; return a structure of shapes and values."""
        mode = FakeTensorMode(allow_non_fake_inputs=True)
        device = next((p.device for p in self.trace.root.parameters()), torch.device("cpu"))

        dtypes = {
            id(self.plan.values[n]): n.meta["value"].dtype
            for n in node.all_input_nodes
            if isinstance(n.meta["value"], Signature)
        }

        def fake(value: Any) -> Any:
            if isinstance(value, Labelled | ParameterUse):
                with mode:
                    return torch.empty(value.shape, device=device, dtype=dtypes.get(id(value)))
            return plain(value)

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
        elif isinstance(value, ParameterUse):
            self.parameter(value.name, ParameterPlan(value.shape), node)
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
        for path in enclosing_modules(node) if self._removed else ():
            if path in self._removed:
                return entry_nodes(self.trace, path, node.graph)[0]
        return None

    def _apply(self, node: fx.Node, args: Any, kwargs: Any) -> Any:
        rule, name = self._rule(node)
        flat: list[Any] = []
        map_structure((args, kwargs), flat.append)
        if node.op == "call_module":
            args = (self.trace.root.get_submodule(str(node.target)), *args)
        elif not any(isinstance(v, Labelled | ParameterUse) for v in flat):
            return self._plain(node, args, kwargs)
        if rule is None:
            args = args[1:] if node.op == "call_module" else args
            value = self.give_up(node, args, kwargs, f"no rule for the {name}")
        else:
            if rule not in PARAMETER_RULES:
                uses = (args, kwargs)
                args, kwargs = map_structure(
                    uses, lambda v: self.as_tensor(v, node) if isinstance(v, ParameterUse) else v
                )
            value = rule(self, node, *args, **kwargs)
        self._pinned |= {v.key for v in flat if isinstance(v, Number)} - self._read
        return value

    def _rule(self, node: fx.Node) -> tuple[Rule | None, str]:
        """Return a node's rule, and what to call its operation."""
        if node.op == "call_module":
            module = self.trace.root.get_submodule(str(node.target))
            return MODULE_RULES.get(type(module)), f"module {type(module).__name__}"
        rule = CALL_RULES.get(node.target)
        if isinstance(node.target, type) and (is_dataclass(node.target) or issubclass(node.target, tuple)):
            return _gathered, describe(node)
        if rule is None and node.op == "call_function":
            target = node.target
            rule = CALL_RULES.get(f"{getattr(target, '__module__', '')}.{getattr(target, '__qualname__', '')}")
        return rule, f"operation {describe(node)}"

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


def _gathered(walk: Walk, node: fx.Node, *args: Any, **kwargs: Any) -> Any:
    """Named tuples and dataclasses hold what they are given."""
    return (*args, *kwargs.values())


def describe(node: fx.Node) -> str:
    """Return the name of a node's operation as a user would write it."""
    if node.op == "call_function":
        return str(getattr(node.target, "__name__", node.target))
    return str(node.target)


def is_in_place(node: fx.Node) -> bool:
    """Return whether an operation of the forward pass overwrites its first argument."""
    if node.op == "call_method":
        return str(node.target).endswith("_") and not str(node.target).endswith("__")
    if node.op == "call_function":
        name = describe(node)
        return name in _IN_PLACE or bool(node.kwargs.get("inplace")) or name.endswith("_")
    return False


_IN_PLACE = frozenset(f"i{name}" for name in ("add", "sub", "mul", "truediv", "floordiv", "pow", "and", "or", "xor"))


def enclosing_modules(node: fx.Node) -> tuple[str, ...]:
    """Return the paths of the modules whose forward a node belongs to, outermost first."""
    return tuple(node.meta.get("nn_module_stack", {}))


def inside(node: fx.Node, path: str) -> bool:
    """Return whether a node belongs to the forward of the module at `path`."""
    return path in node.meta.get("nn_module_stack", {})


def entry_nodes(trace: Trace, path: str, graph: fx.Graph | None = None) -> tuple[fx.Node, ...]:
    """Return the nodes outside a module whose values its forward reads, parameters aside."""
    members = [node for node in trace.members.get(path, ()) if node.graph is (graph or trace.graph)]
    outside = (n for member in members for n in member.all_input_nodes if not inside(n, path) and n.op != "get_attr")
    return tuple(dict.fromkeys(outside))


def _along(x: Labelled, dims: Any) -> Labels:
    """Return the channels that a tensor has along one dimension or several."""
    asked = {d % len(x.shape) for d in ([dims] if isinstance(dims, int) else dims)}
    return x.labels[x.labels != FIXED] if asked & set(x.varying) else _NONE


def _any_tensor(value: Any) -> bool:
    found: list[Any] = []
    map_structure(value, found.append)
    return any(isinstance(v, Labelled) for v in found)


def _shape_of(value: Any) -> Any:
    return tuple(value.shape) if isinstance(value, Labelled | ParameterUse | Signature) else value


def count(sizes: Iterable[int]) -> int:
    """Return the product of sizes."""
    return math.prod(sizes)


def attribute(root: nn.Module, path: str) -> Any:
    """Return the parameter, buffer or module at a dotted path."""
    return operator.attrgetter(path)(root) if path else root
