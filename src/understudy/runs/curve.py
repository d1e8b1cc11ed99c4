"""How the training of a final student went, epoch by epoch: NAME.curve beside its weights, a line each. No torch."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from understudy.core.errors import DamageError
from understudy.core.files import read_text, understood, write_whole


@dataclass(frozen=True, kw_only=True)
class Epoch:
    """A student after an epoch."""

    epoch: int  # from 1
    loss: float  # in the mean over the epoch
    score: float  # on up to 1,000 validation examples, 0..1


def add_epoch(path: Path, epoch: Epoch) -> None:
    """Add an epoch to a curve; those from it on, of a training that was interrupted, are replaced."""
    known = [each for each in read_curve(path) if each.epoch < epoch.epoch] if path.is_file() else []
    write_whole(path, "".join(f"{json.dumps(asdict(each))}\n" for each in (*known, epoch)))


def read_curve(path: Path) -> tuple[Epoch, ...]:
    """Return a curve.

    Raises:
        RunError: the file is damaged.
    """
    text = read_text(path, DamageError)
    with understood(path, DamageError):
        return tuple(Epoch(**json.loads(line)) for line in text.splitlines())
