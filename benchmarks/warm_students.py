"""Warm students: does a short training from inherited weights rank architectures as a long one does, or one from fresh?

    python benchmarks/warm_students.py teachers/cifar10 --data data/cifar10 --out results/warm --students 20 \
        --examples 4000 --short 1 3 --long 12

Random architectures within a budget are each trained for so many epochs from the teacher's weights, sliced, and from
fresh ones, on the same views of the same images; a student's time is the same either way. Ranks are compared
by Spearman's correlation with the long training. Every training that is finished is kept in OUT.
"""

from __future__ import annotations

import argparse
import statistics
from dataclasses import replace
from pathlib import Path

from scipy.stats import spearmanr

from understudy.config.job import Compression
from understudy.config.methods import RandomSearch
from understudy.config.training import Augmentation, Candidates, Device, Training
from understudy.core.architecture import Architecture
from understudy.core.evaluation import Evaluation
from understudy.core.files import write_whole
from understudy.core.goal import Goal, Reward
from understudy.data import Data
from understudy.jobs.task import Task
from understudy.jobs.teach import load_teacher
from understudy.methods.baselines.random import RandomSearcher
from understudy.training.evaluator import Evaluator
from understudy.training.loop import choose_compute

STARTS = ("inherited", "fresh")
Table = dict[tuple[str, int], list[Evaluation]]  # (start, epochs) -> one for each architecture


def architectures(task: Task, students: int, seed: int) -> list[Architecture]:
    """Return what random search would train under the task's goal, in its order."""
    reward = Reward(teacher_cost=task.cost, teacher_score=1.0, budgets=task.settings.goal.budgets(task.cost, score=1.0))
    searcher = RandomSearcher(replace(task.problem(reward), seed=seed), RandomSearch(students=students))
    drawn: list[Architecture] = []
    while proposals := searcher.propose():
        drawn += proposals
        searcher.left -= len(proposals)
    return drawn


def evaluated(evaluator: Evaluator, architecture: Architecture, folder: Path) -> Evaluation:
    """Return the evaluation of an architecture, from `folder` if it is there."""
    place = folder / f"{architecture.digest}-{evaluator.recipe_digest}.json"
    if not place.is_file():
        write_whole(place, evaluator(architecture).to_json())
    return Evaluation.from_json(architecture.space, place.read_text(encoding="utf-8"))


def correlation(one: list[Evaluation], other: list[Evaluation]) -> float:
    """Return Spearman's rank correlation of the accuracies."""
    return float(spearmanr([e.score for e in one], [e.score for e in other]).statistic)


def report(table: Table, long: int) -> None:
    """Print a row for each training: accuracy, time, and how it ranks in view of the long ones."""
    print("| start | epochs | validation accuracy | best | seconds | rank: long, inherited | rank: long, fresh |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for (start, epochs), found in table.items():
        accuracies = [100 * e.score for e in found]
        ranks = [f"{correlation(found, table[other, long]):.2f}" for other in STARTS]
        print(
            f"| {start} | {epochs} | {statistics.fmean(accuracies):.1f} +- {statistics.stdev(accuracies):.1f} | "
            f"{max(accuracies):.1f} | {statistics.fmean(e.seconds for e in found):.1f} | {' | '.join(ranks)} |"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("teacher", help="a teacher folder")
    parser.add_argument("--data", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--students", type=int, default=20)
    parser.add_argument("--params", default="5x", help="budget of the architectures")
    parser.add_argument("--examples", type=int, default=4000)
    parser.add_argument("--short", type=int, nargs="+", default=[1, 3], help="epochs")
    parser.add_argument("--long", type=int, default=12, help="epochs")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    candidates = Candidates(examples=options.examples, weights="inherited", stop_below=0.0)
    device = Device(threads=1)
    settings = Compression(
        goal=Goal(params=options.params),
        augmentation=Augmentation(crop=4, flip=True),
        candidates=candidates,
        device=device,
        seed=options.seed,
    )
    task = Task.of(load_teacher(options.teacher), Data.open(options.data), settings)
    evaluator = task.evaluator(choose_compute(task.teacher.module, task.example, device), options.out / "logits")
    drawn, table = architectures(task, options.students, options.seed), Table()
    for epochs in (*options.short, options.long):
        for start in STARTS:
            taught = replace(evaluator, candidates=replace(candidates, weights=start, training=Training(epochs=epochs)))
            taught.prepare()  # what all share is nobody's time
            table[start, epochs] = []
            for number, architecture in enumerate(drawn, 1):
                found = evaluated(taught, architecture, options.out)
                table[start, epochs].append(found)
                print(f"{start}, {epochs} epochs, {number}/{len(drawn)}: {found.score:.4f}", flush=True)
    print()
    report(table, options.long)


if __name__ == "__main__":
    main()
