"""How many students does a search need from a policy that learned on a smaller teacher, and how many from scratch?

    python benchmarks/transfer.py --seeds 3
    python benchmarks/transfer.py --pairs resnet20:resnet56 --stages shrinkage --seeds 5

Costs are the exact ones of the real teachers. Nothing is trained: accuracies come from a formula, a function of what
each layer is (depth, width, stride, kernel, skips) that is the same for both teachers and another one for each seed.
Each stage alone, 12 updates of 5 students: removals are asked for 2x fewer parameters, widths and kernels for 10x, and
so are units, widths and kernels together, by the policy's draws alone or ("ranked") as by default. Two rewards are to
be reached: the mean of the last three updates from scratch, by the mean of an update; and the best from scratch, or
--share of it, by the best so far. Searches from a policy end once both are reached; where one is not, all 60 students
count.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from benchmarks.goals import Teacher
from understudy.config.methods import N2N
from understudy.core.architecture import Architecture
from understudy.core.evaluation import Evaluation
from understudy.core.goal import Goal, Reward
from understudy.methods.base import Problem
from understudy.methods.n2n.rules import TUNED
from understudy.methods.n2n.search import N2NSearch
from understudy.testing.landscapes import toy_score

_POLICY = N2N(draws_per_rollout=1)
_ALONE = replace(TUNED, fill=False)  # a policy's own draws alone, as the paper transfers no more
STAGES = {
    "removal": (replace(_POLICY, removal_updates=12, shrinkage_updates=0), Goal(params="2x")),
    "shrinkage": (replace(_POLICY, removal_updates=0, shrinkage_updates=12, revisit=0.0), Goal(params="10x")),
    "together": (replace(_POLICY, removal_updates=0, shrinkage_updates=12), Goal(params="10x")),
    "ranked": (N2N(removal_updates=0, shrinkage_updates=12), Goal(params="10x")),
}
WHOLE = 60  # students of a whole stage
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
        score=0.0 if cost is None else toy_score(architecture, landscape=landscape, shared=True),
        status="failed" if cost is None else "ok",
    )  # fmt: skip


@dataclass(frozen=True)
class Search:
    """One stage on one teacher and landscape."""

    teacher: Teacher
    stage: str
    landscape: int

    def run(
        self, policy: Policy | None = None, until: Callable[[list[list[float]]], bool] = lambda rewards: False
    ) -> tuple[list[list[float]], Policy]:
        """Return the rewards of each update and the policies in the end."""
        settings, goal = STAGES[self.stage]
        reward = Reward(
            teacher_cost=self.teacher.cost, teacher_score=0.95, budgets=goal.budgets(self.teacher.cost, 0.95)
        )
        problem = Problem(
            space=self.teacher.space, reward=reward, predict=self.teacher.predict, seed=self.landscape, policy=policy
        )
        searcher = N2NSearch(problem, settings, rules=TUNED if self.stage == "ranked" else _ALONE)
        rewards: list[list[float]] = []
        while not until(rewards) and (proposals := searcher.propose()):
            found = [evaluation(self.teacher, architecture, self.landscape) for architecture in proposals]
            searcher.learn(found)
            rewards.append([reward(e) for e in found])
        return rewards, {name: t for name, t in searcher.state_dict().items() if isinstance(t, torch.Tensor)}


def targets(scratch: Sequence[Sequence[float]]) -> tuple[float, float]:
    """Return what is to be reached: the mean of the last three updates from scratch, and the best of all."""
    mean = statistics.fmean(reward for update in scratch[-3:] for reward in update)
    return mean, max(reward for update in scratch for reward in update)


def needed(rewards: Sequence[Sequence[float]], mean: float, best: float, *, whole: int = WHOLE) -> tuple[int, int]:
    """Return how many students it takes until the mean of an update, and the best so far, reach these; all if never."""
    found = []
    for of_update, target in ((statistics.fmean, mean), (max, best)):
        students, reached = 0, False
        for update in rewards:
            students += len(update)
            if of_update(update) >= target:
                reached = True
                break
        found.append(students if reached else whole)
    return found[0], found[1]


def compared(smaller: Teacher, larger: Teacher, stage: str, seed: int, share: float) -> tuple[list[str], list[int]]:
    """Return the cells of a row, and the students needed: from scratch and transferred, for the mean and the best."""
    _, policy = Search(smaller, stage, seed).run()
    scratch, _ = Search(larger, stage, seed).run()
    mean, best = targets(scratch)
    best *= share

    def both(rewards: list[list[float]]) -> bool:
        return bool(rewards) and max(map(statistics.fmean, rewards)) >= mean and max(map(max, rewards)) >= best

    moved, _ = Search(larger, stage, seed).run(policy, both)
    counts = [
        count for pair in zip(needed(scratch, mean, best), needed(moved, mean, best), strict=True) for count in pair
    ]
    first = [f"{statistics.fmean(rewards[0]):.3f}" for rewards in (scratch, moved)]
    return [*first, f"{mean:.3f}", *map(str, counts[:2]), f"{best:.3f}", *map(str, counts[2:])], counts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", nargs="+", default=PAIRS, help="FROM:TO")
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=list(STAGES))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--share", type=float, default=1.0, help="of the best reward from scratch, to be reached")
    options = parser.parse_args()
    print(
        "| from, to | stage | seed | first update: scratch | transferred | mean to reach | scratch | transferred |",
        end="",
    )
    print(" best to reach | scratch | transferred |\n|" + " --- |" * 11, flush=True)
    for pair in options.pairs:
        names = pair.split(":")
        smaller, larger = (Teacher.of(TEACHERS[name][0], **TEACHERS[name][1]) for name in names)
        for stage in options.stages:
            needs: list[list[int]] = []
            for seed in range(options.seeds):
                cells, counts = compared(smaller, larger, stage, seed, options.share)
                needs.append(counts)
                print(f"| {', '.join(names)} | {stage} | {seed} | {' | '.join(cells)} |", flush=True)
            sums = [sum(column) for column in zip(*needs, strict=True)]
            ratios = [f"{scratch / moved:.1f}x fewer" for scratch, moved in (sums[:2], sums[2:])]
            print(f"| {', '.join(names)} | {stage} | all | | | | | {ratios[0]} | | | {ratios[1]} |", flush=True)


if __name__ == "__main__":
    main()
