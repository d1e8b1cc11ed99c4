"""What can go wrong, by kind. Every message states the rule and the value that broke it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from operator import index
from pathlib import PurePath
from typing import Any


class UnderstudyError(Exception):
    """Base of every error that a user can mend; the command line prints it without a traceback."""


class ArchitectureError(UnderstudyError, ValueError):
    """A decision that the Space does not allow: an unknown name, a width or kernel out of range."""


class SurgeryError(UnderstudyError):
    """An architecture that cannot be built; the message names the node and the shapes that do not fit."""


class TraceError(UnderstudyError):
    """A teacher that cannot be traced; the message shows the line and what to write instead."""


class DataError(UnderstudyError, ValueError):
    """Data that cannot be used: unreadable or empty images, an empty class, labels out of range."""


class ModelError(UnderstudyError):
    """A model that cannot be made, or weights that cannot be loaded into it."""


class ExportError(UnderstudyError):
    """A student that cannot be written in a format, or a student folder that is not what its certificate says."""


class ExtraError(UnderstudyError, ImportError):
    """An optional package that is not installed or cannot be imported."""


class GoalError(UnderstudyError, ValueError):
    """A budget that cannot be read, or that no architecture of the Space can reach."""


class ConfigError(UnderstudyError, ValueError):
    """Unknown, misspelt or impossible settings, all of them at once."""


class RunError(UnderstudyError):
    """A run folder that cannot be used: of another teacher, data or configuration, or not writable."""


class DamageError(RunError):
    """A file in a run folder that is not as it was written; what it held can be found out again."""

    def __str__(self) -> str:
        return f"{super().__str__()}. Mend it or move it away: without it the run finds out again what it held"


class MachineError(UnderstudyError):
    """What failed because of the machine, not of the network: no memory, a killed process, a time limit.

    It is tried again, and never stored as a property of an architecture.
    """


class CrashError(MachineError):
    """A process that crashed in native code, or a device that gave up: what does so again and again is at fault."""


def brief(value: Any) -> str:
    """Return what a caller gave, as a message shows it: a text as it stands, of anything else what it is."""
    return repr(value) if isinstance(value, str | PurePath | None) else a_kind(value)


def a_kind(value: Any) -> str:
    """Return what a value is, with its article: "a Tensor", "an ndarray"."""
    name = type(value).__name__
    return f"{'an' if name[:1].lower() in {*'aeio'} or name == 'ndarray' else 'a'} {name}"


def check_kind(given: Any, kind: Any, rule: str, error: type[UnderstudyError]) -> None:
    """Refuse what is of another kind; `rule` says what it must be, and how one is come by.

    Raises:
        UnderstudyError: of the kind given.
    """
    if not isinstance(given, kind):
        raise error(f"{rule}, but got {brief(given)}")


def whole(given: Any, called: str, error: type[UnderstudyError]) -> int:
    """Return a whole number, of numpy and of torch as well, as Python's own, which can be written down.

    Raises:
        UnderstudyError: of the kind given, if it is none.
    """
    try:
        return index(None if isinstance(given, bool) else given)  # type: ignore[arg-type]
    except TypeError as e:
        raise error(f"{called} must be a whole number, but got {given!r}") from e


def did_you_mean(name: Any, known: Iterable[str]) -> str:
    """Return ``" (did you mean 'x'?)"`` for the nearest of `known`, or an empty string."""
    if not isinstance(name, str):
        return ""
    spelled = {option.casefold(): option for option in known}
    nearest = difflib.get_close_matches(name.casefold(), spelled, n=1)
    return f" (did you mean {spelled[nearest[0]]!r}?)" if nearest else ""
