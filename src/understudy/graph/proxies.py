"""What stands for the values of a forward pass while it is recorded."""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from torch import Tensor, fx

from understudy.core.errors import TraceError
from understudy.graph.fake import source_line


class ExampleProxy(fx.Proxy):
    """A proxy that answers from the example where Python insists on a plain number."""

    def _plain(self) -> Any:
        value = self.node.meta["value"]
        if isinstance(value, Tensor):
            raise TraceError(branch_message(self.node))
        self.node.meta["escapes"] = True
        return value

    def __getattr__(self, name: str) -> Any:
        # NumPy asks for these before it takes what `__array__` returns.
        if name.startswith(("__array", "__cuda_array")):
            raise AttributeError(name)
        value = self.node.meta["value"]
        if name == "ndim" and isinstance(value, Tensor):  # the same in every student, and a key of dictionaries
            return value.ndim
        fields = getattr(type(value), "__match_args__", ()) if hasattr(type(value), "n_sequence_fields") else ()
        if name in fields:  # what `max` over a dimension gives, say: fx would forget that its members have names
            return super().__getitem__(fields.index(name))  # type: ignore[misc]
        if name == "numel" and isinstance(value, tuple):  # of a shape, which is a plain tuple here
            return lambda: functools.reduce(operator.mul, (operator.getitem(self, i) for i in range(len(value))), 1)
        if not hasattr(type(value), name) and not hasattr(value, name):  # else whoever asks by hasattr is told a lie
            raise AttributeError(f"{type(value).__name__!r} object has no attribute {name!r}")
        return _Device(self, name) if name == "device" else _Attribute(self, name)

    def __array__(self, *args: Any, **kwargs: Any) -> Any:
        return np.asarray(self._plain())

    def __iter__(self) -> Iterator[Any]:  # fx's looks through the caller's instructions for how many are asked for
        return self.tracer.iter(self)

    def __len__(self) -> int:
        self.node.meta["counted"] = True
        return len(self.node.meta["value"])

    def __int__(self) -> int:
        return int(self._plain())

    def __index__(self) -> int:
        return operator.index(self._plain())

    def __float__(self) -> float:
        return float(self._plain())

    def __round__(self, digits: int | None = None) -> Any:
        return round(self._plain(), digits)

    def __trunc__(self) -> int:
        return int(self._plain())

    def __format__(self, spec: str) -> str:
        value = self.node.meta["value"]
        return super().__format__(spec) if isinstance(value, Tensor) else format(self._plain(), spec)

    def __divmod__(self, other: Any) -> tuple[Any, Any]:
        return self // other, self % other

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

    def __setitem__(self, key: Any, value: Any) -> None:
        self.tracer.create_proxy("call_function", operator.setitem, (self, key, value), {})


class _Attribute(ExampleProxy, fx.proxy.Attribute):  # whose node comes when it is needed
    """What a proxy has by name, or a method of it: `x.data *= mask` overwrites as `x *= mask` does."""

    __init__ = fx.proxy.Attribute.__init__


class _Device(fx.proxy.Attribute):
    """The device of a tensor, whose type `torch.autocast` takes as a plain text only."""

    def __getattr__(self, name: str) -> Any:
        of = self.root.node.meta["value"]
        return of.device.type if name == "type" and isinstance(of, Tensor) else super().__getattr__(name)


def branch_message(node: fx.Node) -> str:
    """Return what is said of a branch on what a node gives."""
    return (
        f"the forward pass must not branch on the values of a tensor, but it does at {source_line(node) or node.name}. "
        "Write it without the branch (torch.where), or name the module class that holds it: "
        "pass leaf_modules=(ThatModule,) to analyse() or compress(); its channels then keep their width."
    )
