"""What a teacher must be before anything is looked at: written in Python, with values, and able to learn."""

from __future__ import annotations

import inspect
import operator
import types
from collections.abc import Iterator
from typing import Any

import torch
from torch import fx, nn
from torch._ops import OpOverload
from torch.ao.nn import quantized
from torch.optim.swa_utils import AveragedModel

from understudy.core.errors import TraceError, a_kind

_WRAPPERS = (nn.DataParallel, nn.parallel.DistributedDataParallel, AveragedModel)
_QUANTISED = ("torch.ao.nn.quantized", "torch.ao.nn.intrinsic.quantized", "torch.nn.quantized")
# What stands for additions and the like in networks that are written to be quantised some day.
IN_FLOAT = (quantized.FloatFunctional, quantized.FXFloatFunctional)


def check_module(teacher: nn.Module) -> None:
    """Refuse what no forward pass in Python is to be had from, and what has no values.

    Raises:
        TraceError: it is no module, or wrapped, compiled, scripted, exported, quantised, lazy or on the meta device.
    """
    if not isinstance(teacher, nn.Module):
        raise TraceError(f"a teacher must be a torch.nn.Module, but got {type(teacher).__name__}")
    parts = set(map(id, teacher.modules()))
    for path, module in teacher.named_modules():
        name = path or "it"
        if isinstance(module, torch.jit.ScriptModule):
            raise TraceError(
                f"a teacher must be written in Python, but {name} is a scripted module, which cannot be looked "
                "into. Give the module that torch.jit.script was called with"
            )
        inner = next((i for i in ("module", "_orig_mod") if isinstance(getattr(module, i, None), nn.Module)), "")
        if isinstance(module, _WRAPPERS) or inner == "_orig_mod":
            held = f"teacher.{path}"
            way = f"Put what it holds in its place, {held} = {held}.{inner}" if path else ""
            way = way or f"Give the module inside, teacher.{inner}"
            raise TraceError(
                f"a teacher must be the network itself, but {name} is {a_kind(module)} around it. {way}; a student "
                "can be wrapped again"
            )
        if isinstance(module, fx.GraphModule) and _is_exported(module):
            raise TraceError(
                f"a teacher must be written in operations of torch as one writes them, but {name} is a program of "
                "torch.export, which holds what those are made of. Give the module that torch.export.export was called "
                "with; a student can be exported again"
            )
        if type(module).__module__.startswith(_QUANTISED) and type(module) not in IN_FLOAT:
            raise TraceError(
                f"a teacher must compute with floating-point weights, but {name} is a quantised "
                f"{type(module).__name__}. Give the network from before; students can be had in 8 bits afterwards"
            )
        if any(id(held) in parts for held in _held(vars(module).get("forward"))):
            raise TraceError(
                "forward must be a method that a copy of the teacher takes along, but that of "
                f"{path or 'the teacher'} was replaced by a function that calls the teacher's own modules. Define it "
                "in the class, and call them by `self`"
            )
    _check_hooks(teacher)
    for path, tensor in (*teacher.named_parameters(), *teacher.named_buffers()):
        if nn.parameter.is_lazy(tensor):
            raise TraceError(
                f"a teacher's parameters must have a shape, but {path} is lazy. Call the teacher once on an example, "
                "and train it or load its weights"
            )
        if tensor.is_meta:
            raise TraceError(
                f"a teacher's parameters must have values, but {path} is on the meta device. Load its weights: "
                "teacher.to_empty(device='cpu'), then teacher.load_state_dict(...)"
            )


def _check_hooks(teacher: nn.Module) -> None:
    """Refuse hooks that a copy would share with the teacher, which would keep what the copy computes."""
    kept = (value for module in teacher.modules() for value in vars(module).values() if type(value) in (dict, list))
    own = {*map(id, teacher.modules()), *map(id, kept)}
    for path, module in teacher.named_modules():
        for kind in ("_forward_pre_hooks", "_forward_hooks"):
            if any(id(held) in own for hook in getattr(module, kind).values() for held in _held(hook)):
                raise TraceError(
                    "hooks must be such that a copy of the teacher takes them along, but one of "
                    f"{path or 'the teacher'} is a function that holds the teacher's own modules, or a dict or list of "
                    "theirs. Remove it, and let forward keep what that layer returns, y = self.layer(x)"
                )


def _held(function: Any) -> Iterator[Any]:
    """Yield what a function in a method's place calls, with bound methods' modules: copies share it all."""
    function = getattr(function, "func", function)  # of functools.partial
    function = getattr(function, "__func__", function)
    if isinstance(function, types.FunctionType):
        used = inspect.getclosurevars(function)
        for value in (*used.nonlocals.values(), *used.globals.values()):
            yield getattr(value, "__self__", value)


def leaf_classes(given: Any) -> tuple[type[nn.Module], ...]:
    """Return the classes of `leaf_modules`, of which a list or a single one will do as well.

    Raises:
        TraceError: it holds something else.
    """
    found = tuple(given) if isinstance(given, list | tuple | set) else (given,)
    for kind in found:
        if not (isinstance(kind, type) and issubclass(kind, nn.Module)):
            raise TraceError(f"leaf_modules must be classes of modules, such as (MyBlock,), but got {kind!r}")
    return found


def check_learns(teacher: nn.Module) -> None:
    """Refuse a teacher of which nothing may learn, as its students could not either.

    Raises:
        TraceError: no parameter has a gradient.
    """
    parameters = [p for p in teacher.parameters() if p.is_floating_point()]
    if parameters and not any(p.requires_grad for p in parameters):
        raise TraceError(
            "a student learns the parameters that require a gradient in its teacher, but all of the teacher's are "
            "frozen, as for inference. Call teacher.requires_grad_(True) first"
        )


def check_names(root: nn.Module, names: list[str]) -> None:
    """Refuse inputs that are given by place to a forward pass that takes any number of them.

    Raises:
        TraceError: they have no names.
    """
    parameters = inspect.signature(root.forward).parameters
    for name in names:
        kind = parameters[name].kind if name in parameters else None
        if kind in (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD):
            stars = "*" if kind is inspect.Parameter.VAR_POSITIONAL else "**"
            raise TraceError(
                f"inputs must have a name each in the signature of forward, but it takes them as {stars}{name}. Name "
                "them there, def forward(self, images), or give them by name in a dict where it takes **kwargs"
            )


def _is_exported(module: fx.GraphModule) -> bool:
    """Return whether a graph is made of torch's inner operations alone, without layers."""
    nodes = module.graph.nodes
    layers = [n for n in nodes if n.op == "call_module" and [*module.get_submodule(n.target).parameters()]]
    called = [n.target for n in nodes if n.op == "call_function" and n.target is not operator.getitem]
    return not layers and bool(called) and all(isinstance(target, OpOverload) for target in called)
