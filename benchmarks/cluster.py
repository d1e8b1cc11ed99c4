"""What a Ray cluster gives, and what it costs beside the training of students.

    pip install -e '.[ray]'
    python -m benchmarks.cluster scaling --workers 1 4 16 64      # sleeps as long as real students took
    python -m benchmarks.cluster rollouts --seeds 20              # larger updates, at equal numbers of students

`scaling`: a cluster of this one machine that says it has so many cores; each evaluation sleeps as long as a student of
the table skip-mnist took, times `--slower`, those of the most MACs first, as a search does. Efficiency is the time
slept, over the workers' time until the last one is done; what an evaluation costs beside it is what remains with sleeps
of nothing. A first round that starts the processes is not counted.

`rollouts`: a cluster of W workers is full when an update proposes W students or more. What larger updates cost a
search is the best reward after 40 students, by N2N on the table of 2,205 really trained students, for updates of 5, 10,
20 and 40.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.tabular.table import Table, search
from understudy.config.methods import N2N
from understudy.core.architecture import Architecture
from understudy.core.evaluation import Evaluation
from understudy.methods.base import Problem
from understudy.runs.workers.retries import Retries
from understudy.testing.landscapes import toy_evaluation, toy_space

TABLE = Path(__file__).parent / "tabular" / "skip-mnist.npz"
STUDENTS = 40
UPDATES = (5, 10, 20, 40)


@dataclass(frozen=True)
class Sleep:
    """An evaluation that sleeps for the seconds that stand for its architecture."""

    seconds: dict[str, float]

    def __call__(self, architecture: Architecture) -> Evaluation:
        """Return a made-up evaluation after that time."""
        seconds = self.seconds.get(architecture.digest, 0.0)
        time.sleep(seconds)
        return replace(toy_evaluation(architecture), seconds=seconds)


def durations(count: int, slower: float) -> list[float]:
    """Return how long so many students take, seconds; as in a search, those of the most MACs are begun first."""
    with np.load(TABLE, allow_pickle=False) as file:
        taken, macs = file["seconds"].astype(float), file["costs"][:, 1]
    drawn = np.random.default_rng(0).choice(len(taken), count)
    longest_first = drawn[np.argsort(-macs[drawn], kind="stable")]
    return (taken[longest_first] * slower).tolist()  # type: ignore[no-any-return]


def architectures(count: int) -> list[Architecture]:
    """Return so many different architectures of a toy Space."""
    space = toy_space()
    rng = np.random.default_rng(0)
    found: dict[str, Architecture] = {}
    while len(found) < count:
        widths = {group.name: int(rng.choice(group.legal_widths())) for group in space.groups}
        drawn = space.architecture(widths=widths)
        found[drawn.digest] = drawn
    return list(found.values())


def scaling(options: argparse.Namespace) -> None:
    """Print how busy so many workers are."""
    import ray

    from understudy.runs.workers.ray.pool import Cluster, RayPool

    print("| workers | evaluations | seconds each | wall, s | efficiency | beside an evaluation, ms |")
    print("| --- | --- | --- | --- | --- | --- |")
    for workers in options.workers:
        plans = architectures(workers * options.each)
        seconds = durations(len(plans), options.slower)
        ray.init(num_cpus=workers, include_dashboard=False, log_to_driver=False, object_store_memory=2**27)
        row: dict[str, Any] = {"workers": workers, "evaluations": len(plans)}
        try:
            for slept in (False, True):
                known = {p.digest: s * slept for p, s in zip(plans, seconds, strict=True)}
                retries = Retries(failed=lambda architecture, error: toy_evaluation(architecture).with_error(error))
                with RayPool(Sleep(known), plans[0].space, Cluster(address="auto"), retries) as pool:
                    # The first round starts the processes, a sleep in each so that all of them are.
                    pool.evaluate_all(plans[: 2 * workers])
                    start = time.perf_counter()
                    pool.evaluate_all(plans)
                    row["slept" if slept else "empty"] = time.perf_counter() - start
        finally:
            ray.shutdown()
        beside = 1e3 * row["empty"] / len(plans)
        efficiency = sum(seconds) / (workers * row["slept"])
        cells = [workers, len(plans), f"{statistics.fmean(seconds):.2f}", f"{row['slept']:.1f}"]
        print(f"| {' | '.join(map(str, cells))} | {efficiency:.3f} | {beside:.1f} |", flush=True)


def rollouts(options: argparse.Namespace) -> None:
    """Print what larger updates cost a search."""
    table = Table.load(TABLE)
    reward = table.reward(params=options.params)
    print(f"| students of an update | updates | best reward after {STUDENTS} students | seeds |")
    print("| --- | --- | --- | --- |")
    for size in UPDATES:
        best = []
        for seed in range(options.seeds):
            method = N2N(shrinkage_updates=STUDENTS // size, rollouts=size)
            searcher = method.searcher(Problem(space=table.space, reward=reward, predict=table.cost, seed=seed))
            best.append(max(reward(evaluation) for evaluation in search(searcher, table, STUDENTS)))
        spread = f"{statistics.fmean(best):.4f} +- {statistics.stdev(best):.4f}"
        print(f"| {size} | {STUDENTS // size} | {spread} | {len(best)} |", flush=True)
        if options.out:
            with options.out.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"rollouts": size, "best": best}) + "\n")


def main() -> None:
    """Measure one of the two."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("scaling", "rollouts"))
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 4, 16, 64])
    parser.add_argument("--each", type=int, default=8, help="evaluations per worker")
    parser.add_argument("--slower", type=float, default=8.0, help="how many times as long as in the table")
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--params", default="5x", help="budget of the search in the table")
    parser.add_argument("--out", type=Path, help="file of JSON lines")
    options = parser.parse_args()
    scaling(options) if options.what == "scaling" else rollouts(options)


if __name__ == "__main__":
    main()
