r"""How deep should a small student be, and do short trainings tell?

    python -m benchmarks.depths cifar10-resnet56a --point macs-11.41x \
        --data data/cifar10 --weights resnet56.safetensors --out runs/depths

The students that searches begin with (`methods/firsts.py`): all widths alike, from all blocks of the teacher down to a
third of those that could go, each as wide as the budget lets it be. All are trained from compensated weights, briefly
and longer; scores on the validation split, by a seed that no comparison uses, and Kendall's tau of the two. Each score
is kept in OUT, so that the command goes on where it was interrupted. One thread.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import torch
from scipy.stats import kendalltau

from benchmarks.evidence.results import Bench
from benchmarks.evidence.tracks import TRACKS, Point
from benchmarks.pace import reading
from understudy.config.methods import Free
from understudy.config.training import Training
from understudy.methods.firsts import first_students
from understudy.methods.proposals import Scoring

LONG = (5000, Training(epochs=12, loss="mse+ce"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("track", choices=[name for name in TRACKS if name.startswith("cifar10")])
    parser.add_argument("--point", default="macs-10x", help="params-10x: 10 times fewer parameters; macs-10x: MACs")
    parser.add_argument("--data", required=True, help="CIFAR-10, as folders of images")
    parser.add_argument("--weights", type=Path, help="of the teacher, as safetensors, if others trained it")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(1)
    figure, factor = options.point.removesuffix("x").split("-")
    track = replace(TRACKS[options.track], points=(Point(figure, float(factor)),), seeds=(options.seed,))
    bench = Bench.of(track, options.out / "results", options.out, data=options.data, weights=options.weights)
    cell = next(iter(bench.cells(["uniform"], ["included"])))
    kinds = {"as a candidate": (track.candidates.examples, track.candidates.training), "12 epochs of 5,000": LONG}
    task = cell.by(Free())
    problem = task.problem(cell.reward)
    usage = Scoring(cell.reward).usage
    units = [unit.name for unit in problem.space.units if unit.kind != "layer"]
    students = first_students(problem.space.full, units, problem.widths, lambda a: usage(problem.predict(a)))
    print("| blocks gone | MACs | parameters |", *(f"{kind}, % |" for kind in kinds))
    print("| --- " * (3 + len(kinds)) + "|")
    scores: dict[str, list[float]] = {kind: [] for kind in kinds}
    for student in students:
        cost = task.predict(student)
        assert cost is not None
        gone = len(student.removed)
        print(f"| {gone} | {cost.macs / 1e6:.2f}M | {cost.parameters / 1e3:.1f}K |", end="", flush=True)
        for kind, (examples, training) in kinds.items():
            place = options.out / f"{student.digest}-{kind}-{options.seed}.json"
            scores[kind].append(reading(cell, student, examples, training, place)["score"])
            print(f" {100 * scores[kind][-1]:.2f} |", end="", flush=True)
        print()
    short, long = scores.values()
    print(f"tau of the short training with the long one: {kendalltau(short, long).statistic:.2f}")


if __name__ == "__main__":
    main()
