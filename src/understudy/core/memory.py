"""Memory that runs out: the machine is to blame for it, never the network. No torch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from understudy.core.errors import MachineError

_TEXTS = ("t allocate memory", "_STATUS_ALLOC_FAILED", "CUBLAS_STATUS_NOT_INITIALIZED")


def out_of_memory(error: BaseException) -> bool:
    """Return whether there was too little memory, for which torch has several errors."""
    if isinstance(error, RuntimeError):  # torch's own class, by its name
        return type(error).__name__ == "OutOfMemoryError" or any(text in str(error) for text in _TEXTS)
    return isinstance(error, MemoryError)


@contextmanager
def enough_memory(during: str, way_out: str) -> Iterator[None]:
    """Let memory that runs out inside be the machine's error.

    Args:
        during: what it runs out in, as "while students were checked".
        way_out: what helps.

    Raises:
        MachineError: memory ran out.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
        said = " ".join(str(error).split())
        raise MachineError(f"memory ran out {during}; {way_out}{f' ({said})' if said else ''}") from error
