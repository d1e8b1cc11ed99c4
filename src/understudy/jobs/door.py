"""A first look at a teacher, before hours are spent: is it trained, is the normalisation its own?"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from statistics import fmean, stdev
from typing import Any

import torch
from torch import Tensor, nn

from understudy.core.errors import DataError, ModelError
from understudy.core.figures import share, standard_error
from understudy.core.nested import called
from understudy.core.summary import Score
from understudy.data import AnySplit, Data
from understudy.data.data import first_images
from understudy.data.repeated import repeated
from understudy.graph.copies import copied
from understudy.graph.seeds import seeded
from understudy.jobs.glance import Glance, answering, glance_at
from understudy.jobs.task import Task
from understudy.models.spec import Teacher
from understudy.runs.workers.local import refuse_what_workers_lack
from understudy.training.aim import Aim
from understudy.training.compute import Compute, device_named, refuse_untrainable
from understudy.training.loop import predict

_IMAGES = 500  # of each split that is looked at
_STEP = 4  # of a step that shows whether it can be trained; norms need more than one
_TRIED = 200  # images on which another normalisation is tried
_BEYOND_DOUBT = 0.9  # score from which on no other normalisation is tried
_REPEATED = 0.01  # of a split, in training images as well, of which it is told
_SUMS = 1e-3  # by which probabilities may miss a sum of 1
_BETTER = 0.05  # score that another normalisation must gain to be named
_DRAWN = (
    "the teacher draws random numbers in evaluation mode as well, so its answers are others each time: it and its "
    "students are taught and judged by one draw, the same in every run. If that is not meant, look for dropout that is "
    "not told the mode: functional.dropout(x, training=self.training)"
)
_NORMALISATIONS = (
    ("ImageNet's", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    ("CIFAR-10's", (0.4914, 0.4822, 0.4465), (0.247, 0.2435, 0.2616)),
    ("MNIST's", (0.1307,), (0.3081,)),
    ("pixels in 0..1", (0.0,), (1.0,)),
    ("pixels in -1..1", (0.5,), (0.5,)),
)


@dataclass(frozen=True, kw_only=True)
class Losses:
    """The mean cross-entropy on some images, with its standard error."""

    mean: float
    error: float

    @classmethod
    def of(cls, losses: list[float]) -> Losses:
        """Return that of at least two losses."""
        return cls(mean=fmean(losses), error=stdev(losses) / math.sqrt(len(losses)))


@dataclass(frozen=True, kw_only=True)
class Normalisation:
    """A normalisation, and what the teacher reaches with it."""

    name: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    reached: Score

    def __str__(self) -> str:
        """Return it as flags, with what is reached."""
        mean, std = (" ".join(f"{number:g}" for number in numbers) for numbers in (self.mean, self.std))
        return f"with {self.name}, --mean {mean} --std {std}, it gets {self.reached} right"


@dataclass(frozen=True, kw_only=True)
class Look:
    """What a first look at a teacher finds."""

    score: Score  # on validation images
    known: Score  # on validation and training images together, which tells a guess from a few images
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    better: Normalisation | None = None  # that makes it clearly better
    val_loss: Losses | None = None  # where the teacher may have been trained on the validation split
    train_loss: Losses | None = None
    pixels: float | None = None  # the largest, where float images are whole numbers that nobody has normalised
    probabilities: bool = False  # whether its outputs are probabilities, not logits
    draws: bool = False  # whether its answers hang on random numbers
    doubts: tuple[str, ...] = ()  # on the data

    @property
    def guesses(self) -> bool:
        """Whether it is no better than a guess, as far as that can be told."""
        chance = 1.0 / len(self.classes)
        return self.known.value <= chance + 2.0 * standard_error(chance, self.known.examples)

    @property
    def seen(self) -> bool:
        """Whether its loss on validation images is as low as on those that it was trained on."""
        val, train = self.val_loss, self.train_loss
        if val is None or train is None or self.guesses:
            return False
        return val.mean <= train.mean + 2.0 * math.hypot(val.error, train.error)

    def refuse(self, teacher: Teacher, *, untrained: bool) -> None:
        """Refuse a teacher that guesses, or whose normalisation nobody gave and another one is clearly better.

        Raises:
            ModelError: it guesses; with the likely causes, the likeliest first.
            DataError: another normalisation is better.
        """
        if untrained:
            return
        if self.guesses:
            raise ModelError(self._why_it_guesses())
        if self.better is not None and teacher.mean is None:
            raise DataError(
                "a teacher needs the normalisation that it was trained with: with the data's own "
                f"{self._normalisation} it gets {self.score} of {self.score.examples} validation images right, "
                f"but {self.better}. Give it (Data.with_normalisation in Python), or go on all the same with "
                "--untrained (untrained=True)."
            )

    @property
    def notes(self) -> tuple[str, ...]:
        """What the user should know before hours are spent."""
        found = []
        if self.better is not None:
            found.append(f"is the normalisation that of the teacher's training? {self.better}")
        if self.seen and self.val_loss is not None and self.train_loss is not None:
            found.append(
                f"the teacher's loss is as low on the validation images ({self.val_loss.mean:.3f}) as on training "
                f"images ({self.train_loss.mean:.3f}), from which they were cut: it has probably been trained on them, "
                "and a score relative to its own is asked for too hard. Give images that it has not seen: a "
                "folder val/ beside train/, or val= in Python"
            )
        if self.pixels is not None:
            found.append(f"was the teacher trained on pixels like these? {self._as_floats}")
        if self.probabilities:
            found.append(
                "the teacher gives probabilities, from which students learn less than from logits: give it without "
                "its softmax, and put that behind the student"
            )
        if self.draws:
            found.append(_DRAWN)
        return (*found, *self.doubts)

    @property
    def _as_floats(self) -> str:
        return (
            f"the images are whole numbers up to {self.pixels:g} as floats, which are taken as they are; for a "
            "teacher of normalised pixels give them as uint8, 0..255"
        )

    @property
    def _normalisation(self) -> str:
        mean, std = (" ".join(f"{number:.3g}" for number in numbers) for numbers in (self.mean, self.std))
        return f"(mean {mean}, std {std})"

    def _why_it_guesses(self) -> str:
        weights = "its weights were not loaded: give --weights FILE, or call load_state_dict in Python"
        normalisation = f"it was trained with another normalisation than {self._normalisation}"
        causes = [weights, normalisation if self.better is None else f"{normalisation}: {self.better}"]
        if self.better is not None:
            causes.reverse()
        if self.pixels is not None:
            causes.insert(0, self._as_floats)
        names = ", ".join(self.classes[:4]) + (", ..." if len(self.classes) > 4 else "")
        causes.append(f"its classes are in another order than the data's: {names}")
        listed = "\n".join(f"  {number}. {cause}" for number, cause in enumerate(causes, 1))
        return (
            f"the teacher must be trained, but it gets {self.known} of {self.known.examples} images "
            f"right, where a guess gets {share(1.0 / len(self.classes))}. Likely causes, the likeliest first:\n"
            f"{listed}\nTo compress it all the same: --untrained (untrained=True in Python)."
        )


def look_at(task: Task) -> Look | Glance:
    """Return what a first look at a task's teacher finds, on some hundred images; nothing is run on the test split.

    Raises:
        ModelError: it cannot be trained, so no student of it could be.
        RunError: workers that are asked for could not get it.
    """
    device = task.settings.device
    if task.settings.method.job == "search" and not device.cluster:  # of what is pruned one student is trained, here
        refuse_what_workers_lack((task.analysis, task.network, task.data, task.aim), device.workers)
    some = first_images(task.data, task.data.train, _STEP)
    refuse_untrainable(task.network, some, device)
    draws = _draws(task.network, some, task.aim)
    if task.aim.objective.name != "classification" or not task.data.has_targets:
        return replace(glance_at(task), notes=(*(_DRAWN,) * draws, *_doubts(task.data)))
    teacher, data, settings = task.teacher, task.data, task.settings
    compute = Compute(device=device_named(device.device), threads=device.threads)
    network = compute.place(copied(task.network))
    val = data.val.subset(min(_IMAGES, len(data.val)), settings.seed)
    logits = _logits(network, val, data, task.aim, compute)
    right, losses = _judged(logits, val)
    train = data.train.subset(min(_IMAGES, len(data.train)), settings.seed)
    train_right, train_losses = _judged(_logits(network, train, data, task.aim, compute), train)
    found = Look(
        score=_score(right),
        known=_score(right + train_right),
        classes=data.classes,
        mean=data.mean,
        std=data.std,
        draws=draws,
        doubts=_doubts(data),
        probabilities=bool((logits >= 0).all()) and torch.allclose(logits.sum(1), torch.ones(len(logits)), atol=_SUMS),
    )
    if found.score.value < _BEYOND_DOUBT and data.are_images and data.train.dtype == torch.uint8:
        found = replace(found, better=_better(network, data, task.aim, compute, settings.seed))
    if found.score.value < _BEYOND_DOUBT and data.are_images and data.train.dtype != torch.uint8:
        some, _ = val.batch(torch.arange(len(val)))
        if bool((some == some.round()).all()) and float(some.max()) > 1.0:
            found = replace(found, pixels=float(some.max()))
    if data.val_from_train and teacher.taught_on != data.digest and min(len(losses), len(train_losses)) > 1:
        found = replace(found, val_loss=Losses.of(losses), train_loss=Losses.of(train_losses))
    return found


def _doubts(data: Data) -> tuple[str, ...]:
    """Return what should be known of splits that share images; inputs of other kinds, such as words, may be alike."""
    found = []
    for name, split in (("validation", data.val), ("test", data.test)):
        count = repeated(split, data.train) if data.are_images and split is not None else 0
        if split is not None and count > _REPEATED * len(split):
            found.append(
                f"{count:,} of the {len(split):,} {name} images are training images as well, pixel for pixel: what is "
                "judged by them is judged by what it has learned. Take them out of the training images"
            )
    return tuple(found)


def _draws(network: nn.Module, inputs: Any, aim: Aim) -> bool:
    """Return whether a network's answers in evaluation mode hang on random numbers."""
    network, answers = copied(network).cpu().eval(), []
    for seed in (0, 1):
        with torch.no_grad(), seeded(seed):
            answers.append(aim.read(called(network, inputs)))
    return not torch.equal(*answers)


def _logits(network: nn.Module, split: AnySplit, data: Data, aim: Aim, compute: Compute) -> Tensor:
    """Return the outputs for a split, (n, k) on the CPU."""
    with answering():
        return predict(network, split.to(compute.device), normalise=data.normalise, compute=compute, aim=aim).cpu()


def _judged(logits: Tensor, split: AnySplit) -> tuple[list[bool], list[float]]:
    """Return for each image whether it was classified rightly, and its cross-entropy."""
    labels: Tensor = split.labels.cpu()
    losses = nn.functional.cross_entropy(logits, labels, reduction="none")
    return (logits.argmax(1) == labels).tolist(), losses.tolist()


def _score(right: list[bool]) -> Score:
    return Score(value=sum(right) / len(right), examples=len(right))


def _better(network: nn.Module, data: Data, aim: Aim, compute: Compute, seed: int) -> Normalisation | None:
    """Return the best of the usual normalisations, if the teacher is clearly better with it than with the data's."""
    some = data.val.subset(min(_TRIED, len(data.val)), seed)
    now = _score(_judged(_logits(network, some, data, aim, compute), some)[0])
    found = []
    for name, mean, std in _NORMALISATIONS:
        channels = data.shape[0]
        if len(mean) not in (1, channels):
            continue
        means, stds = (numbers * channels if len(numbers) == 1 else numbers for numbers in (mean, std))
        other = replace(data, mean=means, std=stds)  # not `with_normalisation`, whose digest reads every image
        reached = _score(_judged(_logits(network, some, other, aim, compute), some)[0])
        found.append(Normalisation(name=name, mean=means, std=stds, reached=reached))
    best = max(found, key=lambda tried: tried.reached.value, default=None)
    return best if best and best.reached.value > now.value + _BETTER and best.reached.above(now) else None
