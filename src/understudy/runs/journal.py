"""What a run remembers of crashes, so that the same student does not end it again. No torch."""

from __future__ import annotations

import json
from pathlib import Path

from understudy.core.errors import DamageError
from understudy.core.files import read_json, write_whole


class Journal:
    """Crashes by name, and evaluations begun in the driver's own process, which a crash of it leaves unfinished.

    A kill of the whole run leaves no crash behind, only a beginning; so it changes no result.

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

    def crashed(self, name: str, reason: str) -> int:
        """Note a crash; return how many there were under that name."""
        reasons = self._crashes.setdefault(self._prefix + name, [])
        reasons.append(reason)
        self._write()
        return len(reasons)

    def crashes(self, name: str) -> list[str]:
        """Return the reasons of all crashes under that name, the first one first."""
        return list(self._crashes.get(self._prefix + name, ()))

    def begin(self, name: str) -> int:
        """Note that an evaluation begins in this process; return how often it began before and did not end."""
        before = self._begun.get(self._prefix + name, 0)
        self._begun[self._prefix + name] = before + 1
        self._write()
        return before

    def end(self, name: str) -> None:
        """Note that it ended, well or not."""
        self._begun.pop(self._prefix + name, None)
        self._write()

    def _write(self) -> None:
        if self._path is None:
            return
        if not self._crashes and not self._begun:
            self._path.unlink(missing_ok=True)
        else:
            known = {"crashes": self._crashes, "begun": self._begun}
            write_whole(self._path, json.dumps(known, indent=1) + "\n")
