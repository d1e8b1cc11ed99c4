"""One pass over the teacher's graph that knows, for every tensor, which channels it carries.

Beside each tensor stands an integer array that broadcasts to its shape: the label of every element
that belongs to a channel, `FIXED` for what never changes. Views, slices and concatenations are the same
operations on labels; what must keep the same indices is tied. The rules (`understudy.rules`) are written once
and serve two passes: `groups.py` finds out what is tied, `surgery.py` refits what a removal leaves.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import is_dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx
from torch._subclasses.fake_tensor import FakeTensorMode

from understudy.core.errors import SurgeryError
from understudy.core.memory import out_of_memory
from understudy.graph.channels import (
    FIXED,
    Arranged,
    Attribute,
    Labelled,
    Labels,
    Paired,
    ParameterPlan,
    ParameterUse,
    Part,
    Plan,
    Size,
    Work,
    shape_of,
)
from understudy.graph.fake import Signature, flat, map_structure, run_fake, source_line
from understudy.graph.flops import counting
from understudy.graph.nodes import describe, enclosing_modules
from understudy.graph.numbers import Key, Number, plain
from understudy.graph.outputs import remembered
from understudy.graph.registry import (
    ARRANGED_RULES,
    CALL_RULES,
    MAKING_RULES,
    MODULE_RULES,
    PARAMETER_RULES,
    STATE_RULES,
    Rule,
    gathered,
)
from understudy.graph.told import follow_sizes, tell_layer
from understudy.graph.trace import Trace, hooks_of


class Walk(ABC):
    """Runs the rules over a graph, node by node, with `removed` modules passed by."""

    def __init__(self, trace: Trace, *, removed: frozenset[str] = frozenset()) -> None:
        self.trace = trace
        self.plan = Plan()
        self.part = Part()
        self.known: dict[str, ParameterPlan] = {}
        self.counted: dict[Key, tuple[Labels, int, fx.Node]] = {}
        self._read: set[Key] = set()
        self._pinned: dict[Key, str] = {}
        # Channels whose number gives a tensor its size, the channels of that tensor, and where.
        self.sized_by: list[tuple[Labels, Labels, fx.Node]] = []
        # Of a node that puts channels into several dimensions, the one along which they go, where that was found out.
        self.chosen: Mapping[fx.Node, int] = {}
        # Nodes whose rule failed, and how.
        self.abandoned: Mapping[fx.Node, str] = {}
        # What a number of a module counts, and how a parameter is cut, before the walk has come there.
        self.counts: Mapping[Key, Labels] = {}
        self.cuts: Mapping[str, ParameterPlan] = {}
        # Parameters and buffers that the forward pass uses directly and that have no channels to lose.
        self.constants: frozenset[str] = frozenset()
        self._removed = removed

    @abstractmethod
    def emit(self, name: str, size: int) -> Labels:
        """Return the labels (size,) of what a layer or parameter of that name brings into being."""

    @abstractmethod
    def tie(self, a: Labels, b: Labels, node: fx.Node) -> Labels:
        """Demand that two arrays of labels keep the same indices; return the one to go on with."""

    @abstractmethod
    def freeze(self, labels: Labels, reason: str, node: fx.Node, line: str = "") -> None:
        """Demand that every channel in `labels` stays, because of a node or of a line of the forward pass."""

    @abstractmethod
    def write(self, labels: Labels, reason: str, node: fx.Node, line: str = "") -> None:
        """Hear that the code holds how many of `labels` there are: only a plain graph can have fewer."""

    def close(self, node: fx.Node, reason: str) -> None:  # noqa: B027  only who tells a user needs it
        """Hear that nothing is known of a node, so that its parameters keep their size."""

    def joins(self, size: int, dim: int, node: fx.Node) -> None:  # noqa: B027  most passes allow any
        """Hear how many channels a concatenation is about to make along one dimension."""

    def tied(self, labels: Labels) -> Labels:
        """Return what stands for these labels and all that is known to be tied to them, ascending, each once."""
        return np.unique(labels)

    def alike(self, labels: Labels) -> Labels:
        """Return an array of the same shape in which labels are equal that are known to be tied."""
        return labels

    def bundle(self, rows: Labels, node: fx.Node) -> None:
        """Demand that the labels of each row (R, n) stay or go together."""
        for column in range(1, rows.shape[1]):
            self.tie(rows[:, 0], rows[:, column], node)

    def parameter(self, name: str, plan: ParameterPlan, node: fx.Node) -> None:
        """Record how a parameter is cut; one that is used twice, or that has two names, is cut in one way."""
        name = self.trace.names.get(name, name)
        self.part.parameters[name] = plan
        known = self.known.setdefault(name, plan)
        cut = [dim for dim in plan.dims if isinstance(dim, np.ndarray)]
        for own in cut if name in self.trace.overlapping else ():
            self.freeze(own, "a parameter lies in the memory of another one", node)
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
        known, times, _ = self.counted.setdefault(key, (labels, per, node))
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
        known, times, _ = self.counted.get(number.key, (labels, per, node))
        if times != per or len(known) != len(labels):
            for several in (known, labels):
                self.write(several, f"{number.name} counts several kinds of channels", node)
        else:
            self.count_in(number.key, labels, node, per=per)
        return True

    def choose(self, node: fx.Node, dims: list[int], labels: Labels) -> int:
        """Return the dimension along which channels go that a node puts into several, the usual one first."""
        return self.chosen.get(node, dims[0])

    def sized(self, place: tuple[int | str, ...], labels: Labels | tuple[Labels, ...], *, per: int = 1) -> None:
        """Say that an argument of the node is how many of `labels` there are, by `per`."""
        self.part.sizes.append(Size(place, labels, per))

    def leave(self, number: Any) -> None:
        """Say that an operation is right with a number of a module whatever its channels are."""
        if isinstance(number, Number):
            self._read.add(number.key)

    def as_tensor(self, value: Labelled | ParameterUse, node: fx.Node, dim: int | None = None) -> Labelled:
        """Return a parameter as a tensor: it has channels along `dim`, or where one dimension has several elements.

        Integers (positions, kinds of tokens) have none.
        """
        if isinstance(value, Labelled):
            return value
        if isinstance(value, Arranged):
            at = value.place if dim is None else dim
            use = ParameterUse(value.name, value.whole)
            return value.labelled(self.as_tensor(use, node, None if at is None else value.dims[at]))
        made = type(value) not in (ParameterUse, Paired) or value.beside
        if made or value.name in self.constants or self.trace.are_numbers(value.name):
            return Labelled.fixed(self._freeze_value(value, "a weight is computed", node).shape)
        known = self.known.get(self.trace.names.get(value.name, value.name))
        wide = [d for d, size in enumerate(value.shape) if size > 1]
        if dim is not None and (known is None or isinstance(known.dims[dim], np.ndarray)):
            wide = [dim]
        if len(wide) > 1 and dim is None and len(value.shape) > 3 and value.shape[0] == 1:
            wide = wide[:1]  # a map has its channels first
        if len(wide) != 1:
            self.parameter(value.name, ParameterPlan(value.whole), node)
            return Labelled.fixed(value.shape)
        labels = self.emit(value.name, value.shape[wide[0]])
        dims = tuple(labels if d == wide[0] else size for d, size in enumerate(value.whole))
        self.parameter(value.name, ParameterPlan(dims), node)
        tell_layer(self, value.name, wide[0], labels, node)
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
        for key, line in {**self._pinned, **self.trace.spoiled}.items():
            if key in self.counted:
                labels, _, node = self.counted[key]
                self.write(labels, f"the forward pass computes with {'.'.join(filter(None, key))}", node, line)
        for labels, own, node in self.sized_by:  # which may be tied further on: by the addition behind attention
            if not np.isin(self.tied(labels), self.tied(own)).all():
                self.write(
                    np.concatenate([labels, own]), f"{describe(node)} sizes other channels by their number", node
                )
        return self.plan

    @property
    def computed(self) -> frozenset[Key]:
        """The numbers of modules that the forward pass computes with."""
        return frozenset((*self._pinned, *self.trace.spoiled))

    def step(self, node: fx.Node) -> None:
        """Visit one node and keep its value and part; what only training runs costs nothing."""
        self.part, self._read = Part(), set()
        try:
            value = self.visit(node)
            if isinstance(value, Labelled):  # an object of its own: a comparison gives what has another dtype
                value = Labelled(value.shape, value.labels)
            self.plan.values[node] = value
            self.verify(node)
            follow_sizes(self, node)
        except SurgeryError:
            raise
        except Exception as error:
            if out_of_memory(error):
                raise
            self.plan.values[node] = self.failed(node, error)
        if node.graph is not self.trace.graph:
            self.part.work = []
        self.plan.parts[node] = self.part

    def verify(self, node: fx.Node) -> None:  # noqa: B027  only the teacher's own pass can
        """Raise an error if the rule of a node does not predict what the teacher was seen to do."""

    def failed(self, node: fx.Node, error: Exception) -> Any:
        """Return the value of a node whose rule failed.

        Raises:
            SurgeryError: nothing can be said of what comes behind it.
        """
        raise SurgeryError(f"at node {node.name} ({source_line(node)}): {error}") from error

    def value_of(self, argument: Any) -> Any:
        """Return an argument of a node with the values of the nodes in it."""
        return fx.node.map_arg(argument, lambda n: self.plan.values[n])

    def recorded(self, node: fx.Node) -> Any:
        """Return the teacher's value at a node: a Signature, a plain value, or a structure of them."""
        return node.meta["value"]

    def rerun(self, node: fx.Node, args: Any, kwargs: Any, *, counted: bool = True) -> Any:
        """Run an operation of the teacher on other shapes; return a structure of shapes and values.

        What is not `counted`, as MACs are, may be remembered from the like of it.
        """
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

        def run() -> Any:
            return run_fake(self._target(node), args, kwargs, mode)

        if node.op != "call_module" or counted:
            out = run()
        else:
            layer = self.trace.modules[str(node.target)]
            out = remembered(layer, type(layer), args, kwargs, mode, run)
        return map_structure(out, lambda v: Signature(tuple(v.shape), v.dtype) if isinstance(v, Tensor) else v)

    def outcome(self, node: fx.Node, args: Any, kwargs: Any) -> Any:
        """Return the operation's result for these inputs: as recorded where the shapes are the teacher's."""
        same = self._is_as_recorded(node, args, kwargs)
        return self.recorded(node) if same else self.rerun(node, args, kwargs, counted=False)

    def _is_as_recorded(self, node: fx.Node, args: Any, kwargs: Any) -> bool:
        was = map_structure(fx.node.map_arg((node.args, node.kwargs), lambda n: n.meta["value"]), shape_of)
        return bool(map_structure((args, kwargs), shape_of) == was)

    def spatial(self, node: fx.Node, x: Labelled, dims: int) -> tuple[int, ...]:
        """Return the output's last `dims` sizes of an operation that keeps all channels before them apart."""
        was, found = self.recorded(node.all_input_nodes[0]), self.recorded(node)
        if x.shape[-dims:] != was.shape[-dims:]:
            teachers = Labelled.fixed((*was.shape[:-dims], *x.shape[-dims:]))
            args = fx.node.map_arg((node.args, node.kwargs), lambda n: self.plan.values[n])
            found = self.rerun(node, *map_structure(args, lambda v: teachers if v is x else v), counted=False)
        return tuple((found[0] if isinstance(found, tuple) else found).shape[-dims:])

    def give_up(self, node: fx.Node, args: Any, kwargs: Any, reason: str) -> Any:
        """Freeze whatever an operation touches and return its result without channels."""
        map_structure((args, kwargs), lambda v: self._freeze_value(v, reason, node))
        if node.op == "call_module":
            module = self.trace.modules[str(node.target)]
            own = (*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False))
            for name, tensor in own:
                self.parameter(f"{node.target}.{name}", ParameterPlan(tuple(tensor.shape)), node)
        outcome = self.recorded(node) if self._is_as_recorded(node, args, kwargs) else None
        with counting() as counter:
            try:
                again = self.rerun(node, args, kwargs)
                outcome = again if outcome is None else outcome
            except Exception as error:  # values are made up: a size that the forward pass computes as a tensor is 0
                if outcome is None or out_of_memory(error):
                    raise
        self.close(node, reason)
        if counter.get_total_flops():
            self.part.work.append(Work(describe(node), counter.get_total_flops() // 2))
        return map_structure(outcome, lambda v: Labelled.fixed(v.shape) if isinstance(v, Signature) else v)

    def _freeze_value(self, value: Any, reason: str, node: fx.Node) -> Any:
        if isinstance(value, Labelled):
            self.freeze(value.labels, reason, node)
        elif isinstance(value, ParameterUse):
            for part in value.parts:
                self.parameter(part.name, ParameterPlan(part.whole), node)
            self.part.work += value.work
            map_structure(value.beside, lambda other: self._freeze_value(other, reason, node))
        return value

    def visit(self, node: fx.Node) -> Any:
        """Return a node's value and record its part."""
        if node.op == "placeholder":
            value = self.recorded(node)
            return map_structure(value, lambda v: Labelled.fixed(v.shape) if isinstance(v, Signature) else v)
        if node.op == "get_attr":
            value, name = self.recorded(node), str(node.target)
            if isinstance(value, Signature) and name not in self.trace.names:
                return Labelled.fixed(value.shape)  # made in the forward pass, or a plain attribute of a module
            return ParameterUse(name, value.shape) if isinstance(value, Signature) else value
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda n: self.plan.values[n])
        if node.op == "output":
            return map_structure(args[0], lambda v: self._freeze_value(v, "it is an output", node))
        bypass = self.bypass(node)
        if bypass is not None:
            return self.plan.values[bypass]
        if node in self.abandoned:
            return self.give_up(node, args, kwargs, self.abandoned[node])
        return self._apply(node, args, kwargs)

    def bypass(self, node: fx.Node) -> fx.Node | None:
        """Return the node whose value stands in for one inside a removed module."""
        for path in enclosing_modules(node) if self._removed else ():
            if path in self._removed:
                return self.trace.entries(path, node.graph)[0]
        return None

    def _apply(self, node: fx.Node, args: Any, kwargs: Any) -> Any:
        rule, why = self._rule(node)
        if rule not in ARRANGED_RULES and any(isinstance(v, Arranged) for v in flat((args, kwargs))):
            args, kwargs = self._settled(node)
        given = flat((args, kwargs))
        alone = node.op != "call_module" and not any(isinstance(v, Labelled | ParameterUse) for v in given)
        if alone and rule not in MAKING_RULES:
            return self._plain(node, args, kwargs)
        if rule is None:
            value = self.give_up(node, args, kwargs, why)
        else:
            if rule not in PARAMETER_RULES:
                uses = (args, kwargs)
                args, kwargs = map_structure(
                    uses, lambda v: self.as_tensor(v, node) if isinstance(v, ParameterUse) else v
                )
            value = (
                rule(self, node, *args, **kwargs) if node.op != "call_module" else self._layer(rule, node, args, kwargs)
            )
        for number in given:
            if isinstance(number, Number) and number.key not in self._read:
                self._pinned.setdefault(number.key, source_line(node))
        return value

    def _settled(self, node: fx.Node) -> Any:
        """Return a node's arguments, where parameters without a place for their channels are tensors."""
        for other in node.all_input_nodes:
            value = self.plan.values[other]
            if isinstance(value, Arranged):
                self.plan.values[other] = self.as_tensor(value, node)
        return fx.node.map_arg((node.args, node.kwargs), lambda n: self.plan.values[n])

    def _layer(self, rule: Rule, node: fx.Node, args: Any, kwargs: Any) -> Any:
        module = self.trace.modules[str(node.target)]
        given = (*args, *kwargs.values())  # the only input of a layer, whatever its name is
        if rule in STATE_RULES:
            return rule(self, node, module, *args, **kwargs)
        if len(given) == 1:
            return rule(self, node, module, *given)
        return self.give_up(node, args, kwargs, f"the {type(module).__name__} is given more than its input")

    def _rule(self, node: fx.Node) -> tuple[Rule | None, str]:
        """Return a node's rule, and why its channels freeze if there is none."""
        if node.op == "call_module":
            module = self.trace.modules[str(node.target)]
            kind = f"module {type(module).__name__}"
            if "forward" in vars(module):
                return None, f"the forward of the {kind} was replaced"
            if hooks_of(module):
                return None, f"the {kind} has hooks"
            if hasattr(module, "parametrizations"):
                return None, f"the {kind} computes its weight, and with a plain one the network gives something else"
            return MODULE_RULES.get(type(module)), f"no rule for the {kind}"
        rule = CALL_RULES.get(node.target)
        if isinstance(node.target, type) and (is_dataclass(node.target) or issubclass(node.target, tuple)):
            return rule or gathered, ""
        if rule is None and node.op == "call_function":
            target = node.target
            rule = CALL_RULES.get(f"{getattr(target, '__module__', '')}.{getattr(target, '__qualname__', '')}")
        return rule, f"no rule for the operation {describe(node)}"

    def _plain(self, node: fx.Node, args: Any, kwargs: Any) -> Any:
        """Sizes and other plain values are computed; tensors made of nothing have no channels."""
        if isinstance(self.recorded(node), Signature):
            return Labelled.fixed(self.outcome(node, args, kwargs).shape)
        return self._target(node)(*args, **kwargs)

    def _target(self, node: fx.Node) -> Callable[..., Any]:
        if node.op == "call_module":
            return self.trace.modules[str(node.target)]
        if node.op == "call_method":
            return lambda self, *args, **kwargs: getattr(self, str(node.target))(*args, **kwargs)
        return node.target  # type: ignore[return-value]
