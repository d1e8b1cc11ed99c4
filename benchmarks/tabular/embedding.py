"""What does ArchComp's embedding know of a table: rank correlation of accuracy, and does ascent really improve?

    python -m benchmarks.tabular.embedding --tables skip-mnist --seeds 30 --labels 200

The embedding is fitted once to the labels of random search's students. Its accuracies are compared with the true
ones of every other architecture of the table; its objective (the reward without a budget) with the true one of the
points on the way of an ascent from the teacher, the best known students and the most promising others. Where a table
is a part of its Space, only what is in it is a label, and only accuracies are compared.
"""

from __future__ import annotations

import argparse
import math
import statistics
from pathlib import Path

import torch
from scipy.stats import spearmanr
from torch import Tensor

from benchmarks.tabular.table import Table
from understudy.config.methods import ArchComp
from understudy.core.architecture import Architecture
from understudy.methods.archcomp.rules import TUNED, Rules
from understudy.methods.archcomp.search import ArchCompSearcher, Objective, ascend, rewarded
from understudy.methods.base import Problem

HERE = Path(__file__).parent
RANK = "rank correlation of accuracy, rest of the table"
TOP = "the same, upper half of the true rewards"


def fitted(table: Table, start: int, seed: int, rules: Rules = TUNED) -> tuple[ArchCompSearcher, Objective, set[str]]:
    """Return a search whose embedding was fitted once, to its random start and the teacher, and their digests."""
    problem = Problem(space=table.space, reward=table.reward(), predict=table.cost, seed=seed)
    searcher = ArchCompSearcher(problem, ArchComp(students=2 * start), rules=rules, start=start)
    known = {table.space.full.digest}
    while searcher.stage == "random":
        proposals = searcher.propose()
        told = [table[architecture] for architecture in proposals if architecture in table]
        known |= {evaluation.architecture.digest for evaluation in told}
        searcher.learn(told)
    return searcher, searcher.fit(), known


def choices_of(searcher: ArchCompSearcher, architectures: list[Architecture]) -> Tensor:
    """Return the decisions of architectures, (B, D)."""
    return torch.stack([searcher.columns.choices(architecture) for architecture in architectures])


def ranks(table: Table, searcher: ArchCompSearcher, objective: Objective, known: set[str]) -> dict[str, float]:
    """Return the rank correlations of predicted and true accuracy on what was no label."""
    held = [e for e in table.evaluations if e.architecture.digest not in known and e.status == "ok"]
    choices_BD = choices_of(searcher, [evaluation.architecture for evaluation in held])
    with torch.no_grad():
        features = searcher.embedding.features(searcher.embedding.encode(choices_BD))
        guessed = objective.forecast(features)[:, 0].tolist()
    reward = table.reward()
    middle = statistics.median(reward(evaluation) for evaluation in held)
    upper = [number for number, evaluation in enumerate(held) if reward(evaluation) >= middle]
    true = [evaluation.score for evaluation in held]
    return {
        RANK: float(spearmanr(guessed, true).statistic),
        TOP: float(spearmanr([guessed[n] for n in upper], [true[n] for n in upper]).statistic),
    }


def along(table: Table, searcher: ArchCompSearcher, objective: Objective) -> dict[str, float]:
    """Return the mean predicted and true objective on the way of an ascent, and the share that can be built."""
    starts_SD = searcher.starts(objective)
    draw_S = torch.zeros(len(starts_SD), dtype=torch.int64)  # the mean of the accuracy's posterior
    way = ascend(objective, starts_SD, draw_S, steps=TUNED.steps, radius=searcher.radius)
    figures, built = dict[str, float](), list[bool]()
    for number, choices_SD in enumerate([starts_SD, *way]):
        answers = [table[searcher.columns.architecture(choices_D)] for choices_D in choices_SD]
        built += [answer.cost is not None for answer in answers]
        with torch.no_grad():
            guessed_S = objective(searcher.embedding.encode(choices_SD), draw_S)
        accuracy_S = torch.tensor([a.score for a in answers], dtype=torch.float64) / table.reward().teacher_score
        true_S = rewarded(searcher.exact(choices_SD)[:, 0], accuracy_S)
        figures[f"objective after {5 * number} steps, predicted"] = guessed_S.mean().item()
        figures[f"objective after {5 * number} steps, true"] = true_S.nanmean().item()
    for kind in ("predicted", "true"):
        last = TUNED.steps
        gain = figures[f"objective after {last} steps, {kind}"] - figures[f"objective after 0 steps, {kind}"]
        figures[f"gain of the objective, {kind}"] = gain
    return figures | {"can be built": statistics.fmean(built)}


def figures_of(table: Table, labels: int, seed: int) -> dict[str, float]:
    """Return all figures of one seed."""
    searcher, objective, known = fitted(table, labels, seed)
    figures = {"different labels": len(known)} | ranks(table, searcher, objective, known)
    return figures | along(table, searcher, objective) if table.whole else figures


def main() -> None:
    """Print the figures: mean, its standard error and least over seeds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tables", nargs="+", default=sorted(path.stem for path in HERE.glob("*.npz")))
    parser.add_argument("--labels", type=int, default=200)
    parser.add_argument("--seeds", type=int, default=30)
    options = parser.parse_args()
    torch.set_num_threads(1)
    for name in options.tables:
        table = Table.load(HERE / f"{name}.npz")
        rows = [figures_of(table, options.labels, seed) for seed in range(options.seeds)]
        for figure in rows[0]:
            values = [row[figure] for row in rows]
            error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.nan
            print(f"| {name} | {figure} | {statistics.fmean(values):.4f} +- {error:.4f} | {min(values):.4f} |")


if __name__ == "__main__":
    main()
