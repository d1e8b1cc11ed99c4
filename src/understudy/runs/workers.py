"""Where evaluations run: in this process, or in a pool of processes on this machine. No torch of its own.

Results depend neither on the number of workers nor on who finishes first. Processes are spawned, not
forked, because torch's threads and CUDA do not survive a fork.
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import threading
import traceback
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from multiprocessing.connection import Connection, wait

from understudy.core.architecture import Architecture
from understudy.core.errors import RunError
from understudy.core.evaluation import Evaluation

Evaluate = Callable[[Architecture], Evaluation]

_NO_GUARD = 86  # exit code of a worker that came back to the script's call for workers
_GUARD = 'a script that uses workers > 1 must make its calls below `if __name__ == "__main__":`'
_LOOK_EVERY = 1.0  # seconds between two calls of `on_wait`
_PATIENCE = 5.0  # seconds until a worker that does not end by itself is ended


class Pool:
    """Evaluates architectures, `workers` of them at the same time.

    With one worker everything happens in this process. With more, each worker is a process that gets
    `evaluate` once, when it is first needed, and lives until `close`. A worker that dies, say because
    memory ran out, gives a failed evaluation of what it was evaluating, and is replaced. Workers end
    with this process, however it ends. Use it in a `with` statement.

    Args:
        evaluate: gives the evaluation of an architecture; it can be pickled if there are several workers.
        failed: gives the failed evaluation of an architecture, for the reason given.
        workers: how many.
        on_wait: called every second or so while workers are busy.
    """

    def __init__(
        self,
        evaluate: Evaluate,
        *,
        failed: Callable[[Architecture, str], Evaluation],
        workers: int = 1,
        on_wait: Callable[[], object] = lambda: None,
    ) -> None:
        self._evaluate = evaluate
        self._failed = failed
        self._count = workers
        self._on_wait = on_wait
        self._workers: list[_Worker] = []

    def evaluate_all(
        self, architectures: Sequence[Architecture], *, on_done: Callable[[Evaluation], object] = lambda _: None
    ) -> list[Evaluation]:
        """Return the evaluation of each architecture, in their order.

        `on_done` is called in this process with each evaluation as it is finished. What `evaluate`
        raises is raised here.

        Raises:
            RunError: workers cannot be started.
        """
        if self._count == 1:
            return [_told(self._evaluate(architecture), on_done) for architecture in architectures]
        try:
            return self._in_workers(architectures, on_done)
        except BaseException:  # what is still being evaluated must not answer the next call
            self.close()
            raise

    def close(self) -> None:
        """End all workers; what they are evaluating is given up."""
        for worker in self._workers:
            worker.stop()
        for worker in self._workers:
            worker.end()
        self._workers.clear()

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _in_workers(
        self, architectures: Sequence[Architecture], on_done: Callable[[Evaluation], object]
    ) -> list[Evaluation]:
        waiting = deque(enumerate(architectures))
        done: dict[int, Evaluation] = {}
        while len(done) < len(architectures):
            self._hand_out(waiting)
            for worker in _first_to_answer(self._workers, self._on_wait):
                number, architecture = worker.task()
                evaluation = worker.answer()
                if evaluation is None:
                    self._workers.remove(worker)
                    evaluation = self._failed(architecture, f"the worker process {worker.end()}")
                # The architecture came back as a copy, with a copy of the whole Space.
                done[number] = _told(replace(evaluation, architecture=architecture), on_done)
        return [done[number] for number in range(len(architectures))]

    def _hand_out(self, waiting: deque[tuple[int, Architecture]]) -> None:
        """Give every idle worker something to do, and start those that are missing."""
        self._workers = [worker for worker in self._workers if worker.process.is_alive() or not worker.idle]
        idle = [worker for worker in self._workers if worker.idle]
        missing = min(self._count - len(self._workers), len(waiting) - len(idle))
        if missing > 0:
            idle += self._start(missing)
        for worker in idle[: len(waiting)]:
            worker.give(*waiting.popleft())

    def _start(self, count: int) -> list[_Worker]:
        refuse_reimport()
        # Plain pickle, which copies tensors: multiprocessing's own would share the memory of the teacher and
        # of the data between processes.
        try:
            pickled = pickle.dumps(self._evaluate, protocol=pickle.HIGHEST_PROTOCOL)
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            raise RunError(
                f"with workers > 1 the teacher must be picklable, its class at the top level of a module, "
                f"but it is not: {error}; or use workers=1"
            ) from error
        started: list[_Worker] = []
        for _ in range(count):
            started.append(_Worker())
            self._workers.append(started[-1])
        for worker in started:  # they import torch at the same time
            worker.load(pickled)
        return started


def refuse_reimport() -> None:
    """End this process if it is a worker that imports the user's script, and came to its call again.

    Spawned processes import the script that started them. Call it before anything that costs time or
    writes; the driver then says what the script lacks.
    """
    if getattr(multiprocessing.current_process(), "_inheriting", False):
        raise SystemExit(_NO_GUARD)


class _Worker:
    """One process, seen from the driver."""

    def __init__(self) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self._task: tuple[int, Architecture] | None = None
        self.process = context.Process(target=_serve, args=(theirs,), daemon=True)
        try:
            self.process.start()
        except OSError as error:
            raise RunError(f"a worker must be able to start, but the system refuses: {error}") from error
        theirs.close()

    @property
    def idle(self) -> bool:
        return self._task is None

    def load(self, pickled: bytes) -> None:
        """Send the evaluator and wait until it is there."""
        try:
            self.connection.send_bytes(pickled)
            problem = self.connection.recv()
        except (EOFError, OSError):
            end = self.end()
            if self.process.exitcode == _NO_GUARD:
                raise RunError(f"{_GUARD}, but this one has no such line") from None
            raise RunError(
                f"a worker must be able to start, but it {end}; its own error stands above. Note: {_GUARD}"
            ) from None
        if isinstance(problem, (ImportError, AttributeError)):
            raise RunError(
                f"with workers > 1 the teacher's class must be in a module that can be imported, but: {problem}; "
                "or use workers=1"
            ) from problem
        if problem is not None:
            raise problem

    def give(self, number: int, architecture: Architecture) -> None:
        """Send an architecture; if the worker is gone, `answer` will tell."""
        self._task = (number, architecture)
        with suppress(OSError):
            self.connection.send(architecture)

    def task(self) -> tuple[int, Architecture]:
        """Return what it was given."""
        assert self._task is not None
        return self._task

    def answer(self) -> Evaluation | None:
        """Return the evaluation of what it was given, None if the worker died over it; raise what it raised."""
        try:
            answer = self.connection.recv()
        except (EOFError, OSError):
            return None
        self._task = None
        if isinstance(answer, Exception):
            raise answer
        assert isinstance(answer, Evaluation)
        return answer

    def stop(self) -> None:
        """Ask an idle worker to end, and end a busy one."""
        if not self.idle:
            self.process.terminate()
            return
        with suppress(OSError):
            self.connection.send(None)

    def end(self) -> str:
        """Make sure that the process is gone and say how it ended."""
        self.connection.close()
        self.process.join(_PATIENCE)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()
        code = self.process.exitcode or 0
        if code >= 0:
            return f"ended with exit code {code}"
        name = signal.Signals(-code).name
        return f"was ended by {name}" + (" (memory ran out?)" if name == "SIGKILL" else "")


def _first_to_answer(workers: list[_Worker], on_wait: Callable[[], object]) -> list[_Worker]:
    """Wait until at least one busy worker has answered or died, and return those."""
    busy = [worker for worker in workers if not worker.idle]
    while not (ready := wait([worker.connection for worker in busy], timeout=_LOOK_EVERY)):
        on_wait()
    return [worker for worker in busy if worker.connection in ready]


def _told(evaluation: Evaluation, on_done: Callable[[Evaluation], object]) -> Evaluation:
    on_done(evaluation)
    return evaluation


def _serve(connection: Connection) -> None:
    """Evaluate what comes, in a worker process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the driver ends its workers
    threading.Thread(target=_end_with_parent, daemon=True).start()
    with suppress(EOFError, OSError):  # the driver is gone, or has given up
        try:
            evaluate = pickle.loads(connection.recv_bytes())
        except Exception as error:
            connection.send(_portable(error))
            return
        connection.send(None)
        while (architecture := connection.recv()) is not None:
            connection.send(_answer(evaluate, architecture))


def _answer(evaluate: Evaluate, architecture: Architecture) -> Evaluation | Exception:
    try:
        return evaluate(architecture)
    except Exception as error:
        return _portable(error)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)


def _portable(error: Exception) -> Exception:
    """Return the error with its traceback as a note, in a form that survives the way to the driver."""
    error.add_note("In a worker process:\n" + traceback.format_exc())
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # whatever a foreign class does when it is pickled
        substitute = RuntimeError(f"{type(error).__name__}: {error}")
        substitute.add_note(error.__notes__[-1])
        return substitute
    return error
