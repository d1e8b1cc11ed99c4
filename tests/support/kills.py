"""Runs in processes that are killed: whatever the moment, a run that goes on ends as one that nobody disturbed."""

from __future__ import annotations

import multiprocessing
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from multiprocessing.context import ForkServerContext

# What a server imports once and each process is forked with, so that their time goes into the run: torch._dynamo and
# Optuna take longer to import than a small run takes.
_IMPORTED = ["tests.support.tiny", "torch._dynamo", "optuna.storages", "alembic.command"]


def forking() -> ForkServerContext:
    """Return the context whose processes are forked by a server that has imported everything."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_IMPORTED)
    return context


def kill_and_go_on(
    drive: Callable[..., None],
    given: tuple[str, ...],
    root: Path,
    *,
    kills: int,
    between: tuple[float, float],
    check: Callable[[Path, Path], None],
) -> Path:
    """Kill runs so many times, let each come to its end, and check it against the undisturbed one; return that one.

    A run that ends before it can be killed, as on a machine that became faster, is followed by another.

    Args:
        drive: makes or continues a run, called in a process with `given` and the run's folder.
        given: its first arguments.
        root: where the runs lie.
        kills: how many at least.
        between: the moments of kills, in shares of the time that the undisturbed run took.
        check: called with the folder of a run that was killed, and of the undisturbed one.
    """
    context, numbers = forking(), random.Random(0)

    def ends(folder: Path, seconds: float | None = None) -> bool:
        process = context.Process(target=drive, args=(*given, str(folder)))
        process.start()
        process.join(seconds)
        process.kill()
        process.join()
        assert process.exitcode in (0, -9)
        return process.exitcode == 0

    assert ends(root / "warm")
    start = time.monotonic()
    assert ends(root / "undisturbed")
    whole = time.monotonic() - start
    done = rounds = 0
    while done < kills:
        rounds += 1
        folder = root / f"round {rounds}"
        while not ends(folder, numbers.uniform(*between) * whole if done < kills else None):
            done += 1
        check(folder, root / "undisturbed")
    return root / "undisturbed"
