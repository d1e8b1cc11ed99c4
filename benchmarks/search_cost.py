"""What a search costs beside the training of its students: processor time for each student proposed, and memory.

    python -m benchmarks.search_cost [resnet20 resnet110 densenet40 ...] [--methods n2n random] [--students 40]
    python -m benchmarks.search_cost resnet20 --methods n2n random --students 10000    # does it stay as it is?

A searcher of each method proposes so many students of a network of the zoo (32 pixels, random weights), at a tenth of
its parameters, and learns from made-up scores. "n2n-looks" has looks at untrained students as well, made up like them;
what it takes to propose these is counted. "Share" is its processor time beside that of the default evaluation, 5
epochs of 5,000 images, from steps of a student in the same process. Each row has a process of its own, one thread;
"last tenth" is of the last tenth of the students, and memory is what the process grew by after the first tenth.
"""

from __future__ import annotations

import argparse
import os
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

from benchmarks.limited import limited
from understudy.config.methods import N2N, ArchComp, Method, OptunaSearch, RandomSearch
from understudy.config.training import Candidates
from understudy.core.answers import Answers
from understudy.core.architecture import Architecture
from understudy.core.errors import SurgeryError
from understudy.core.evaluation import Cost, Evaluation
from understudy.core.goal import Goal, Reward
from understudy.cost.predict import predict
from understudy.graph.analysis import Analysis, analyse
from understudy.methods.base import Problem
from understudy.models import zoo
from understudy.surgery.build import build

BATCH = 64
NETWORKS = ("vgg13", "resnet20", "resnet110", "densenet40")
METHODS: dict[str, Callable[[int], Method]] = {
    "n2n": lambda students: N2N(shrinkage_updates=max(students // 5, 1)),
    "n2n-looks": lambda students: N2N(shrinkage_updates=max(students // 5, 1), glances=5),
    "archcomp": lambda students: ArchComp(students=students),
    "random": lambda students: RandomSearch(students=students),
    "tpe": lambda students: OptunaSearch(students=students),
}


def main() -> None:
    """Measure each method on each network and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="*", help=f"of the zoo; default: {' '.join(NETWORKS)}")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--students", type=int, default=40)
    parser.add_argument("--limit", type=float, default=3600, help="processor seconds of a row")
    options = parser.parse_args()
    print("| network | layers | method | students | ms each | last tenth | share, % | MB |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for network in options.networks or NETWORKS:
        for method in options.methods:
            row = limited(measured, network, method, options.students, limit=options.limit)
            cells = ["no answer in time"] if row is None else [*row.values()]
            print(f"| {network} | {' | '.join(map(str, cells))} |", flush=True)


def measured(network: str, method: str, students: int) -> dict[str, Any]:
    """Return the row of a method on a network."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    analysis = analyse(zoo.create(network).eval(), torch.randn(2, 3, 32, 32))
    space, predicted = analysis.space, Answers(lambda architecture: cost_of(analysis, architecture))
    whole = predicted(space.full)
    assert whole is not None
    budgets = Goal(params="10x").budgets(whole, 0.9)
    reward = Reward(teacher_cost=whole, teacher_score=0.9, budgets=budgets)

    def look(architecture: Architecture) -> float:
        return 1.0 - made_up(architecture, predicted(architecture), whole).score

    searcher = METHODS[method](students).searcher(Problem(space=space, reward=reward, predict=predicted, glance=look))
    times: list[float] = []
    grown = 0.0
    while len(times) < students:
        start = time.process_time()
        proposals = searcher.propose()
        if not proposals:
            break
        evaluations = [made_up(architecture, predicted(architecture), whole) for architecture in proposals]
        searcher.learn(evaluations)
        times += [(time.process_time() - start) / len(proposals)] * len(proposals)
        if not grown and len(times) >= students / 10:
            grown = resident()
    tenth = max(len(times) // 10, 1)
    mean, last = sum(times) / len(times), sum(times[-tenth:]) / tenth
    grown = resident() - grown
    training = seconds_of_training(analysis, proposals[0] if proposals else space.full)
    return {
        "layers": len(space.layers),
        "method": method,
        "students": len(times),
        "each": f"{1e3 * mean:.1f}",
        "last": f"{1e3 * last:.1f}",
        "share": f"{100 * mean / training:.2f}",
        "MB": f"{grown:.1f}",
    }


def cost_of(analysis: Analysis, architecture: Architecture) -> Cost | None:
    """Return the predicted cost, None if it cannot be built."""
    try:
        return predict(analysis, architecture)
    except SurgeryError:
        return None


def made_up(architecture: Architecture, cost: Cost | None, whole: Cost) -> Evaluation:
    """Return an evaluation whose score grows with the parameters and has a part of the architecture's own."""
    size = 0.0 if cost is None else (cost.parameters / whole.parameters) ** 0.1
    own = zlib.crc32(architecture.digest.encode()) / 2**32
    made = Evaluation(
        architecture=architecture,
        teacher="",
        data="",
        recipe="",
        cost=cost,
        score=0.8 * size + 0.1 * own,
        seconds=0.0,
        seed=0,
    )
    return made if cost is not None else made.with_error("cannot be built")


def resident() -> float:
    """Return the megabytes of memory that this process holds (Linux)."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def seconds_of_training(analysis: Analysis, architecture: Architecture) -> float:
    """Return the processor seconds of the default evaluation's training, by three steps."""
    student = build(analysis, architecture, weights="fresh").train()
    images, candidates = torch.randn(BATCH, 3, 32, 32), Candidates()
    passes = candidates.training.epochs * candidates.examples
    student(images).sum().backward()
    start = time.process_time()
    for _ in range(3):
        student(images).sum().backward()
    return (time.process_time() - start) / (3 * BATCH) * passes


if __name__ == "__main__":
    main()
