"""Values from the JSON that they wrote. No torch."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import UnionType
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from understudy.core.errors import UnderstudyError, brief

T = TypeVar("T")
_SUM = "sum"
_SHOWN = 60  # characters of a text that is none


def summed(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a JSON object with a sum of them, by which `unsummed` tells that one has changed."""
    plain = _plain(fields)
    return {**plain, _SUM: _sum_of(plain)}


def unsummed(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a JSON object without their sum, if they have one.

    Raises:
        ValueError: it is the sum of others.
    """
    plain = _plain(fields)
    if _SUM in fields and fields[_SUM] != _sum_of(plain):
        raise ValueError(f'its fields are not those of its "{_SUM}"; take that out where you changed a field yourself')
    return plain


def _plain(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if name != _SUM}


def _sum_of(fields: Mapping[str, Any]) -> str:
    """Return 16 hexadecimal digits of the fields as JSON has them, in whatever order and layout."""
    plain = json.loads(json.dumps(fields))
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()[:16]


@contextmanager
def written(what: str, text: Any, error: type[UnderstudyError]) -> Iterator[None]:
    """Say what a text must be where it makes no sense inside.

    Raises:
        UnderstudyError: of the kind given.
    """
    try:
        yield
    except UnderstudyError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as e:
        got = repr(text[:_SHOWN]) if isinstance(text, str) else brief(text)
        raise error(f"{what} must be what to_json wrote, but got {got}: {type(e).__name__}: {e}") from e


def made(kind: type[T], fields: Mapping[str, Any]) -> T:
    """Return the dataclass of plain values; a list becomes the tuple that it was.

    Raises:
        TypeError: a field is missing, unknown or of another type.
    """
    values = {name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()}
    found = kind(**values)
    for name, hint in get_type_hints(kind).items():
        if not _fits(getattr(found, name), hint):
            raise TypeError(f"{name} is {getattr(found, name)!r}")
    return found


def _fits(value: Any, hint: Any) -> bool:
    origin, inner = get_origin(hint), get_args(hint)
    if origin is UnionType:
        return any(_fits(value, one) for one in inner)
    if origin is Literal:
        return value in inner
    if origin is tuple:
        return isinstance(value, tuple) and all(_fits(item, inner[0]) for item in value)
    kinds = (int, float) if hint is float else hint
    return isinstance(value, kinds) and (hint is bool or not isinstance(value, bool))
