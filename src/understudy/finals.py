"""The training of the best students to convergence."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from understudy.architecture import Architecture
from understudy.config import Final
from understudy.evaluation import Evaluation
from understudy.evaluator import Evaluator
from understudy.files import write_whole
from understudy.models import save_weights
from understudy.train import Progress


@dataclass(frozen=True, kw_only=True)
class Finisher:
    """Trains a student to convergence, or loads what it trained before. Picklable, as an Evaluator is.

    Leaves NAME.safetensors and, once it is complete, NAME.json in `folder`; NAME is the architecture's
    digest. In between NAME.checkpoint.pt holds the state of every epoch.
    """

    evaluator: Evaluator
    final: Final
    folder: Path
    on_epoch: Callable[[Progress], object] | None = None  # only within one process

    def __call__(self, architecture: Architecture) -> Evaluation:
        """Return the evaluation of the trained student."""
        place = self.folder / f"{architecture.digest}.json"
        if place.is_file():
            return Evaluation.from_json(architecture.space, place.read_text(encoding="utf-8"))
        checkpoint = place.with_suffix(".checkpoint.pt")
        told = self.on_epoch or (lambda progress: None)
        evaluation, student = self.evaluator.finish(architecture, self.final, checkpoint=checkpoint, on_epoch=told)
        if student is not None:
            save_weights(place.with_suffix(".safetensors"), student)
        write_whole(place, evaluation.to_json())
        checkpoint.unlink(missing_ok=True)
        return evaluation
