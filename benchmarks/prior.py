"""Do forecasts of accuracy rank better if they start from the logarithms of predicted costs?

    python -m benchmarks.prior

Reads the stored tables of trained students, trains none. Kendall's tau of forecast and accuracy on 300 other students,
by some that are known: N2N's features alone; with the logarithms of parameters and MACs beside them; with a prior on
these so wide that they are a trend of which the rest is learned. Mean and standard error of 12 draws of students.
"""

from __future__ import annotations

import math
import statistics
from pathlib import Path

import torch
from scipy.stats import kendalltau
from torch import Tensor

from benchmarks.tabular.table import Table
from understudy.config.methods import N2N
from understudy.methods.base import Problem
from understudy.methods.surrogate.regression import Forecast, one_thread
from understudy.methods.surrogate.shortlist import Shortlist

TABLES = Path(__file__).parent / "tabular"
KNOWN = (5, 10, 20, 40)
REPEATS = 12
BANDS = {"all": (0.0, 1.0), "10x to 5x fewer parameters": (0.1, 0.2)}
SCALES = {"features alone": 0.0, "log-costs beside": 1.0, "log-costs as trend": 100.0}


def main() -> None:
    for name in ("skip-mnist", "chain-cifar10"):
        table = Table.load(TABLES / f"{name}.npz")
        ok = [e for e in table.evaluations if e.status == "ok" and e.cost is not None]
        problem = Problem(space=table.space, reward=table.reward(), predict=table.cost)
        ranked = Shortlist(problem, N2N(), torch.Generator())
        architectures = [table.space.full, *(e.architecture for e in ok)]
        features = ranked._features(ranked._choices(architectures))
        accuracies = torch.tensor([table.about["teacher_accuracy"], *(e.score for e in ok)], dtype=torch.float64)
        costs = [table.cost(architecture) for architecture in architectures]
        logs = torch.tensor([[math.log(c.parameters), math.log(c.macs)] for c in costs if c], dtype=torch.float64)
        logs = logs - logs[0]
        for band, (low, high) in BANDS.items():
            share = logs[1:, 0].exp()
            among = 1 + ((share >= low) & (share <= high)).nonzero().flatten()
            by_cost = [kendalltau(accuracies[among], logs[among, i])[0] for i in (0, 1)]
            print(
                f"{name}, {band}: {len(among)} students; tau of parameters {by_cost[0]:.2f}, of MACs {by_cost[1]:.2f}"
            )
            for count in KNOWN:
                print(f"  {count:2} known", end="")
                for label, scale in SCALES.items():
                    taus = [_tau(torch.cat([features, scale * logs], 1), accuracies, among, count, seed)
                            for seed in range(REPEATS)]  # fmt: skip
                    error = statistics.stdev(taus) / math.sqrt(REPEATS)
                    print(f"   {label} {statistics.mean(taus):.2f} +- {error:.2f}", end="")
                print()


def _tau(features: Tensor, accuracies: Tensor, among: Tensor, count: int, seed: int) -> float:
    """Return how well a forecast that knows the teacher and `count` students ranks others."""
    order = among[torch.randperm(len(among), generator=torch.Generator().manual_seed(seed))]
    known, others = torch.cat([torch.zeros(1, dtype=torch.int64), order[:count]]), order[count : count + 300]
    forecast = Forecast.of(features[known], accuracies[known] / accuracies[0], 2, torch.Generator().manual_seed(0))
    return float(kendalltau(forecast(features[others])[:, 0], accuracies[others])[0])


if __name__ == "__main__":
    with one_thread():
        main()
