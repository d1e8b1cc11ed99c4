"""Layers of torch.nn -> the call that makes them, with the arguments that are not the default."""

from __future__ import annotations

import inspect
import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from understudy.core.errors import ExportError, a_kind

# Where torch would turn one number into as many as there are dimensions, one is written.
_PER_DIMENSION = frozenset(("kernel_size", "stride", "padding", "dilation", "output_padding", "output_size"))
_NOT_WRITTEN = frozenset(("device", "dtype", "_weight", "_freeze"))
_RECURRENT = ("input_size", "hidden_size", "num_layers", "bias", "batch_first", "dropout", "bidirectional")


@dataclass(frozen=True)
class Layer:
    """How a layer of torch is made: the name of its class, and its arguments as text, with the defaults of them."""

    name: str
    arguments: dict[str, str]
    defaults: dict[str, str] = field(default_factory=dict)


def layer_of(module: nn.Module, path: str) -> Layer:
    """Return how a layer is made anew.

    Raises:
        ExportError: it is none of torch's, or its constructor cannot make it.
    """
    kind = type(module)
    known = getattr(nn, kind.__name__, None) is kind
    if not known:
        raise ExportError(
            f"model.py must hold layers of torch.nn only, but {path!r} is a {kind.__module__}.{kind.__qualname__}, "
            "which is taken as one operation; the other formats can still be written"
        )
    if module._forward_hooks or module._forward_pre_hooks:
        raise ExportError(f"model.py must hold plain layers, but {path!r} has hooks that change what it computes")
    values, defaults = _arguments(module)
    dtypes = {t.dtype for t in (*module.parameters(), *module.buffers()) if t.is_floating_point()}
    _check(module, path, values)
    written = {name: literal(value) for name, value in values.items()}
    if dtypes - {torch.float32}:
        written["dtype"] = literal(next(iter(dtypes)))
        defaults["dtype"] = None
    return Layer(f"nn.{kind.__name__}", written, {name: literal(value) for name, value in defaults.items()})


def literal(value: Any) -> str:
    """Return a constant as source code.

    Raises:
        ExportError: it is none that can be written.
    """
    if isinstance(value, float) and not math.isfinite(value):
        return f'float("{value}")'
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    if value is None or isinstance(value, bool | float | complex):
        return repr(value)
    if isinstance(value, int):
        return repr(int(value))
    if isinstance(value, tuple | list):
        inner = ", ".join(literal(v) for v in value)
        brackets = ("(", ",)" if len(value) == 1 else ")") if isinstance(value, tuple) else ("[", "]")
        return brackets[0] + inner + brackets[1]
    if isinstance(value, torch.dtype | torch.memory_format | torch.layout):
        return str(value)
    if isinstance(value, torch.device):
        return f'torch.device("{value}")'
    raise ExportError(f"model.py must hold plain constants, but the student has {a_kind(value)}: {value!r}")


def _arguments(module: nn.Module) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the constructor's arguments by name, in its order, and the defaults of those that have one."""
    if isinstance(module, nn.Identity):
        return {}, {}
    if isinstance(module, nn.RNNBase):
        return _recurrent(module)
    values: dict[str, Any] = {}
    defaults: dict[str, Any] = {}
    for name, parameter in inspect.signature(type(module)).parameters.items():
        if name in _NOT_WRITTEN or parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        if parameter.default is not parameter.empty:
            defaults[name] = parameter.default
        values[name] = _argument(module, name, parameter.default)
    return values, defaults


def _recurrent(module: nn.RNNBase) -> tuple[dict[str, Any], dict[str, Any]]:
    values = {name: getattr(module, name) for name in _RECURRENT}
    defaults: dict[str, Any] = {
        "num_layers": 1,
        "bias": True,
        "batch_first": False,
        "dropout": 0.0,
        "bidirectional": False,
    }
    if isinstance(module, nn.LSTM):
        values["proj_size"], defaults["proj_size"] = module.proj_size, 0
    if isinstance(module, nn.RNN):
        values["nonlinearity"], defaults["nonlinearity"] = module.nonlinearity, "tanh"
    return values, defaults


def _argument(module: nn.Module, name: str, default: Any) -> Any:
    special = _SPECIAL.get(name)
    if special is not None:
        return special(module, default)
    value = getattr(module, name, default)
    if name in _PER_DIMENSION:
        value = _single(value)
    if name == "normalized_shape" and len(value) == 1:
        value = value[0]
    return default if value == default else value


def _single(value: Any) -> Any:
    """Return one number for a tuple of equal ones."""
    return value[0] if isinstance(value, tuple) and len(set(value)) == 1 and value[0] is not None else value


def _bias(module: nn.Module, default: Any) -> bool:
    if isinstance(module, nn.LayerNorm) and not module.elementwise_affine:
        return True
    return getattr(module, "in_proj_bias" if isinstance(module, nn.MultiheadAttention) else "bias", None) is not None


def _pool_stride(module: nn.Module, default: Any) -> Any:
    stride, kernel = module.stride, module.kernel_size
    return default if default is None and stride == kernel else _single(stride)


def _own_width(name: str) -> Callable[[nn.Module, Any], Any]:
    """Attention keeps the widths of keys and values as numbers where they were left to be its own."""
    return lambda module, default: default if getattr(module, name) == module.embed_dim else getattr(module, name)


_SPECIAL: dict[str, Callable[[nn.Module, Any], Any]] = {
    "bias": _bias,
    "stride": _pool_stride,
    "kdim": _own_width("kdim"),
    "vdim": _own_width("vdim"),
    "add_bias_kv": lambda module, default: module.bias_k is not None,
}


def _check(module: nn.Module, path: str, values: dict[str, Any]) -> None:
    """Make the layer anew, without memory, and compare."""
    try:
        with torch.random.fork_rng(devices=[]), torch.device("meta"):
            again = type(module)(**values)
        same = _look(again) == _look(module)
    except (TypeError, ValueError, AttributeError, RuntimeError):
        same = False
    if not same:
        raise ExportError(
            f"model.py must hold layers that their constructors make, but {path!r} is not what {type(module).__name__} "
            "makes of its own attributes; the other formats can still be written"
        )


def _look(module: nn.Module) -> Any:
    """Return what tells a layer from others of its class, but for the values of its tensors."""
    plain = {
        name: _single(value) if name in _PER_DIMENSION else value
        for name, value in vars(module).items()
        if not name.startswith("_") and name != "training" and isinstance(value, int | float | str | tuple | list)
    }
    shapes = {name: tuple(t.shape) for name, t in module.state_dict().items() if isinstance(t, Tensor)}
    return plain, shapes
