"""Evaluators for worker processes, which import this file: it takes a moment only."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from understudy.core.architecture import Architecture
from understudy.core.errors import DataError, MachineError, SurgeryError
from understudy.core.evaluation import Evaluation
from understudy.runs.workers.local import Pool, refuse_reimport
from understudy.testing.landscapes import toy_evaluation, toy_space

SPACE = toy_space()
GROUP = SPACE.groups[0].name
ARCHITECTURES = [SPACE.full.with_width(GROUP, width) for width in (8, 16, 24, 32, 40)]


def failed(architecture: Architecture, error: str) -> Evaluation:
    return toy_evaluation(architecture).with_error(error)


class Unpicklable(Exception):
    def __init__(self, one: int, two: int) -> None:
        super().__init__(f"{one} and {two}")


@dataclass(frozen=True)
class Toy:
    """Evaluates at once, but for the widths for which something else is to happen."""

    tensor: Any = None
    die: int = 0
    kill: int = 0
    surgery: int = 0
    strange: int = 0
    memory: int = 0
    unreadable: int = 0
    hang: int = 0
    counted: str = ""  # folder where each attempt leaves a file
    at_first: int = 99  # attempts that something else happens in
    mark: bool = False  # puts the number of the process where the seed belongs

    def __call__(self, architecture: Architecture) -> Evaluation:
        width = architecture.width(GROUP)
        if self.counted:
            attempt = len(list(Path(self.counted).glob(f"{width} *")))
            (Path(self.counted) / f"{width} {attempt} {os.getpid()}").touch()
            if attempt >= self.at_first:
                return toy_evaluation(architecture)
        if width == self.memory:
            raise MachineError("out of memory: 8 GiB")
        if width == self.unreadable:
            raise DataError("dog.png cannot be read")
        if width == self.hang:
            time.sleep(600)
        if width == self.die:
            os._exit(3)
        if width == self.kill:
            os.kill(os.getpid(), signal.SIGKILL)
        if width == self.surgery:
            raise SurgeryError(f"at width {width}")
        if width == self.strange:
            raise Unpicklable(1, 2)
        if self.tensor is not None:
            return replace(toy_evaluation(architecture), score=float(self.tensor.sum()))
        if self.mark:
            return replace(toy_evaluation(architecture), seed=os.getpid())
        return toy_evaluation(architecture)


class Reimport:
    def __call__(self, architecture: Architecture) -> Evaluation:
        refuse_reimport()  # a worker that works is none that imports
        return toy_evaluation(architecture)


@dataclass(frozen=True)
class Slow:
    """Takes its time."""

    def __call__(self, architecture: Architecture) -> Evaluation:
        time.sleep(2.5)
        return toy_evaluation(architecture)


@dataclass
class KilledAtStart:
    """Kills so many of the processes that load it."""

    times: int
    marks: Path

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        killed = len(list(self.marks.iterdir()))
        if killed < self.times:
            (self.marks / str(killed)).touch()
            os.kill(os.getpid(), signal.SIGKILL)

    def __call__(self, architecture: Architecture) -> Evaluation:
        return toy_evaluation(architecture)


@dataclass(frozen=True)
class Locked:
    lock: Any

    def __call__(self, architecture: Architecture) -> Evaluation:
        return toy_evaluation(architecture)


def in_a_daemon(workers: int, folder: Path) -> None:
    """Evaluate in a process that may start no other; leave a file if all is as it should be."""
    with Pool(Toy(), failed=failed, workers=workers) as pool:
        if pool.evaluate_all(ARCHITECTURES) == [toy_evaluation(a) for a in ARCHITECTURES]:
            (folder / "same").touch()
