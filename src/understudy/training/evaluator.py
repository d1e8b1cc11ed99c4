"""Architecture -> Evaluation: build, train, score. A student that cannot be built or trained is a result."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from understudy.config.checked import checked_together
from understudy.config.training import Augmentation, Candidates, Final, Start, Training
from understudy.core.architecture import Architecture
from understudy.core.errors import SurgeryError
from understudy.core.evaluation import Cost, Evaluation, Status
from understudy.core.nested import called, chunks, mapped
from understudy.cost import predict as cost
from understudy.data import AnySplit, Data, Views
from understudy.data.split import drawn
from understudy.graph.analysis import Analysis
from understudy.graph.copies import copied
from understudy.models.weights import weights_digest
from understudy.surgery import build as surgery
from understudy.surgery.compensated import Recording, compensate, record
from understudy.training.aim import CLASSES, Aim
from understudy.training.failures import fault_of_network, reason
from understudy.training.loop import (
    Compute,
    OnPart,
    Outcome,
    Progress,
    recalibrate,
    train,
)
from understudy.training.objective import needs_teacher
from understudy.training.scoring import scored
from understudy.training.teacher_logits import TeacherLogits

_PROCEDURE = 1  # part of every recipe: raise it when the same settings give other numbers
_HEARD = 512  # training examples that inherited weights are compensated by
_GLANCED = 256  # those that a glance solves weights on, and as many others that it compares logits on
_GLANCED_PLACES = 8  # of each, where candidates have twice as many: it is for seconds
_PEEK = 1000  # validation examples that tell a hopeless student after its first epoch


@dataclass(frozen=True, kw_only=True, eq=False)
class Recipe:
    """What students are trained on, from where, and how: the same for all that are compared."""

    split: AnySplit
    views: Views
    logits: TeacherLogits | None  # None where the loss does not read them
    training: Training
    weights: Start
    digest: str  # of all that decides a score, besides architecture, teacher and data


@dataclass(frozen=True, kw_only=True, eq=False)
class Evaluator:
    """Trains and scores students. Picklable, so that a worker process gets it once.

    What fails because of the machine or the data raises MachineError or DataError; it is no evaluation.
    A student's seed comes from (seed, architecture digest, repeat), so results depend neither on the
    order of evaluation nor on who evaluates. `folder` caches the teacher's logits. Students inherit from the
    network of the analysis, which need not be the teacher: in a chain it is another one's student.
    """

    analysis: Analysis
    teacher: nn.Module
    data: Data
    candidates: Candidates
    augmentation: Augmentation = field(default_factory=Augmentation)
    compute: Compute = field(default_factory=Compute)
    seed: int = 0
    folder: Path
    aim: Aim = CLASSES

    def __call__(self, architecture: Architecture) -> Evaluation:
        """Return the evaluation of a candidate; see `evaluate`."""
        return self.evaluate(architecture)[0]

    def evaluate(self, architecture: Architecture) -> tuple[Evaluation, nn.Module | None]:
        """Train and score a candidate of the search; return its evaluation and, unless it failed, the student.

        Batch-norm statistics are estimated anew before the score. A student that is under `stop_below` of the
        teacher's score after its first epoch is "stopped" with the score that it had.
        """

        def hopeful(student: nn.Module, progress: Progress) -> bool:
            floor = self.candidates.stop_below * self.teacher_score
            return progress.epoch > 1 or floor <= 0 or self.peek(student) >= floor

        return self._train_student(architecture, self.recipe, _seed(self.seed, architecture.digest, 0), go_on=hopeful)

    def finish(
        self,
        architecture: Architecture,
        final: Final,
        *,
        repeat: int = 0,
        checkpoint: Path | None = None,
        on_epoch: Callable[[Progress, float], object] | None = None,
        on_part: OnPart | None = None,
    ) -> tuple[Evaluation, nn.Module | None]:
        """Train a student to convergence on the whole training split and score it on the validation split.

        Its batch-norm statistics stay those of the training, unlike a candidate's: after a schedule that
        ends at a small learning rate they are settled, and they are what will be shipped. With a
        `checkpoint` file the training continues where it was interrupted; once finished it only scores. `on_epoch`
        is called after each epoch with the score on a part of the validation split.
        """

        def told(student: nn.Module, progress: Progress) -> bool:
            if on_epoch is not None:
                on_epoch(progress, self.score(student, _PEEK))
            return True

        seed = _seed(self.seed, architecture.digest, repeat)
        recipe = self.final_recipe(final, repeat)
        return self._train_student(
            architecture, recipe, seed, go_on=told, on_part=on_part, checkpoint=checkpoint, settled=True
        )

    def cut(self, architecture: Architecture) -> Evaluation:
        """Return the evaluation of a student as it was cut, untrained but for its batch-norm statistics."""
        with checked_together():  # no epochs: nobody can ask for that
            untrained = Training(epochs=0, loss="ce")
        digest = self._digest(cut=self._start)
        recipe = self._make(self.data.train, untrained, "inherited", repeat=0, digest=digest)
        seed = _seed(self.seed, architecture.digest, 0)
        return self._train_student(architecture, recipe, seed, go_on=lambda student, progress: True)[0]

    def glance(self, architecture: Architecture) -> float:
        """Return how far the logits of a student are from the teacher's without any training; small is good.

        Its weights are compensated, on fewer images than a candidate's. The mean squared difference on other training
        images than those, in units of the variance of the teacher's logits; infinity if there is no such student.
        """
        try:
            images, teacher, recording = self._glanced
            student = self._compensated(architecture, _seed(self.seed, architecture.digest, 0), recording)
            with self.compute.scope():
                outputs = self._answers(student, images)
        except (SurgeryError, RuntimeError) as e:
            if not isinstance(e, SurgeryError):
                fault_of_network(e)  # raises what the machine is to blame for
            return float("inf")
        error = (outputs - teacher).square().mean() / (teacher - teacher.mean(0)).square().mean()
        return float(error) if bool(error.isfinite()) else float("inf")

    def failed(self, architecture: Architecture, error: str) -> Evaluation:
        """Return the evaluation of a candidate that did not come back, for that reason."""
        return self._evaluation(
            architecture, self.recipe_digest, _seed(self.seed, architecture.digest, 0), status="failed", error=error
        )

    def prepare(self, *, on_part: OnPart = lambda done: None) -> None:
        """Do what all candidates share before workers start: the teacher's score and its logits."""
        assert self.teacher_score >= 0
        if self.recipe.logits is not None:
            self.recipe.logits.prepare(self.recipe.training.epochs, on_part=on_part)

    @cached_property
    def teacher_digest(self) -> str:
        """16 hexadecimal digits of the teacher's weights."""
        return weights_digest(self.teacher)

    @property
    def data_digest(self) -> str:
        """16 hexadecimal digits of the data."""
        return self.data.digest

    @property
    def recipe_digest(self) -> str:
        """16 hexadecimal digits of all that decides a candidate's score, besides architecture, teacher and data."""
        return self._digest(candidates=asdict(self.candidates))

    @cached_property
    def teacher_score(self) -> float:
        """The teacher's score on the validation split, in 0..1."""
        return self.score(self._teacher)

    @cached_property
    def recipe(self) -> Recipe:
        """How candidates are trained."""
        c = self.candidates
        count = c.examples or len(self.data.train)
        subset = self.data.train.subset(min(count, len(self.data.train)), self.seed)
        return self._make(subset, c.training, c.weights, repeat=0, digest=self.recipe_digest)

    def final_recipe(self, final: Final, repeat: int = 0) -> Recipe:
        """Return how final students are trained; each repeat sees other views in another order."""
        told = {"weights": final.weights, "views": final.views, "repeat": repeat, **self._start}
        digest = self._digest(final=asdict(final.training), **told)
        return self._make(
            self.data.train, final.training, final.weights, repeat=repeat, digest=digest, cycle=final.views
        )

    @property
    def places(self) -> dict[str, Path]:
        """The folders that it reads and writes, by name."""
        return {"logits": self.folder}

    def moved(self, places: Mapping[str, Path]) -> Evaluator:
        """Return the same evaluator with its folders elsewhere, as on another machine."""
        return replace(self, folder=places["logits"])

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what a worker makes for itself: copies of the teacher and of the data."""
        made = ("_teacher", "_val", "_taught", "_recording", "_glanced", "recipe")
        return {name: value for name, value in self.__dict__.items() if name not in made}

    @cached_property
    def _start(self) -> dict[str, str]:
        """What weights are inherited, where they are not the teacher's."""
        return {} if self.teacher is self.analysis.teacher else {"start": weights_digest(self.analysis.teacher)}

    @cached_property
    def _teacher(self) -> nn.Module:
        return self.compute.place(copied(self.teacher))

    @cached_property
    def _recording(self) -> Recording:
        """What the network that students inherit from gives, to be given by them."""
        with self.compute.scope():
            return record(self.analysis, self._some(_HEARD, self.seed))

    @cached_property
    def _glanced(self) -> tuple[Any, Tensor, Recording]:
        """What untrained students are looked at with: normalised images, the teacher's outputs, and what it gives."""
        images = self._some(_GLANCED, self.seed + 1)
        with self.compute.scope():
            teacher = self._answers(copied(self.teacher).to(self.compute.device), images)
            return images, teacher, record(self.analysis, self._some(_GLANCED, self.seed), _GLANCED_PLACES)

    def _answers(self, model: nn.Module, images: Any) -> Tensor:
        """Return the outputs (n, k) of a model for normalised images in float32, in eval mode, where it stays."""
        model.eval()
        with torch.no_grad():
            return torch.cat([self.aim.read(called(model, part)) for part in chunks(images, _GLANCED // 4)])

    def _some(self, count: int, seed: int) -> Any:
        """Return so many training images, normalised, on the device."""
        chosen = self.data.train.subset(min(count, len(self.data.train)), seed)
        images, _ = chosen.batch(torch.arange(len(chosen), device=chosen.indexed_on))
        return self.data.normalise(mapped(images, lambda tensor: tensor.to(self.compute.device)))

    @cached_property
    def _val(self) -> AnySplit:
        return self.data.val.to(self.compute.device)

    def score(self, network: nn.Module, most: int = 0) -> float:
        """Return a network's score on the validation split, or on `most` of its examples, 0..1.

        Raises:
            ValueError: it is not in 0..1.
        """
        count = min(most or len(self._val), len(self._val))
        some = drawn(self._val, count, self.seed) if count < len(self._val) else None
        return scored(
            network,
            self._val if some is None else self._val.take(some),
            normalise=self.data.normalise,
            compute=self.compute,
            aim=self.aim,
            taught=self._taught if some is None or self._taught is None else self._taught[some],
        )

    @cached_property
    def _taught(self) -> Tensor | None:
        """What the teacher says of the validation split, where that has no targets."""
        if self.data.has_targets:
            return None
        return self._logits(self._val, Views(len(self._val), Augmentation(), 0), purpose="targets").epoch(0)

    def _train_student(
        self,
        architecture: Architecture,
        recipe: Recipe,
        seed: int,
        *,
        go_on: Callable[[nn.Module, Progress], bool],
        on_part: OnPart | None = None,
        checkpoint: Path | None = None,
        settled: bool = False,
    ) -> tuple[Evaluation, nn.Module | None]:
        start = time.perf_counter()
        predicted: Cost | None = None
        student: nn.Module | None = None
        status: Status = "failed"
        score, error = 0.0, None
        try:
            predicted = cost.predict(self.analysis, architecture)
            student = self._built(architecture, recipe.weights, seed)
            outcome = self._trained(student, recipe, seed, go_on, on_part, checkpoint)
            if outcome.status != "failed":
                score = self._score(student, recipe, settled)
            status, error = outcome.status, outcome.error
        except SurgeryError as e:
            error = reason(e)
        except (RuntimeError, MemoryError, OSError) as e:
            fault_of_network(e)  # raises what the machine is to blame for
            raise
        evaluation = self._evaluation(
            architecture,
            recipe.digest,
            seed,
            cost=predicted,
            score=score,
            seconds=time.perf_counter() - start,
            status=status,
            error=error,
        )
        return evaluation, None if status == "failed" else student

    def _built(self, architecture: Architecture, weights: Start, seed: int) -> nn.Module:
        """Return a student with the weights that its training starts from."""
        if weights == "compensated":
            return self._compensated(architecture, seed, self._recording)
        return surgery.build(self.analysis, architecture, weights=weights, seed=seed)

    def _compensated(self, architecture: Architecture, seed: int, recording: Recording) -> nn.Module:
        if architecture == self.analysis.space.full:
            return surgery.build(self.analysis, architecture)
        student = surgery.build(self.analysis, architecture, seed=seed).to(self.compute.device)
        with self.compute.scope():
            compensate(student, self.analysis, architecture, recording)
        return student

    def _evaluation(
        self,
        architecture: Architecture,
        recipe: str,
        seed: int,
        *,
        status: Status,
        error: str | None,
        cost: Cost | None = None,
        score: float = 0.0,
        seconds: float = 0.0,
    ) -> Evaluation:
        return Evaluation(
            architecture=architecture,
            teacher=self.teacher_digest,
            data=self.data_digest,
            recipe=recipe,
            cost=cost,
            score=score,
            seconds=seconds,
            seed=seed,
            status=status,
            error=error,
        )

    def _trained(
        self,
        student: nn.Module,
        recipe: Recipe,
        seed: int,
        go_on: Callable[[nn.Module, Progress], bool],
        on_part: OnPart | None,
        checkpoint: Path | None,
    ) -> Outcome:
        return train(
            student,
            recipe.split,
            recipe.training,
            normalise=self.data.normalise,
            views=recipe.views,
            compute=self.compute,
            seed=seed,
            logits=None if recipe.logits is None else recipe.logits.epoch,
            aim=self.aim,
            on_epoch=lambda progress: go_on(student, progress),
            on_part=on_part,
            checkpoint=checkpoint,
        )

    def _score(self, student: nn.Module, recipe: Recipe, settled: bool) -> float:
        if not settled:
            recalibrate(student, recipe.split, normalise=self.data.normalise, compute=self.compute)
        try:
            return self.score(student)
        except (RuntimeError, ValueError) as e:  # a part of the network that training does not use, a score of NaN
            raise SurgeryError(f"the student must run in evaluation mode, but: {fault_of_network(e)}") from e

    def peek(self, student: nn.Module) -> float:
        """Return the student's score on a part of the validation split, 0..1: enough to see that it is hopeless."""
        recalibrate(student, self.recipe.split, normalise=self.data.normalise, compute=self.compute, examples=500)
        return self.score(student, _PEEK)

    def _make(
        self,
        split: AnySplit,
        training: Training,
        weights: Start,
        *,
        repeat: int,
        digest: str,
        cycle: int = 0,
    ) -> Recipe:
        views = Views(len(split), self.augmentation, _seed(self.seed, "views", repeat), cycle)
        logits = self._logits(split, views, repeat=repeat) if needs_teacher(training) else None
        return Recipe(
            split=split.to(self.compute.device),
            views=views,
            logits=logits,
            training=training,
            weights=weights,
            digest=digest,
        )

    def _logits(self, split: AnySplit, views: Views, **purpose: Any) -> TeacherLogits:
        examples = {"examples": len(split), "teacher": self.teacher_digest, **purpose}
        return TeacherLogits(
            teacher=self._teacher,
            split=split.to(self.compute.device),
            views=views,
            normalise=self.data.normalise,
            compute=self.compute,
            folder=self.folder,
            key=self._digest(data=self.data_digest, **examples),
            aim=self.aim,
            exact="purpose" in purpose,
        )

    def _digest(self, **settings: Any) -> str:
        shared = {
            "procedure": _PROCEDURE,
            "augmentation": asdict(self.augmentation),
            "compute": self.compute.name,
            "seed": self.seed,
            "objective": self.aim.objective.key,
        }
        return hashlib.sha256(json.dumps({**shared, **settings}, sort_keys=True).encode()).hexdigest()[:16]


def _seed(*parts: object) -> int:
    """Return 32 bits that depend on all parts."""
    return int.from_bytes(hashlib.sha256(" ".join(map(str, parts)).encode()).digest()[:4])
