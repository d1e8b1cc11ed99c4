"""Which searcher finds the best student of a real teacher, at equal numbers of trained students?

    python -m benchmarks.searchers mnist --data data/mnist --teacher teachers/mnist      # VGG-13, 100 times smaller
    python -m benchmarks.searchers cifar10 --data data/cifar10 --teacher teachers/cifar10
    python -m benchmarks.searchers mnist --show                                          # tables of what was run
    python -m benchmarks.searchers mnist cifar10 --show --plot docs/real-searchers.svg
    python -m benchmarks.searchers cifar10 --data data/cifar10 --teacher teachers/resnet34 --out runs/resnet34 \
        --methods N2N "N2N, transferred" --policy-from runs/searchers

Every method searches with the same budget, the same short training of its students and the same seeds; its best
student by reward is trained once more, longer, and read on the test split. A seed decides the search, the examples that
students see, their order and their final training. Students are kept in one store for each seed, which all methods
share: what random search drew is not trained again for those that start with it. The last command transfers: policies
start where the same plan's searches on another teacher ended. Called again the command goes on where it was
interrupted. One process, one thread.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from benchmarks.tabular.plot import Curve, Panel, svg
from benchmarks.transfer import needed, targets
from understudy.config.job import Compression
from understudy.config.methods import N2N, ArchComp, Method, OptunaSearch, RandomSearch, UniformWidth
from understudy.config.training import Augmentation, Candidates, Device, Final, Training
from understudy.core.architecture import Architecture
from understudy.core.evaluation import Evaluation
from understudy.core.figures import duration, share
from understudy.core.goal import Goal, Reward
from understudy.data import Data
from understudy.data.data import first_images
from understudy.jobs.finals import Finisher
from understudy.jobs.search import search
from understudy.jobs.task import Task
from understudy.jobs.teach import load_teacher
from understudy.methods.base import Update
from understudy.methods.ranking import finalists
from understudy.models.weights import load_into, read_weights
from understudy.runs.store import Store
from understudy.training.evaluator import Evaluator
from understudy.training.loop import accuracy, choose_compute

STUDENTS = 40
ROLLOUTS = N2N().rollouts  # students of one update
TRANSFERRED = "N2N, transferred"
AT = tuple(range(5, STUDENTS + 1, 5))
METHODS: dict[str, Method] = {
    "random": RandomSearch(students=STUDENTS),
    "uniform": UniformWidth(students=STUDENTS),
    "TPE": OptunaSearch(students=STUDENTS),
    "ArchComp": ArchComp(students=STUDENTS),
    "N2N": N2N(shrinkage_updates=8),
    "TPE, filled": OptunaSearch(students=STUDENTS, fill=True),
    # As random search starts, filled.
    "N2N, not learned": N2N(shrinkage_updates=8, draws_per_rollout=1, lr=0.0, revisit=0.1),
    "N2N, policy alone": N2N(shrinkage_updates=8, draws_per_rollout=1),
    "N2N, ranking alone": N2N(shrinkage_updates=8, lr=0.0),
    "N2N, two stages": N2N(removal_updates=2, shrinkage_updates=6),
    TRANSFERRED: N2N(shrinkage_updates=8),
}
DEVICE = Device(threads=1)
PLANS = {
    "mnist": Compression(
        goal=Goal(params="100x"),
        candidates=Candidates(training=Training(epochs=4, batch_size=32, lr=0.002), examples=1500),
        final=Final(students=1, views=1, training=Training(epochs=3)),
        device=DEVICE,
    ),
    "cifar10": Compression(
        goal=Goal(params="20x"),
        augmentation=Augmentation(crop=4, flip=True),
        candidates=Candidates(training=Training(epochs=4, batch_size=32, lr=0.002), examples=1500),
        final=Final(students=1, views=2, training=Training(epochs=4)),
        device=DEVICE,
    ),
}


@dataclass(frozen=True, kw_only=True)
class Arena:
    """One seed of one plan: what trains students for every method, and what became of them."""

    task: Task
    evaluator: Evaluator
    reward: Reward
    folder: Path

    @classmethod
    def of(cls, task: Task, folder: Path) -> Arena:
        """Return the arena of a task, with its folder."""
        images = first_images(task.data, task.data.train, task.settings.candidates.training.batch_size)
        compute = choose_compute(task.teacher.module, images, task.settings.device)
        (folder / "logits").mkdir(parents=True, exist_ok=True)
        evaluator = task.evaluator(compute, folder / "logits")
        evaluator.prepare()
        budgets = task.settings.goal.budgets(task.cost, evaluator.teacher_score)
        reward = Reward(teacher_cost=task.cost, teacher_score=evaluator.teacher_score, budgets=budgets)
        return cls(task=task, evaluator=evaluator, reward=reward, folder=folder)

    def searched(self, called: str, method: Method, policy: Mapping[str, Tensor] | None) -> list[Evaluation]:
        """Return the students of one search, in the order in which they were proposed; keep what it learned."""
        found: list[Evaluation] = []
        seed = self.task.settings.seed

        def told(update: Update) -> None:
            found.extend(update.evaluations)
            best = max(self.reward(evaluation) for evaluation in found)
            print(f"{called}, seed {seed}: {len(found)} students, best reward {best:.4f}", flush=True)

        def evaluate_all(architectures: Any, *, on_done: Any) -> list[Evaluation]:
            evaluations = []
            for architecture in architectures:
                evaluations.append(self.evaluator(architecture))
                on_done(evaluations[-1])
            return evaluations

        searcher = method.searcher(replace(self.task.problem(self.reward), policy=policy))
        with Store(self.folder / "study.db", self.task.space) as store:
            search(
                searcher,
                evaluate_all,
                store,
                key_of=lambda architecture: self.evaluator.failed(architecture, "").key,
                on_update=told,
            )
        learned = {name: value for name, value in searcher.state_dict().items() if isinstance(value, Tensor)}
        if learned:
            save_file(learned, self.folder / f"{called}.safetensors")
        return found[:STUDENTS]

    def finished(self, architecture: Architecture) -> dict[str, Any]:
        """Return the figures of a student after its final training; the test split is read here alone."""
        place = self.folder / "finals"
        place.mkdir(exist_ok=True)
        finisher = Finisher(evaluator=self.evaluator, final=self.task.settings.final, folder=place)
        evaluation = finisher(architecture)
        if evaluation.status != "ok" or evaluation.cost is None:
            raise SystemExit(f"the final training of {architecture.digest} failed: {evaluation.error}")
        student = self.task.build(architecture)
        load_into(student, read_weights(place / f"{architecture.digest}.safetensors"), source=str(place))
        data, compute = self.task.data, self.evaluator.compute
        assert data.test is not None
        test = accuracy(compute.place(student), data.test, normalise=data.normalise, compute=compute)
        return {
            "parameters": evaluation.cost.parameters,
            "macs": evaluation.cost.macs,
            "val": evaluation.score,
            "test": test,
            "seconds": round(evaluation.seconds, 1),
        }


def run(name: str, options: argparse.Namespace) -> None:
    """Run what is asked for and has no results yet, seed by seed."""
    data, teacher, plan = Data.open(options.data), load_teacher(options.teacher), PLANS[name]
    for seed in options.seeds:
        folder = options.out / name / f"seed-{seed}"
        missing = [called for called in options.methods if not _done(folder / f"{called}.json", options)]
        if not missing:
            continue
        arena = Arena.of(Task.of(teacher, data, with_seed(plan, seed)), folder)
        for called in missing:
            began = time.process_time()
            policy = load_file(_source(options, name, seed)) if called == TRANSFERRED else None
            found = arena.searched(called, METHODS[called], policy)
            best = finalists(found, arena.reward, 1)[0]
            figures = None if options.no_finals else arena.finished(best)
            result = {
                "rewards": [arena.reward(evaluation) for evaluation in found],
                "accuracies": [evaluation.score for evaluation in found],
                "best": json.loads(best.to_json()),
                "final": figures,
                "teacher": arena.evaluator.teacher_score,
                "cpu_seconds": round(time.process_time() - began, 1),
            }
            (folder / f"{called}.json").write_text(json.dumps(result), encoding="utf-8")
            reached = f"test {share(figures['test'])}" if figures else f"best reward {max(result['rewards']):.4f}"
            print(f"{called}, seed {seed}: {reached} after {duration(time.process_time() - began)}", flush=True)


def _done(place: Path, options: argparse.Namespace) -> bool:
    """Return whether a search is over, and its best student trained if that is asked for."""
    return place.is_file() and (options.no_finals or bool(json.loads(place.read_text("utf-8"))["final"]))


def _source(options: argparse.Namespace, name: str, seed: int) -> Path:
    """Return where the policy is that a search of this plan and seed starts from."""
    return Path(options.policy_from) / name / f"seed-{seed}" / "N2N.safetensors"


def with_seed(plan: Compression, seed: int) -> Compression:
    """Return a plan's settings with a seed."""
    fields = {name: getattr(plan, name) for name in ("goal", "augmentation", "candidates", "final", "device")}
    return Compression(method=RandomSearch(), seed=seed, **fields)


def read(name: str, options: argparse.Namespace) -> dict[str, dict[int, dict[str, Any]]]:
    """Return what was run, by method, then by seed."""
    found: dict[str, dict[int, dict[str, Any]]] = {}
    for called in options.methods:
        places = {seed: options.out / name / f"seed-{seed}" / f"{called}.json" for seed in options.seeds}
        known = {seed: json.loads(place.read_text("utf-8")) for seed, place in places.items() if place.is_file()}
        if known:
            found[called] = known
    return found


def curve(result: dict[str, Any]) -> list[float]:
    """Return the best reward among the first 5, 10, ... students; a search that ended keeps its best."""
    return [max(result["rewards"][:count]) for count in AT]


def summed(values: list[float], form: str) -> str:
    """Return mean +- standard deviation, nothing of no values."""
    if not values:
        return ""
    deviation = f" +- {statistics.stdev(values):{form}}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):{form}}{deviation}"


def show(name: str, options: argparse.Namespace) -> Panel | None:
    """Print the table of one plan, and return its curves."""
    found = read(name, options)
    if not found:
        return None
    print(f"\n{name}, {PLANS[name].goal.params} fewer parameters\n")
    print(f"| method | seeds | 20 students | {STUDENTS} students | parameters | MACs | validation, % | test, % |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for called, results in found.items():
        curves = [curve(result) for result in results.values()]
        finals = [result["final"] for result in results.values() if result["final"]]
        parameters = ", ".join(f"{final['parameters'] / 1e3:.1f}K" for final in finals)
        macs = ", ".join(f"{final['macs'] / 1e6:.2f}M" for final in finals)
        cells = [
            called,
            str(len(results)),
            summed([values[AT.index(20)] for values in curves], ".4f"),
            summed([values[-1] for values in curves], ".4f"),
            parameters,
            macs,
            *(summed([100 * final[split] for final in finals], ".2f") for split in ("val", "test")),
        ]
        print(f"| {' | '.join(cells)} |")
    if "N2N" in found and TRANSFERRED in found:
        show_transfer(found["N2N"], found[TRANSFERRED])
    drawn = tuple(Curve.of(called, [curve(result) for result in r.values()]) for called, r in found.items())
    best = max(max(curve(result)) for results in found.values() for result in results.values())
    return Panel(title=f"{name}, {PLANS[name].goal.params} fewer parameters", best=best, at=AT, curves=drawn)


def show_transfer(scratch: dict[int, dict[str, Any]], moved: dict[int, dict[str, Any]]) -> None:
    """Print the students needed to reach what searches from scratch do, as `benchmarks.transfer` counts them."""
    print("\n| seed | mean of updates from scratch | transferred | mean to reach | scratch | transferred |", end="")
    print(" best to reach | scratch | transferred |\n|" + " --- |" * 9)
    sums = [0, 0, 0, 0]
    for seed in sorted(scratch.keys() & moved.keys()):
        updates = [
            [rewards[at : at + ROLLOUTS] for at in range(0, len(rewards), ROLLOUTS)]
            for rewards in (scratch[seed]["rewards"], moved[seed]["rewards"])
        ]
        mean, best = targets(updates[0])
        counts = [needed(rewards, mean, best, whole=STUDENTS) for rewards in updates]
        of_means, of_bests = zip(*counts, strict=True)
        sums = [total + count for total, count in zip(sums, [*of_means, *of_bests], strict=True)]
        means = [", ".join(f"{statistics.fmean(update):.3f}" for update in rewards) for rewards in updates]
        cells = [str(seed), *means, f"{mean:.3f}", *map(str, of_means), f"{best:.3f}", *map(str, of_bests)]
        print(f"| {' | '.join(cells)} |")
    print(
        f"\nStudents needed: {sums[0] / sums[1]:.1f}x fewer for the mean, {sums[2] / sums[3]:.1f}x fewer for the best"
    )


def main() -> None:
    """Run searches, or show what was run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("plans", nargs="+", choices=PLANS)
    parser.add_argument("--data", help="folder of images; with one plan")
    parser.add_argument("--teacher", help="what `understudy teach` left; with one plan")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=[m for m in METHODS if m != TRANSFERRED])
    parser.add_argument(
        "--policy-from", type=Path, help=f'the --out of searches on another teacher, for "{TRANSFERRED}"'
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=Path("runs/searchers"))
    parser.add_argument("--no-finals", action="store_true", help="search only, train no best student longer")
    parser.add_argument("--show", action="store_true", help="print what was run")
    parser.add_argument("--plot", type=Path, help="SVG to draw the curves in, with --show")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.show:
        panels = [panel for name in options.plans if (panel := show(name, options))]
        if options.plot:
            options.plot.write_text(svg(panels), encoding="utf-8")
    elif TRANSFERRED in options.methods and options.policy_from is None:
        parser.error(f"{TRANSFERRED} needs --policy-from")
    elif len(options.plans) == 1 and options.data and options.teacher:
        if TRANSFERRED in options.methods:
            sources = [_source(options, options.plans[0], seed) for seed in options.seeds]
            if lacking := [str(source) for source in sources if not source.is_file()]:
                parser.error(f"--policy-from must hold what N2N learned with each seed, but there is no {lacking[0]}")
        run(options.plans[0], options)
    else:
        parser.error("a run needs one plan, --data and --teacher")


if __name__ == "__main__":
    main()
