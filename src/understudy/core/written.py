"""Values from the JSON that they wrote. No torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import UnionType
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from understudy.core.errors import UnderstudyError, brief

T = TypeVar("T")
_SHOWN = 60  # characters of a text that is none


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
