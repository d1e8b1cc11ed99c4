"""Integers that a module holds and the forward pass reads: the trace knows them again where they count channels.

`self.width` in `torch.split(x, self.width, 1)` is such a number, and so is `self.conv.out_channels`: a student's
module holds a smaller one. What Python computes from it is a plain number, in the student another one, so it is noted.
"""

from __future__ import annotations

import linecache
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import fx, nn

Key = tuple[str, str]  # path of the module, name of the attribute
# Frames between the user's line and what is recorded; the last two check types where that is on.
RECORDERS = ("/torch/", "/understudy/graph/", "/numpy/", "/jaxtyping/", "/einops/", "beartype", "<@beartype")


@dataclass(frozen=True)
class Call:
    """How a module was called: the numbers of its arguments, the node of the first positional one, what it gave."""

    positional: int
    named: int
    first: str | None
    gives_one: bool  # value, not a tuple or a dict of them

    @property
    def is_plain(self) -> bool:
        """Whether there is one argument, given by position."""
        return (self.positional, self.named) == (1, 0)


@dataclass(eq=False)
class Watch:
    """What the forward pass reads of its modules while it is recorded; filled while `on`."""

    on: bool = False
    spoiled: dict[Key, str] = field(default_factory=dict)  # numbers that Python computes with, and the line
    read: dict[str, dict[str, str]] = field(default_factory=dict)  # path -> attributes read by others, and the line
    calls: dict[str, list[Call]] = field(default_factory=dict)
    # What each module was called with, by the names of its parameters; keys as in `node.meta["nn_module_stack"]`.
    given: dict[str, dict[str, Any]] = field(default_factory=dict)
    draws: bool = False  # whether the forward pass draws random numbers, or stores what it reads again, in no graph
    followed: set[int] = field(default_factory=set)  # modules that are looked into, by their identity
    # Attributes of those that are read as the last forward pass has left them; None for all of a module's.
    left: set[tuple[int, str | None]] = field(default_factory=set)
    asks_mode: bool = False  # whether a module that is looked into reads `training`
    inside: Callable[[], set[str]] = set  # the paths of the modules whose forward runs

    def paused(self) -> _Pause:
        """What happens inside is not the forward pass."""
        return _Pause(self)

    def stores(self, module: nn.Module, name: str) -> bool:
        """Return whether the next forward pass may read an attribute of a module that this one has changed."""
        known = id(module) in self.followed and name not in _OF_EACH
        return not known or not self.left.isdisjoint([(id(module), name), (id(module), None)])

    def spoil(self, key: Key) -> None:
        """Note that Python computes with a number."""
        if self.on:
            self.spoiled.setdefault(key, user_line())


class _Pause:
    """What `Watch.paused` gives: a context in a quarter of the time of a generator's, around each argument."""

    def __init__(self, watch: Watch) -> None:
        self._watch = watch

    def __enter__(self) -> None:
        self._on, self._watch.on = self._watch.on, False

    def __exit__(self, *raised: object) -> None:
        self._watch.on = self._on


class Number(int):
    """An integer attribute of a module. What is computed from it is a plain number, and leaves a note in `watch`."""

    module: str
    name: str
    watch: Watch

    def __new__(cls, value: int, module: str, name: str, watch: Watch) -> Number:
        """Return the number as the attribute of that name of the module at that path."""
        made = super().__new__(cls, value)
        made.module, made.name, made.watch = module, name, watch
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
        return int, (plain(self),)


def _spoiling(name: str) -> Callable[..., Any]:
    compute_plain = getattr(int, name)

    def compute(self: Number, *others: Any) -> Any:
        result = compute_plain(plain(self), *(plain(other) for other in others))
        # What meets a proxy becomes a node of the graph, which the walk looks at.
        if not (result is NotImplemented and isinstance(others[0], fx.Proxy)):
            for number in (self, *(other for other in others if isinstance(other, Number))):
                self.watch.spoil(number.key)
        return result

    return compute


_BINARY = ("add", "sub", "mul", "floordiv", "truediv", "mod", "pow", "divmod", "lshift", "rshift", "and", "or", "xor")
_ALONE = ("neg", "pos", "abs", "invert", "int", "float", "bool", "round", "trunc", "floor", "ceil")
_OTHERS = ("eq", "ne", "lt", "le", "gt", "ge", "format", "str", "repr")


def _hashed(self: Number) -> int:
    """Hash as the integer does; a set or a dict of the user's that is asked for a number computes with it."""
    if self.watch.on and not _is_recorder(sys._getframe(1).f_code.co_filename):
        self.watch.spoil(self.key)
    return hash(plain(self))


# All but __index__, which torch and fx need: what it lets through is found by `retrace`.
for _name in (*_BINARY, *(f"r{_name}" for _name in _BINARY), *_ALONE, *_OTHERS):
    setattr(Number, f"__{_name}__", _spoiling(f"__{_name}__"))
setattr(Number, "__hash__", _hashed)  # noqa: B010  defining equality has taken it away


def plain(value: Any) -> Any:
    """Return a Number as the plain integer that it is, and anything else as it is."""
    return int.__int__(value) if isinstance(value, Number) else value


@contextmanager
def watching(root: nn.Module, watch: Watch, is_leaf: Callable[[nn.Module, str], bool]) -> Iterator[None]:
    """Let every integer attribute that is read of a module be a Number, and note what is read from outside of it.

    A tuple of one integer counts as one, as the shape does that a layer norm holds. The modules are left as they are.
    """
    paths = {id(module): path for path, module in root.named_modules()}
    looked_into = {id(module) for path, module in root.named_modules() if path == "" or not is_leaf(module, path)}
    watch.followed |= looked_into
    first = {id(module): attributes_of(vars(module)) for module in root.modules()}

    def read(module: nn.Module, name: str) -> Any:
        if name == "__dict__" and watch.on and not _is_recorder(sys._getframe(1).f_code.co_filename):
            watch.left.add((id(module), None))
        if not watch.on or name.startswith("__") or (path := paths.get(id(module))) is None:
            return object.__getattribute__(module, name)
        held = object.__getattribute__(module, "__dict__")
        now = held if name in held else held["_buffers"]
        known = name not in now or (name in first[id(module)] and now[name] is first[id(module)][name])
        if known and not sys._getframe(1).f_code.co_filename.endswith(_OF_MODULES):  # which asks before it stores
            watch.left.add((id(module), name))
        if name == "training":
            watch.asks_mode |= id(module) in looked_into
        elif path and (name == "_modules" or name not in _USUAL) and path not in watch.inside():
            watch.read.setdefault(path, {}).setdefault(name, user_line())
        return _numbered(module, path, name, object.__getattribute__(module, name), watch)

    setattr(nn.Module, "__getattribute__", read)  # noqa: B010  as fx does with __getattr__ while it traces
    try:
        yield
    finally:
        delattr(nn.Module, "__getattribute__")


_USUAL = frozenset(dir(nn.Identity()))  # what every module has
_OF_MODULES = "/torch/nn/modules/module.py"
_OF_EACH = frozenset(vars(nn.Module()))  # what every module holds itself


def _numbered(module: nn.Module, path: str, name: str, value: Any, watch: Watch) -> Any:
    if name.startswith("_") or name not in object.__getattribute__(module, "__dict__"):
        return value
    if type(value) is int:
        return Number(value, path, name, watch)
    if type(value) is tuple and len(value) == 1 and type(value[0]) is int:
        return (Number(value[0], path, name, watch),)
    return value


def attributes_of(held: dict[str, Any]) -> dict[str, Any]:
    """Return what a module holds by itself, its buffers by their names."""
    return {**held["_buffers"], **{name: value for name, value in held.items() if name != "_buffers"}}


def _is_recorder(file: str) -> bool:
    return any(part in file for part in RECORDERS)


def user_line() -> str:
    """Return "file.py:12: code" of the innermost line of the user's that runs now, or "" if there is none."""
    frame = sys._getframe(1)
    while frame is not None:
        file = frame.f_code.co_filename
        if not _is_recorder(file) and not file.startswith("<"):
            code = linecache.getline(file, frame.f_lineno).strip()
            return f"{file.rsplit('/', 1)[-1]}:{frame.f_lineno}: {code}".removesuffix(": ")
        frame = frame.f_back  # type: ignore[assignment]
    return ""


def error_line(error: BaseException) -> str:
    """Return "file.py:12: code" of the innermost line of the user's that an error came through, or ""."""
    while error.__cause__ is not None:
        error = error.__cause__
    frames = [f for f in traceback.extract_tb(error.__traceback__) if not _is_recorder(f.filename)]
    return f"{frames[-1].filename.rsplit('/', 1)[-1]}:{frames[-1].lineno}: {frames[-1].line}" if frames else ""
