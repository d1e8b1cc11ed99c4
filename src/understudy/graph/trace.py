"""Teacher -> graph with shapes, by `torch.fx`.

All of `torch.nn` are leaves. While the graph is recorded every operation also runs on fake tensors, so
that control flow which depends on shapes takes the branch of the example; control flow that depends on
values is refused, with its line.
"""

from __future__ import annotations

import inspect
import types
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, fx, nn

from understudy.core.errors import TraceError, a_kind
from understudy.core.memory import out_of_memory
from understudy.core.nested import leaves
from understudy.graph.compare import difference, twins
from understudy.graph.copies import copied, first_names, overlapping, tensor_at
from understudy.graph.fake import Signature
from understudy.graph.kinds import check_module, check_names
from understudy.graph.nodes import inside, is_inplace
from understudy.graph.numbers import Call, Key, Watch, error_line
from understudy.graph.recorder import TRACED, record_inputs

Example = Tensor | tuple[Any, ...] | Mapping[str, Any]


@dataclass(frozen=True, eq=False)
class Trace:
    """A teacher's forward pass as a graph; `node.meta["value"]` holds a Signature or a plain value.

    A plain value that leaves the graph, for a branch or for what Python computes, has `node.meta["escapes"]`; a tensor
    whose first size Python asks for by `len` has `node.meta["counted"]`. `root` shares the teacher's tensors, is in
    evaluation mode and is never handed out. `training` is the graph of the forward pass in training mode where that
    computes something else (auxiliary heads); `flagged` is it where only flags differ, and `twins` are its nodes' in
    evaluation. `opaque` says why nothing is known of some way to run the teacher, and `draws` that it draws random
    numbers, or stores something in a module, which no graph repeats.
    """

    teacher: nn.Module
    example: Example
    root: nn.Module
    graph: fx.Graph
    batch: int
    leaf_modules: tuple[type[nn.Module], ...] = ()
    training: fx.Graph | None = None
    flagged: fx.Graph | None = None
    draws: bool = False
    opaque: str = ""
    # The modules' integers that Python computes with, and the line where it does.
    spoiled: Mapping[Key, str] = field(default_factory=dict)
    # Attributes of modules that the forward of another module reads, by path, and the line.
    read: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    calls: Mapping[str, tuple[Call, ...]] = field(default_factory=dict)  # of each module, by path
    # What the graph says of types, where the teacher here is a copy in another precision.
    cast: Mapping[torch.dtype, torch.dtype] = field(default_factory=dict)

    @property
    def graphs(self) -> tuple[fx.Graph, ...]:
        """The graph, and that of training where it has one of its own."""
        return (self.graph,) if self.training is None else (self.graph, self.training)

    @cached_property
    def twins(self) -> dict[fx.Node, fx.Node]:
        """The nodes of `graph` by those of `flagged`."""
        return {} if self.flagged is None else twins(self.graph, self.flagged)

    @cached_property
    def modules(self) -> dict[str, nn.Module]:
        """The modules of `root` by all their paths; torch looks each up name by name."""
        return dict(self.root.named_modules(remove_duplicate=False))

    @cached_property
    def names(self) -> dict[str, str]:
        """The first name of the tensor that each name of a parameter or buffer stands for."""
        return first_names(self.teacher)

    @cached_property
    def overlapping(self) -> frozenset[str]:
        """The parameters and buffers that lie in the memory of another one."""
        return overlapping(self.teacher)

    def are_numbers(self, name: str) -> bool:
        """Return whether a parameter or buffer holds integers."""
        dtype = tensor_at(self.root, name).dtype
        return not (dtype.is_floating_point or dtype.is_complex or dtype is torch.bool)

    @cached_property
    def nodes(self) -> list[fx.Node]:
        """The nodes in the order of execution."""
        return list(self.graph.nodes)

    @cached_property
    def order(self) -> dict[fx.Node, int]:
        """The place of each node of all graphs."""
        return {node: index for index, node in enumerate(n for graph in self.graphs for n in graph.nodes)}

    @cached_property
    def overwriting(self) -> frozenset[str]:
        """The modules, by path, that write in place into what the forward pass reads afterwards.

        As in `x + self.branch(x)`, where the branch begins with `nn.ReLU(inplace=True)`.
        """
        calls = (n for n in self.order if n.op == "call_module" and is_inplace(self.modules[str(n.target)]))
        behind = ((n, user) for n in calls for read in n.all_input_nodes for user in read.users)
        return frozenset(str(n.target) for n, user in behind if self.order[user] > self.order[n])

    @cached_property
    def members(self) -> dict[str, list[fx.Node]]:
        """The nodes of all graphs that belong to the forward of each module, by its path."""
        found: dict[str, list[fx.Node]] = {}
        for node in self.order:
            for path in node.meta.get("nn_module_stack", {}):
                found.setdefault(path, []).append(node)
        return found

    def entries(self, path: str, graph: fx.Graph | None = None) -> tuple[fx.Node, ...]:
        """Return the nodes outside a module whose values its forward reads, parameters aside."""
        graph = graph or self.graph
        if (path, graph) not in self._entries:
            members = [node for node in self.members.get(path, ()) if node.graph is graph]
            read = (n for member in members for n in member.all_input_nodes if n.op != "get_attr")
            self._entries[path, graph] = tuple(dict.fromkeys(n for n in read if not inside(n, path)))
        return self._entries[path, graph]

    def exits(self, path: str) -> list[fx.Node]:
        """Return the nodes of a module whose values others read, in order."""
        own = (node for node in self.members[path] if node.graph is self.graph)
        return [node for node in own if any(not inside(user, path) for user in node.users)]

    @cached_property
    def _entries(self) -> dict[tuple[str, fx.Graph], tuple[fx.Node, ...]]:
        """What `entries` has found: each removed module's are asked for at every node of it, in every student."""
        return {}


def trace(teacher: nn.Module, example: Example, *, leaf_modules: tuple[type[nn.Module], ...] = ()) -> Trace:
    """Record the teacher's forward pass on an example; the teacher is not touched.

    Args:
        teacher: any module whose control flow does not depend on values.
        example: the input: a tensor (B, ...), a tuple of positional ones, or keyword arguments by name.
        leaf_modules: classes to take as one operation instead of looking inside; their channels freeze.

    Raises:
        TraceError: the forward pass fails on the example, or branches on a value, or the example is empty.
    """
    check_example(teacher, example)
    shared = {id(t): t for t in (*teacher.parameters(), *teacher.buffers())}
    root = copy_to_trace(teacher, shared).eval()
    graph, watch = record_or_explain(root, example, leaf_modules)
    if watch.draws:
        watch = _settled(copy_to_trace(teacher).eval(), example, leaf_modules, graph) or watch
    training, flagged, opaque = None, None, ""
    if hooks_of(root):
        opaque = "the teacher has forward hooks, which are not traced"
    if watch.asks_mode or _unreached(root, graph):
        try:
            training, more = record_example(copy_to_trace(teacher, shared).train(), example, leaf_modules)
        except Exception as error:
            if out_of_memory(error):
                raise
            opaque = opaque or f"the forward pass in training mode cannot be traced: {_said(error)}"
        else:
            if more.draws:
                more = _settled(copy_to_trace(teacher).train(), example, leaf_modules, training) or more
            _merge(watch, more)
            if not any(difference(graph, training, modes=True)):
                flagged = training if any(difference(graph, training)) else None
                training = None
    batches = [n.meta["value"].shape[0] for n in graph.find_nodes(op="placeholder") if _is_batched(n)]
    return Trace(
        teacher=teacher,
        example=example,
        root=root,
        graph=graph,
        batch=batches[0] if batches else 1,
        leaf_modules=leaf_modules,
        training=training,
        flagged=flagged,
        draws=watch.draws,
        opaque=opaque,
        spoiled=watch.spoiled,
        read=watch.read,
        calls={path: tuple(calls) for path, calls in watch.calls.items()},
    )


def _settled(
    root: nn.Module, example: Example, leaf_modules: tuple[type[nn.Module], ...], graph: fx.Graph
) -> Watch | None:
    """Return what a copy that has run once reads of its modules, if it does the same ever after and stores no more."""
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            root(**named_inputs(root, example))
        again, watch = record_example(root, example, leaf_modules)
    except Exception as error:
        if out_of_memory(error):
            raise
        return None
    return None if watch.draws or any(difference(graph, again)) else watch


def copy_to_trace(module: nn.Module, instead: Mapping[int, Any] | None = None) -> nn.Module:
    """Return a deep copy whose class has the `forward` that is traced.

    Raises:
        TraceError: `forward` was replaced by a function that a copy does not take along.
    """
    root: nn.Module = copied(module, instead)
    forward = vars(root).get("forward")
    if isinstance(forward, types.MethodType) and forward.__self__ is root:
        root.__class__ = type(type(root).__name__, (type(root),), {TRACED: forward.__func__})
    elif forward is not None:
        raise TraceError(
            "forward must be a method of the teacher, but it was replaced by a function that copies of the teacher "
            "share. Define it in the class, or bind it: teacher.forward = types.MethodType(function, teacher)"
        )
    return root


def hooks_of(module: nn.Module) -> bool:
    """Return whether a module has hooks that see what goes through it."""
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return any(getattr(module, kind, None) for kind in kinds)


def record_example(
    root: nn.Module, example: Example, leaf_modules: tuple[type[nn.Module], ...]
) -> tuple[fx.Graph, Watch]:
    """Record a copy's forward pass on the example."""
    return record_inputs(root, named_inputs(root, example), _defaults(root, example), leaf_modules)


def record_or_explain(
    root: nn.Module, example: Example, leaf_modules: tuple[type[nn.Module], ...]
) -> tuple[fx.Graph, Watch]:
    """As `record_example`, where it has to succeed.

    Raises:
        TraceError: it cannot be recorded, with the reason.
    """
    try:
        return record_example(root, example, leaf_modules)
    except TraceError:
        raise
    except Exception as error:
        if out_of_memory(error):
            raise
        raise TraceError(explain(root, example, error)) from error


def _merge(watch: Watch, more: Watch) -> None:
    watch.draws |= more.draws
    watch.spoiled = {**more.spoiled, **watch.spoiled}
    for path, names in more.read.items():
        watch.read[path] = {**names, **watch.read.get(path, {})}
    for path, calls in more.calls.items():
        watch.calls[path] = [*watch.calls.get(path, ()), *calls]


def check_example(teacher: nn.Module, example: Example) -> None:
    """Refuse what no student can be made of, and examples without elements."""
    check_module(teacher)
    if not any(isinstance(leaf, Tensor) for _, leaf in leaves(example)):
        raise TraceError(
            "an example must be a tensor as the forward pass takes it, with its batch dimension, or a tuple or dict "
            f"with some, but got {a_kind(example)}"
        )
    for name, value in named_inputs(teacher, example).items():
        if isinstance(value, Tensor) and value.numel() == 0:
            raise TraceError(f"an example must have elements, but {name!r} has the shape {tuple(value.shape)}")


def _unreached(root: nn.Module, graph: fx.Graph) -> set[str]:
    """Return the parameters that no node of a graph uses."""
    modules = tuple(f"{node.target}." for node in graph.find_nodes(op="call_module"))
    direct = {str(node.target) for node in graph.find_nodes(op="get_attr")}
    return {name for name, _ in root.named_parameters() if name not in direct and not name.startswith(modules)}


def named_inputs(root: nn.Module, example: Example) -> dict[str, Any]:
    """Return the example's parts by the names of forward's parameters."""
    if isinstance(example, Mapping):
        return dict(example)
    parts = example if isinstance(example, tuple) else (example,)
    names = list(inspect.signature(root.forward).parameters)
    if len(parts) > len(names):
        raise TraceError(f"the example has {len(parts)} inputs, but forward takes {len(names)}: {', '.join(names)}")
    check_names(root, names[: len(parts)])
    return dict(zip(names, parts, strict=False))


def _defaults(root: nn.Module, example: Example) -> dict[str, Any]:
    """Return forward's parameters that the example leaves at their default."""
    given = named_inputs(root, example)
    parameters = inspect.signature(root.forward).parameters.values()
    variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return {
        p.name: p.default
        for p in parameters
        if p.name not in given and p.default is not p.empty and p.kind not in variadic
    }


def _is_batched(node: fx.Node) -> bool:
    value = node.meta["value"]
    return isinstance(value, Signature) and len(value.shape) > 0


def explain(root: nn.Module, example: Example, error: Exception) -> str:
    """Tell a wrong example, which fails without tracing as well, from what cannot be traced."""
    given = named_inputs(root, example)
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            copied(root)(**given)
    except Exception as plain:
        if out_of_memory(plain):
            raise
        shapes = {name: tuple(v.shape) if isinstance(v, Tensor) else _brief(v) for name, v in given.items()}
        return f"the teacher's forward pass must accept the example {shapes}, but it failed: {plain}"
    return (
        f"the teacher cannot be traced: {_said(error)}. Name the module class that holds the line: "
        "pass leaf_modules=(ThatModule,) to analyse() or compress(); its channels then keep their width."
    )


def _said(error: Exception) -> str:
    """Return an error's text, or its kind where it has none, and the line of the network that it came from."""
    text, line = str(error).rstrip(".") or type(error).__name__, error_line(error)
    return f"{text} ({line})" if line and not isinstance(error, TraceError) else text


def _brief(value: Any) -> Any:
    """Return a value as one line of a message can hold it: its type where it would fill more."""
    return value if isinstance(value, int | float | str | None) else type(value).__name__
