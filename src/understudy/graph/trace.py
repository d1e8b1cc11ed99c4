"""Teacher -> graph with shapes, by `torch.fx`.

All of `torch.nn` are leaves. While the graph is recorded every operation also runs on fake tensors, so
that control flow which depends on shapes takes the branch of the example; control flow that depends on
values is refused, with its line.
"""

from __future__ import annotations

import contextlib
import copy
import inspect
import itertools
import logging
import math
import operator
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
    UnsupportedOperatorException,
)

from understudy.core.errors import TraceError
from understudy.graph.numbers import Key, plain, track_numbers

# Frames between the user's line and the recorded node; the last two check types where that is on.
_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
_RECORDERS = ("/torch/", __file__, "/jaxtyping/", "beartype")

Example = Tensor | tuple[Any, ...] | Mapping[str, Any]


@dataclass(frozen=True)
class Signature:
    """Shape and dtype of a tensor in the teacher's forward pass."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def bytes(self) -> int:
        """Bytes of the tensor."""
        return math.prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True, eq=False)
class Trace:
    """A teacher's forward pass as a graph; `node.meta["value"]` holds a Signature or a plain value.

    A plain value that leaves the graph, for a branch or for what Python computes, has `node.meta["escapes"]`.
    `root` shares the teacher's tensors, is in evaluation mode and is never handed out. `training` is the graph of
    the forward pass in training mode where that reaches parameters that evaluation does not (auxiliary heads).
    `spoiled` are the modules' integers that the forward pass computes with.
    """

    teacher: nn.Module
    example: Example
    root: nn.Module
    graph: fx.Graph
    batch: int
    training: fx.Graph | None = None
    spoiled: frozenset[Key] = field(default_factory=frozenset)

    @property
    def graphs(self) -> tuple[fx.Graph, ...]:
        """The graph, and that of training where it has one of its own."""
        return (self.graph,) if self.training is None else (self.graph, self.training)

    @cached_property
    def nodes(self) -> list[fx.Node]:
        """The nodes in the order of execution."""
        return list(self.graph.nodes)

    @cached_property
    def order(self) -> dict[fx.Node, int]:
        """The place of each node of all graphs."""
        return {node: index for index, node in enumerate(n for graph in self.graphs for n in graph.nodes)}

    @cached_property
    def members(self) -> dict[str, list[fx.Node]]:
        """The nodes of all graphs that belong to the forward of each module, by its path."""
        found: dict[str, list[fx.Node]] = {}
        for node in self.order:
            for path in node.meta.get("nn_module_stack", {}):
                found.setdefault(path, []).append(node)
        return found


def trace(teacher: nn.Module, example: Example, *, leaf_modules: tuple[type[nn.Module], ...] = ()) -> Trace:
    """Record the teacher's forward pass on an example; the teacher is not touched.

    Args:
        teacher: any module whose control flow does not depend on values.
        example: the input: a tensor (B, ...), a tuple of positional ones, or keyword arguments by name.
        leaf_modules: classes to take as one operation instead of looking inside; their channels freeze.

    Raises:
        TraceError: the forward pass fails on the example, or branches on a value, or the example is empty.
    """
    _check(teacher, example)
    shared = {id(t): t for t in (*teacher.parameters(), *teacher.buffers())}
    root = copy.deepcopy(teacher, dict(shared)).eval()
    try:
        graph, spoiled = _recorded(root, example, _Tracer(named_inputs(root, example), leaf_modules))
    except TraceError:
        raise
    except Exception as error:
        raise TraceError(_explain(root, example, error)) from error
    training = None
    if _unreached(root, graph):
        training, more = _in_training(teacher, example, leaf_modules)
        if training is not None and _unreached(root, training) < _unreached(root, graph):
            spoiled |= more
        else:
            training = None
    batches = [n.meta["value"].shape[0] for n in graph.find_nodes(op="placeholder") if _is_batched(n)]
    return Trace(
        teacher=teacher,
        example=example,
        root=root,
        graph=graph,
        batch=batches[0] if batches else 1,
        training=training,
        spoiled=frozenset(spoiled),
    )


def _check(teacher: nn.Module, example: Example) -> None:
    if not isinstance(teacher, nn.Module):
        raise TraceError(f"a teacher must be a torch.nn.Module, but got {type(teacher).__name__}")
    for name, value in named_inputs(teacher, example).items():
        if isinstance(value, Tensor) and value.numel() == 0:
            raise TraceError(f"an example must have elements, but {name!r} has the shape {tuple(value.shape)}")


def _recorded(root: nn.Module, example: Example, tracer: _Tracer) -> tuple[fx.Graph, set[Key]]:
    tracer.root = root
    spoiled = track_numbers(root, lambda module, path: path != "" and tracer.is_leaf_module(module, path))
    graph = tracer.trace(root, concrete_args=_defaults(root, example))
    for node in graph.nodes:
        if node.op == "output":
            node.meta["value"] = fx.node.map_arg(node.args[0], lambda n: n.meta["value"])
        elif "value" not in node.meta:  # a named tuple or a dataclass that holds tensors
            node.meta["value"] = fx.node.map_arg((*node.args, *node.kwargs.values()), lambda n: n.meta["value"])
        node.meta["value"] = map_structure(node.meta["value"], _signature)
    return graph, spoiled


def _in_training(
    teacher: nn.Module, example: Example, leaf_modules: tuple[type[nn.Module], ...]
) -> tuple[fx.Graph | None, set[Key]]:
    """Record the forward pass of a copy in training mode; what cannot be traced is left alone."""
    copied = copy.deepcopy(teacher).train()
    try:
        with torch.random.fork_rng(devices=[]):
            return _recorded(copied, example, _Tracer(named_inputs(copied, example), leaf_modules))
    except Exception:
        return None, set()


def _unreached(root: nn.Module, graph: fx.Graph) -> set[str]:
    """Return the parameters that no node of a graph uses."""
    modules = tuple(f"{node.target}." for node in graph.find_nodes(op="call_module"))
    direct = {str(node.target) for node in graph.find_nodes(op="get_attr")}
    return {name for name, _ in root.named_parameters() if name not in direct and not name.startswith(modules)}


def source_line(node: fx.Node) -> str:
    """Return "file.py:12: code" of the user's line behind a node, or "" if unknown."""
    lines = [line.strip() for line in (node.stack_trace or "").splitlines()]
    frames = [
        (place, code)
        for place, code in itertools.pairwise(lines)
        if place.startswith("File ") and not any(part in place for part in _RECORDERS)
    ]
    if not frames:
        return ""
    place, code = frames[-1]
    path, line = place.split(", ")[:2]
    return f"{path.removeprefix('File ').strip(chr(34)).rsplit('/', 1)[-1]}:{line.removeprefix('line ')}: {code}"


def map_structure(value: Any, function: Callable[[Any], Any]) -> Any:
    """Return nested tuples, lists, dicts and slices with the function applied to each leaf."""
    return fx.node.map_aggregate(value, function)


def run_fake(call: Callable[..., Any], args: Any, kwargs: Any, mode: FakeTensorMode) -> Any:
    """Run an operation on fake tensors; one that looks at values inside runs on real zeros instead."""
    try:
        with torch.no_grad(), mode, _quietly():
            return call(*args, **kwargs)
    except (DataDependentOutputException, DynamicOutputShapeException, UnsupportedOperatorException):
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            zeros = map_structure((args, kwargs), _zeros)
            out = copy.deepcopy(call)(*zeros[0], **zeros[1])
        return map_structure(out, lambda v: mode.from_tensor(v) if isinstance(v, Tensor) else v)


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Torch prints a stack for what does not fit on fake tensors; here that is an answer, not an accident."""
    log = logging.getLogger("torch._subclasses.fake_tensor")
    disabled, log.disabled = log.disabled, True
    try:
        yield
    finally:
        log.disabled = disabled


def _zeros(value: Any) -> Any:
    return torch.zeros(value.shape, dtype=value.dtype) if isinstance(value, Tensor) else value


class _Proxy(fx.Proxy):
    """A proxy that answers from the example where Python insists on a plain number."""

    def _plain(self) -> Any:
        value = self.node.meta["value"]
        if isinstance(value, Tensor):
            raise TraceError(_branch_message(self.node))
        self.node.meta["escapes"] = True
        return value

    def __len__(self) -> int:
        return len(self.node.meta["value"])

    def __int__(self) -> int:
        return int(self._plain())

    def __index__(self) -> int:
        return operator.index(self._plain())

    def __float__(self) -> float:
        return float(self._plain())

    def __ceil__(self) -> int:
        return -int(-self._plain() // 1)

    def __floor__(self) -> int:
        return int(self._plain() // 1)

    def __hash__(self) -> int:
        return id(self)

    def _overwritten(self, target: Callable[..., Any], other: Any) -> Any:
        # Without these, fx records `x += y` as `x + y`, and what a student really does would be lost.
        if not isinstance(self.node.meta["value"], Tensor):
            return NotImplemented
        return self.tracer.create_proxy("call_function", target, (self, other), {})

    def __iadd__(self, other: Any) -> Any:
        return self._overwritten(operator.iadd, other)

    def __isub__(self, other: Any) -> Any:
        return self._overwritten(operator.isub, other)

    def __imul__(self, other: Any) -> Any:
        return self._overwritten(operator.imul, other)

    def __itruediv__(self, other: Any) -> Any:
        return self._overwritten(operator.itruediv, other)


class _Tracer(fx.Tracer):
    """Records the graph and runs it on fake tensors at the same time."""

    record_stack_traces = True
    proxy_buffer_attributes = True

    def __init__(self, inputs: Mapping[str, Any], leaf_modules: tuple[type[nn.Module], ...]) -> None:
        super().__init__()
        self._leaf_modules = leaf_modules
        self._fake = FakeTensorMode(allow_non_fake_inputs=True)
        self._inputs = {name: map_structure(value, self._to_fake) for name, value in inputs.items()}
        self._running = False
        self.calls: dict[str, dict[str, Any]] = {}

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, self._leaf_modules) or super().is_leaf_module(m, module_qualified_name)

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Proxy(node, self)

    def create_proxy(self, *args: Any, **kwargs: Any) -> fx.Proxy:
        proxy = super().create_proxy(*args, **kwargs)
        proxy.node.meta["value"] = self._run(proxy.node)
        return proxy

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        return attr_val if self._running else super().getattr(attr, attr_val, parameter_proxy_cache)

    def call_module(self, m: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        if self._running:
            return forward(*args, **kwargs)
        path = self.path_of_module(m)
        times = self.num_calls.get(path, 0)
        self.calls[f"{path}@{times}" if times else path] = _named(m, args, kwargs)
        return super().call_module(m, forward, args, kwargs)

    def to_bool(self, obj: fx.Proxy) -> bool:
        value = obj.node.meta["value"]
        if isinstance(value, Tensor):
            raise TraceError(_branch_message(obj.node))
        obj.node.meta["escapes"] = True
        return bool(value)

    def iter(self, obj: fx.Proxy) -> Iterator[Any]:
        value = obj.node.meta["value"]
        return iter([obj[i] for i in range(len(value))])  # type: ignore[index]

    def _to_fake(self, value: Any) -> Any:
        return self._fake.from_tensor(value) if isinstance(value, Tensor) else value

    def _run(self, node: fx.Node) -> Any:
        """Run one node on fake tensors; fx's patches of Module see `_running` and stand aside."""
        if node.op == "placeholder":
            default = node.args[0] if node.args else None
            return self._inputs.get(str(node.target), default)
        self._running = True
        try:
            if node.op == "get_attr":
                return self._to_fake(operator.attrgetter(str(node.target))(self.root))
            args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda n: n.meta["value"])
            args, kwargs = map_structure((args, kwargs), plain)
            return run_fake(self._call(node), args, kwargs, self._fake)
        finally:
            self._running = False

    def _call(self, node: fx.Node) -> Callable[..., Any]:
        if node.op == "call_module":
            module = self.root.get_submodule(str(node.target))
            # What batch norm gives is like what it gets; on fake tensors it would take half the time of all.
            return torch.empty_like if isinstance(module, _BATCH_NORMS) else module
        if node.op == "call_method":
            return _method(str(node.target))
        return node.target  # type: ignore[return-value]


def _method(name: str) -> Callable[..., Any]:
    return lambda self, *args, **kwargs: getattr(self, name)(*args, **kwargs)


def _named(module: nn.Module, args: Any, kwargs: Any) -> dict[str, Any]:
    """Return what a module is called with by the names of its parameters, nodes in the place of proxies."""
    given = inspect.signature(module.forward).bind(*args, **kwargs).arguments
    return {
        name: map_structure(v, lambda part: part.node if isinstance(part, fx.Proxy) else part)
        for name, v in given.items()
    }


def named_inputs(root: nn.Module, example: Example) -> dict[str, Any]:
    """Return the example's parts by the names of forward's parameters."""
    if isinstance(example, Mapping):
        return dict(example)
    parts = example if isinstance(example, tuple) else (example,)
    names = list(inspect.signature(root.forward).parameters)
    if len(parts) > len(names):
        raise TraceError(f"the example has {len(parts)} inputs, but forward takes {len(names)}: {', '.join(names)}")
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


def _signature(value: Any) -> Any:
    return Signature(tuple(value.shape), value.dtype) if isinstance(value, Tensor) else value


def _is_batched(node: fx.Node) -> bool:
    value = node.meta["value"]
    return isinstance(value, Signature) and len(value.shape) > 0


def _branch_message(node: fx.Node) -> str:
    return (
        f"the forward pass must not branch on the values of a tensor, but it does at {source_line(node) or node.name}. "
        "Write it without the branch (torch.where), or name the module class that holds it: "
        "trace(teacher, example, leaf_modules=(ThatModule,)); its channels then keep their width."
    )


def _explain(root: nn.Module, example: Example, error: Exception) -> str:
    """Tell a wrong example, which fails without tracing as well, from what cannot be traced."""
    given = named_inputs(root, example)
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            copy.deepcopy(root)(**given)
    except Exception as plain:
        shapes = {name: tuple(v.shape) if isinstance(v, Tensor) else _brief(v) for name, v in given.items()}
        return f"the teacher's forward pass must accept the example {shapes}, but it failed: {plain}"
    return (
        f"the teacher cannot be traced: {error}. Name the module class that holds the line: "
        "trace(teacher, example, leaf_modules=(ThatModule,)); its channels then keep their width."
    )


def _brief(value: Any) -> Any:
    """Return a value as one line of a message can hold it: its type where it would fill more."""
    return value if isinstance(value, int | float | str | None) else type(value).__name__
