"""Random goals on real teachers: is what a search ends with within the goal, or is the goal truly out of reach?

    python benchmarks/goals.py --goals 20

One to three budgets each, on parameters, MACs, megabytes of weights and of activations, from easy to hard.
Costs are the exact ones of VGG-13 and ResNet-18 (CIFAR form, width 16); accuracies come from a formula, because
budgets on cost do not depend on them. A goal that is refused as out of reach is checked against the least
of each figure in thousands of random architectures of the narrowest widths.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch

from understudy.config.methods import N2N
from understudy.config.widths import Widths
from understudy.core.architecture import Architecture, Space
from understudy.core.errors import GoalError, SurgeryError
from understudy.core.evaluation import Cost, Evaluation
from understudy.core.goal import Budgets, Goal, Reward
from understudy.cost.predict import predict
from understudy.graph.analysis import Analysis, analyse
from understudy.methods.base import Problem
from understudy.methods.feasibility import refuse_what_is_out_of_reach
from understudy.methods.ranking import merit_for
from understudy.models import zoo

METHOD = N2N(shrinkage_updates=12)
HARDEST = {"params": 3000.0, "macs": 500.0, "size_mb": 3000.0, "memory_mb": 12.0}  # ratios; the easiest is 1.2
NARROWEST = 2000  # random architectures against which a refusal is checked


@dataclass(frozen=True, eq=False)
class Teacher:
    """A network of the zoo and the exact cost of its students."""

    name: str
    analysis: Analysis

    @classmethod
    def of(cls, name: str, **arguments: int) -> Teacher:
        return cls(name, analyse(zoo.create(name, **arguments).eval(), torch.zeros(2, 3, 32, 32)))

    @property
    def space(self) -> Space:
        return self.analysis.space

    @cached_property
    def cost(self) -> Cost:
        return predict(self.analysis, self.space.full)

    def predict(self, architecture: Architecture) -> Cost | None:
        """Return the exact cost, None if it cannot be built."""
        try:
            return predict(self.analysis, architecture)
        except SurgeryError:
            return None

    def evaluation(self, architecture: Architecture) -> Evaluation:
        """Return an evaluation whose accuracy falls slowly with the parameters."""
        cost = self.predict(architecture)
        share = 0.0 if cost is None else cost.parameters / self.cost.parameters
        return Evaluation(
            architecture=architecture, teacher="t", data="d", recipe="r", cost=cost, score=0.9 * share**0.05,
            seconds=0.0, seed=0, status="failed" if cost is None else "ok",
        )  # fmt: skip


def random_goal(numbers: np.random.Generator) -> Goal:
    """Return a goal of one to three budgets, each ratio drawn evenly in its logarithm."""
    names = numbers.choice(list(HARDEST), size=int(numbers.integers(1, 4)), replace=False)
    ratios = {str(name): float(np.exp(numbers.uniform(np.log(1.2), np.log(HARDEST[name])))) for name in names}
    return Goal(**{name: f"{ratio:.3g}x" for name, ratio in ratios.items()})  # type: ignore[arg-type]


def searched(teacher: Teacher, budgets: Budgets, seed: int) -> Evaluation:
    """Return what a search under these budgets ends with."""
    reward = Reward(teacher_cost=teacher.cost, teacher_score=0.9, budgets=budgets)
    searcher = METHOD.searcher(Problem(space=teacher.space, reward=reward, predict=teacher.predict, seed=seed))
    found: list[Evaluation] = []
    while proposals := searcher.propose():
        found += [teacher.evaluation(a) for a in proposals]
        searcher.learn(found[-len(proposals) :])
    return max((e for e in found if e.status == "ok"), key=merit_for(reward))


def truly_out_of_reach(teacher: Teacher, budgets: Budgets, numbers: np.random.Generator) -> bool:
    """Return whether no narrowest architecture, whatever units it removes, keeps the budgets."""
    space = teacher.space
    widths = {group.name: METHOD.narrowest(group, Widths()) for group in space.groups}
    kernels = {layer.name: layer.kernels[0] for layer in space.layers if layer.kernels}
    units = [unit.name for unit in space.units if unit.kind != "layer"]
    for _ in range(NARROWEST):
        keep = numbers.random()
        removed = [name for name in units if numbers.random() > keep]
        cost = teacher.predict(space.architecture(removed=removed, widths=widths, kernels=kernels))
        if cost is not None and not budgets.broken_by(cost):
            return False
    return True


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--goals", type=int, default=20, help="for each teacher")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    print("| teacher | goal | outcome | largest share of a budget |\n| --- | --- | --- | --- |")
    tally: dict[str, int] = {}
    for teacher in (Teacher.of("vgg13"), Teacher.of("resnet18", width=16)):
        numbers = np.random.default_rng(options.seed)
        for seed in range(options.goals):
            goal = random_goal(numbers)
            budgets = replace(goal.budgets(teacher.cost, 0.9), score=0.0)
            used = ""
            try:
                refuse_what_is_out_of_reach(budgets, teacher.space, METHOD, Widths(), teacher.predict)
            except GoalError:
                truly = truly_out_of_reach(teacher, budgets, np.random.default_rng(seed))
                outcome = "out of reach, truly" if truly else "REFUSED, BUT WITHIN REACH"
            else:
                cost = searched(teacher, budgets, seed).cost
                assert cost is not None
                outcome = "BROKEN" if budgets.broken_by(cost) else "kept"
                used = f"{max(getattr(cost, name) / most for name, most in budgets.limits()):.2f}"
            asked = ", ".join(f"{name} {text}" for name, text in vars(goal).items() if text is not None)
            print(f"| {teacher.name} | {asked} | {outcome} | {used} |", flush=True)
            tally[outcome] = tally.get(outcome, 0) + 1
    print("\n" + ", ".join(f"{count} {outcome}" for outcome, count in sorted(tally.items())))


if __name__ == "__main__":
    main()
