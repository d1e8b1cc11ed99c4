"""Which searcher finds the best student of a table, at equal numbers of evaluations?

    python -m benchmarks.tabular.compare --tables skip-mnist --methods random N2N TPE   # run, 30 seeds each
    python -m benchmarks.tabular.compare --show                                         # tables of what was run
    python -m benchmarks.tabular.compare --show --plot docs/searchers.svg

    python -m benchmarks.tabular.compare --tables macro-cifar10 --budgets params=2x macs=2x     # trained by others

A run is one line of the file of results; what is there is not run again, so the command can be interrupted and
repeated. Every method gets 100 students; its curve is what the best of the first 10, 20, ... of them is worth: its
reward, or, where the table has more trainings of each student, its accuracy in those that the search has not seen.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import statistics
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from benchmarks.tabular.plot import Curve, Panel, svg
from benchmarks.tabular.table import Table, search
from understudy.config.methods import N2N, ArchComp, Method, OptunaSearch, RandomSearch, UniformWidth
from understudy.core.evaluation import Evaluation
from understudy.core.goal import Reward
from understudy.methods.base import Problem

HERE = Path(__file__).parent
STUDENTS = 100
AT = range(10, STUDENTS + 1, 10)
_PLAIN = N2N(draws_per_rollout=1)
METHODS: dict[str, Method | None] = {
    "drawn": None,  # from what keeps the budget, each as likely, none twice
    "random": RandomSearch(students=STUDENTS),
    "random, filled": RandomSearch(students=STUDENTS, fill=True),
    "uniform": UniformWidth(students=STUDENTS),
    "TPE": OptunaSearch(students=STUDENTS),
    "TPE, filled": OptunaSearch(students=STUDENTS, fill=True),
    "NSGA-II": OptunaSearch(sampler="nsga2", students=STUDENTS),
    "N2N": N2N(shrinkage_updates=20),
    "N2N, draws not ranked": N2N(shrinkage_updates=20, draws_per_rollout=1),
    "N2N, no stage 1": replace(_PLAIN, removal_updates=0, shrinkage_updates=20),
    "N2N, short stage 1": replace(_PLAIN, removal_updates=3, shrinkage_updates=17),
    "N2N, even stages": replace(_PLAIN, removal_updates=10, shrinkage_updates=10),
    "N2N, units once": replace(_PLAIN, removal_updates=10, shrinkage_updates=10, revisit=0.0),
    "ArchComp": ArchComp(students=STUDENTS),
}
Key = tuple[str, str, str]  # table, budget, method


def reward_of(table: Table, budget: str) -> Reward:
    """Return the reward for a budget such as "params=5x", or "none"."""
    return table.reward() if budget == "none" else table.reward(**dict([budget.split("=", 1)]))


def worth(table: Table, reward: Reward, found: Sequence[Evaluation]) -> float:
    """Return what the best of these is worth: its reward, or its accuracy in trainings that no search sees."""
    best = max(found, key=reward)
    if not table.judges:
        return reward(best)
    kept = best.cost is not None and not reward.budgets.broken_by(best.cost)
    return table.judged(best.architecture) if kept else 0.0


def curve(table: Table, budget: str, method: Method | None, seed: int) -> list[float]:
    """Return what the best of the first 10, 20, ... students of a search, or of draws, is worth."""
    reward = reward_of(table, budget)
    if method is None:
        kept = [e for e in table.evaluations if e.cost is not None and not reward.budgets.broken_by(e.cost)]
        found = random.Random(seed).sample(kept, min(STUDENTS, len(kept)))
    else:
        searcher = method.searcher(Problem(space=table.space, reward=reward, predict=table.cost, seed=seed))
        found = search(searcher, table, STUDENTS)
    return [worth(table, reward, found[:count]) for count in AT]


def run(options: argparse.Namespace, methods: dict[str, Method | None]) -> None:
    """Run what is asked for and not in the file yet, seed by seed."""
    known = {(*key, seed) for key, seeds in read(options.results).items() for seed in seeds}
    for name in options.tables:
        table = Table.load(HERE / f"{name}.npz")
        if not table.whole:
            raise SystemExit(f"a search needs a whole table, but {name} is a part: leave it out of --tables")
        for seed in range(options.seeds):
            for budget in options.budgets:
                for called in options.methods:
                    if (name, budget, called, seed) in known:
                        continue
                    began = time.process_time()
                    found = curve(table, budget, methods[called], seed)
                    line = {
                        "table": name,
                        "budget": budget,
                        "method": called,
                        "seed": seed,
                        "curve": found,
                        "cpu_seconds": round(time.process_time() - began, 2),
                    }
                    with options.results.open("a", encoding="utf-8") as file:
                        file.write(json.dumps(line) + "\n")


def read(path: Path) -> dict[Key, dict[int, list[float]]]:
    """Return the curves that were run, by table, budget and method, then by seed."""
    found: dict[Key, dict[int, list[float]]] = defaultdict(dict)
    for text in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        line = json.loads(text)
        found[line["table"], line["budget"], line["method"]][line["seed"]] = line["curve"]
    return found


def row(
    called: str, found: dict[int, list[float]], baselines: list[dict[int, list[float]]], best: float, at: int
) -> str:
    """Return one line of the table of results: at 20 and 50 students, then at that many, and against the baselines."""
    last = [values[AT.index(at)] for values in found.values()]
    cells = [called, str(len(found))]
    cells += [f"{statistics.fmean(values[AT.index(count)] for values in found.values()):.4f}" for count in (20, 50)]
    low, high = np.quantile(last, [0.1, 0.9])
    deviation = f" +- {statistics.stdev(last):.4f}" if len(last) > 1 else ""
    cells += [
        f"{statistics.fmean(last):.4f}{deviation}",
        f"{low:.4f} to {high:.4f}",
        f"{best - statistics.fmean(last):.4f}",
    ]
    return f"| {' | '.join([*cells, *(against(found, other, at) for other in baselines)])} |"


def against(found: dict[int, list[float]], other: dict[int, list[float]], at: int) -> str:
    """Return the mean difference at that many students and its standard error, over the seeds that both have."""
    place = AT.index(at)
    gains = [values[place] - other[seed][place] for seed, values in found.items() if seed in other]
    if len(gains) < 2 or found is other:
        return ""
    wins = sum(gain > 0 for gain in gains) + sum(gain == 0 for gain in gains) / 2
    error = statistics.stdev(gains) / math.sqrt(len(gains))
    return f"{statistics.fmean(gains):+.4f} +- {error:.4f} ({wins:g}/{len(gains)})"


def show(options: argparse.Namespace) -> None:
    """Print a table for each table and budget, and draw the curves."""
    everything, panels = read(options.results), []
    for name in options.tables:
        table = Table.load(HERE / f"{name}.npz")
        for budget in options.budgets:
            found = {called: everything[name, budget, called] for called in options.methods}
            found = {called: curves for called, curves in found.items() if curves}
            if not found:
                continue
            best = worth(table, reward_of(table, budget), table.evaluations)
            print(f"\n{name}, budget {budget}, best of the table {best:.4f}\n")
            gains = "".join(f" gain over {called} |" for called in options.against)
            print(f"| method | seeds | 20 students | 50 | {options.at} | 10% to 90% | short of the best |{gains}")
            print("| --- " * (7 + len(options.against)) + "|")
            baselines = [everything[name, budget, called] for called in options.against]
            for called, curves in found.items():
                print(row(called, curves, baselines, best, options.at))
            drawn = [Curve.of(called, list(curves.values())) for called, curves in found.items()]
            title = f"{name}, " + ("no budget" if budget == "none" else budget.replace("=", " "))
            panels.append(Panel(title=title, best=best, at=tuple(AT), curves=tuple(drawn)))
    if options.plot:
        options.plot.write_text(svg(panels), encoding="utf-8")


def main(methods: dict[str, Method | None] = METHODS, doc: str | None = __doc__) -> None:
    """Run searches, or show what was run."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tables", nargs="+", default=sorted(path.stem for path in HERE.glob("*.npz")))
    parser.add_argument("--budgets", nargs="+", default=["none", "params=5x"], help="such as params=5x, macs=2x, none")
    parser.add_argument("--methods", nargs="+", choices=methods, default=list(methods))
    parser.add_argument("--seeds", type=int, default=30)
    parser.add_argument("--results", type=Path, default=Path("runs/tabular/results.jsonl"))
    parser.add_argument("--show", action="store_true", help="print what was run")
    parser.add_argument("--at", type=int, choices=AT, default=STUDENTS, help="students at which methods are compared")
    parser.add_argument("--against", nargs="+", choices=methods, default=["random", "TPE"], help="with --show")
    parser.add_argument("--plot", type=Path, help="SVG to draw the curves in, with --show")
    options = parser.parse_args()
    options.results.parent.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    if options.show:
        show(options)
    else:
        run(options, methods)


if __name__ == "__main__":
    main()
