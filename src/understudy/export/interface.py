"""What goes into a student and what comes out of it, by name: for formats whose inputs and outputs have names."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields, is_dataclass
from functools import wraps
from typing import Any

import torch
from torch import Tensor, fx, nn

from understudy.core.errors import ExportError
from understudy.core.nested import called, leaves, mapped
from understudy.graph.copies import copied
from understudy.models.inputs import blank, inputs_spec

_CLASSES = {"classification": 1, "segmentation": 1, "pixels": 1, "language": 2}  # dimension of them in the output


@dataclass(frozen=True, kw_only=True)
class Interface:
    """The names of inputs and outputs, in order, and what outputs are for."""

    inputs: tuple[str, ...] = ("images",)
    outputs: tuple[str, ...] = ("logits",)
    by_name: bool = False  # whether the network is called with its inputs by name
    classes_in: int | None = 1  # dimension of the first output that classes lie in, if they do

    @classmethod
    def between(cls, inputs: Any, given: Any, *, images: bool, objective: str = "own") -> Interface:
        """Return that of a network by what it takes and gives, and what its outputs are for."""
        lone, output = "images" if images else "input", "logits" if objective in _CLASSES else "output"
        return cls(
            inputs=tuple(f"input_{name}" if isinstance(inputs, tuple) else name or lone for name, _ in leaves(inputs)),
            outputs=tuple(f"{output}_{n}" if n.isdigit() else n or output for n, _ in leaves(plainly(given))),
            by_name=isinstance(inputs, Mapping),
            classes_in=_CLASSES.get(objective),
        )

    @property
    def arguments(self) -> str:
        """What stands between the parentheses of a call in Python."""
        if any("." in name for name in self.inputs):
            return "**inputs" if self.by_name else "*inputs"
        return ", ".join(f"{name}={name}" if self.by_name else name for name in self.inputs)

    def predicted(self, outputs: list[Tensor]) -> Tensor | None:
        """Return the likeliest classes, None where outputs are none."""
        first = outputs[0]
        if self.classes_in is None or first.dim() <= self.classes_in:
            return None
        return first.argmax(self.classes_in)


@contextmanager
def unfused() -> Iterator[None]:
    """Let torch's transformers compute what their code says: one fused kernel for a whole layer has other last bits."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


def outputs_of(model: nn.Module, inputs: Any) -> list[Tensor]:
    """Return the tensors that a network gives for some inputs, in order."""
    with torch.no_grad(), unfused():
        return [leaf for _, leaf in leaves(called(model, inputs)) if isinstance(leaf, Tensor)]


def plainly(given: Any) -> Any:
    """Return what a network gives with dicts for its dataclasses, and nothing but tensors in it.

    What stands for a tensor while a forward pass is recorded counts as one.
    """
    if isinstance(given, Tensor | fx.Proxy):
        return given
    if isinstance(given, Mapping):
        parts = given
    elif is_dataclass(given) and not isinstance(given, type):
        parts = {field.name: getattr(given, field.name) for field in fields(given)}
    elif isinstance(given, tuple) and hasattr(given, "_fields"):
        parts = dict(zip(given._fields, given, strict=True))
    elif isinstance(given, (tuple, list)):
        return tuple(part for value in given if (part := plainly(value)) is not None)
    else:
        return None
    return {name: part for name, value in parts.items() if (part := plainly(value)) is not None}


def giving_plainly(student: nn.Module, given: Any) -> nn.Module:
    """Return a copy of a network that gives dicts in the place of dataclasses, or the network if it gives none.

    Formats know tuples and dicts, but no class of a user's own.
    """
    plain = plainly(given)
    if isinstance(given, Tensor) or _same_kinds(given, plain):
        return student
    kind = type(student)

    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        return plainly(kind.forward(self, *args, **kwargs))

    made: nn.Module = copied(student)
    made.__class__ = type(kind.__name__, (kind,), {"forward": wraps(kind.forward)(forward)})
    return made


def _same_kinds(given: Any, plain: Any) -> bool:
    if isinstance(plain, dict):
        return type(given) is dict and len(given) == len(plain) and all(_same_kinds(given[n], plain[n]) for n in plain)
    if isinstance(plain, tuple):
        return type(given) in (tuple, list) and len(given) == len(plain) and all(map(_same_kinds, given, plain))
    return isinstance(given, Tensor)


def drawn(spec: Any, count: int) -> Any:
    """Return random inputs of so many examples; whole numbers are 0 or 1, which every table of tokens has.

    The first of them in each example is 1, so that no mask leaves nothing.
    """
    generator = torch.Generator().manual_seed(0)

    def one(tensor: Tensor) -> Tensor:
        if tensor.is_floating_point():
            return torch.randn(tensor.shape, generator=generator).to(tensor.dtype)
        found = torch.randint(2, tensor.shape, generator=generator).flatten(1)
        if tensor.dim() > 1:
            found[:, 0] = 1
        return found.view(tensor.shape).to(tensor.dtype)

    return mapped(blank(spec, count), one)


def filled(spec: Any, tensors: Mapping[str, Tensor], prefix: str) -> Any:
    """Return the inputs that `named` took apart, as the spec has them.

    Raises:
        ExportError: one is missing.
    """
    inputs = blank(spec, 1)
    names = iter([f"{prefix}.{name}" for name, _ in leaves(inputs)])

    def one(tensor: Tensor) -> Tensor:
        name = next(names)
        if name not in tensors:
            raise ExportError(f"inputs to check with must be whole, but {name!r} is missing")
        return tensors[name]

    return mapped(inputs, one)


def named(inputs: Any, prefix: str) -> dict[str, Tensor]:
    """Return inputs as tensors by name, for a file."""
    return {f"{prefix}.{name}": tensor.contiguous().clone() for name, tensor in leaves(inputs)}


def told(interface: Interface, inputs: Any, outputs: list[Tensor]) -> dict[str, Any]:
    """Return for a program what goes in and comes out: shapes and types by name."""

    def each(names: tuple[str, ...], tensors: list[Tensor]) -> dict[str, Any]:
        return {
            name: {"shape": ["batch", *t.shape[1:]], "dtype": str(t.dtype).removeprefix("torch.")}
            for name, t in zip(names, tensors, strict=True)
        }

    found = each(interface.inputs, [tensor for _, tensor in leaves(inputs)])
    return {
        "inputs": found,
        "given": "by name" if interface.by_name else "one after the other",
        "outputs": each(interface.outputs, outputs),
    }


def specs(spec: Any) -> list[dict[str, Any]]:
    """Return the type and shape of each input that a spec names, in order, of one example."""
    return [
        {"dtype": str(t.dtype).removeprefix("torch."), "shape": list(t.shape[1:])} for _, t in leaves(blank(spec, 1))
    ]


def fits(inputs: Any, spec: Any) -> bool:
    """Return whether inputs are of a spec, whatever their number."""
    own = inputs_spec(inputs)
    return bool((tuple(own) if isinstance(own, list) else own) == spec)
