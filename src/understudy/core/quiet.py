"""Optuna without its remarks. No torch."""

from __future__ import annotations

import contextlib
import threading
import warnings
from collections.abc import Iterator

# The filters of warnings and Optuna's verbosity belong to the whole process. If each thread put back what it found, one
# could restore the loud ones while another is inside: so the first that comes saves them, and the last restores.
_lock = threading.Lock()
_inside = 0
_restore = contextlib.ExitStack()


@contextlib.contextmanager
def quiet_optuna() -> Iterator[None]:
    """Hold back Optuna's messages below an error, and its warnings that something is experimental, in all threads."""
    global _inside
    with _lock:
        if _inside == 0:
            _silence()
        _inside += 1
    try:
        yield
    finally:
        with _lock:
            _inside -= 1
            if _inside == 0:
                _restore.close()


def _silence() -> None:
    import optuna

    _restore.callback(optuna.logging.set_verbosity, optuna.logging.get_verbosity())
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    _restore.enter_context(warnings.catch_warnings())
    warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
