"""Settings that check themselves when they are built: the type, range and choices of every field. No torch.

A field's range stands in its type: `rollouts: Annotated[int, Range(1)]`. Choices are `Literal`. What hangs on several
fields is said by `problems`.
"""

from __future__ import annotations

import math
import sys
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, fields, is_dataclass
from functools import cache
from numbers import Number
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from understudy.core.errors import ConfigError, did_you_mean

T = TypeVar("T")
_unchecked: ContextVar[bool] = ContextVar("unchecked", default=False)


@dataclass(frozen=True)
class Range:
    """The numbers that a field may have, ends included unless said otherwise."""

    least: float = -math.inf
    most: float = math.inf
    above: bool = False  # the least one is excluded

    def __contains__(self, number: float) -> bool:
        above = self.least < number if self.above else self.least <= number
        return above and number <= self.most and abs(number) <= sys.float_info.max  # not nan, inf or 10**400

    def __str__(self) -> str:
        if self.least == -math.inf:
            return f"at most {self.most:,.0f}"
        if self.most < math.inf:
            return f"in {self.least:g}..{self.most:g}" + (f", above {self.least:g}" if self.above else "")
        return f"above {self.least:g}" if self.above else f"at least {self.least:g}"


_COUNTED = Range(most=10**9)  # beyond is a slip of the pen, and what counts in 64 bits fails when it is used
Count = Annotated[int, Range(1), _COUNTED]
Natural = Annotated[int, Range(0), _COUNTED]
Threads = Annotated[int, Range(0), Range(most=1024)]  # as many as some millions end the process
Seed = Annotated[int, Range(0, 2**63 - 1)]  # what both numpy and torch take
Share = Annotated[float, Range(0.0, 1.0)]
Amount = Annotated[float, Range(0.0)]


class Checked:
    """Base of frozen dataclasses of settings.

    Raises:
        ConfigError: a value has another type, is out of range or no choice; all mistakes at once.
    """

    def __post_init__(self) -> None:
        for name, value in tuple(vars(self).items()):
            if isinstance(value, Number) and hasattr(value, "item"):  # of numpy, which are as good as Python's
                object.__setattr__(self, name, value.item())
        if not _unchecked.get():
            check(self, type(self).__name__)

    def problems(self) -> Iterator[str]:
        """Yield what is wrong between fields that are right one by one; nothing unless a class says so."""
        yield from ()


def together(make: Callable[[], T], source: str) -> T:
    """Return the settings that `make` builds, checked as one: mistakes of several tables come at once.

    Raises:
        ConfigError: each mistake; `source` says where they stand.
    """
    with checked_together():
        made = make()
    check(made, source)
    return made


@contextmanager
def checked_together() -> Iterator[None]:
    """Build settings inside without checks, for a `check` of the whole: so mistakes of several tables come at once."""
    token = _unchecked.set(True)
    try:
        yield
    finally:
        _unchecked.reset(token)


def check(settings: Any, source: str) -> None:
    """Check settings and all that are inside them.

    Raises:
        ConfigError: each mistake, with the nearest spelling of a choice; `source` says where they stand.
    """
    mistakes = list(mistakes_in(settings))
    if mistakes:
        raise ConfigError(invalid(mistakes, source))


def invalid(mistakes: list[str], source: str) -> str:
    """Return the text of an error that lists mistakes in the settings of that source."""
    return (
        f"invalid settings in {source}: {mistakes[0]}"
        if len(mistakes) == 1
        else "\n  ".join([f"invalid settings in {source}:", *mistakes])
    )


def mistakes_in(settings: Any, prefix: str = "") -> Iterator[str]:
    """Yield a sentence for each mistake in settings; `prefix` goes before the names of their fields."""
    before = 0
    for name, hint in _hints(settings.__class__).items():
        value = getattr(settings, name)
        if is_dataclass(value) and isinstance(value, Checked):
            inside = list(mistakes_in(value, f"{prefix}{name}."))
            before += len(inside)
            yield from inside
        if (text := mistake(hint, value)) is not None:
            before += 1
            yield f"{prefix}{name} {text}"
    if not before and isinstance(settings, Checked):
        yield from (f"{prefix}{problem}" for problem in settings.problems())


def mistake(hint: Any, value: Any) -> str | None:
    """Return what a value must be and is not, or None: "must be at least 1, but got 0"."""
    wanted = _wanted(hint, value)
    return None if wanted is None else f"must be {wanted}, but got {value!r}{_nearest(hint, value)}"


def plain(hint: Any) -> Any:
    """Return a type without its range and without None."""
    if get_origin(hint) is Annotated:
        hint = get_args(hint)[0]
    if get_origin(hint) in (Union, types.UnionType):
        hint = next(option for option in get_args(hint) if option is not type(None))
    return plain(hint) if get_origin(hint) is Annotated else hint


@cache
def _hints(kind: Any) -> dict[str, Any]:
    hints = get_type_hints(kind, include_extras=True)
    return {f.name: hints[f.name] for f in fields(kind)}


def _wanted(hint: Any, value: Any) -> str | None:
    """Return what is wanted instead of the value, or None if it is right."""
    if get_origin(hint) is Annotated:
        inner, *extras = get_args(hint)
        wanted = _wanted(inner, value)
        ranges = [extra for extra in extras if isinstance(extra, Range)]
        return wanted or next((text for allowed in ranges if (text := _outside(allowed, value))), None)
    if get_origin(hint) in (Union, types.UnionType):
        options = [_wanted(option, value) for option in get_args(hint) if option is not type(None)]
        return None if value is None or None in options else options[0]
    if get_origin(hint) is Literal:
        choices = get_args(hint)
        return None if isinstance(value, str) and value in choices else "one of " + ", ".join(map(str, choices))
    if get_origin(hint) is tuple:
        inner = get_args(hint)[0]
        right = isinstance(value, tuple) and all(_wanted(inner, item) is None for item in value)
        return None if right else f"a tuple of {_named(inner)}"
    return None if _fits(hint, value) else _named(hint)


def _outside(allowed: Range, value: Any) -> str | None:
    if isinstance(value, tuple):
        right = value and all(item in allowed for item in value)
        return None if right else f"at least one number, each {allowed}"
    return None if value is None or value in allowed else str(allowed)


def _fits(kind: type, value: Any) -> bool:
    if kind in (int, float):
        return isinstance(value, (int, kind)) and not isinstance(value, bool)
    return isinstance(value, kind)


def _named(kind: Any) -> str:
    return {int: "an integer", float: "a number", bool: "true or false", str: "text", Path: "a path"}.get(
        kind, ("a us." if is_dataclass(kind) else "") + getattr(kind, "__name__", str(kind))
    )


def _nearest(hint: Any, value: Any) -> str:
    choices = get_args(plain(hint)) if get_origin(plain(hint)) is Literal else ()
    return did_you_mean(value, choices) if isinstance(value, str) else ""
