"""What is recorded of a call: arguments that are given by name, at the places where rules look for them."""

from __future__ import annotations

import functools
import inspect
from itertools import takewhile
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.operator_schemas import get_signature_for_torch_op

_OWN = {"axis": "dim", "keepdims": "keepdim"}
# Sizes and dimensions that functions and methods take behind their tensors, most often without a name.
_NUMBERS = {
    **dict.fromkeys(("flip", "permute", "tile"), ("dims",)),
    **dict.fromkeys(("transpose", "transpose_", "swapdims"), ("dim0", "dim1")),
    "swapaxes": ("axis0", "axis1"),
    "reshape": ("shape",),
    **dict.fromkeys(("view", "expand", "broadcast_to", "zeros", "ones", "new_zeros", "new_ones"), ("size",)),
    **dict.fromkeys(("full", "new_full"), ("size", "fill_value")),
    "repeat": ("repeats",),
    "pixel_shuffle": ("upscale_factor",),
    "pixel_unshuffle": ("downscale_factor",),
}


def by_place(kind: str, target: Any, args: Any, kwargs: Any, *more: Any) -> tuple[Any, ...]:
    """Return a call as it is recorded: tensors given by name (`input=x`, `batch1=a`) stand at their places.

    So do sizes and dimensions that most code gives without a name (`torch.flip(x, dims=(1,))`).
    Where torch takes numpy's names as well, its own are recorded (`dim` for `axis`).
    """
    if kwargs and kind in ("call_function", "call_method"):
        called = target if kind == "call_method" else getattr(target, "__name__", "")
        of_torch = getattr(torch, called, None)
        own = inspect.isbuiltin(of_torch) and (kind == "call_method" or target is of_torch)
        args, kwargs = list(args), {_OWN.get(name, name) if own else name: value for name, value in kwargs.items()}
        tensors = _tensors(of_torch) or ("self",) if kind == "call_method" else _tensors(target)
        numbers = _NUMBERS.get(called, ()) if kind == "call_method" or inspect.isbuiltin(target) else ()
        for place, name in list(enumerate((*tensors, *numbers)))[len(args) :]:
            if name not in kwargs or (place < len(tensors) and not isinstance(kwargs[name], fx.Proxy | Tensor)):
                break
            args.append(kwargs.pop(name))
    return kind, target, tuple(args), kwargs, *more


@functools.cache
def _tensors(function: Any) -> tuple[str, ...]:
    """Return the names of the tensors that a function takes first; of one written in Python, `input` alone."""
    try:
        first = next(iter(inspect.signature(function).parameters), "")
        return ("input",) if first == "input" else ()
    except (TypeError, ValueError):  # torch's own tell nothing of their arguments, but have schemas
        forms = get_signature_for_torch_op(function) or () if callable(function) else ()
    taken = [tuple(takewhile(lambda p: p.annotation is Tensor, form.parameters.values())) for form in forms]
    return tuple(p.name for p in max(taken, key=len, default=()) if p.kind is not p.KEYWORD_ONLY)
