"""What is changed around a forward pass while it is recorded, and put back behind it."""

from __future__ import annotations

import dis
import functools
import gc
import inspect
import os
import random
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import CodeType
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.nn.modules import transformer

from understudy.core.errors import TraceError
from understudy.graph.attention import called
from understudy.graph.fake import flat
from understudy.graph.numbers import Watch, attributes_of
from understudy.graph.seeds import seeded

# Functions of a size or of a type that a proxy may stand for; fx sees only those that are given a tensor.
_FACTORIES = (
    *("zeros", "ones", "full", "empty", "arange", "eye", "linspace", "tril_indices", "triu_indices"),
    *("rand", "randn", "randint"),
    *("tensor", "as_tensor", "scalar_tensor", "finfo", "iinfo", "broadcast_shapes"),
)
# Of torch.nn.functional those that are written in Python: they would look into the proxy.
_FUNCTIONS = ("interpolate", "affine_grid")
_CASTS = ("to", "type_as", "type", "float", "double", "half", "bfloat16", "cpu", "cuda")
# Methods whose numbers torch takes from integers alone: a tensor that the forward pass has made is given a proxy.
_METHODS = ("expand", "split", "new_zeros", "new_ones", "new_full", "new_empty")


@contextmanager
def factories(tracer: fx.Tracer, watch: Watch) -> Iterator[None]:
    """Let functions that make a tensor of a computed size, or tell the limits of a tensor's type, be nodes."""
    made = {(torch, name): getattr(torch, name) for name in _FACTORIES}
    made |= {(F, name): getattr(F, name) for name in _FUNCTIONS}
    own = {name: vars(Tensor).get(name) for name in _METHODS}  # None where it is inherited

    def recorded(function: Callable[..., Any], method: str = "") -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            if watch.on and any(isinstance(value, fx.Proxy) for value in flat((args, kwargs))):
                if function is made[torch, "tensor"] and args and isinstance(args[0], np.ndarray):
                    kwargs = {"dtype": torch.from_numpy(args[0]).dtype, **kwargs}
                    args = (args[0].tolist(),)
                kind = "call_method" if method else "call_function"
                return tracer.create_proxy(kind, method or function, args, kwargs)
            return function(*args, **kwargs)

        return call

    try:
        for (module, name), function in made.items():
            setattr(module, name, recorded(function))
        for name in _METHODS:
            setattr(Tensor, name, recorded(getattr(Tensor, name), name))
        yield
    finally:
        for (module, name), function in made.items():
            setattr(module, name, function)
        for name, method in own.items():
            delattr(Tensor, name) if method is None else setattr(Tensor, name, method)


@contextmanager
def scripted() -> Iterator[None]:
    """Let functions that `torch.jit.script` has compiled be those that they were made from where a proxy comes."""
    kind: Any = torch.jit.ScriptFunction
    call = kind.__call__

    def opened(function: Any, *args: Any, **kwargs: Any) -> Any:
        written = getattr(function, "_torchdynamo_inline", None)
        if written is not None and any(isinstance(value, fx.Proxy) for value in flat((args, kwargs))):
            return written(*args, **kwargs)
        return call(function, *args, **kwargs)

    kind.__call__ = opened
    try:
        yield
    finally:
        kind.__call__ = call


@contextmanager
def wrapped() -> Iterator[None]:
    """Let functions that `torch.fx.wrap` keeps whole give anything; fx takes what they give for a proxy.

    What the tracer makes of their calls need not be one: a function that computes sizes gives numbers.
    """
    tracing: Any = fx._symbolic_trace
    before = tracing._create_wrapped_func

    def patched(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            proxy = next((value for value in flat((args, kwargs)) if isinstance(value, fx.Proxy)), None)
            if proxy is None:
                return function(*args, **kwargs)
            found = proxy.tracer.create_proxy("call_function", function, args, kwargs)
            if isinstance(found, fx.Proxy):
                found.node.meta["is_wrapped"] = True  # as in fx, whose code then imports the function
            return found

        return call

    tracing._create_wrapped_func = patched
    try:
        yield
    finally:
        tracing._create_wrapped_func = before


@contextmanager
def masks() -> Iterator[None]:
    """Let torch's transformers take a mask that the forward pass computes as it is.

    They would look into it for whether it is causal, and take its type from nothing but a tensor.
    """
    detect, typed, functions = transformer._detect_is_causal_mask, F._none_or_dtype, vars(F)

    def told(mask: Any, is_causal: bool | None = None, size: int | None = None) -> bool:
        return bool(is_causal) if isinstance(mask, fx.Proxy) else detect(mask, is_causal, size)

    def type_of(mask: Any) -> Any:
        return mask.dtype if isinstance(mask, fx.Proxy) else typed(mask)

    transformer._detect_is_causal_mask, functions["_none_or_dtype"] = told, type_of
    try:
        yield
    finally:
        transformer._detect_is_causal_mask, functions["_none_or_dtype"] = detect, typed


@contextmanager
def parameters() -> Iterator[None]:
    """Let what is computed take a parameter's place, as codebooks do that are moving means of what they stand for.

    Torch takes nothing but a parameter there, and what `nn.Parameter` makes of a proxy is one.
    """
    kind: Any = nn.Module
    usual = kind.__setattr__

    @functools.wraps(usual)  # so that `spaces_of` takes it for torch's own
    def setting(module: Any, name: str, value: Any) -> None:
        held = vars(module).get("_parameters") if isinstance(value, fx.Proxy) else None
        if held is not None and name in held:
            held[name] = value
        else:
            usual(module, name, value)

    kind.__setattr__ = setting
    try:
        yield
    finally:
        kind.__setattr__ = usual


@contextmanager
def attention() -> Iterator[None]:
    """Let torch's function for attention be what it computes, where that can be written out."""
    function = F.multi_head_attention_forward

    def opened(*args: Any, **kwargs: Any) -> Any:
        if any(isinstance(value, fx.Proxy) for value in flat((args, kwargs))):
            with suppress(TraceError):
                return called(*args, **kwargs)
        F.multi_head_attention_forward = function  # whose name it looks up to be recorded
        try:
            return function(*args, **kwargs)
        finally:
            F.multi_head_attention_forward = opened

    F.multi_head_attention_forward = opened
    try:
        yield
    finally:
        F.multi_head_attention_forward = function


@contextmanager
def unchecked() -> Iterator[None]:
    """Leave out checks of values that libraries have a switch for: they branch, and change nothing that is computed."""
    kind: Any = torch.distributions.Distribution
    switch = "TRANSFORMERS_DISABLE_TORCH_CHECK"
    validates, before = kind._validate_args, os.environ.get(switch)
    kind._validate_args, os.environ[switch] = False, "1"
    try:
        yield
    finally:
        kind._validate_args = validates
        if before is None:
            del os.environ[switch]
        else:
            os.environ[switch] = before


@contextmanager
def distributions() -> Iterator[None]:
    """Let the shape of a sample stay what the forward pass computes: torch.Size would make it the example's."""
    kind: Any = torch.distributions.Distribution
    before = kind._extended_shape

    def extended(self: Any, sample_shape: Any = ()) -> Any:
        parts = (sample_shape, self._batch_shape, self._event_shape)
        if any(isinstance(value, fx.Proxy) for value in flat(parts)):
            return tuple(size for part in parts for size in part)
        return before(self, torch.Size(sample_shape))

    kind._extended_shape = extended
    try:
        yield
    finally:
        kind._extended_shape = before


@contextmanager
def as_before(root: nn.Module, watch: Watch) -> Iterator[None]:
    """Take back what the forward pass stores in its modules: proxies there would be taken for tensors later on."""
    before = _attributes(root)
    try:
        yield
    finally:
        made = {name: value for name, value in vars(root).items() if name.startswith("_tensor_constant")}
        for name in made:
            del vars(root)[name]
        watch.draws |= any(watch.stores(module, name) for module, held in before for name in _changed(module, held))
        _put_back(before)
        vars(root).update(made)  # which the graph refers to


@contextmanager
def unchanged(root: nn.Module) -> Iterator[None]:
    """Take back what a forward pass stores in its modules: tensors without values, say."""
    before = _attributes(root)
    try:
        yield
    finally:
        _put_back(before)


def _attributes(root: nn.Module) -> list[tuple[nn.Module, dict[str, Any]]]:
    return [(module, {name: _opened(value) for name, value in vars(module).items()}) for module in root.modules()]


def _put_back(before: list[tuple[nn.Module, dict[str, Any]]]) -> None:
    for module, attributes in before:
        vars(module).clear()
        vars(module).update(attributes)


def _changed(module: nn.Module, before: dict[str, Any]) -> list[str]:
    """Return the attributes of a module that are other ones than before, or new, or gone."""
    before, now = attributes_of(before), attributes_of(vars(module))
    both = before.keys() & now.keys()
    return [*(before.keys() ^ now.keys()), *(name for name in both if _differs(before[name], now[name]))]


def _differs(before: Any, now: Any) -> bool:
    """Return whether other objects are held than before, but for a tensor that was cast: `self.m = self.m.to(x)`."""
    if isinstance(before, dict) and isinstance(now, dict):
        return list(before) != list(now) or any(_differs(before[name], now[name]) for name in before)
    if type(before) in (list, set):
        return len(before) != len(now) or any(a is not b for a, b in zip(before, now, strict=True))
    return before is not now and not (isinstance(now, fx.Proxy) and _is_cast(now.node, before))


def _is_cast(node: fx.Node, tensor: Any) -> bool:
    """Return whether a node gives a tensor of the network in another type, or on another device."""
    while node.op == "call_method" and node.target in _CASTS:
        node = node.args[0]  # type: ignore[assignment]
    return node.op == "get_attr" and node.meta.get("constant") is tensor


def _opened(value: Any) -> Any:
    return value.copy() if type(value) in (dict, OrderedDict, list, set) else value


@contextmanager
def uncollected() -> Iterator[None]:
    """Let the garbage collector wait, which would look through all objects of torch again and again."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def spaces_of(root: nn.Module) -> list[dict[str, Any]]:
    """Return the names that the code of modules knows, those of each file once, but for torch's own."""
    kinds = {kind for module in root.modules() for kind in type(module).__mro__}
    held = (value for module in root.modules() for value in vars(module).values())
    functions = [f for f in (*(f for kind in kinds for f in vars(kind).values()), *held) if inspect.isfunction(f)]
    found = {id(f.__globals__): f.__globals__ for f in functions if not (f.__module__ or "torch").startswith("torch.")}
    return list(found.values())


@contextmanager
def numbers(root: nn.Module) -> Iterator[None]:
    """Let `len` of a tensor and `int` of a computed number be nodes where the modules are written.

    Python itself takes nothing but a plain number, which another batch size may not have. Where code names `int` for
    anything but a call (`isinstance(x, int)`, `dtype=int`), it stays what it is.
    """
    functions = {"len": _length, "int": _whole}
    changed = [
        (space, name, function)
        for space in spaces_of(root)
        for name, function in functions.items()
        if name not in space and (name != "int" or _only_calls(space, name))
    ]
    try:
        for space, name, function in changed:
            space[name] = function
        yield
    finally:
        for space, name, _ in changed:
            del space[name]


def _length(value: Any) -> Any:
    counts = isinstance(value, fx.Proxy) and isinstance(value.node.meta["value"], Tensor)
    return value.shape[0] if counts else len(value)


def _whole(*args: Any, **kwargs: Any) -> Any:
    value = args[0] if len(args) == 1 else None
    if not isinstance(value, fx.Proxy) or not isinstance(value.node.meta["value"], int | float):
        return int(*args, **kwargs)
    value.node.meta["escapes"] = True  # as for Python's own: what it makes of a number of channels is another one
    return value.tracer.create_proxy("call_function", int, (value,), {})


def _only_calls(space: dict[str, Any], name: str) -> bool:
    """Return whether the functions and methods of a file name a function of Python for calls alone."""
    kinds = [kind for kind in space.values() if isinstance(kind, type)]
    held = map(_written, (*space.values(), *(member for kind in kinds for member in vars(kind).values())))
    return all(_calls(f.__code__, name) for f in held if inspect.isfunction(f) and f.__globals__ is space)


def _written(member: Any) -> Any:
    """Return the function that a static method, a property or a decorated one is made of; anything else as it is."""
    if isinstance(member, property):
        member = member.fget
    elif isinstance(member, staticmethod | classmethod):
        member = member.__func__
    return inspect.unwrap(member) if inspect.isfunction(member) else member


@functools.cache
def _calls(code: CodeType, name: str) -> bool:
    if name in code.co_names:
        loads = [i for i in dis.get_instructions(code) if i.argval == name and i.opname.startswith("LOAD_")]
        if not all(
            i.opname == "LOAD_GLOBAL" and i.arg is not None and i.arg & 1 for i in loads
        ):  # 1: it will be called
            return False
    return all(_calls(inner, name) for inner in code.co_consts if isinstance(inner, CodeType))


@contextmanager
def repeatable(watch: Watch) -> Iterator[None]:
    """Draw the same random numbers every time, note whether any are, and leave all random states as they were."""
    with seeded():
        start = _random_states()
        yield
        watch.draws |= _random_states() != start


def _random_states() -> tuple[Any, ...]:
    kind, *numbers = np.random.get_state()
    words = (np.asarray(part).tobytes() for part in numbers)
    return random.getstate(), kind, *words, torch.get_rng_state().numpy().tobytes()
