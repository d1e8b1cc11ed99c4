"""What follows when an evaluation fails because of the machine, wherever it runs. No torch."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from statistics import median

from understudy.core.architecture import Architecture
from understudy.core.errors import CrashError, DataError, MachineError, UnderstudyError
from understudy.core.evaluation import Evaluation
from understudy.runs.journal import Journal

_log = logging.getLogger("understudy")


@dataclass(frozen=True, kw_only=True)
class Patience:
    """How often and how long something is tried."""

    attempts: int = 3  # at what the machine failed at; all but the first with no other worker beside it
    crashes: int = 2  # in native code, after which the architecture is at fault
    times: float = 20.0  # an evaluation may take, of the median of earlier ones
    at_least: float = 600.0  # seconds that it may always take
    pause: float = 10.0  # seconds before the last attempt, in which others may free memory


@dataclass
class Attempt:
    """An architecture to evaluate, and how often the machine failed at it."""

    number: int
    architecture: Architecture
    failures: int = 0


@dataclass(kw_only=True)
class Retries:
    """Decides what follows from a failure of the machine; the same for every place where evaluations run."""

    failed: Callable[[Architecture, str], Evaluation]
    tell: Callable[[str], object] = _log.warning
    journal: Journal = field(default_factory=Journal)
    seconds: list[float] = field(default_factory=list)  # what earlier evaluations took
    patience: Patience = field(default_factory=Patience)

    def known_crashes(self, architecture: Architecture) -> Evaluation | None:
        """Return the failed evaluation of a student that crashed too often before, None of any other."""
        if len(self.journal.crashes(architecture.digest)) < self.patience.crashes:
            return None
        return self.at_fault(architecture)

    def time_limit(self) -> float | None:
        """Return how many seconds an evaluation may take; None while none is known."""
        if not self.seconds:
            return None
        return max(self.patience.at_least, self.patience.times * median(self.seconds))

    def late(self, seconds: float) -> MachineError:
        """Return the error of an evaluation that takes longer than it may."""
        return MachineError(f"it was not done after {seconds:.0f} s, where others took {median(self.seconds):.0f} s")

    def after(self, attempt: Attempt, error: UnderstudyError) -> Evaluation | None:
        """Note a failure of the machine; return None if it is to be tried again, else the failed evaluation.

        Raises:
            MachineError, DataError: it was tried often enough.
        """
        name = attempt.architecture.digest
        if isinstance(error, CrashError):
            if self.journal.crashed(name, str(error)) >= self.patience.crashes:
                return self.at_fault(attempt.architecture)
        else:
            attempt.failures += 1
        if attempt.failures >= self.patience.attempts:
            if isinstance(error, DataError):
                raise error
            raise MachineError(
                f"student {name} could not be evaluated in {self.patience.attempts} attempts, the last one alone: "
                f"{error}. This is a failure of the machine, so it is not held against the student"
            ) from error
        self.tell(f"student {name} is tried again, alone, because the machine failed: {error}")
        return None

    def is_last(self, attempt: Attempt) -> bool:
        """Return whether only one attempt is left."""
        return attempt.failures == self.patience.attempts - 1

    def took(self, seconds: Sequence[float]) -> None:
        """Note what evaluations took that went well."""
        self.seconds += seconds

    def at_fault(self, architecture: Architecture) -> Evaluation:
        """Return the failed evaluation of a student that is at fault itself, for its crashes."""
        crashes = self.journal.crashes(architecture.digest)
        reason = f"{crashes[-1]}, {len(crashes)} times"
        self.tell(f"student {architecture.digest} failed: {reason}")
        return self.failed(architecture, reason)
