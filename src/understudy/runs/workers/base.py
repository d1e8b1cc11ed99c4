"""The contract of a pool. No torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable

from understudy.core.architecture import Architecture
from understudy.core.evaluation import Evaluation


@runtime_checkable
class Workers(Protocol):
    """Evaluates architectures, several at the same time, wherever that is.

    Results depend neither on where and how many, nor on who finishes first.
    """

    def evaluate_all(
        self, architectures: Sequence[Architecture], *, on_done: Callable[[Evaluation], object] = ...
    ) -> list[Evaluation]:
        """Return the evaluation of each architecture, in their order; call `on_done` with each as it is finished."""
        ...

    def __enter__(self) -> Any:
        """Return the pool itself."""
        ...

    def __exit__(self, *_: object) -> None:
        """End whatever runs."""
        ...
