"""Do N2N's policies learn? Both stages against random search on a known landscape in place of training.

    python benchmarks/policies.py                  # the table of docs/n2n.md
    python benchmarks/policies.py --compare ablations                           # one device switched off at a time
    python benchmarks/policies.py --compare constraints controllers --cases rt St

A case is a teacher (chain: VGG-13, residual: 12 blocks), what may change, and a budget. Every seed is
another landscape as well. Equal numbers of students: 60 where one stage works alone, 120 where both do.
Random search gets the same start and the same help with the budget; `frozen` is N2N that never learns.
"""

from __future__ import annotations

import argparse
import statistics
from dataclasses import dataclass, replace

from understudy.architecture import Space
from understudy.config import N2N, Method, RandomSearch
from understudy.goal import Goal
from understudy.search.searchers import searcher_for
from understudy.testing import ToyKind, run_searcher, toy_cost, toy_reward, toy_space


@dataclass(frozen=True)
class Case:
    """One row of the table."""

    kind: ToyKind
    part: str  # "removal", "shrinkage" or "both"
    params: str | None

    @property
    def space(self) -> Space:
        """The Space with only what this case may change."""
        space = toy_space(self.kind)
        if self.part == "removal":
            layers = tuple(replace(layer, group=None, kernels=()) for layer in space.layers)
            return replace(space, layers=layers, groups=())
        return replace(space, units=()) if self.part == "shrinkage" else space

    @property
    def students(self) -> int:
        """How many each method may have trained."""
        return 120 if self.part == "both" else 60


CASES = {
    "r0": Case("chain", "removal", None),
    "rt": Case("chain", "removal", "12x"),
    "s0": Case("chain", "shrinkage", None),
    "st": Case("chain", "shrinkage", "12x"),
    "b0": Case("chain", "both", None),
    "bt": Case("chain", "both", "127x"),
    "R0": Case("residual", "removal", None),
    "Rt": Case("residual", "removal", "2x"),
    "S0": Case("residual", "shrinkage", None),
    "St": Case("residual", "shrinkage", "12x"),
    "B0": Case("residual", "both", None),
    "Bt": Case("residual", "both", "60x"),
}
ALONE = 12  # updates of a stage that works alone
FROZEN = {"frozen": N2N(removal_lr=0.0, shrinkage_lr=0.0)}
UNAIDED = N2N(calibrate=False, redraws=0, repair="never")  # as in the paper: only the reward tells of budgets
CONSTRAINTS = {
    "hard": N2N(phase_updates=0),
    "Lagrangian": N2N(penalty="lagrangian"),
    "budgets as columns": N2N(budget_columns=True),
    "repair at once": N2N(repair="always"),
    "no repair": N2N(repair="never"),
    "no help, phased": UNAIDED,
    "no help, Lagrangian": replace(UNAIDED, penalty="lagrangian"),
    "no help, repair at once": replace(UNAIDED, repair="always"),
}
CONTROLLERS = {
    "autoregressive": N2N(removal_controller="autoregressive"),
    "critic": N2N(baseline="critic"),
    "autoregressive, critic": N2N(removal_controller="autoregressive", baseline="critic"),
    "no reuse of rollouts": N2N(memory=1, gradient_steps=1),
    "ten steps, no memory": N2N(memory=1),
}
ABLATIONS = {
    "no calibration": N2N(calibrate=False),
    "no redraws": N2N(redraws=0),
    "no memory": N2N(memory=1),
    "one step": N2N(gradient_steps=1),
    "no clipping": N2N(clip=1e9),
    "no harmonics": N2N(harmonics=0),
    "raw rows": N2N(scale_rows=False),
    "one advantage": N2N(advantage="update"),
    "no entropy": N2N(entropy_bonus=0.0),
    "authors' lr": N2N(removal_lr=0.003, shrinkage_lr=0.1),
}
STAGES = {
    "even stages": N2N(removal_updates=12, shrinkage_updates=12),
    "no stage 1": N2N(removal_updates=0, shrinkage_updates=24),
    "even stages, units once": N2N(removal_updates=12, shrinkage_updates=12, revisit=0.0),
}
COMPARISONS = {
    "frozen": FROZEN,
    "stages": STAGES,
    "constraints": CONSTRAINTS,
    "controllers": CONTROLLERS,
    "ablations": ABLATIONS,
}


def figures(case: Case, method: Method, seed: int) -> tuple[float, float]:
    """Return the best reward of a search and the mean reward of its last third of students."""
    reward = toy_reward(case.space, Goal(params=case.params))
    if isinstance(method, N2N) and case.part != "both":
        method = replace(method, removal_updates=ALONE, shrinkage_updates=ALONE)
    searcher = searcher_for(method, case.space, reward, seed=seed, predict=toy_cost)
    rewards = [reward(evaluation) for evaluation in run_searcher(searcher, landscape=seed)]
    return max(rewards), statistics.fmean(rewards[-len(rewards) // 3 :])


def row(name: str, found: list[tuple[float, float]], against: list[tuple[float, float]]) -> str:
    """Return one line of the table: mean, spread over seeds, and how many seeds beat the yardstick."""
    cells = []
    for figure in (0, 1):
        values = [pair[figure] for pair in found]
        wins = sum(value > other[figure] for value, other in zip(values, against, strict=True))
        cells.append(f"{statistics.fmean(values):.3f} +- {statistics.stdev(values):.3f} | {wins}/{len(values)}")
    return f"| {name} | {' | '.join(cells)} |"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--compare", nargs="+", choices=COMPARISONS, default=["frozen"])
    options = parser.parse_args()
    methods: dict[str, N2N] = {"N2N": N2N()}
    for comparison in options.compare:
        methods |= COMPARISONS[comparison]
    print("| case | best reward | beats random | mean of the last third | beats random |")
    print("| --- | --- | --- | --- | --- |", flush=True)
    for name in options.cases:
        case = CASES[name]
        seeds = range(options.seeds)
        yardstick = [figures(case, RandomSearch(students=case.students), seed) for seed in seeds]
        words = f"{name}: {case.kind}, {case.part}, {case.params or 'no budget'}"
        print(row(f"{words}, random", yardstick, yardstick))
        for called, method in methods.items():
            if case.part == "shrinkage" and method.removal_controller != N2N().removal_controller:
                continue  # there is nothing to remove
            print(row(f"{words}, {called}", [figures(case, method, seed) for seed in seeds], yardstick), flush=True)


if __name__ == "__main__":
    main()
