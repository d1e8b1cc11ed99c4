"""Nested values: dicts, tuples, lists and dataclasses of leaves, as networks take and give them. No torch.

The one place that knows how a value is taken apart. A leaf's name is the path to it, "boxes.0"; that of a value
that is no nesting is "".
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any


def leaves(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the name and value of each leaf; None is none."""
    parts = _parts(value)
    if parts is None:
        if value is not None:
            yield prefix, value
        return
    for name, part in parts:
        yield from leaves(part, f"{prefix}.{name}" if prefix else str(name))


def first(value: Any) -> Any:
    """Return the first leaf, None where there is none."""
    return next((leaf for _, leaf in leaves(value)), None)


def mapped(value: Any, function: Callable[[Any], Any]) -> Any:
    """Return nested dicts, tuples and lists with the function applied to each leaf; None stays."""
    if isinstance(value, Mapping):
        return {name: mapped(part, function) for name, part in value.items()}
    if isinstance(value, (tuple, list)):
        parts = [mapped(part, function) for part in value]
        return parts if isinstance(value, list) else tuple(parts)
    return None if value is None else function(value)


def zipped(values: list[Any], function: Callable[[list[Any]], Any]) -> Any:
    """Return the nesting that all the values have, each leaf made by the function of theirs.

    Raises:
        ValueError: they are not of one structure.
    """
    one = values[0]
    if isinstance(one, Mapping):
        if any(not isinstance(value, Mapping) or set(value) != set(one) for value in values):
            raise ValueError(f"all must have the keys {', '.join(map(str, one))}")
        return {name: zipped([value[name] for value in values], function) for name in one}
    if isinstance(one, (tuple, list)):
        if any(not isinstance(value, (tuple, list)) or len(value) != len(one) for value in values):
            raise ValueError(f"all must have {len(one)} parts")
        parts = [zipped([value[index] for value in values], function) for index in range(len(one))]
        return parts if isinstance(one, list) else tuple(parts)
    if one is None:
        if any(value is not None for value in values):
            raise ValueError("a part must be None in all or in none")
        return None
    if any(_parts(value) is not None or value is None for value in values):
        raise ValueError("a part must be a leaf in all or in none")
    return function(values)


def chunks(value: Any, size: int) -> Iterator[Any]:
    """Yield nested tensors (n, ...) in pieces of so many rows."""
    for start in range(0, len(first(value)), size):
        yield mapped(value, lambda rows, start=start: rows[start : start + size])  # type: ignore[misc]


def called(function: Callable[..., Any], inputs: Any) -> Any:
    """Call with inputs: those of a dict by name, those of a tuple one after the other, anything else alone."""
    if isinstance(inputs, Mapping):
        return function(**inputs)
    return function(*inputs) if isinstance(inputs, tuple) else function(inputs)


def _parts(value: Any) -> Iterator[tuple[Any, Any]] | None:
    """Return the named parts of a nesting, None of a leaf."""
    if isinstance(value, Mapping):
        return iter(value.items())
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return iter(zip(value._fields, value, strict=True))
    if isinstance(value, (tuple, list)):
        return iter(enumerate(value))
    if is_dataclass(value) and not isinstance(value, type):
        return ((field.name, getattr(value, field.name)) for field in fields(value))
    return None
