"""What tells a good student soonest? Students per hour and rank correlation of ways to evaluate, on the same students.

    python -m benchmarks.search_speed --data data/cifar10 --weights resnet20.safetensors --out runs/speed --macs 8x
    python -m benchmarks.search_speed --data data/cifar10 --weights resnet20.safetensors --out runs/speed --params 4x
    python -m benchmarks.search_speed --data data/cifar10 --weights resnet20.safetensors --out runs/short --macs 8x \
        --students 3 --examples 64 --long 1
    python -m benchmarks.search_speed --track cifar10-16px-resnet18w16 --data data/cifar10 --out runs/small \
        --params 10x --long 4 --long-examples 45000 --starts compensated

The teacher is that of a track (`benchmarks/evidence/tracks.py`). Students are drawn as random search draws them, then
widened until the budget is used up. Each way evaluates all of them: as N2N's authors do (fresh weights, the teacher run
on every batch, fp32, scored after every epoch), today's default, and cheaper ones, down to predicted costs alone. In
the end all are trained longer, from inherited and from compensated weights; Kendall's tau of each way is with the mean
of these two accuracies, and that of a rank sum with MACs stands beside it. Every figure is kept in OUT, so that the
command goes on where it was interrupted. One process, one thread; processor seconds.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path

import torch
from scipy.stats import kendalltau, rankdata

from benchmarks.elastic import Elastic, SharedEvaluator
from benchmarks.evidence.tracks import TRACKS
from understudy.config.checked import checked_together
from understudy.config.job import Compression
from understudy.config.methods import RandomSearch
from understudy.config.presets import paper
from understudy.config.training import Candidates, Final, Start, Training
from understudy.config.widths import Widths
from understudy.core.architecture import Architecture
from understudy.core.files import write_whole
from understudy.core.goal import Goal, Reward
from understudy.data import Views
from understudy.jobs.task import Task
from understudy.methods.baselines.random import RandomSearcher
from understudy.surgery import build
from understudy.training.evaluator import Evaluator
from understudy.training.loop import Compute, accuracy, choose_compute, predict, train

ELASTIC = "elastic weights"
AUTHORS, MACS, PARAMETERS = "as the authors", "predicted MACs", "predicted parameters"
GLANCE = "compensated, not trained: logits"
_FIELDS = 1000  # random halves of the students, among which each way chooses
LONG: tuple[Start, ...] = ("inherited", "compensated")


@dataclass(frozen=True, kw_only=True)
class Reading:
    """What a way says of one student, larger is better, and the processor seconds that it took."""

    score: float
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Bench:
    """Students of one teacher, and where what is known of them is kept."""

    task: Task
    evaluator: Evaluator
    students: list[Architecture]
    examples: int  # training images that candidates see, at most
    long: int  # epochs
    long_examples: int  # training images that long trainings see, at most
    starts: tuple[Start, ...]  # of the long trainings
    without: tuple[str, ...]  # ways that are left out
    elastic: int  # image passes that elastic weights learn in, 0: without them
    folder: Path

    @property
    def candidates(self) -> dict[str, Candidates]:
        """The ways that are settings of candidates, cheapest first."""
        return {called: way for called, way in self.ways.items() if called not in self.without}

    @cached_property
    def ways(self) -> dict[str, Candidates]:
        """The same, with those that are left out: shared weights may be scored by their training."""
        with checked_together():  # no epochs: nobody can ask for that
            none = Training(epochs=0, loss="ce")
        few, some, whole = min(1500, self.examples), min(2000, self.examples), self.examples
        pace = {"batch_size": 32, "lr": 0.002}
        kinds: dict[str, tuple[Start, int, Training]] = {
            "inherited, not trained": ("inherited", whole, none),
            "compensated, not trained": ("compensated", whole, none),
            f"inherited, 1 epoch of {few:,}": ("inherited", few, Training(epochs=1, **pace)),
            f"compensated, 1 epoch of {few:,}": ("compensated", few, Training(epochs=1, **pace)),
            f"compensated, 3 epochs of {some:,}, batches of 32": (
                "compensated",
                some,
                Training(epochs=3, batch_size=32),
            ),
            f"inherited, 4 epochs of {few:,}": ("inherited", few, Training(epochs=4, **pace)),
            f"inherited, 5 epochs of {whole:,}": ("inherited", whole, Training()),
            f"compensated, 5 epochs of {whole:,}": ("compensated", whole, Training()),
            f"compensated, 5 epochs of {whole:,}, batches of 32": ("compensated", whole, Training(batch_size=32)),
        }
        long = Training(epochs=self.long, loss="mse+ce")
        kinds |= {self.longer(start): (start, self.long_examples, long) for start in self.starts}
        with checked_together():
            return {
                called: Candidates(weights=start, examples=count, training=training, stop_below=0.0)
                for called, (start, count, training) in kinds.items()
            }

    def longer(self, start: Start) -> str:
        """Return what the long training from these weights is called."""
        return f"{start}, {self.long} epochs of {self.long_examples:,}"

    def run(self, called: str, students: int) -> list[Reading]:
        """Return what a way says of the first students, from the folder as far as it is there."""
        way: Callable[[Architecture], float]
        if called == AUTHORS:
            way = self.as_the_authors
        elif called == GLANCE:

            def way(architecture: Architecture) -> float:
                return -self.evaluator.glance(architecture)
        elif called.startswith(ELASTIC):
            taught = replace(self.elastic_weights, candidates=self.ways[called.replace(ELASTIC, "inherited")])

            def way(architecture: Architecture) -> float:
                return taught(architecture).score

        else:
            taught = replace(self.evaluator, candidates=self.candidates[called])
            self.once(called, taught.prepare)

            def way(architecture: Architecture) -> float:
                return taught(architecture).score

        found = []
        for number, architecture in enumerate(self.students[:students], 1):
            place = self.folder / called / f"{architecture.digest}.json"
            if not place.is_file():
                place.parent.mkdir(exist_ok=True)
                began = time.process_time()
                score = way(architecture)
                write_whole(place, json.dumps({"score": score, "seconds": time.process_time() - began}))
                print(f"{called}, {number}/{students}: {score:.4f}", flush=True)
            found.append(Reading(**json.loads(place.read_text(encoding="utf-8"))))
        return found

    @cached_property
    def elastic_weights(self) -> Evaluator:
        """The evaluator whose students inherit from shared weights, which are trained now or were before."""
        task, examples = self.task, min(self.examples, len(self.task.data.train))
        data = replace(task.data, train=task.data.train.subset(examples, self.evaluator.seed))
        network = Elastic(task.analysis, drawn(task, 160, seed=self.evaluator.seed + 1000))
        training = Training(epochs=self.elastic // examples, loss="mse+ce")
        recipe = replace(self.evaluator, data=data).final_recipe(Final(training=training, views=8))
        assert recipe.logits is not None
        teacher, where = recipe.logits.epoch, self.folder / f"{ELASTIC}.pt"

        def learn() -> None:
            train(
                network,
                recipe.split,
                training,
                normalise=data.normalise,
                views=recipe.views,
                compute=self.evaluator.compute,
                seed=self.evaluator.seed,
                logits=teacher,
                checkpoint=where,
            )

        self.once(ELASTIC, learn)
        known = {each.name: getattr(self.evaluator, each.name) for each in fields(self.evaluator)}
        return SharedEvaluator(**known, elastic=network)

    def once(self, called: str, work: Callable[[], object]) -> float:
        """Do what all students of a way share, and return the processor seconds that it took the first time."""
        place, began = self.folder / f"{called}.json", time.process_time()
        work()
        if not place.is_file():
            write_whole(place, json.dumps(time.process_time() - began))
        return float(json.loads(place.read_text(encoding="utf-8")))

    def as_the_authors(self, architecture: Architecture) -> float:
        """Train a student as N2N's authors' code does."""
        own, data, compute = self.evaluator, self.task.data, Compute()
        teacher, training = compute.place(self.task.teacher.module), paper("n2n").candidates.training
        split = data.train.subset(min(self.examples, len(data.train)), own.seed)
        views = Views(len(split), own.augmentation, own.seed)
        student = build.build(self.task.analysis, architecture, weights="fresh", seed=own.seed)
        scores: list[float] = []

        def logits(epoch: int) -> torch.Tensor:
            return predict(teacher, split, normalise=data.normalise, compute=compute, epoch=views.epoch(epoch))

        def scored(progress: object) -> bool:
            scores.append(accuracy(student, data.val, normalise=data.normalise, compute=compute))
            return True

        train(
            student,
            split,
            training,
            normalise=data.normalise,
            views=views,
            compute=compute,
            seed=own.seed,
            logits=logits,
            on_epoch=scored,
        )
        return scores[-1] if scores else 0.0

    def show(self, few: int) -> None:
        """Print the table of what is known, evaluating what is not: authors' way for `few` of the students."""
        count = len(self.students)
        found = {called: self.run(called, count) for called in self.candidates}
        found[GLANCE] = self.run(GLANCE, count)
        if self.elastic:
            for called in ("not trained", f"1 epoch of {min(1500, self.examples):,}"):
                found[f"{ELASTIC}, {called}"] = self.run(f"{ELASTIC}, {called}", count)
        found[AUTHORS] = self.run(AUTHORS, few)
        truths = [[reading.score for reading in found[self.longer(start)]] for start in self.starts]
        truth = [statistics.fmean(pair) for pair in zip(*truths, strict=True)]
        costs = [self.task.predict(architecture) for architecture in self.students]
        free = {
            MACS: [Reading(score=cost.macs, seconds=0.0) for cost in costs if cost],
            PARAMETERS: [Reading(score=cost.parameters, seconds=0.0) for cost in costs if cost],
        }
        published = statistics.fmean(reading.seconds for reading in found[AUTHORS])
        if len(truths) > 1:
            print(f"\nlong trainings with each other: tau {tau(truths[0], truths[1]):.2f}")
        print("| way | mean, % | CPU s a student | students per hour | times the authors' | tau | with MACs |")
        print("| --- | --- | --- | --- | --- | --- | --- |")
        macs = [reading.score for reading in free[MACS]]
        for called, readings in {**free, **found}.items():
            scores, seconds = [r.score for r in readings], statistics.fmean(r.seconds for r in readings)
            among = truth[: len(scores)]
            rate = f"{3600 / seconds:,.0f} | {published / seconds:.1f}" if seconds else "- | -"
            mean = f"{100 * statistics.fmean(scores):.1f}" if called not in (*free, GLANCE) else "-"
            both = tau([a + b for a, b in zip(rankdata(scores), rankdata(macs[: len(scores)]), strict=True)], among)
            print(f"| {called} | {mean} | {seconds:.1f} | {rate} | {tau(scores, among):.2f} | {both:.2f} |")
        self.show_choices({**free, **found}, truth)

    def show_choices(self, found: dict[str, list[Reading]], truth: list[float]) -> None:
        """Print how good the student is that each way, and rungs of ways, choose among half of the students."""
        drawing, count, some = random.Random(0), len(truth), max(len(truth) // 2, 2)
        fields = [drawing.sample(range(count), some) for _ in range(_FIELDS)]
        ways: dict[str, list[tuple[str, int]]] = {
            called: [(called, 1)] for called, readings in found.items() if len(readings) == count
        }
        ways |= {", then ".join(f"{n} by {called}" for called, n in rungs): rungs for rungs in self.rungs(some)}
        best = statistics.fmean(max(truth[i] for i in field) for field in fields)
        print(f"\nchosen among {some}: {100 * best:.2f}% would be the best, {100 * statistics.fmean(truth):.2f}% any")
        print("| chosen by | after the long training, % | CPU s in all |")
        print("| --- | --- | --- |")
        for called, rungs in ways.items():
            chosen = [climbed(field, [(found[way], left) for way, left in rungs]) for field in fields]
            score = statistics.fmean(truth[i] for i, _ in chosen)
            print(f"| {called} | {100 * score:.2f} | {statistics.fmean(seconds for _, seconds in chosen):.0f} |")

    def rungs(self, count: int) -> list[list[tuple[str, int]]]:
        """Return the successive halvings by ways that are not left out: each way with how many students it leaves."""
        first, short = "compensated, not trained", f"compensated, 1 epoch of {min(1500, self.examples):,}"
        last = f"compensated, 5 epochs of {self.examples:,}"
        half, quarter = max(count // 2, 1), max(count // 4, 1)
        all_rungs = [
            [(first, half), (last, 1)],
            [(first, half), (short, quarter), (last, 1)],
            [(short, quarter), (last, 1)],
        ]
        return [rungs for rungs in all_rungs if all(way in self.candidates for way, _ in rungs)]


def climbed(field: list[int], rungs: list[tuple[list[Reading], int]]) -> tuple[int, float]:
    """Return who of some students is left in the end, and the seconds that all readings on the way took."""
    seconds, left = 0.0, field
    for readings, count in rungs:
        seconds += sum(readings[i].seconds for i in left)
        left = sorted(left, key=lambda i: -readings[i].score)[:count]
    return left[0], seconds


def tau(one: list[float], other: list[float]) -> float:
    """Return Kendall's tau."""
    value = float(kendalltau(one, other).statistic)
    return 0.0 if math.isnan(value) else value


def drawn(task: Task, count: int, seed: int | None = None) -> list[Architecture]:
    """Return different architectures that use the budget up, as far as their widths allow."""
    budgets = task.settings.goal.budgets(task.cost, score=1.0)
    reward = Reward(teacher_cost=task.cost, teacher_score=1.0, budgets=budgets)
    problem = task.problem(reward)
    problem = problem if seed is None else replace(problem, seed=seed)
    searcher, found = RandomSearcher(problem, RandomSearch()), dict[str, Architecture]()
    while len(found) < count:
        architecture = searcher.filled(searcher.drawn())
        cost = task.predict(architecture)
        if cost is not None and not budgets.broken_by(cost):
            found.setdefault(architecture.digest, architecture)
    return list(found.values())


def bench(options: argparse.Namespace) -> Bench:
    """Return teacher, data and students."""
    track = TRACKS[options.track]
    settings = Compression(
        goal=Goal(params=options.params, macs=options.macs),
        augmentation=track.augmentation,
        widths=Widths(round_to=2, min_width=4),
        device=track.device,
        seed=options.seed,
    )
    data = track.open_data(options.data, options.out / "images")
    teacher = track.teacher.open(data, options.out / "teacher", options.weights)
    data = replace(data, val=data.val.subset(min(1000, len(data.val)), 0))
    folder = options.out / f"{options.params or options.macs} {'MACs' if options.macs else 'parameters'}"
    folder.mkdir(parents=True, exist_ok=True)
    task = Task.of(teacher, data, settings)
    compute = choose_compute(task.teacher.module, task.example, settings.device)
    return Bench(
        task=task,
        evaluator=task.evaluator(compute, options.out / "logits"),
        students=drawn(task, options.students),
        examples=options.examples,
        long=options.long,
        long_examples=options.long_examples or options.examples,
        starts=tuple(options.starts),
        without=tuple(options.without),
        elastic=options.elastic,
        folder=folder,
    )


def add_bench(parser: argparse.ArgumentParser) -> None:
    """Add what says which teacher, and how small its students are."""
    parser.add_argument("--track", choices=TRACKS, default="cifar10-resnet20a", help="whose teacher and images")
    parser.add_argument("--data", help="folder of the track's images")
    parser.add_argument("--weights", type=Path, help="of a teacher that others trained, as safetensors")
    parser.add_argument("--out", type=Path, required=True)
    budget = parser.add_mutually_exclusive_group(required=True)
    budget.add_argument("--params", help="budget of the students, such as 4x")
    budget.add_argument("--macs", help="likewise")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_bench(parser)
    parser.add_argument("--students", type=int, default=25)
    parser.add_argument("--published", type=int, default=25, help="how many of them are trained as the authors do")
    parser.add_argument("--examples", type=int, default=5000)
    parser.add_argument("--long", type=int, default=12, help="epochs")
    parser.add_argument("--long-examples", type=int, help="images of them; default: as many as of the short ones")
    parser.add_argument("--starts", nargs="+", choices=LONG, default=LONG, help="of the long trainings")
    parser.add_argument("--elastic", type=int, default=0, help="image passes to train elastic weights with")
    parser.add_argument("--without", nargs="*", default=(), help="ways to leave out, as the table calls them")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    bench(options).show(min(options.published, options.students))


if __name__ == "__main__":
    main()
