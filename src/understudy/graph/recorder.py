"""Records a forward pass by `torch.fx`, and runs every operation on fake tensors at the same time."""

from __future__ import annotations

import contextlib
import copy
import functools
import inspect
import operator
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from understudy.core.errors import TraceError
from understudy.core.memory import out_of_memory
from understudy.core.nested import leaves
from understudy.graph.attention import attended, can_be_opened, is_followed
from understudy.graph.fake import Signature, flat, like, map_structure, run_fake
from understudy.graph.nodes import describe, is_in_place, tells_values, told_of_finite
from understudy.graph.numbers import Call, Watch, plain, user_line, watching
from understudy.graph.outputs import remembered, remembered_call
from understudy.graph.packed import packing, run_packed, with_nodes
from understudy.graph.placed import by_place
from understudy.graph.proxies import ExampleProxy, branch_message
from understudy.graph.rearranged import know_einops
from understudy.graph.surroundings import (
    as_before,
    attention,
    distributions,
    factories,
    masks,
    numbers,
    parameters,
    repeatable,
    scripted,
    spaces_of,
    unchecked,
    wrapped,
)

WAS = "_was"  # where a layer that goes in disguise keeps its class
# Layers of torch that are made of layers: their feed-forward parts are as wide as one likes.
LOOKED_INTO = (
    nn.Transformer,
    nn.TransformerEncoder,
    nn.TransformerEncoderLayer,
    nn.TransformerDecoder,
    nn.TransformerDecoderLayer,
)
_GROUPED = tuple(filter(None, (getattr(nn.functional, "grouped_mm", None), getattr(torch, "_grouped_mm", None))))
TRACED = "_replaced_forward"  # the function that stands for `forward` where that was replaced in one module
# Functions that draw in training; the passes over the graph know them.
_WHOLE = frozenset(("torchvision.ops.stochastic_depth.stochastic_depth",))
_CONTAINERS = (tuple, list, dict)  # as a default, fx would compare each member with the whole
_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def record_inputs(
    root: nn.Module, inputs: Mapping[str, Any], defaults: Mapping[str, Any], leaf_modules: tuple[type[nn.Module], ...]
) -> tuple[fx.Graph, Watch]:
    """Return the graph of a module's forward pass on these inputs by name, and what it reads of its modules."""
    know_einops()
    tracer = _Tracer(inputs, leaf_modules)
    tracer.root = root
    patches = factories(tracer, tracer.watch), numbers(root), watching(root, tracer.watch, tracer.is_leaf_module)
    packs = packing(tracer, tracer.watch, spaces_of(root))
    around = packs, masks(), attention(), scripted(), wrapped(), unchecked(), distributions(), repeatable(tracer.watch)
    with contextlib.ExitStack() as stack:
        for context in (*around, parameters(), as_before(root, tracer.watch), *patches):
            stack.enter_context(context)
        tracer.traced_func_name = TRACED if hasattr(type(root), TRACED) else "forward"
        graph = tracer.trace(root, concrete_args=dict(defaults))
    for node in reversed(graph.nodes):
        if node.meta.get("tests") and not node.users:  # a test for overflow, and what it asks of each element
            node.all_input_nodes[0].meta["tests"] = describe(node) in ("all", "any")
            graph.erase_node(node)
    for node in graph.nodes:
        if node.op == "output":
            node.meta["value"] = fx.node.map_arg(node.args[0], lambda n: n.meta["value"])
        elif "value" not in node.meta:  # a named tuple or a dataclass that holds tensors
            node.meta["value"] = fx.node.map_arg((*node.args, *node.kwargs.values()), lambda n: n.meta["value"])
        node.meta["value"] = node.meta.pop("before", None) or map_structure(node.meta["value"], _signature)
        # Which way it goes for other inputs no graph says.
        tracer.watch.draws |= node.meta.get("escapes", False) and tells_values(node)
    return graph, tracer.watch


class _Tracer(fx.Tracer):
    """Records the graph and runs it on fake tensors at the same time."""

    proxy_buffer_attributes = True

    def __init__(self, inputs: Mapping[str, Any], leaf_modules: tuple[type[nn.Module], ...]) -> None:
        super().__init__()
        self.watch = Watch(inside=lambda: {key.partition("@")[0] for key in self.module_stack})
        self._leaf_modules = leaf_modules
        self._closed: nn.Module | None = None  # attention whose call cannot be written out
        self._fake = FakeTensorMode(allow_non_fake_inputs=True)
        self._running = self._learns = self._inside = False
        self._signatures: dict[int, inspect.Signature] = {}  # by the identity of the function
        self._modules: dict[str, nn.Module] = {}
        # Masks and numbers that are given or that the network holds, by the fake tensors' identity.
        self._indices: dict[int, Tensor] = {}
        self._inputs = {name: map_structure(value, self._given_as) for name, value in inputs.items()}

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        if isinstance(m, self._leaf_modules):
            return True
        if can_be_opened(m) and m is not self._closed:
            return False
        return not isinstance(m, LOOKED_INTO) and super().is_leaf_module(m, module_qualified_name)

    def create_args_for_root(self, root_fn: Any, is_module: bool, concrete_args: Any = None) -> Any:
        if _takes_any(root_fn) or any(isinstance(v, _CONTAINERS) for v in (concrete_args or {}).values()):
            forward, args = self._by_name(root_fn)
        else:
            forward, args = super().create_args_for_root(root_fn, is_module, concrete_args)

        @functools.wraps(forward)
        def watched(*given: Any) -> Any:
            self.watch.on, self._inside, self._learns = True, True, torch.is_grad_enabled()
            try:  # an input that is None is asked for that
                found = forward(
                    *(None if isinstance(v, fx.Proxy) and v.node.meta["value"] is None else v for v in given)
                )
            finally:
                self.watch.on = self._inside = False
            _check_outputs(found)
            return found

        return watched, args

    def _by_name(self, forward: Callable[..., Any]) -> tuple[Callable[..., Any], list[Any]]:
        """Return what calls a forward pass with its inputs by name, and these: one that fx would call by position."""
        names = list(self._inputs)

        def call(root: nn.Module, *given: Any) -> Any:
            return forward(root, **dict(zip(names, given, strict=True)))

        return call, [self.root, *(self.create_proxy("placeholder", name, (), {}) for name in names)]

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return ExampleProxy(node, self)

    def create_node(self, *args: Any, **kwargs: Any) -> fx.Node:
        node = super().create_node(*args, **kwargs)
        # Inputs and outputs are of no line. torch would keep the whole stack, which takes longer than most operations.
        node.meta["line"] = user_line() if self._inside else ""
        return node

    def create_proxy(self, *args: Any, **kwargs: Any) -> fx.Proxy:
        if self.watch.on and args[0] == "call_function" and _is_wrapped(args[1]):
            return self._looked_into(*args[1:4])  # type: ignore[no-any-return]
        if args[:2] == ("call_method", "numpy"):
            raise TraceError(branch_message(args[2][0].node))
        if args[1] in _GROUPED:
            raise TraceError(_grouped_message())
        with self.watch.paused():
            proxy = super().create_proxy(*by_place(*args), **kwargs)
            self._keep_shape(proxy.node)
            proxy.node.meta["value"] = self._run(proxy.node)
        if self._learns and not torch.is_grad_enabled() and proxy.node.op.startswith("call_"):
            return self._without_gradient(proxy)
        return proxy

    def _keep_shape(self, node: fx.Node) -> None:
        """Note the shape that a tensor has before it gets another one in place."""
        first = node.args[0] if node.target in ("unsqueeze_", "squeeze_") else None
        if isinstance(first, fx.Node):
            first.meta.setdefault("before", map_structure(first.meta["value"], _signature))

    def _without_gradient(self, proxy: fx.Proxy) -> fx.Proxy:
        """Record that no gradient comes through what `torch.no_grad` holds; blocks are no part of a graph."""
        node = proxy.node
        if node.target == "detach":
            return proxy
        changed = node.args[0] if is_in_place(node) else node.kwargs.get("out")
        if not isinstance(changed, fx.Node):
            return proxy.detach() if isinstance(node.meta["value"], Tensor) else proxy
        with self.graph.inserting_before(node):  # its memory is overwritten; how it was computed before still counts
            node.args, node.kwargs = fx.node.map_arg((node.args, node.kwargs), self._detached)
        return self.proxy(changed)

    def _detached(self, node: fx.Node) -> fx.Node:
        if not isinstance(node.meta["value"], Tensor):
            return node
        detached = self.create_node("call_method", "detach", (node,), {})
        detached.meta["value"] = node.meta["value"]
        return detached

    def create_arg(self, a: Any) -> Any:
        if isinstance(a, np.generic):
            return a.item()
        if isinstance(a, np.ndarray) and a.dtype.kind in "biufc":
            a = torch.from_numpy(np.ascontiguousarray(a))
        if isinstance(a, FakeTensor):
            raise TraceError(_stored_message())
        with self.watch.paused():
            found = super().create_arg(a)
        # A tensor that is no parameter: made in the forward pass, or a plain attribute of a module.
        if isinstance(found, fx.Node) and found.op == "get_attr" and "value" not in found.meta:
            found.meta["value"] = self._run(found)
            found.meta["constant"] = operator.attrgetter(str(found.target))(self.root)
        return found

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        if self._running or not isinstance(attr_val, Tensor):
            return attr_val
        # As in fx, which looks through all parameters and buffers of the network each time.
        _, name = self._named.get(id(attr_val), (None, None))
        with self.watch.paused():
            if name is None:
                return super().getattr(attr, attr_val, parameter_proxy_cache)
            if name not in parameter_proxy_cache:
                parameter_proxy_cache[name] = self.create_proxy("get_attr", name, (), {})
        return parameter_proxy_cache[name]

    def _looked_into(self, function: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Record what a function does that `torch.fx.wrap` keeps whole, if that can be followed, else its call."""
        last = next(iter(reversed(self.graph.nodes)))
        try:
            return function(*args, **kwargs)
        except Exception as error:
            if out_of_memory(error):
                raise
            for node in reversed(self.graph.nodes):
                if node is last:
                    break
                self.graph.erase_node(node)
            with self.watch.paused():
                proxy = super().create_proxy("call_function", function, args, kwargs)
                proxy.node.meta["value"] = self._run(proxy.node)
            return proxy

    @functools.cached_property
    def _named(self) -> dict[int, tuple[Tensor, str]]:
        """The tensors of the network by their identity, with their first names."""
        found: dict[int, tuple[Tensor, str]] = {}
        with self.watch.paused():
            for name, tensor in (*self.root.named_parameters(), *self.root.named_buffers()):
                found.setdefault(id(tensor), (tensor, name))
        return found

    def call_module(self, m: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        if self._running:
            return forward(*args, **kwargs)
        if m not in (self.submodule_paths or {}):
            if self.is_leaf_module(m, "") and any(True for _ in (*m.parameters(), *m.buffers())):
                raise TraceError(_stray_message(m))
            return forward(*args, **kwargs)  # a part of a Sequential, say, or an activation made here
        if type(m) is nn.Identity and args and args[0] is None:
            return None  # what asks next whether it is None must see it
        args, kwargs = with_nodes(self, args, kwargs)
        path = self.path_of_module(m)
        times = self.num_calls.get(path, 0)
        first = args[0].node.name if args and isinstance(args[0], fx.Proxy) else None
        with self.watch.paused():
            given = self.watch.given[f"{path}@{times}" if times else path] = self._given(m, args, kwargs)
            if can_be_opened(m) and not isinstance(m, self._leaf_modules):
                self._closed = None if is_followed(**given) else m
                forward = forward if self._closed else functools.partial(attended, m)
        result = super().call_module(m, forward, args, kwargs)
        gives_one = isinstance(result, fx.Proxy) and isinstance(result.node.meta["value"], Tensor)
        self.watch.calls.setdefault(path, []).append(Call(len(args), len(kwargs), first, gives_one))
        return result

    def to_bool(self, obj: fx.Proxy) -> bool:
        value = obj.node.meta["value"]
        if isinstance(value, Tensor):
            if (told := told_of_finite(obj.node)) is None:
                raise TraceError(branch_message(obj.node))
            obj.node.meta["tests"] = True
            return told
        obj.node.meta["escapes"] = True
        return bool(value)

    def iter(self, obj: fx.Proxy) -> Iterator[Any]:
        value = obj.node.meta["value"]
        return iter([obj[i] for i in range(len(value))])  # type: ignore[index]

    def _given(self, module: nn.Module, args: Any, kwargs: Any) -> dict[str, Any]:
        """Return what a module is called with by the names of its parameters, nodes in the place of proxies."""
        function = getattr(module.forward, "__func__", module.forward)
        if id(function) not in self._signatures:
            self._signatures[id(function)] = inspect.signature(module.forward)
        return {
            name: map_structure(v, lambda part: part.node if isinstance(part, fx.Proxy) else part)
            for name, v in self._signatures[id(function)].bind(*args, **kwargs).arguments.items()
        }

    def _to_fake(self, value: Any) -> Any:
        return like(value, self._fake) if isinstance(value, Tensor) else value

    def _given_as(self, value: Any) -> Any:
        return self._known(self._to_fake(value), value)

    def _run(self, node: fx.Node) -> Any:
        """Run one node on fake tensors; fx's patches of Module see `_running` and stand aside."""
        if node.op == "placeholder":
            default = node.args[0] if node.args else None
            return self._inputs.get(str(node.target), default)
        running, self._running = self._running, True
        try:
            if node.op == "get_attr":
                value = operator.attrgetter(str(node.target))(self.root)
                return self._known(self._to_fake(value), value)
            args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda n: n.meta["value"])
            args, kwargs = map_structure((args, kwargs), plain)
            found = self._output(node, args, kwargs)
            given = [v for v in flat((args, kwargs)) if isinstance(v, Tensor)]
            if given and all(id(v) in self._indices for v in given) and any(map(_is_of_numbers, flat(found))):
                # A size may follow from what they hold. Copies, as the operation may overwrite what it is given: a
                # counter that the teacher holds.
                real = map_structure(
                    (args, kwargs), lambda v: self._indices[id(v)].clone() if id(v) in self._indices else v
                )
                made = copy.deepcopy(self._call(node))(*real[0], **real[1])
                for fake, value in zip(flat(found), flat(made), strict=True):
                    self._known(fake, value)
            return found
        finally:
            self._running = running

    def _output(self, node: fx.Node, args: Any, kwargs: Any) -> Any:
        def run() -> Any:
            return run_fake(self._call(node), args, kwargs, self._fake, self._indices)

        packed = run_packed(self._call(node), args, kwargs, self._fake, self._indices)
        if packed is not None:
            return packed
        if node.op != "call_module":
            return remembered_call(node.target, args, kwargs, self._fake, run)
        layer = self._module(str(node.target))
        if self._call(node) is torch.empty_like:
            return remembered_call(torch.empty_like, args, kwargs, self._fake, run)
        return remembered(layer, vars(layer).get(WAS, type(layer)), args, kwargs, self._fake, run)

    def _known(self, fake: Any, value: Any) -> Any:
        if _is_of_numbers(value):
            self._indices[id(fake)] = value
        return fake

    def _call(self, node: fx.Node) -> Callable[..., Any]:
        if node.op == "call_module":
            module = self._module(str(node.target))
            # What batch norm gives is like what it gets; on fake tensors it would take half the time of all.
            kind = vars(module).get(WAS, type(module))
            return torch.empty_like if issubclass(kind, _BATCH_NORMS) else module
        if node.op == "call_method":
            return _method(str(node.target))
        return node.target  # type: ignore[return-value]

    def _module(self, path: str) -> nn.Module:
        if not self._modules:  # torch would look it up name by name, each time
            self._modules = {path: module for module, path in (self.submodule_paths or {}).items()}
        return self._modules[path]


def _is_of_numbers(value: Any) -> bool:
    return isinstance(value, Tensor) and not (value.is_floating_point() or value.is_complex())


def _is_wrapped(function: Any) -> bool:
    """Return whether a function of a library is one that `torch.fx.wrap` keeps whole."""
    if not inspect.isfunction(function) or f"{function.__module__}.{function.__name__}" in _WHOLE:
        return False
    return (id(function.__globals__), function.__name__) in fx._symbolic_trace._wrapped_fns_to_patch


def _takes_any(forward: Callable[..., Any]) -> bool:
    """Return whether a function takes more than it names, or stands for another one that it wraps."""
    kinds = {parameter.kind for parameter in inspect.signature(forward).parameters.values()}
    return inspect.unwrap(forward) is not forward or inspect.Parameter.VAR_KEYWORD in kinds


def _method(name: str) -> Callable[..., Any]:
    return lambda self, *args, **kwargs: getattr(self, name)(*args, **kwargs)


def _signature(value: Any) -> Any:
    return Signature(tuple(value.shape), value.dtype) if isinstance(value, Tensor) else value


def _check_outputs(found: Any) -> None:
    for name, leaf in leaves(found):
        if not isinstance(leaf, (fx.Proxy, Tensor, *fx.node.base_types, torch.Size, range)):
            place = f"the output {name!r}" if name else "the output"
            raise TraceError(
                f"a teacher must return tensors, or dicts, tuples, lists or dataclasses of them, but {place} is a "
                f"{type(leaf).__name__}. Leave it out: a model of Hugging Face that stores what it has read returns "
                "none after model.config.use_cache = False"
            )


def _stray_message(module: nn.Module) -> str:
    return (
        f"every layer must be a registered part of the teacher, but the {type(module).__name__} called at "
        f"{user_line() or 'an unknown line'} is none. Make it an attribute of its module, keep lists of layers in "
        "nn.ModuleList and dictionaries in nn.ModuleDict, and call it from there, not from a closure"
    )


def _grouped_message() -> str:
    return (
        "torch multiplies the matrices of all experts at once only where their widths are multiples of 16 bytes, which "
        f"those of students are not, but {user_line() or 'an unknown line'} does so by grouped_mm. Multiply by "
        'torch.bmm; a model of Hugging Face does after model.set_experts_implementation("batched_mm")'
    )


def _stored_message() -> str:
    return (
        "what the forward pass computes with must come to it through its calls, but at "
        f"{user_line() or 'an unknown line'} it reads a tensor that a layer, or a hook of one, has put aside. Let the "
        "forward pass keep what that layer returned, y = self.layer(x), and use y"
    )
