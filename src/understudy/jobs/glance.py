"""A first look at a teacher that is no classifier of labelled images: does its score tell right from wrong?"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from understudy.core.errors import ModelError, UnderstudyError
from understudy.core.figures import share
from understudy.core.memory import enough_memory
from understudy.core.nested import mapped
from understudy.core.summary import Score
from understudy.graph.copies import copied
from understudy.jobs.task import Task
from understudy.models.spec import Teacher
from understudy.training.compute import Compute, device_named
from understudy.training.loop import predict
from understudy.training.scoring import total

_EXAMPLES = 256
_LEAST = 1e-6  # by which right answers must score more than those of other examples


@dataclass(frozen=True, kw_only=True)
class Glance:
    """What a first look finds: the teacher's score, and that of its answers to other examples than were asked."""

    score: Score
    mixed: float
    metric: str
    notes: tuple[str, ...] = ()

    def refuse(self, teacher: Teacher, *, untrained: bool) -> None:
        """Refuse a teacher whose answers are no better than those to other examples.

        Raises:
            ModelError: it is such, or the score does not depend on the answers.
        """
        if untrained or self.score.value > self.mixed + _LEAST:
            return
        raise ModelError(
            f"a score must tell a trained network from a guess, but {self.metric} is {share(self.score.value)} for the "
            f"teacher and {share(self.mixed)} for its answers to other examples. Likely causes: its weights were not "
            "loaded; its targets belong to other examples, or are something else than the objective takes them for; "
            "all its answers are the same; a score of your own that is constant. To compress it all the same: "
            "--untrained (untrained=True in Python)."
        )


@contextmanager
def answering() -> Iterator[None]:
    """Let what a network raises as it answers whole batches be told as that.

    Raises:
        ModelError: it raises something.
        MachineError: memory runs out.
    """
    try:
        with enough_memory("while the teacher answered some batches", "use a machine with more of it"):
            yield
    except UnderstudyError:
        raise
    except Exception as error:  # the caller's code may raise anything
        raise ModelError(
            "the model must take any of the data's examples in batches of any size, but it failed: "
            f"{str(error) or type(error).__name__}"
        ) from error


def glance_at(task: Task) -> Glance:
    """Return what a first look at a task's teacher finds, on some validation examples."""
    data, settings, aim = task.data, task.settings, task.aim
    compute = Compute(device=device_named(settings.device.device), threads=settings.device.threads)
    network = compute.place(copied(task.network))
    some = data.val.subset(min(_EXAMPLES, len(data.val)), settings.seed)
    with answering():
        outputs = predict(network, some.to(compute.device), normalise=data.normalise, compute=compute, aim=aim).cpu()
    targets = mapped(some.batch(torch.arange(len(some)))[1], lambda tensor: tensor.cpu())
    targets = aim.targets(outputs) if targets is None else targets
    try:
        right, mixed = (total(aim, [aim.sums(given, targets)]) for given in (outputs, outputs.roll(1, 0)))
    except ValueError as error:
        raise ModelError(f"the teacher must have a score, but {error}") from error
    return Glance(score=Score(value=right, examples=len(some)), mixed=mixed, metric=aim.objective.metric)
