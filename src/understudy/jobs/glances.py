"""Looks at untrained students, each taken once for a run."""

from __future__ import annotations

from collections.abc import Callable

from understudy.core.architecture import Architecture
from understudy.core.errors import DamageError
from understudy.core.files import understood
from understudy.methods.base import Glance
from understudy.runs.folder import Run

_FILE = "glances"
_TOLD = 100  # looks between two lines of progress


class Glances:
    """A `Glance` that remembers in the run's folder what it saw, so that a continued run goes on where it was."""

    def __init__(self, run: Run, glance: Glance, say: Callable[[str], object]) -> None:
        self._run, self._glance, self._say = run, glance, say
        known = run.recall(_FILE) or {}
        with understood(run.folder / f"{_FILE}.json", DamageError):
            self._known = {str(digest): float(error) for digest, error in known.items()}

    def __call__(self, architecture: Architecture) -> float:
        """Return how far an untrained student is from the teacher."""
        if architecture.digest not in self._known:
            self._known[architecture.digest] = self._glance(architecture)
            self._run.remember(_FILE, self._known)
            if len(self._known) % _TOLD == 0:
                self._say(f"{len(self._known)} untrained students looked at")
        return self._known[architecture.digest]
