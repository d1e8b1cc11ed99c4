"""Integers that a module holds and its forward pass uses: the trace knows them again where they count channels.

`self.width` in `torch.split(x, self.width, 1)` is such a number: a student's module holds a smaller one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

Key = tuple[str, str]  # path of the module, name of the attribute


class Number(int):
    """An integer attribute of a module. What is computed from it is a plain number, and leaves a note in `spoiled`."""

    module: str
    name: str
    spoiled: set[Key]

    def __new__(cls, value: int, module: str, name: str, spoiled: set[Key]) -> Number:
        """Return the number as the attribute of that name of the module at that path."""
        made = super().__new__(cls, value)
        made.module, made.name, made.spoiled = module, name, spoiled
        return made

    @property
    def key(self) -> Key:
        """Where it is kept."""
        return self.module, self.name

    def __copy__(self) -> Number:
        return self

    def __deepcopy__(self, memo: Any) -> Number:
        return self

    def __reduce__(self) -> Any:
        return int, (int(self),)


def _spoiling(name: str) -> Callable[..., Any]:
    plain = getattr(int, name)

    def compute(self: Number, *others: Any) -> Any:
        self.spoiled.add(self.key)
        return plain(int(self), *(int(other) if isinstance(other, Number) else other for other in others))

    return compute


for _name in ("add", "sub", "mul", "floordiv", "truediv", "mod", "pow"):
    for _side in (f"__{_name}__", f"__r{_name}__"):
        setattr(Number, _side, _spoiling(_side))
setattr(Number, "__neg__", _spoiling("__neg__"))  # noqa: B010  as the ones above


def track_numbers(root: nn.Module, is_leaf: Callable[[nn.Module, str], bool]) -> set[Key]:
    """Put a Number in the place of every integer attribute of modules whose forward pass is looked into.

    A tuple of one integer counts as one, as the shape does that a layer norm holds.

    Returns:
        Where the numbers are kept that the forward pass computes with; filled while it runs.
    """
    spoiled: set[Key] = set()
    for path, module in root.named_modules():
        if is_leaf(module, path):
            continue
        for name, value in list(vars(module).items()):
            single = type(value) is tuple and len(value) == 1 and type(value[0]) is int
            if name.startswith("_") or not (single or type(value) is int):
                continue
            number = Number(value[0] if single else value, path, name, spoiled)
            vars(module)[name] = (number,) if single else number
    return spoiled


def plain(value: Any) -> Any:
    """Return a Number as the plain integer that it is, and anything else as it is."""
    return int(value) if isinstance(value, Number) else value
