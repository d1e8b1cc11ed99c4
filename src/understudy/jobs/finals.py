"""The training of the best students to convergence."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from understudy.config.training import Final
from understudy.core.architecture import Architecture, Space
from understudy.core.errors import DamageError, ModelError, RunError
from understudy.core.evaluation import Evaluation
from understudy.core.files import read_text, understood, write_whole
from understudy.models.weights import load_kept, save_weights
from understudy.report.progress import Display, Finals
from understudy.runs.curve import Epoch, add_epoch, read_curve
from understudy.runs.workers.base import Workers
from understudy.training.evaluator import Evaluator
from understudy.training.loop import Progress

_LOOK_EVERY = 1.0  # seconds


@dataclass(frozen=True, kw_only=True)
class Finisher:
    """Trains a student to convergence, or loads what it trained before. Picklable, as an Evaluator is.

    Leaves NAME.safetensors and, once it is complete, NAME.json in `folder`; NAME is the architecture's
    digest. In between NAME.checkpoint.pt holds the state of every epoch, and NAME.epoch how many are
    done, with the part of the present one, for those who watch; NAME.curve is how it went.
    """

    evaluator: Evaluator
    final: Final
    folder: Path
    on_look: Callable[[], object] | None = None  # called every second or so, only within one process

    def __call__(self, architecture: Architecture) -> Evaluation:
        """Return the evaluation of the trained student."""
        place = self.folder / f"{architecture.digest}.json"
        checkpoint, epoch = place.with_suffix(".checkpoint.pt"), place.with_suffix(".epoch")
        found = finished_before(self.folder, architecture.digest, architecture.space)
        if found is None:
            found = self._trained(architecture, place, checkpoint, epoch)
        # Also of a student whose process was killed once it was complete.
        checkpoint.unlink(missing_ok=True)
        epoch.unlink(missing_ok=True)
        return found

    def _trained(self, architecture: Architecture, place: Path, checkpoint: Path, epoch: Path) -> Evaluation:
        last = 0.0

        def told(done: float) -> None:
            nonlocal last
            if done != int(done) and time.monotonic() - last < _LOOK_EVERY:
                return
            last = time.monotonic()
            write_whole(epoch, f"{done:.4f}")
            if self.on_look is not None:
                self.on_look()

        def noted(progress: Progress, score: float) -> None:
            found = Epoch(epoch=progress.epoch, loss=progress.loss, score=score)
            add_epoch(place.with_suffix(".curve"), found)

        how: dict[str, Any] = {"checkpoint": checkpoint, "on_part": told, "on_epoch": noted}
        evaluation, student = self.evaluator.finish(architecture, self.final, **how)
        if student is not None:
            save_weights(place.with_suffix(".safetensors"), student)
        write_whole(place, evaluation.to_json())
        return evaluation

    @property
    def places(self) -> dict[str, Path]:
        """The folders that it reads and writes, by name."""
        return {**self.evaluator.places, "students": self.folder}

    def moved(self, places: Mapping[str, Path]) -> Finisher:
        """Return the same with its folders elsewhere, as on another machine."""
        return replace(self, evaluator=self.evaluator.moved(places), folder=places["students"], on_look=None)

    def epochs_done(self, architectures: Sequence[Architecture]) -> float:
        """Return how many epochs of these students are done, whoever trains them; all of a finished one's."""
        return sum(self._epochs_done(architecture.digest) for architecture in architectures)

    def _epochs_done(self, name: str) -> float:
        if (self.folder / f"{name}.json").is_file():
            return self.final.training.epochs
        try:
            return float((self.folder / f"{name}.epoch").read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):  # it is there to be looked at only
            return 0


def looking(finisher: Finisher, chosen: Sequence[Architecture], display: Display) -> Callable[[], None]:
    """Return what shows how far students are, whoever trains them, and gives their new epochs to the display's log."""
    told: dict[str, int] = {}

    def look() -> None:
        display.step(finisher.epochs_done(chosen))
        for path in sorted(finisher.folder.glob("*.curve")) if display.log is not None else ():
            for epoch in read_curve(path)[told.get(path.stem, 0) :]:
                told[path.stem] = epoch.epoch
                numbers = {"loss": epoch.loss, "score": epoch.score}
                display.numbers({f"final/{path.stem[:8]}/{n}": value for n, value in numbers.items()}, epoch.epoch)

    return look


def trained_to_the_end(
    finisher: Finisher,
    chosen: Sequence[Architecture],
    pool: Workers,
    *,
    display: Display,
    after: Finals,
    tell: Callable[[Evaluation], object],
) -> list[Evaluation]:
    """Return the evaluations of students that a pool of workers trains to convergence.

    Args:
        finisher: what the workers run.
        chosen: the students.
        pool: of workers; it is opened and closed.
        display: shows how far they are.
        after: what the training is expected to take.
        tell: called with each that is finished.
    """
    recipe, epochs = finisher.evaluator.final_recipe(finisher.final), finisher.final.training.epochs
    if recipe.logits is not None:
        with display.steps("teacher logits for the final training", epochs, unit="epochs", after=after):
            recipe.logits.prepare(epochs, on_part=display.step)
    with pool, display.steps(f"training {len(chosen)} final students", len(chosen) * epochs, unit="epochs"):
        return pool.evaluate_all(chosen, on_done=tell)


def finished_before(folder: Path, name: str, space: Space) -> Evaluation | None:
    """Return the evaluation of a final student, None if it has not been trained or its weights are gone.

    Raises:
        RunError: the file is damaged.
    """
    place = folder / f"{name}.json"
    if not place.is_file():
        return None
    text = read_text(place, DamageError)
    with understood(place, DamageError):
        found = Evaluation.from_json(space, text)
    return found if found.status == "failed" or place.with_suffix(".safetensors").is_file() else None


def read_winner(folder: Path, name: str, space: Space) -> Evaluation:
    """Return the evaluation of a final student that a summary names.

    Raises:
        RunError: the file is damaged, or the student is gone.
    """
    found = finished_before(folder, name, space)
    if found is None:
        raise RunError(
            f"a finished run must have its student, but there is no {folder / name}.json and .safetensors; move "
            f"{folder.with_name('summary.json')} away as well, and the same call or command trains it again"
        )
    return found


def read_student(folder: Path, architecture: Architecture, build: Callable[[Architecture], nn.Module]) -> nn.Module:
    """Return a final student, built and with its weights, in evaluation mode.

    Raises:
        RunError: its weights are damaged.
    """
    weights, student = folder / f"{architecture.digest}.safetensors", build(architecture)
    try:
        load_kept(student, weights)
    except ModelError as error:
        raise DamageError(str(error)) from error
    return student.eval()
