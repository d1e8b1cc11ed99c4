"""Does N2N's policy learn on a real network? The paper's 100 updates of 5 students, the policy alone.

    python -m benchmarks.hundred_updates --data data/cifar10 --weights resnet20.safetensors --out runs/hundred \
        --macs 10x --seeds 1 2 3 --elastic 240000
    python -m benchmarks.hundred_updates --track cifar10-16px-resnet18w16 --data data/cifar10 --out runs/hundred-small \
        --params 10x --seeds 1 2 3 --weights benchmarks/results/cifar10-16px-resnet18w16/teacher.safetensors

Every search proposes 500 students of a teacher of `benchmarks/evidence/tracks.py`: N2N whose draws are the policy's
alone, none near the best students, and trained as they come, not ranked; the same with a learning rate of zero; N2N as
by default; random search that uses budgets up, as N2N does; and "free", which learns nothing. No student is trained,
because 500 trainings are out of reach: its score is how much of its teacher's logits it has untrained, from compensated
weights (`Evaluator.glance`), or the accuracy that shared weights give it (--elastic; `benchmarks/elastic.py`). The best
of each search by that score is then trained from compensated weights and scored on validation images. What is known of
a student is kept in OUT, so that the command goes on where it was interrupted. One thread.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from benchmarks.search_speed import Bench, add_bench, bench
from understudy.config.checked import checked_together
from understudy.config.methods import N2N, Free, Method, RandomSearch
from understudy.config.training import Candidates, Training
from understudy.core.architecture import Architecture
from understudy.core.evaluation import Evaluation
from understudy.core.files import write_whole
from understudy.core.goal import Reward
from understudy.methods.n2n.rules import TUNED
from understudy.methods.n2n.search import N2NSearch

UPDATES, ROLLOUTS = 100, 5  # N2N, section 4
PARTS = 5  # into which a search's students are told apart, in the order in which they were proposed
WHOLE = N2N(shrinkage_updates=UPDATES, rollouts=ROLLOUTS)
ALONE = replace(WHOLE, draws_per_rollout=1)
SEARCHES: dict[str, Method] = {
    "N2N, policy alone": ALONE,
    "the same, learning rate 0": replace(ALONE, lr=0.0),
    "N2N": WHOLE,
    "random search, filled": RandomSearch(students=UPDATES * ROLLOUTS, fill=True),
    "free": Free(),
}


@dataclass(frozen=True, kw_only=True)
class Known:
    """Evaluations by digest, each from a file as soon as it is there."""

    evaluate: Callable[[Architecture], Evaluation]
    folder: Path

    def __call__(self, architecture: Architecture) -> Evaluation:
        """Return the evaluation of a student."""
        place = self.folder / f"{architecture.digest}.json"
        if not place.is_file():
            self.folder.mkdir(parents=True, exist_ok=True)
            write_whole(place, self.evaluate(architecture).to_json())
        return Evaluation.from_json(architecture.space, place.read_text(encoding="utf-8"))


def searched(one: Bench, method: Method, known: Known) -> list[tuple[float, Evaluation]]:
    """Return reward and evaluation of a search's students, in the order in which they were proposed."""
    reward = Reward(
        teacher_cost=one.task.cost,
        teacher_score=one.evaluator.teacher_score if one.elastic else 1.0,
        budgets=one.task.settings.goal.budgets(one.task.cost, 0.0),
        capped=method.capped,
    )
    problem, found = one.task.problem(reward), list[tuple[float, Evaluation]]()
    searcher = method.searcher(problem)
    if isinstance(method, N2N) and method.draws_per_rollout == 1:
        searcher = N2NSearch(problem, method, rules=replace(TUNED, near=0))
    while proposals := searcher.propose():
        evaluations = [known(architecture) for architecture in proposals]
        searcher.learn(evaluations)
        found += [(reward(evaluation), evaluation) for evaluation in evaluations]
    return found


def glimpse_of(one: Bench) -> Known:
    """Return what scores students untrained."""
    if one.elastic:
        with checked_together():  # no epochs: nobody can ask for that
            none = Candidates(training=Training(epochs=0, loss="ce"), weights="inherited", examples=one.examples)
        return Known(evaluate=replace(one.elastic_weights, candidates=none), folder=one.folder / "glimpses")

    def looked_at(architecture: Architecture) -> Evaluation:
        untold = one.evaluator.failed(architecture, "")
        score = max(1.0 - one.evaluator.glance(architecture), 0.0)
        return replace(untold, status="ok", error=None, score=score, cost=one.task.predict(architecture))

    return Known(evaluate=looked_at, folder=one.folder / "looks")


def row(one: Bench, called: str) -> str:
    """Return a line of the table: what a search saw, part by part, and what its best student is after a training."""
    glimpse = glimpse_of(one)
    long = Candidates(training=Training(epochs=one.long, loss="mse+ce"), examples=one.examples, stop_below=0.0)
    trained = Known(evaluate=replace(one.evaluator, candidates=long), folder=one.folder / "trained")
    began = time.process_time()
    found = searched(one, SEARCHES[called], glimpse)
    spent = time.process_time() - began
    size = max(len(found) // PARTS, 1)
    parts = [statistics.fmean(reward for reward, _ in found[i : i + size]) for i in range(0, len(found), size)]
    best, evaluation = max(found, key=lambda pair: pair[0])
    final = trained(evaluation.architecture)
    different = len({each.architecture.digest for _, each in found})
    means = ", ".join(f"{part:.3f}" for part in parts)
    return (
        f"| {called} | {one.task.settings.seed} | {len(found)} ({different}) | {means} | {best:.3f} "
        f"| {100 * evaluation.score:.2f} | {100 * final.score:.2f} | {spent:.0f} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_bench(parser)
    parser.add_argument("--examples", type=int, default=5000, help="training images, of all trainings here")
    parser.add_argument("--long", type=int, default=12, help="epochs that the best of each search is trained for")
    parser.add_argument("--elastic", type=int, default=0, help="image passes to train shared weights with; 0: looks")
    parser.add_argument("--searches", nargs="+", choices=SEARCHES, default=tuple(SEARCHES))
    parser.add_argument("--seeds", type=int, nargs="+", default=(1, 2, 3))
    options = parser.parse_args()
    torch.set_num_threads(1)
    out = options.out
    print("| search | seed | students (different) | mean reward, a fifth each | best reward | its score, % |", end="")
    print(" after a training, % | CPU s |\n| --- | --- | --- | --- | --- | --- | --- | --- |")
    for seed in options.seeds:
        own = {
            "out": out / f"seed-{seed}",
            "seed": seed,
            "students": 0,
            "starts": (),
            "without": (),
            "long_examples": None,
        }
        one = bench(argparse.Namespace(**{**vars(options), **own}))
        for called in options.searches:
            print(row(one, called), flush=True)


if __name__ == "__main__":
    main()
