"""What a run remembers of crashes, so that the same student does not end it again. No torch."""

from __future__ import annotations

import faulthandler
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from understudy.core.errors import DamageError
from understudy.core.files import read_json, write_json


class Journal:
    """Crashes by name, and evaluations begun in the driver's own process, which its end leaves unfinished.

    A crash of the driver's own process is known by what Python's faulthandler writes beside the file as native code
    fails. A kill of the whole run leaves no crash behind, only a beginning; so it changes no result.

    Args:
        path: its file; None to remember while this lives only.
        prefix: of all names, such as "search"; one file serves several journals.

    Raises:
        RunError: the file is damaged.
    """

    def __init__(self, path: Path | None = None, prefix: str = "") -> None:
        self._path, self._prefix = path, prefix
        self._crashes: dict[str, list[str]] = {}
        self._begun: dict[str, int] = {}
        if path is not None and path.is_file():
            known = read_json(path, DamageError)
            try:
                self._crashes = {name: list(map(str, reasons)) for name, reasons in known["crashes"].items()}
                self._begun = {name: int(times) for name, times in known["begun"].items()}
            except (KeyError, AttributeError, TypeError, ValueError) as error:
                raise DamageError(f"{path} must hold crashes by name, but is damaged") from error
        if path is not None and _trace(path).is_file():
            self._read(_trace(path))

    def crashed(self, name: str, reason: str) -> int:
        """Note a crash; return how many there were under that name."""
        reasons = self._crashes.setdefault(self._prefix + name, [])
        reasons.append(reason)
        self._write()
        return len(reasons)

    def crashes(self, name: str) -> list[str]:
        """Return the reasons of all crashes under that name, the first one first."""
        return list(self._crashes.get(self._prefix + name, ()))

    @contextmanager
    def begun(self, name: str) -> Iterator[int]:
        """Note that an evaluation begins in this process, and that it ends, however it does while the process lives.

        Gives how often it began before and the process ended.
        """
        name = self._prefix + name
        before = self._begun.get(name, 0)
        self._begun[name] = before + 1
        self._write()
        try:
            with _traced(self._path):
                yield before
        finally:
            self._begun.pop(name, None)
            self._write()

    def _read(self, trace: Path) -> None:
        """Note what crashed this run's process: whatever had begun there."""
        first = trace.read_text(encoding="utf-8", errors="replace").partition("\n")[0]
        for name in self._begun if first else ():
            self._crashes.setdefault(name, []).append(f"the process ended with {first!r}")
        self._write()
        trace.unlink()

    def _write(self) -> None:
        if self._path is None:
            return
        if not self._crashes and not self._begun:
            self._path.unlink(missing_ok=True)
        else:
            write_json(self._path, {"crashes": self._crashes, "begun": self._begun})


def _trace(path: Path) -> Path:
    return path.with_suffix(".trace")


@contextmanager
def _traced(path: Path | None) -> Iterator[None]:
    """Let Python write down a crash of native code inside, unless it does so already for someone else."""
    if path is None or faulthandler.is_enabled():
        yield
        return
    with _trace(path).open("w", encoding="utf-8") as file:
        faulthandler.enable(file)
        try:
            yield
        finally:
            faulthandler.disable()
            _trace(path).unlink()
