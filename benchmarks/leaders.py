"""Do the leaders of a search need a second, longer look before one is trained to the end?

    python -m benchmarks.leaders --data data/cifar10 --weights resnet20.safetensors --out runs/leaders

N2N searches on the track cifar10-resnet20a (`benchmarks/evidence/tracks.py`), by a seed that no comparison uses. Its
seven best students and uniform width are then trained from compensated weights for three longer times each; scores on
the validation split, and Kendall's tau of the search's own scores, and of each second look, with the longest. What is
known is kept in OUT, so that the command goes on where it was interrupted. One thread.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import torch
from scipy.stats import kendalltau

from benchmarks.evidence.cell import Cell
from benchmarks.evidence.contenders import CONTENDERS, N2N_SEARCH
from benchmarks.evidence.results import Bench
from benchmarks.evidence.tracks import TRACKS
from benchmarks.pace import reading
from understudy.config.training import Training
from understudy.core.architecture import Architecture
from understudy.methods.ranking import finalists
from understudy.runs.folder import Run

LEADERS = 7
LONGER = Training(batch_size=128, lr=0.01, loss="mse+ce")
KINDS = {"12 epochs of 5,000": (5000, 12), "1 epoch of all": (0, 1), "4 epochs of all": (0, 4)}  # examples, epochs


def leaders(cell: Cell) -> dict[Architecture, float]:
    """Return the best students of N2N's search, best first, then uniform width, with the scores that it saw."""
    N2N_SEARCH(cell)
    task = cell.by(N2N_SEARCH.method(cell.track.students))
    with Run.open(cell.folder / "n2n", task.settings, task.identity) as run, run.store(task.space) as store:
        evaluations = store.all()
    seen = {evaluation.architecture: evaluation.score for evaluation in evaluations}
    uniform = CONTENDERS["uniform"].find(cell).shape
    assert isinstance(uniform, Architecture)
    chosen = dict.fromkeys([*finalists(evaluations, cell.reward, LEADERS), uniform])
    return {shape: seen.get(shape, float("nan")) for shape in chosen}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="CIFAR-10, as folders of images")
    parser.add_argument("--weights", type=Path, required=True, help="of the ResNet-20, as safetensors")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--point", default="params-10x", help="such as params-10x or macs-5x")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(1)
    track = TRACKS["cifar10-resnet20a"]
    points = tuple(point for point in track.points if str(point) == options.point)
    track = replace(track, points=points, seeds=(options.seed,))
    bench = Bench.of(track, options.out / "results", options.out, data=options.data, weights=options.weights)
    cell = next(iter(bench.cells(["n2n"], ["excluded"])))
    shapes = leaders(cell)
    rows = [[seen] for seen in shapes.values()]
    for kind, (examples, epochs) in KINDS.items():
        for shape, row in zip(shapes, rows, strict=True):
            place = options.out / "readings" / f"{shape.digest}-{kind}-{options.seed}.json"
            place.parent.mkdir(exist_ok=True)
            row.append(reading(cell, shape, examples, replace(LONGER, epochs=epochs), place)["score"])
            print(f"{kind}: {100 * row[-1]:.2f}", flush=True)
    print("| student | MACs | parameters | in the search |", *(f"{kind} |" for kind in KINDS))
    print("| --- " * (4 + len(KINDS)) + "|")
    for shape, row in zip(shapes, rows, strict=True):
        cost = cell.task.predict(shape)
        assert cost is not None
        gone = f"without {', '.join(sorted(shape.removed))}" if shape.removed else "all blocks"
        print(f"| {gone} | {cost.macs / 1e6:.2f}M | {cost.parameters:,} |", *(f"{100 * s:.2f} |" for s in row))
    for name, column in zip(("the search", *KINDS), [*zip(*rows, strict=True)][:-1], strict=False):
        print(f"tau of {name}: {kendalltau(column, [row[-1] for row in rows]).statistic:.2f}")


if __name__ == "__main__":
    main()
