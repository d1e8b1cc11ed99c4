"""How many students does a search need from a policy that learned on a smaller teacher, and how many from scratch?

    python benchmarks/transfer.py --seeds 3
    python benchmarks/transfer.py --pairs resnet20:resnet56 --seeds 5 --params 5x

Costs are the exact ones of the real teachers. Nothing is trained: accuracies come from a formula, a function of what
each layer is (depth, width, stride, kernel, skips) that is the same for both teachers and another one for each seed.
A search of n students has n / 10 updates of each stage. The reward to reach is, for each seed, a share of the best
that 120 students reach from scratch; a search needs the students of the shortest schedule that reaches it.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Mapping

import torch

from benchmarks.goals import Teacher
from understudy.architecture import Architecture
from understudy.config import N2N
from understudy.evaluation import Evaluation
from understudy.goal import Goal, Reward
from understudy.search.n2n import N2NSearch
from understudy.testing import toy_accuracy

WHOLE = 12  # updates of each stage that a search has by default
SCHEDULES = (1, 2, 3, 4, 6, 8, 10)  # updates of each stage
TEACHERS = {
    "vgg11": ("vgg11", {}),
    "vgg19": ("vgg19", {}),
    "resnet20": ("resnet20", {}),
    "resnet56": ("resnet56", {}),
    "resnet18-w16": ("resnet18", {"width": 16}),
    "resnet34-w16": ("resnet34", {"width": 16}),
}
PAIRS = ("vgg11:vgg19", "resnet20:resnet56", "resnet18-w16:resnet34-w16")
Policy = Mapping[str, torch.Tensor]


def evaluation(teacher: Teacher, architecture: Architecture, landscape: int) -> Evaluation:
    """Return an evaluation with the exact cost and the formula's accuracy."""
    cost = teacher.predict(architecture)
    return Evaluation(
        architecture=architecture, teacher="t", data="d", recipe="r", cost=cost, seconds=0.0, seed=0,
        accuracy=0.0 if cost is None else toy_accuracy(architecture, landscape=landscape, shared=True),
        status="failed" if cost is None else "ok",
    )  # fmt: skip


def search(
    teacher: Teacher, goal: Goal, updates: int, landscape: int, policy: Policy | None
) -> tuple[list[float], dict[str, torch.Tensor]]:
    """Return the rewards of a search's students in their order, and its policies."""
    reward = Reward(teacher_cost=teacher.cost, teacher_accuracy=0.95, budgets=goal.budgets(teacher.cost, 0.95))
    settings = N2N(removal_updates=updates, shrinkage_updates=updates)
    searcher = N2NSearch(teacher.space, reward, settings, seed=landscape, predict=teacher.predict, policy=policy)
    rewards: list[float] = []
    while proposals := searcher.propose():
        found = [evaluation(teacher, architecture, landscape) for architecture in proposals]
        searcher.learn(found)
        rewards += [reward(e) for e in found]
    return rewards, {name: t for name, t in searcher.state_dict().items() if isinstance(t, torch.Tensor)}


def needed(teacher: Teacher, goal: Goal, landscape: int, policy: Policy | None, target: float) -> int:
    """Return the students of the shortest schedule whose best reaches the target; those of the whole one if none."""
    for updates in SCHEDULES:
        rewards, _ = search(teacher, goal, updates, landscape, policy)
        if max(rewards) >= target:
            return len(rewards)
    return len(rewards) // SCHEDULES[-1] * WHOLE


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", nargs="+", default=PAIRS, help="FROM:TO")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--params", default="10x")
    parser.add_argument(
        "--share", type=float, default=0.97, help="of the best reward from scratch that is to be reached"
    )
    options = parser.parse_args()
    goal = Goal(params=options.params)
    print("| from | to | seed | to reach | from scratch | transferred | first 10: from scratch | transferred |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |", flush=True)
    for pair in options.pairs:
        names = pair.split(":")
        smaller, larger = (Teacher.of(TEACHERS[name][0], **TEACHERS[name][1]) for name in names)
        counts: list[tuple[int, int]] = []
        for seed in range(options.seeds):
            policy = search(smaller, goal, WHOLE, seed, None)[1]
            target = options.share * max(search(larger, goal, WHOLE, seed, None)[0])
            counts.append((needed(larger, goal, seed, None, target), needed(larger, goal, seed, policy, target)))
            early = [statistics.fmean(search(larger, goal, 1, seed, start)[0]) for start in (None, policy)]
            cells = [f"{target:.3f}", *map(str, counts[-1]), *(f"{mean:.3f}" for mean in early)]
            print(f"| {' | '.join(names)} | {seed} | {' | '.join(cells)} |", flush=True)
        scratch, moved = (statistics.fmean(column) for column in zip(*counts, strict=True))
        print(
            f"| {' | '.join(names)} | mean | | {scratch:.0f} | {moved:.0f} ({scratch / moved:.1f}x fewer) | | |",
            flush=True,
        )


if __name__ == "__main__":
    main()
