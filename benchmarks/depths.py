r"""How deep should a small student be, and do short trainings tell?

    python -m benchmarks.depths --data data/cifar10 --weights resnet56.safetensors --out runs/depths --macs 11.41

Students of the option-A ResNet-56 at one budget of MACs, by how many of the nine blocks of each stage they keep, evenly
over the stage: all widths alike, as wide as fits. All are trained from compensated weights, briefly and longer; scores
on the validation split, by a seed that no comparison uses. Each score is kept in OUT, so that the command goes on where
it was interrupted. One thread.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import torch
from scipy.stats import kendalltau

from benchmarks.around_uniform import KINDS, widest
from benchmarks.evidence.cell import Cell
from benchmarks.evidence.results import Bench
from benchmarks.evidence.tracks import TRACKS, Point
from benchmarks.pace import reading
from understudy.config.methods import Free
from understudy.core.architecture import Architecture

BLOCKS = 9  # of each stage
KEPT = (
    *((9, 9, 9), (7, 7, 7), (5, 5, 5), (4, 4, 4), (3, 3, 3), (2, 2, 2), (1, 1, 1)),
    *((2, 3, 4), (4, 3, 2), (1, 3, 5), (5, 3, 1)),
)
USED = ("3 epochs of 2,000", "12 epochs of 5,000")


def evenly(count: int) -> list[int]:
    """Return which blocks of a stage stay: the first, which may change its shape, and others up to the last."""
    return sorted({round(place * (BLOCKS - 1) / max(count - 1, 1)) for place in range(count)})


def kept(cell: Cell, counts: tuple[int, ...]) -> tuple[float, Architecture]:
    """Return the largest factor for all widths that keeps the budget with so many blocks, and the architecture."""
    task = cell.by(Free())
    problem = task.problem(cell.reward)
    gone = [
        f"layer{stage}.{block}"
        for stage, count in enumerate(counts, 1)
        for block in range(BLOCKS)
        if block not in evenly(count)
    ]

    def at(factor: float) -> Architecture:
        widths = {group.name: problem.widths.of(group, factor) for group in task.space.groups}
        return task.space.architecture(removed=gone, widths=widths)

    factor = widest(cell, at, 1.0)
    return factor, at(factor)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="CIFAR-10, as folders of images")
    parser.add_argument("--weights", type=Path, required=True, help="of the ResNet-56, as safetensors")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--macs", type=float, default=11.41, help="how many times fewer MACs")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(1)
    track = replace(TRACKS["cifar10-resnet56a"], points=(Point("macs", options.macs),), seeds=(options.seed,))
    bench = Bench.of(track, options.out / "results", options.out, data=options.data, weights=options.weights)
    cell = next(iter(bench.cells(["uniform"], ["included"])))
    print("| blocks of each stage | width | MACs | parameters |", *(f"{kind}, % |" for kind in USED))
    print("| --- " * (4 + len(USED)) + "|")
    scores: dict[str, list[float]] = {kind: [] for kind in USED}
    for counts in KEPT:
        factor, student = kept(cell, counts)
        cost = cell.task.predict(student)
        assert cost is not None
        print(f"| {'-'.join(map(str, counts))} | {100 * factor:.0f}% | {cost.macs / 1e6:.2f}M |", end="", flush=True)
        print(f" {cost.parameters / 1e3:.1f}K |", end="", flush=True)
        for kind in USED:
            examples, training = KINDS[kind]
            place = options.out / f"{student.digest}-{kind}-{options.seed}.json"
            scores[kind].append(reading(cell, student, examples, training, place)["score"])
            print(f" {100 * scores[kind][-1]:.2f} |", end="", flush=True)
        print()
    print(f"tau of the short training with the long one: {kendalltau(*scores.values()).statistic:.2f}")


if __name__ == "__main__":
    main()
