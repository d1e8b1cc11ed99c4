"""Do N2N's policies learn? Both stages against random search on a known landscape in place of training.

    python benchmarks/policies.py                  # the table of docs/n2n.md
    python benchmarks/policies.py --compare searchers --cases bt Bt             # other searchers beside N2N
    python benchmarks/policies.py --compare ablations                           # one device switched off at a time

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
from understudy.methods.n2n.rules import TUNED, Rules
from understudy.methods.n2n.search import N2NSearch
from understudy.testing.contracts import run_searcher
from understudy.testing.landscapes import ToyKind, toy_problem, toy_space


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
METHODS: dict[str, N2N | OptunaSearch | ArchComp] = {"N2N": N2N(), "draws not ranked": PLAIN}
FROZEN = {"frozen, draws ranked": N2N(lr=0.0), "frozen, draws not ranked": replace(PLAIN, lr=0.0)}
STAGES = {
    "short stage 1": N2N(removal_updates=4, shrinkage_updates=20),
    "even stages": N2N(removal_updates=12, shrinkage_updates=12),
    "even stages, as in the paper": replace(PLAIN, removal_updates=12, shrinkage_updates=12, revisit=0.0),
    "units and kernels revisited more often": N2N(revisit=0.25),
    "the paper's rules": replace(PLAIN, rules="paper"),
}
SEARCHERS = {"TPE": OptunaSearch(), "ArchComp": ArchComp()}
ABLATIONS: dict[str, Rules] = {
    "no calibration": replace(TUNED, calibrate=False),
    "no resamples": replace(TUNED, resamples=0),
    "no help with budgets": replace(TUNED, calibrate=False, resamples=0, repair=False),
    "not filled": replace(TUNED, fill=False),
    "no replay": replace(TUNED, replay=1),
    "one step": replace(TUNED, gradient_steps=1),
    "neither": replace(TUNED, replay=1, gradient_steps=1),
    "no clipping": replace(TUNED, clip=1e9),
    "no harmonics": replace(TUNED, harmonics=0),
    "raw rows": replace(TUNED, scaled=False),
    "one advantage": replace(TUNED, per_rollout=False),
    "hard penalty": replace(TUNED, phase_updates=0),
    "no entropy": replace(TUNED, entropy_bonus=0.0),
}
COMPARISONS: dict[str, Mapping[str, N2N | OptunaSearch | ArchComp | Rules]] = {
    "frozen": FROZEN,
    "searchers": SEARCHERS,
    "stages": STAGES,
    "ablations": ABLATIONS,
}


def figures(case: Case, method: N2N | RandomSearch | OptunaSearch | ArchComp | Rules, seed: int) -> tuple[float, float]:
    """Return the best reward of a search and the mean reward of its last third of students."""
    problem = toy_problem(case.space, case.params, seed=seed)
    rules = method if isinstance(method, Rules) else None
    settings = PLAIN if isinstance(method, Rules) else method
    if not isinstance(settings, N2N):
        settings = replace(settings, students=case.students)
    elif case.part != "both":
        settings = replace(settings, removal_updates=ALONE, shrinkage_updates=ALONE)
    own = isinstance(settings, N2N) and rules is not None
    searcher = N2NSearch(problem, settings, rules=rules) if own else settings.searcher(problem)
    rewards = [problem.reward(evaluation) for evaluation in run_searcher(searcher, landscape=seed)]
    return max(rewards), statistics.fmean(rewards[-len(rewards) // 3 :])


def row(name: str, found: list[tuple[float, float]], against: list[tuple[float, float]]) -> str:
    """Return one line of the table: mean, spread over seeds, and how many seeds beat the baseline."""
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
    methods: dict[str, N2N | OptunaSearch | ArchComp | Rules] = dict(METHODS)
    for comparison in options.compare:
        methods |= COMPARISONS[comparison]
    print("| case | best reward | beats random | mean of the last third | beats random |")
    print("| --- | --- | --- | --- | --- |", flush=True)
    for name in options.cases:
        case = CASES[name]
        seeds = range(options.seeds)
        baseline = [figures(case, RandomSearch(), seed) for seed in seeds]
        words = f"{name}: {case.kind}, {case.part}, {case.params or 'no budget'}"
        print(row(f"{words}, random", baseline, baseline))
        for called, method in methods.items():
            print(row(f"{words}, {called}", [figures(case, method, seed) for seed in seeds], baseline), flush=True)


if __name__ == "__main__":
    main()
