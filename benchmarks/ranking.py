"""How well does N2N's shortlist rank students that it has not seen, by some that it has or by another teacher's?

    python -m benchmarks.ranking cifar10-resnet20a params-10x --data data/cifar10 --weights resnet20.safetensors
    python -m benchmarks.ranking cifar10-resnet18w16 params-10x --data data/cifar10 \
        --other cifar10-resnet20a --other-weights resnet20.safetensors

Reads the students that the searches of `benchmarks.run` trained at an operating point, trains none. For each seed some
of them are drawn, and the others ranked: Spearman's correlation of the mean of what is foretold with their accuracies,
in the mean of 10 draws and of the seeds. "Own weights" is the regression without the weights that columns share. With
another track, 40 of its students of the same seed are known as well.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.stats import spearmanr
from torch import Tensor

from benchmarks.evidence.cell import settings_of
from benchmarks.evidence.tracks import SEEDS, TRACKS, Point, Track
from understudy.config.methods import N2N
from understudy.core.evaluation import Evaluation
from understudy.core.goal import Reward
from understudy.jobs.task import Task
from understudy.methods.surrogate.regression import one_thread
from understudy.methods.surrogate.shortlist import Shortlist
from understudy.runs.store import Store

KNOWN = (0, 5, 10, 20, 40)
OTHERS = 40
REPEATS = 10
SETTINGS = N2N(rollouts=200)  # draws of the posterior, whose mean ranks


class OwnWeights(Shortlist):
    """The regression as it would be if columns shared no weights."""

    def _features(self, choices_BD: Int[Tensor, "b d"]) -> Float[Tensor, "b p"]:
        return self._changing(choices_BD).flatten(1)


class Runs:
    """The students of all searches of one track at one operating point."""

    def __init__(self, track: Track, point: Point, data: str | None, weights: Path | None, work: Path) -> None:
        images = track.open_data(data, work / "images")
        teacher = track.teacher.open(images, work / "teacher", weights)
        self.task = Task.of(teacher, images, replace(settings_of(track), goal=point.goal), run=work / "task")
        self._folder = work / str(point)

    def students(self, seed: int) -> list[Evaluation]:
        """Return all that were trained with a seed, each once."""
        found: dict[str, Evaluation] = {}
        for path in sorted((self._folder / f"seed-{seed}").glob("*/study.db")):
            with Store(path, self.task.space) as store:
                found |= {evaluation.key: evaluation for evaluation in store.all() if evaluation.status == "ok"}
        return list(found.values())

    def of_depth(self, seed: int) -> float:
        """Return the rank correlation of accuracy and blocks removed, of students that use up most of the budget."""
        budgets = self.task.settings.goal.budgets(self.task.cost, 1.0)
        full = [e for e in self.students(seed) if e.cost and all(0.8 < used <= 1.0 for _, used in budgets.used(e.cost))]
        removed = [sum(self.task.space.unit(name).kind == "block" for name in e.architecture.removed) for e in full]
        return float(spearmanr(removed, [e.score for e in full])[0])

    def ranked(
        self, seed: int, kind: type[Shortlist] = Shortlist, policy: Mapping[str, Tensor] | None = None
    ) -> Shortlist:
        """Return a shortlist that has learned nothing but what is in the policy."""
        reward = Reward(teacher_cost=self.task.cost, teacher_score=1.0)  # a factor of all rewards
        problem = replace(self.task.problem(reward), policy=policy)
        return kind(problem, SETTINGS, torch.Generator().manual_seed(seed))


def correlation(ranked: Shortlist, known: Sequence[Evaluation], others: Sequence[Evaluation]) -> float:
    """Return how well a shortlist that learns the known ones ranks the others."""
    ranked.learn(known)
    with one_thread():
        foretold_B = ranked.foretold([evaluation.architecture for evaluation in others]).mean(1)
    return float(spearmanr(foretold_B.numpy(), [evaluation.score for evaluation in others])[0])


def rows(runs: Runs, other: Runs | None, seed: int) -> dict[str, dict[int, list[float]]]:
    """Return the correlations of one seed, by what ranks and how many students are known."""
    students, elsewhere = runs.students(seed), other.students(seed) if other else []
    numbers = np.random.default_rng(seed)
    kinds: dict[str, type[Shortlist]] = {"own weights": OwnWeights, "shared and own": Shortlist}
    found: dict[str, dict[int, list[float]]] = {}
    for _ in range(REPEATS):
        order = [students[index] for index in numbers.permutation(len(students))]
        policy = {}
        if other is not None:
            source = other.ranked(seed)
            source.learn([elsewhere[index] for index in numbers.permutation(len(elsewhere))[:OTHERS]])
            policy = source.tensors()
        for count in KNOWN:
            known, others = order[:count], order[max(KNOWN) :]
            if count:
                for name, kind in kinds.items():
                    reached = correlation(runs.ranked(seed, kind), known, others)
                    found.setdefault(name, {}).setdefault(count, []).append(reached)
            if other is not None:
                reached = correlation(runs.ranked(seed, policy=policy), known, others)
                found.setdefault("and another teacher's students", {}).setdefault(count, []).append(reached)
    return found


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("track", choices=TRACKS)
    parser.add_argument("point", help="such as params-10x")
    parser.add_argument("--data", help="folder of images")
    parser.add_argument("--weights", type=Path, help="of a teacher that others trained")
    parser.add_argument("--other", choices=TRACKS, help="another track on the same data")
    parser.add_argument("--other-weights", type=Path, help="of its teacher")
    parser.add_argument("--runs", type=Path, default=Path("runs/evidence"), help="what benchmarks.run has under way")
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    options = parser.parse_args()
    point = next((point for point in TRACKS[options.track].points if str(point) == options.point), None)
    if point is None:
        parser.error(f"an operating point must be one of the track's, but got {options.point}")

    def opened(name: str, weights: Path | None) -> Runs:
        return Runs(TRACKS[name], point, options.data, weights, options.runs / name)

    runs = opened(options.track, options.weights)
    other = opened(options.other, options.other_weights) if options.other else None
    for seed in options.seeds:
        print(f"seed {seed}: rank correlation of accuracy and blocks removed {runs.of_depth(seed):.2f}", flush=True)
    found = [rows(runs, other, seed) for seed in options.seeds]
    print("| known students | " + " | ".join(map(str, KNOWN)) + " |")
    print("| --- |" + " --- |" * len(KNOWN))
    for name in found[0]:
        means = [
            [statistics.fmean(of_seed[name][count]) for of_seed in found if count in of_seed[name]] for count in KNOWN
        ]
        print(
            f"| {name} | " + " | ".join(f"{statistics.fmean(values):.2f}" if values else "" for values in means) + " |"
        )


if __name__ == "__main__":
    main()
