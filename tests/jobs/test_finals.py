from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from understudy.config.training import Final, Training
from understudy.core.architecture import Architecture
from understudy.core.errors import RunError
from understudy.core.evaluation import Evaluation
from understudy.jobs.finals import Finisher
from understudy.runs.curve import Epoch, add_epoch, read_curve
from understudy.testing.landscapes import toy_evaluation, toy_space
from understudy.training.evaluator import Evaluator
from understudy.training.loop import Progress

SPACE = toy_space()
FIRST, SECOND = (SPACE.full.with_width(SPACE.groups[0].name, width) for width in (8, 16))
FINAL = Final(training=Training(epochs=4))


class Trainer(Evaluator):
    """An Evaluator that trains nothing; interrupted after `stop_after` epochs."""

    def __init__(self, stop_after: int = 99) -> None:
        self.__dict__.update(trained=[], stop_after=stop_after)

    def finish(
        self,
        architecture: Architecture,
        final: Final,
        *,
        checkpoint: Path,
        on_part: Callable[[float], object],
        on_epoch: Callable[[Progress, float], object],
    ) -> tuple[Evaluation, nn.Module]:
        self.trained.append(architecture)
        for epoch in range(1, final.training.epochs + 1):
            for part in (0.25, 0.5, 0.75, 1.0):
                on_part(epoch - 1 + part)
            epochs = final.training.epochs
            on_epoch(
                Progress(epoch=epoch, epochs=epochs, loss=1 / epoch, seconds=1.0, images_per_second=1.0), epoch / 10
            )
            if epoch == self.stop_after:
                raise KeyboardInterrupt
        return toy_evaluation(architecture), nn.Linear(2, 2)


def finisher(trainer: Trainer, folder: Path, **fields: Any) -> Finisher:
    return Finisher(evaluator=trainer, final=FINAL, folder=folder, **fields)


def test_what_was_trained_is_loaded(tmp_path: Path) -> None:
    trainer = Trainer()
    first = finisher(trainer, tmp_path)(FIRST)
    for kind in ("checkpoint.pt", "epoch"):  # of a process that was killed as it tidied up
        (tmp_path / f"{FIRST.digest}.{kind}").touch()
    assert finisher(trainer, tmp_path)(FIRST) == first
    assert trainer.trained == [FIRST]
    assert {path.suffix for path in tmp_path.iterdir()} == {".json", ".safetensors", ".curve"}


def test_epochs_are_counted_whoever_trains(tmp_path: Path) -> None:
    told: list[int] = []
    watcher = finisher(Trainer(), tmp_path)
    assert watcher.epochs_done([FIRST, SECOND]) == 0
    finisher(Trainer(), tmp_path, on_look=lambda: told.append(watcher.epochs_done([FIRST, SECOND])))(FIRST)
    with pytest.raises(KeyboardInterrupt):
        finisher(Trainer(stop_after=3), tmp_path)(SECOND)
    assert told == [0.25, 1, 2, 3, 4]  # within an epoch once a second, and at its end
    assert watcher.epochs_done([FIRST, SECOND]) == 7
    finisher(Trainer(), tmp_path)(SECOND)
    assert watcher.epochs_done([FIRST, SECOND]) == 8
    assert {path.suffix for path in tmp_path.iterdir()} == {".json", ".safetensors", ".curve"}


def test_how_it_went_is_kept(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        finisher(Trainer(stop_after=2), tmp_path)(FIRST)
    path = tmp_path / f"{FIRST.digest}.curve"
    assert [epoch.epoch for epoch in read_curve(path)] == [1, 2]
    finisher(Trainer(), tmp_path)(FIRST)
    assert read_curve(path) == tuple(Epoch(epoch=n, loss=1 / n, score=n / 10) for n in (1, 2, 3, 4))
    add_epoch(path, Epoch(epoch=3, loss=0.0, score=0.0))  # continued from the checkpoint of the second
    assert [epoch.loss for epoch in read_curve(path)] == [1.0, 0.5, 0.0]
    path.write_text("{}")
    with pytest.raises(RunError, match=r"\.curve must be as it was written, but is damaged"):
        read_curve(path)
