"""Do N2N's policies learn? Both stages against random search on a known landscape in place of training.

    python benchmarks/policies.py                  # the table of docs/n2n.md
    python benchmarks/policies.py --compare searchers --cases bt Bt             # other searchers beside N2N
    python benchmarks/policies.py --compare ablations                           # one device switched off at a time
    python benchmarks/policies.py --compare constraints controllers --cases rt St

A case is a teacher (chain: VGG-13, residual: 12 blocks), what may change, and a budget. Every seed is
another landscape as well. Equal numbers of students: 60 where one stage works alone, 120 where both do.
Random search gets the same start and the same help with the budget; `frozen` is N2N that never learns. Where N2N's
policies are compared with others, what they draw is not ranked, so that all that is learned is learned by them.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Mapping
from dataclasses import dataclass, replace

from understudy.config.methods import N2N, ArchComp, OptunaSearch, RandomSearch
from understudy.core.architecture import Space
from understudy.core.goal import Goal
from understudy.methods.registry import searcher_for
from understudy.testing.landscapes import ToyKind, run_searcher, toy_cost, toy_reward, toy_space


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
PLAIN = N2N(draws_per_rollout=1)  # what the policy draws is trained, so that all that is learned is learned by it
FROZEN = {
    "frozen, draws ranked": N2N(removal_lr=0.0, shrinkage_lr=0.0),
    "frozen, draws not ranked": replace(PLAIN, removal_lr=0.0, shrinkage_lr=0.0),
}
UNAIDED = replace(
    PLAIN, calibrate=False, redraws=0, repair="never"
)  # as in the paper: only the reward tells of budgets
CONSTRAINTS = {
    "hard": replace(PLAIN, phase_updates=0),
    "Lagrangian": replace(PLAIN, penalty="lagrangian"),
    "budgets as columns": replace(PLAIN, budget_columns=True),
    "repair at once": replace(PLAIN, repair="always"),
    "no repair": replace(PLAIN, repair="never"),
    "no help, phased": UNAIDED,
    "no help, Lagrangian": replace(UNAIDED, penalty="lagrangian"),
    "no help, repair at once": replace(UNAIDED, repair="always"),
}
CONTROLLERS = {
    "autoregressive": replace(PLAIN, removal_controller="autoregressive"),
    "critic": replace(PLAIN, baseline="critic"),
    "autoregressive, critic": replace(PLAIN, removal_controller="autoregressive", baseline="critic"),
    "no reuse of rollouts": replace(PLAIN, memory=1, gradient_steps=1),
    "ten steps, no memory": replace(PLAIN, memory=1),
}
ABLATIONS = {
    "no calibration": replace(PLAIN, calibrate=False),
    "no redraws": replace(PLAIN, redraws=0),
    "no memory": replace(PLAIN, memory=1),
    "one step": replace(PLAIN, gradient_steps=1),
    "no clipping": replace(PLAIN, clip=1e9),
    "no harmonics": replace(PLAIN, harmonics=0),
    "raw rows": replace(PLAIN, scale_rows=False),
    "one advantage": replace(PLAIN, advantage="update"),
    "no entropy": replace(PLAIN, entropy_bonus=0.0),
    "authors' lr": replace(PLAIN, removal_lr=0.003, shrinkage_lr=0.1),
}
STAGES = {
    "short stage 1": N2N(removal_updates=4, shrinkage_updates=20),
    "even stages": N2N(removal_updates=12, shrinkage_updates=12),
    "even stages, as in the paper": replace(PLAIN, removal_updates=12, shrinkage_updates=12, revisit=0.0),
    "units and kernels revisited more often": N2N(revisit=0.25),
}
SEARCHERS = {"TPE": OptunaSearch(), "ArchComp": ArchComp()}
COMPARISONS: dict[str, Mapping[str, N2N | OptunaSearch | ArchComp]] = {
    "frozen": FROZEN,
    "searchers": SEARCHERS,
    "stages": STAGES,
    "constraints": CONSTRAINTS,
    "controllers": CONTROLLERS,
    "ablations": ABLATIONS,
}


def figures(case: Case, method: N2N | RandomSearch | OptunaSearch | ArchComp, seed: int) -> tuple[float, float]:
    """Return the best reward of a search and the mean reward of its last third of students."""
    reward = toy_reward(case.space, Goal(params=case.params))
    if not isinstance(method, N2N):
        method = replace(method, students=case.students)
    elif case.part != "both":
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
    methods: dict[str, N2N | OptunaSearch | ArchComp] = {"N2N": N2N(), "draws not ranked": PLAIN}
    for comparison in options.compare:
        methods |= COMPARISONS[comparison]
    print("| case | best reward | beats random | mean of the last third | beats random |")
    print("| --- | --- | --- | --- | --- |", flush=True)
    for name in options.cases:
        case = CASES[name]
        seeds = range(options.seeds)
        yardstick = [figures(case, RandomSearch(), seed) for seed in seeds]
        words = f"{name}: {case.kind}, {case.part}, {case.params or 'no budget'}"
        print(row(f"{words}, random", yardstick, yardstick))
        for called, method in methods.items():
            other = isinstance(method, N2N) and method.removal_controller != N2N().removal_controller
            if case.part == "shrinkage" and other:
                continue  # there is nothing to remove
            print(row(f"{words}, {called}", [figures(case, method, seed) for seed in seeds], yardstick), flush=True)


if __name__ == "__main__":
    main()
