"""Are students found by shared weights better than by short trainings, after the same final training?

    python -m benchmarks.shared --data data/cifar10 --weights resnet20.safetensors --macs 10x --out runs/shared
    python -m benchmarks.shared --data data/cifar10 --weights resnet20.safetensors --macs 10x --out runs/short \
        --seeds 1 --students 5 --sharing 10 --examples 128 --shared-epochs 2 --final 1

The teacher is an option-A ResNet-20 (`benchmarks/option_a.py`). N2N as it is by default evaluates few candidates by
short trainings from compensated weights; N2N and random search, with budgets filled, evaluate many by weights that they
share. Each search's best by its own scores is trained alike, on the whole training split, and scored on the validation
images, by which it was chosen, and once on the test split. What is finished is kept in OUT: the command goes on where
it was interrupted. One process, one thread; image passes and processor seconds of everything.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks import option_a
from understudy.config.job import Compression
from understudy.config.methods import N2N, Method, RandomSearch
from understudy.config.training import Augmentation, Candidates, Device, Final, Training
from understudy.config.widths import Widths
from understudy.core.architecture import Architecture
from understudy.core.evaluation import Evaluation
from understudy.core.files import write_whole
from understudy.core.goal import Goal, Reward
from understudy.data import Data
from understudy.data.data import first_images
from understudy.jobs.search import search
from understudy.jobs.task import Task
from understudy.methods.ranking import finalists
from understudy.runs.folder import Run
from understudy.training.evaluator import Evaluator
from understudy.training.loop import accuracy, choose_compute

_ROLLOUTS = N2N().rollouts


@dataclass(frozen=True)
class Way:
    """A search: by which method, how many students, and how they are evaluated."""

    method: Method
    students: int
    candidates: Candidates


def ways(options: argparse.Namespace) -> dict[str, Way]:
    """Return what is compared, by name."""
    trained = Candidates(examples=options.examples)
    shared = replace(
        trained, weights="shared", shared_epochs=options.shared_epochs, training=Training(loss=options.shared_loss)
    )
    few, many = options.students, options.sharing
    return {
        f"N2N, {few} trained": Way(_n2n(few), few, trained),
        f"random, {few} trained": Way(RandomSearch(students=few, fill=True), few, trained),
        f"N2N, {many} by shared weights": Way(_n2n(many), many, shared),
        f"random, {many} by shared weights": Way(RandomSearch(students=many, fill=True), many, shared),
    }


def _n2n(students: int) -> N2N:
    return N2N(shrinkage_updates=students // _ROLLOUTS)


def found(task: Task, way: Way, evaluator: Evaluator, folder: Path) -> Architecture:
    """Return the best student of a search, by its own scores, and note what it took."""
    place, began = folder / "found.json", time.process_time()
    if place.is_file():
        return Architecture.from_json(task.space, json.dumps(json.loads(place.read_text())["architecture"]))
    reward = Reward(
        teacher_cost=task.cost,
        teacher_score=evaluator.teacher_score,
        budgets=task.settings.goal.budgets(task.cost, 0.0),
        capped=way.method.capped,
    )
    searcher = way.method.searcher(task.problem(reward))

    def evaluate_all(some: Iterable[Architecture], *, on_done: Callable[[Evaluation], object]) -> list[Evaluation]:
        evaluations = []
        for architecture in some:
            evaluations.append(evaluator(architecture))
            on_done(evaluations[-1])
        return evaluations

    evaluator.prepare()
    with Run.open(folder / "run", task.settings, task.identity) as run, run.store(task.space) as store:
        search(searcher, evaluate_all, store, key_of=lambda a: evaluator.failed(a, "").key)
        evaluations = store.all()
    c = way.candidates
    passes = c.shared_epochs * c.examples if c.weights == "shared" else sum(map(_passes(c), evaluations))
    best = finalists(evaluations, reward, 1)[0]
    told = {"architecture": json.loads(best.to_json()), "passes": passes, "seconds": time.process_time() - began}
    write_whole(place, json.dumps({**told, "reward": max(map(reward, evaluations))}))
    return best


def _passes(candidates: Candidates) -> Callable[[Evaluation], int]:
    return lambda e: candidates.examples * (1 if e.status == "stopped" else candidates.training.epochs)


def finished(best: Architecture, evaluator: Evaluator, options: argparse.Namespace, folder: Path) -> None:
    """Train a student to its end and note how good it is, on the test split as well."""
    place, data = folder / "final.json", evaluator.data
    if place.is_file():
        return
    training = Training(epochs=options.final, loss="mse+ce")
    final = Final(students=1, training=training, weights="compensated", views=min(8, options.final))
    evaluation, student = evaluator.finish(best, final, checkpoint=folder / "final.checkpoint.pt")
    assert student is not None and data.test is not None and evaluation.cost is not None, evaluation.error
    test = accuracy(student, data.test, normalise=data.normalise, compute=evaluator.compute)
    told = {"val": evaluation.score, "test": test, "macs": evaluation.cost.macs}
    write_whole(place, json.dumps({**told, "parameters": evaluation.cost.parameters}))


def main() -> None:
    """Run what is missing and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="folder of CIFAR-10, train/CLASS/* and test/CLASS/*")
    parser.add_argument("--weights", type=Path, required=True, help="of the ResNet-20, as safetensors")
    parser.add_argument("--macs", default="10x")
    parser.add_argument("--seeds", type=int, nargs="+", default=[101, 102, 103], help="of searches")
    parser.add_argument("--students", type=int, default=40, help="that are trained")
    parser.add_argument("--sharing", type=int, default=200, help="that are scored with shared weights")
    parser.add_argument("--examples", type=int, default=5000, help="training images of candidates")
    parser.add_argument("--shared-epochs", type=int, default=48)
    parser.add_argument("--shared-loss", choices=["mse", "mse+ce"], default="mse")
    parser.add_argument("--final", type=int, default=8, help="epochs on the whole training split")
    parser.add_argument("--final-seed", type=int, default=101, help="of the final trainings, the same for all")
    parser.add_argument("--ways", nargs="*", default=[""], help="only those whose names begin so")
    parser.add_argument("--logits", type=Path, help="folder of teacher logits; OUT/logits unless given")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    data, teacher = Data.open(options.data), option_a.trained(20, options.weights)
    rows: dict[str, list[dict[str, float]]] = {}
    for seed in options.seeds:
        for called, way in ways(options).items():
            if not any(called.startswith(each) for each in options.ways):
                continue
            folder = options.out / called / str(seed)
            task = _task(teacher, data, way, seed, options.macs)
            compute = choose_compute(task.teacher.module, first_images(task.data, task.data.train, 128), Device())
            best = found(task, way, task.evaluator(compute, options.out / "evaluations" / str(seed)), folder)
            same = replace(task, settings=replace(task.settings, seed=options.final_seed))
            finished(best, same.evaluator(compute, options.logits or options.out / "logits"), options, folder)
            row = {**json.loads((folder / "found.json").read_text()), **json.loads((folder / "final.json").read_text())}
            rows.setdefault(called, []).append(row)
            print(called, seed, {n: v for n, v in row.items() if n != "architecture"}, flush=True)
    show(rows)


def _task(teacher: object, data: Data, way: Way, seed: int, macs: str) -> Task:
    settings = Compression(
        method=way.method,
        goal=Goal(macs=macs),
        widths=Widths(round_to=1, min_width=2),
        augmentation=Augmentation(crop=4, flip=True),
        candidates=way.candidates,
        seed=seed,
    )
    return Task.of(teacher, data, settings)  # type: ignore[arg-type]


def show(rows: dict[str, list[dict[str, float]]]) -> None:
    """Print means and deviations over seeds."""
    print("| search | image passes | CPU s | reward it saw | validation, % | test, % |\n" + "| --- " * 6 + "|")
    for called, some in rows.items():
        of = {name: [row[name] for row in some] for name in ("passes", "seconds", "reward", "val", "test")}
        means = {name: statistics.fmean(values) for name, values in of.items()}
        spread = {name: statistics.stdev(of[name]) if len(some) > 1 else 0.0 for name in ("reward", "val", "test")}
        shares = " | ".join(f"{100 * means[name]:.2f} +- {100 * spread[name]:.2f}" for name in ("val", "test"))
        reward = f"{means['reward']:.3f} +- {spread['reward']:.3f}"
        print(f"| {called} | {means['passes']:,.0f} | {means['seconds']:.0f} | {reward} | {shares} |")


if __name__ == "__main__":
    main()
