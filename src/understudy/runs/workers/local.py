"""Processes on this machine that evaluate, and what is done when one of them fails. No torch of its own.

Results depend neither on the number of workers nor on who finishes first.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from multiprocessing import current_process
from multiprocessing.connection import wait
from typing import Any

from understudy.core.architecture import Architecture
from understudy.core.errors import DataError, MachineError, RunError
from understudy.core.evaluation import Evaluation
from understudy.runs.journal import Journal
from understudy.runs.workers.process import (
    Evaluate,
    Worker,
    needs_main,
    pickled,
    refuse_reimport,
    refuse_stdin,
    refuse_unsendable,
)
from understudy.runs.workers.retries import Attempt, Patience, Retries

__all__ = ["Evaluate", "Pool", "refuse_reimport", "refuse_what_workers_lack"]

_log = logging.getLogger("understudy")
_LOOK_EVERY = 1.0  # seconds between two calls of `on_wait`
_ENDED_HERE = 3  # times that this process may end over an architecture before that is evaluated apart
_LARGE = 1_000_000_000  # bytes of teacher and data that are not held twice for the sake of one worker


def refuse_what_workers_lack(value: Any, workers: int) -> None:
    """Refuse at the door what a pool of so many workers would refuse when they start.

    Raises:
        RunError: it cannot be pickled, or needs a script that is in no file.
    """
    if workers > 1 and not current_process().daemon:
        refuse_unsendable(value)


class Pool:
    """Evaluates architectures, `workers` of them at the same time, each in a process that may crash or hang.

    A process gets `evaluate` once, when it is first needed, and lives until `close`, at the latest until this process
    ends. What fails because of the machine (MachineError, DataError, a process that is killed, or that takes many
    times as long as others) is tried again, alone; if that does not help either, it is raised. An architecture whose
    process crashes again and again is a failed evaluation.

    With `workers=0`, all happens in this process; so it does in a daemonic process, which may start no other, and with
    one worker where another process would need the user's script, or would hold too much a second time. Use it in a
    `with` statement.

    Args:
        evaluate: gives the evaluation of an architecture; it can be pickled.
        failed: gives the failed evaluation of an architecture, for the reason given.
        workers: how many.
        on_wait: called every second or so while processes are busy.
        here: what evaluates in this process; None for `evaluate`.
        tell: told in one line what failed and is tried again.
        journal: where crashes are noted, so that a later process knows of them.
        seconds: what earlier evaluations of the kind took.
        patience: how often and how long something is tried.
    """

    def __init__(
        self,
        evaluate: Evaluate,
        *,
        failed: Callable[[Architecture, str], Evaluation],
        workers: int = 1,
        on_wait: Callable[[], object] = lambda: None,
        here: Evaluate | None = None,
        tell: Callable[[str], object] = _log.warning,
        journal: Journal | None = None,
        seconds: Sequence[float] = (),
        patience: Patience | None = None,
    ) -> None:
        self._evaluate, self._here = evaluate, here or evaluate
        self._on_wait = on_wait
        self._count = workers
        self._retries = Retries(
            failed=failed,
            tell=tell,
            journal=journal or Journal(),
            seconds=list(seconds),
            patience=patience or Patience(),
        )
        self._content: bytes | None = None
        self._lost = 0  # workers in a row that were killed as they started
        self.processes: list[Worker] = []

    def evaluate_all(
        self, architectures: Sequence[Architecture], *, on_done: Callable[[Evaluation], object] = lambda _: None
    ) -> list[Evaluation]:
        """Return the evaluation of each architecture, in their order.

        `on_done` is called in this process with each evaluation as it is finished. What `evaluate`
        raises is raised here.

        Raises:
            MachineError, DataError: the machine or the data failed in every attempt.
            RunError: workers cannot be started.
        """
        if not architectures:
            return []
        if self._stays_here():
            return [_told(self._in_this_process(architecture), on_done) for architecture in architectures]
        try:
            return self._in_workers(architectures, on_done)
        except BaseException:  # what is still being evaluated must not answer the next call
            self.close()
            raise

    def close(self) -> None:
        """End all workers; what they are evaluating is given up."""
        for worker in self.processes:
            worker.stop()
        for worker in self.processes:
            worker.end()
        self.processes.clear()

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _stays_here(self) -> bool:
        """Say whether all happens in this process; if not, pickle the evaluator."""
        if self._count == 0:
            return True
        if self._content is not None:
            return False
        if current_process().daemon:
            return self._stay(
                "this process is a daemon, as those of multiprocessing.Pool are, which may start no other"
            )
        if self._count > 1:
            refuse_reimport()
            self._content = pickled(self._evaluate)
            refuse_stdin(self._content)
            return False
        try:
            content = pickled(self._evaluate, most=_LARGE)
        except RunError as error:
            why = str(error)
        else:
            if not needs_main(content):
                self._content = content
                return False
            why = "the teacher's class is in the script or notebook itself, not in a module"
        return self._stay(why)

    def _stay(self, why: str) -> bool:
        _log.info("students are evaluated in this process, so a crash in native code would end it: %s", why)
        self._count = 0
        return True

    def _in_this_process(self, architecture: Architecture) -> Evaluation:
        """Evaluate here, unless this process ended again and again while it did so."""
        known = self._retries.known_crashes(architecture)
        if known is not None:
            return known
        with self._retries.journal.begun(architecture.digest) as before:
            return self._here_safely(architecture) if before < _ENDED_HERE else self._apart(architecture, before)

    def _here_safely(self, architecture: Architecture) -> Evaluation:
        attempt = Attempt(0, architecture)
        while True:
            try:
                return self._here(architecture)
            except (MachineError, DataError) as error:
                if (gave_up := self._after(attempt, error)) is not None:
                    return gave_up

    def _apart(self, architecture: Architecture, begun: int) -> Evaluation:
        """Evaluate in a process of its own; where that cannot be, here, as what was killed is not at fault."""
        try:
            self._content = pickled(self._evaluate)
        except RunError:
            self._content = None
        if self._content is None or needs_main(self._content) or current_process().daemon:
            return self._here_safely(architecture)
        self._retries.tell(
            f"student {architecture.digest} is evaluated in a process of its own: the process that evaluated it ended "
            f"{begun} times before it was done"
        )
        try:
            return self._in_workers([architecture], lambda _: None)[0]
        finally:
            self.close()

    def _in_workers(
        self, architectures: Sequence[Architecture], on_done: Callable[[Evaluation], object]
    ) -> list[Evaluation]:
        waiting = deque(Attempt(number, architecture) for number, architecture in enumerate(architectures))
        alone: deque[Attempt] = deque()  # what the machine failed at
        done: dict[int, Evaluation] = {}

        def finish(attempt: Attempt, evaluation: Evaluation) -> None:
            # The architecture came back as a copy, with a copy of the whole Space.
            done[attempt.number] = _told(replace(evaluation, architecture=attempt.architecture), on_done)

        while len(done) < len(architectures):
            self._hand_out(waiting, alone, finish)
            for worker in self._first_to_answer():
                attempt, seconds = worker.attempt, worker.busy_for
                assert attempt is not None
                try:
                    evaluation = self._answer_of(worker)
                except (MachineError, DataError) as error:
                    self.processes.remove(worker)
                    worker.stop()
                    worker.end()
                    gave_up = self._after(attempt, error)
                    if gave_up is None:
                        alone.append(attempt)
                    else:
                        finish(attempt, gave_up)
                else:
                    self._lost = 0
                    self._retries.took([seconds] * (evaluation.status == "ok"))
                    finish(attempt, evaluation)
        return [done[number] for number in range(len(architectures))]

    def _hand_out(
        self,
        waiting: deque[Attempt],
        alone: deque[Attempt],
        finish: Callable[[Attempt, Evaluation], object],
    ) -> None:
        """Give every idle worker something to do; what is to run alone comes last, in a new process."""
        self.processes = [worker for worker in self.processes if worker.process.is_alive() or not worker.idle]
        for attempt in list(waiting):  # known from another day
            known = self._retries.known_crashes(attempt.architecture)
            if known is not None:
                waiting.remove(attempt)
                finish(attempt, known)
        if not waiting and alone and all(worker.idle for worker in self.processes):
            self.close()  # idle processes hold memory, too
            for worker in self._start(1):
                worker.give(alone.popleft())
            return
        idle = [worker for worker in self.processes if worker.idle]
        missing = min(max(self._count, 1) - len(self.processes), len(waiting) - len(idle))
        if missing > 0:
            idle += self._start(missing)
        for worker in idle[: len(waiting)]:
            worker.give(waiting.popleft())

    def _start(self, count: int) -> list[Worker]:
        """Return so many new workers, without those that were killed as they started.

        Raises:
            MachineError: too many in a row were.
        """
        assert self._content is not None
        started: list[Worker] = []
        for _ in range(count):
            started.append(Worker(import_main=needs_main(self._content)))
            self.processes.append(started[-1])
        for worker in tuple(started):  # they import torch at the same time
            try:
                worker.load(self._content)
            except MachineError as error:
                started.remove(worker)
                self.processes.remove(worker)
                self._lose(error)
        return started

    def _lose(self, error: MachineError) -> None:
        patience = self._retries.patience
        self._lost += 1
        if self._lost == patience.attempts:
            raise MachineError(f"a worker must be able to start, but {self._lost} in a row did not: {error}") from error
        self._retries.tell(f"a worker is started again: {error}")
        if self._lost == patience.attempts - 1:
            time.sleep(patience.pause)

    def _first_to_answer(self) -> list[Worker]:
        """Wait until at least one busy worker has answered, died or is late, and return those; none if none is busy."""
        busy = [worker for worker in self.processes if not worker.idle]
        while busy:
            ready = wait([worker.connection for worker in busy], timeout=_LOOK_EVERY)
            limit = self._retries.time_limit()
            found = [w for w in busy if w.connection in ready or (limit is not None and w.busy_for > limit)]
            if found:
                return found
            self._on_wait()
        return []

    def _answer_of(self, worker: Worker) -> Evaluation:
        """Return what a worker found.

        Raises:
            MachineError: it is late, or gone.
        """
        if not worker.connection.poll():
            raise self._retries.late(worker.busy_for)
        return worker.answer()

    def _after(self, attempt: Attempt, error: MachineError | DataError) -> Evaluation | None:
        """Return None if it is to be tried again, the last time after a pause; else the failed evaluation."""
        gave_up = self._retries.after(attempt, error)
        if gave_up is None and self._retries.is_last(attempt):
            time.sleep(self._retries.patience.pause)
        return gave_up


def _told(evaluation: Evaluation, on_done: Callable[[Evaluation], object]) -> Evaluation:
    on_done(evaluation)
    return evaluation
