"""`understudy teach`. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from understudy.cli.common import Command, Sections, Subject, new_run, next_step, open_data, opened, out, parsed, trust
from understudy.config.training import Teaching
from understudy.core.errors import UnderstudyError

if TYPE_CHECKING:
    from understudy.data import Data
    from understudy.models.spec import Teacher


@dataclass(frozen=True, kw_only=True)
class Teach(Teaching, Subject, Command):
    """Train a teacher on labelled images and save it in a folder. Run it again to continue after an interruption.

    Examples:
      understudy teach model.py:make --data photos/ --out teachers/photos
      understudy teach zoo:resnet20 --data digits --out teachers/digits
    """

    out: Path
    """Folder for the weights and a JSON that describes them."""
    weights: Path | None = None
    """Weights to start from: safetensors, or a state dict of tensors. Default: random."""

    sections: ClassVar[Sections] = (
        ("Model and data", ("model", "data", "out", "weights", "arguments", "size", "grey")),
        (
            "Training",
            (
                *("training.epochs", "training.batch_size", "training.optimizer", "training.lr"),
                *("training.weight_decay", "training.label_smoothing", "augmentation.crop", "augmentation.flip"),
            ),
        ),
        ("Where it runs", ("device.device", "device.precision", "device.threads", "seed")),
    )

    def run(self, typed: Sequence[str]) -> int:
        """Train and print what came of it."""
        from understudy.core.figures import share
        from understudy.jobs.teach import teach
        from understudy.models.card import TeacherCard

        data = open_data(opened(self.data, self.size, self.grey))
        teaching = Teaching(**{f.name: getattr(self, f.name) for f in fields(Teaching)})
        teacher = teach(
            self.model, data, self.out, teaching=teaching, arguments=parsed(self.arguments), weights=self.weights
        )
        card = TeacherCard.read(self.out)
        out.print(
            f"{self.out}: {share(card.val)} on validation, {share(card.test)} on test, {card.seconds} s of training",
            soft_wrap=True,
        )
        goal = _goal(teacher, data)
        next_step("compress", str(self.out), *trust(self.out), *self.reading(), *goal, "--run", new_run())
        return 0


def _goal(teacher: Teacher, data: Data) -> list[str]:
    """Return a budget that students of the teacher can keep, as flags: 10x, or less if that is out of reach."""
    from understudy.config.methods import N2N
    from understudy.config.widths import Widths
    from understudy.cost.predict import predict
    from understudy.data.data import first_images
    from understudy.graph.analysis import analyse
    from understudy.methods.feasibility import smallest

    try:
        analysis = analyse(teacher.module, first_images(data, data.val, 2))
        _, least = smallest(analysis.space, N2N(), Widths(), lambda plan: predict(analysis, plan), "parameters")
    except UnderstudyError:  # compress will say it, with what to do
        return []
    most = predict(analysis, analysis.space.full).parameters / least.parameters
    reached = [factor for factor in ("10x", "4x", "2x") if float(factor[:-1]) <= most]
    return ["--params", reached[0]] if reached else []
