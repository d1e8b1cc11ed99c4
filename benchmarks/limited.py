"""A measurement in a process of its own, which ends after so many seconds of processor time."""

from __future__ import annotations

import multiprocessing
import os
import threading
import time
from collections.abc import Callable
from queue import Empty
from typing import Any


def limited(measure: Callable[..., dict[str, Any]], *args: Any, limit: float) -> dict[str, Any] | None:
    """Return what `measure(*args)` returns, or None if its process ended before: crashed, or out of time."""
    context = multiprocessing.get_context("fork")  # what is imported once stays imported
    answers = context.Queue()
    process = context.Process(target=_answer, args=(measure, args, limit, answers), daemon=True)
    process.start()
    try:
        while True:
            ended = not process.is_alive()  # asked first: an answer may come just before the end
            try:
                return answers.get(timeout=1)  # type: ignore[no-any-return]
            except Empty:
                if ended:
                    return None
    finally:
        process.kill()
        process.join()


def _answer(measure: Callable[..., dict[str, Any]], args: tuple[Any, ...], limit: float, answers: Any) -> None:
    threading.Thread(target=_end_after, args=(limit,), daemon=True).start()
    answers.put(measure(*args))


def _end_after(limit: float) -> None:
    """End this process when it has used so many processor seconds; a limit of the system makes its clock coarse."""
    while time.process_time() < limit:
        time.sleep(0.5)
    os._exit(1)
