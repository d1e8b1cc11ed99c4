"""One operating point and seed of a track: what all contenders work with, and how what they found is trained."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor, nn

from benchmarks.evidence.tracks import Point, Track
from understudy.config.job import Compression
from understudy.config.methods import Method
from understudy.config.training import Final, LossName, Start
from understudy.core.architecture import Architecture
from understudy.core.errors import ConfigError, SurgeryError
from understudy.core.evaluation import Cost
from understudy.core.files import write_whole
from understudy.core.goal import Reward
from understudy.cost import predict as cost
from understudy.data.data import first_images
from understudy.graph.analysis import analyse
from understudy.graph.copies import copied
from understudy.jobs.task import Task
from understudy.models.weights import read_weights
from understudy.training.evaluator import Evaluator
from understudy.training.loop import accuracy, train


@dataclass(frozen=True, kw_only=True, eq=False)
class Found:
    """What a contender goes into the final training with: an architecture and who builds it, or a network."""

    shape: Architecture | nn.Module
    evaluator: Evaluator
    passes: int  # training images that networks saw, forward and backward, to find it
    seconds: dict[str, float]  # that it took: wall, cpu
    rewards: tuple[float, ...] = ()  # of a search's students, in the order in which they were proposed


@dataclass(frozen=True, kw_only=True, eq=False)
class Cell:
    """One operating point and seed of a track."""

    track: Track
    point: Point
    task: Task  # with the point's goal and the seed
    evaluator: Evaluator  # of the seed
    folder: Path  # keeps what is under way
    policy_from: Path | None = None  # what keeps the same of another track, whose N2N a transferred one starts from

    @property
    def seed(self) -> int:
        """Decides the search, the images that students see, and their order."""
        return self.task.settings.seed

    @property
    def reward(self) -> Reward:
        """What searchers pursue."""
        teacher_score = self.evaluator.teacher_score
        budgets = self.point.goal.budgets(self.task.cost, teacher_score)
        return Reward(teacher_cost=self.task.cost, teacher_score=teacher_score, budgets=budgets)

    @property
    def search_passes(self) -> int:
        """The image passes that a contender may search with."""
        return self.track.search_passes(len(self.task.data.train))

    def by(self, method: Method, point: Point | None = None) -> Task:
        """Return the task with a method, and with another operating point if one is given."""
        goal = (point or self.point).goal
        return replace(self.task, settings=replace(self.task.settings, method=method, goal=goal))

    def learned(self) -> Mapping[str, Tensor]:
        """Return the policy that N2N learned on another track, at the same operating point with the same seed.

        Raises:
            ConfigError: there is none.
        """
        where = None if self.policy_from is None else self.policy_from / str(self.point) / f"seed-{self.seed}"
        place = None if where is None else where / "n2n" / "policy.safetensors"
        if place is None or not place.is_file():
            raise ConfigError(
                f"a transferred search needs the policy of a track that has run n2n at {self.point}, seed "
                f"{self.seed}, but got {place}: give that track's --work folder by --policy-from"
            )
        return read_weights(place, ours=True)

    def final(self, weights: Start, loss: LossName | None, epochs: int) -> Final:
        """Return the one recipe of final trainings, over that many epochs."""
        training = replace(self.track.final, epochs=epochs, loss=loss or self.track.final.loss)
        return Final(students=1, training=training, weights=weights, views=self.track.views)

    def epochs(self, passes: int, *, included: bool) -> int:
        """Return the epochs of a final training after a search of so many passes.

        Where the search is not counted all have the same; where it is, what a search did not use is added.
        """
        spared = max(self.search_passes - passes, 0) if included else 0
        return self.track.final.epochs + spared // len(self.task.data.train)

    def trained(self, found: Found, final: Final, checkpoint: Path) -> tuple[nn.Module, float, Cost]:
        """Return a student after its final training, its validation accuracy and its cost; it can be continued.

        Raises:
            SurgeryError: the training failed.
        """
        if isinstance(found.shape, Architecture):
            evaluation, student = found.evaluator.finish(found.shape, final, checkpoint=checkpoint)
            if student is None or evaluation.cost is None:
                raise SurgeryError(f"the final training must succeed, but failed: {evaluation.error}")
            return student, evaluation.score, evaluation.cost
        data, compute, recipe = self.task.data, self.evaluator.compute, self.evaluator.final_recipe(final)
        student = copied(found.shape)
        outcome = train(
            student,
            recipe.split,
            recipe.training,
            normalise=data.normalise,
            views=recipe.views,
            compute=compute,
            seed=self.seed,
            logits=None if recipe.logits is None else recipe.logits.epoch,
            checkpoint=checkpoint,
        )
        if outcome.status != "ok":
            raise SurgeryError(f"the final training must succeed, but failed: {outcome.error}")
        score = accuracy(student, data.val.to(compute.device), normalise=data.normalise, compute=compute)
        return student, score, self.cost_of(found.shape)

    def cost_of(self, module: nn.Module) -> Cost:
        """Return the exact cost of any network that takes the task's images."""
        known = analyse(copied(module).cpu().eval(), first_images(self.task.data, self.task.data.val, 2))
        return cost.predict(known, known.space.full)


def cells(
    track: Track, task: Task, evaluator: Callable[[Task], Evaluator], work: Path, policy_from: Path | None
) -> Iterator[Cell]:
    """Yield every cell of a track; evaluators are shared by the cells of a seed."""
    for seed in track.seeds:
        seeded: Evaluator | None = None
        for point in track.points:
            settings = replace(task.settings, seed=seed, goal=point.goal)
            own = replace(task, settings=settings)
            seeded = seeded or evaluator(own)
            folder = work / str(point) / f"seed-{seed}"
            yield Cell(track=track, point=point, task=own, evaluator=seeded, folder=folder, policy_from=policy_from)


def settings_of(track: Track) -> Compression:
    """Return the settings that all cells share."""
    return Compression(
        augmentation=track.augmentation, widths=track.widths, candidates=track.candidates, device=track.device
    )


@contextmanager
def clocked(place: Path) -> Iterator[None]:
    """Add the seconds inside to those in a file, also where it is interrupted; what a kill cuts off is not counted."""
    wall, cpu = time.perf_counter(), time.process_time()
    try:
        yield
    finally:
        now = {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}
        write_whole(place, json.dumps({name: now[name] + before for name, before in seconds_in(place).items()}))


def seconds_in(place: Path) -> dict[str, float]:
    """Return the seconds that `clocked` counted, 0 before it did."""
    return dict(json.loads(place.read_text(encoding="utf-8"))) if place.is_file() else {"wall": 0.0, "cpu": 0.0}
