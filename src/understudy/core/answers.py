"""Answers about architectures that are asked for again and again. No torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

from understudy.core.architecture import Architecture

T = TypeVar("T")


class Answers(Generic[T]):
    """A function of an architecture whose latest answers are kept, so that memory stays as it is in a long search.

    Args:
        ask: the function.
        most: answers that are kept; the oldest goes.
    """

    def __init__(self, ask: Callable[[Architecture], T], *, most: int = 10_000) -> None:
        self._ask, self._most = ask, most
        self._known: dict[str, T] = {}

    def __call__(self, architecture: Architecture) -> T:
        """Return the function's answer."""
        digest = architecture.digest
        if digest not in self._known:
            if len(self._known) >= self._most:
                del self._known[next(iter(self._known))]
            self._known[digest] = self._ask(architecture)
        return self._known[digest]
