"""One process that evaluates, seen from both of its ends. No torch of its own.

Processes are spawned, not forked, because torch's threads and CUDA do not survive a fork.
"""

from __future__ import annotations

import gc
import io
import multiprocessing
import os
import pickle
import signal
import sys
import threading
import time
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection, wait
from typing import Any

from understudy.core.architecture import Architecture
from understudy.core.errors import CrashError, MachineError, RunError
from understudy.core.evaluation import Evaluation
from understudy.runs.workers.packing import portable
from understudy.runs.workers.retries import Attempt

Evaluate = Callable[[Architecture], Evaluation]

_NO_GUARD = 86  # exit code of a worker that came back to the script's call for workers
_GUARD = (
    "a script that defines the teacher's class itself and uses workers > 1 must make its calls below "
    '`if __name__ == "__main__":`'
)
_PATIENCE = 5.0  # seconds until a process that does not end by itself is ended
_MAIN = b"__main__"
_ENDED_FROM_OUTSIDE = ("SIGKILL", "SIGTERM", "SIGHUP", "SIGINT", "SIGQUIT", "SIGXCPU")


def refuse_reimport() -> None:
    """End this process if it is a worker that imports the user's script, and came to its call again.

    Spawned processes import the script that started them. Call it before anything that costs time or
    writes; the driver then says what the script lacks.
    """
    if getattr(multiprocessing.current_process(), "_inheriting", False):
        raise SystemExit(_NO_GUARD)


def pickled(evaluate: Evaluate, *, most: int | None = None) -> bytes:
    """Return the evaluator as bytes, its tensors as copies.

    Multiprocessing's own pickles would share the memory of the teacher and of the data between processes.

    Raises:
        RunError: it cannot be pickled, or takes more than `most` bytes.
    """
    content = _Bounded(most)
    with _picklable():
        pickle.dump(evaluate, content, protocol=pickle.HIGHEST_PROTOCOL)
    return content.getvalue()


def needs_main(content: bytes) -> bool:
    """Return whether what was pickled may be of the user's script, which a process would have to import first."""
    return _MAIN in content


def refuse_unsendable(value: Any) -> None:
    """Refuse what workers could not get, before anything is trained; tensors, which they can, are left out here.

    Raises:
        RunError: it cannot be pickled, or needs a script that is in no file.
    """
    content = io.BytesIO()
    with _picklable():
        _Outline(content, protocol=pickle.HIGHEST_PROTOCOL).dump(value)
    refuse_stdin(content.getvalue())


def refuse_stdin(content: bytes) -> None:
    """Refuse what needs the user's script where that is in no file, as what Python reads from standard input.

    Raises:
        RunError: it does.
    """
    script = getattr(sys.modules["__main__"], "__file__", None)
    if not needs_main(content) or (script is not None and os.path.isfile(script)):
        return
    found = "it was typed in, as into a notebook" if script is None else f"its script is {script}"
    raise RunError(
        f"with workers > 1 the teacher's class must be in a file that can be imported, but {found}; "
        "save it as a file, or use workers=1"
    )


class Worker:
    """One process, seen from the driver.

    Raises:
        RunError: the system starts no process.
    """

    def __init__(self, *, import_main: bool) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.attempt: Attempt | None = None
        self._since = 0.0
        self._loaded = False
        self.process = context.Process(target=_serve, args=(theirs,), daemon=True)
        try:
            with _main_kept(import_main):
                self.process.start()
        except OSError as error:
            raise RunError(f"a worker must be able to start, but the system refuses: {error}") from error
        theirs.close()

    @property
    def idle(self) -> bool:
        """Whether it has nothing to do."""
        return self.attempt is None

    @property
    def busy_for(self) -> float:
        """Seconds since it was given what it does."""
        return time.monotonic() - self._since

    def load(self, content: bytes) -> None:
        """Send the evaluator and wait until it is there.

        Raises:
            RunError: the process cannot start, or cannot import what it needs.
            MachineError: it was ended from outside.
        """
        try:
            self.connection.send_bytes(content)
            problem = self.connection.recv()
        except (EOFError, OSError):
            end = self.end()
            if self._was_killed:
                raise self._death() from None
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
        self._loaded = True

    def give(self, attempt: Attempt) -> None:
        """Send an architecture; if the process is gone, `answer` will tell."""
        self.attempt, self._since = attempt, time.monotonic()
        with suppress(OSError):
            self.connection.send(attempt.architecture)

    def answer(self) -> Evaluation:
        """Return the evaluation of what it was given; raise what it raised.

        Raises:
            MachineError: the process was ended from outside; a CrashError if it crashed.
        """
        try:
            answer = self.connection.recv()
        except (EOFError, OSError):
            raise self._death() from None
        self.attempt = None
        if isinstance(answer, Exception):
            raise answer
        assert isinstance(answer, Evaluation)
        return answer

    def stop(self) -> None:
        """Ask it to end if it is idle, and end it if it is busy or not there yet."""
        if not self.idle or not self._loaded:
            self.process.kill()
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

    @property
    def _was_killed(self) -> bool:
        code = self.process.exitcode or 0
        return code < 0 and signal.Signals(-code).name in _ENDED_FROM_OUTSIDE

    def _death(self) -> MachineError:
        end = self.end()
        return (MachineError if self._was_killed else CrashError)(f"the worker process {end}")


class _Outline(pickle.Pickler):
    """What a pickle is made of, without the numbers in it."""

    def persistent_id(self, obj: Any) -> str | None:
        torch = sys.modules.get("torch")
        return "tensor" if torch is not None and type(obj) in (torch.Tensor, torch.nn.Parameter) else None


class _Bounded(io.BytesIO):
    """Bytes that are refused once they are too many."""

    def __init__(self, most: int | None) -> None:
        super().__init__()
        self._most = most

    def write(self, content: bytes | memoryview) -> int:  # type: ignore[override]
        size = memoryview(content).nbytes
        if self._most is not None and self.tell() + size > self._most:
            raise RunError(f"what a worker gets must be at most {self._most / 1e6:.0f} MB, but it is more")
        return super().write(content)


@contextmanager
def _picklable() -> Iterator[None]:
    try:
        yield
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise RunError(
            f"with workers > 1 the teacher must be picklable, its class at the top level of a module, "
            f"but it is not: {error}; or use workers=1"
        ) from error


@contextmanager
def _main_kept(kept: bool) -> Iterator[None]:
    """Unless it is kept, let a process start inside that does not import the user's script."""
    main = sys.modules["__main__"]
    if not kept:
        sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


def _serve(connection: Connection) -> None:
    """Evaluate what comes, in a worker process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the driver ends its workers
    threading.Thread(target=_end_with_parent, daemon=True).start()
    with suppress(EOFError, OSError):  # the driver is gone, or has given up
        try:
            gc.disable()  # torch is imported here and stays; to look through it again and again takes its time
            evaluate = pickle.loads(connection.recv_bytes())
            gc.freeze()
            gc.enable()
        except Exception as error:
            connection.send(portable(error, "In a worker process"))
            return
        connection.send(None)
        while (architecture := connection.recv()) is not None:
            connection.send(_answer(evaluate, architecture))


def _answer(evaluate: Evaluate, architecture: Architecture) -> Evaluation | Exception:
    try:
        return evaluate(architecture)
    except Exception as error:
        return portable(error, "In a worker process")


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)
