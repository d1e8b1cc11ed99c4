"""Is there anything better than uniform width near by, and do short trainings tell?

    python -m benchmarks.around_uniform --data data/cifar10 --weights resnet20.safetensors --out runs/around

Shapes of the option-A ResNet-20 at one budget of MACs: uniform width, without some blocks, with wider late or early
stages, with wider or narrower insides of blocks; each with the largest factor for all widths that keeps the budget.
And the student that "free" proposes. All are trained from compensated weights, briefly in two ways and longer; scores
on the validation split, by a seed that no comparison uses, and Kendall's tau of the short trainings with the long one.
Each score is kept in OUT, so that the command goes on where it was interrupted. One thread.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from scipy.stats import kendalltau

from benchmarks.evidence.cell import Cell
from benchmarks.evidence.results import Bench
from benchmarks.evidence.tracks import TRACKS, Point
from benchmarks.pace import reading
from understudy.config.methods import Free
from understudy.config.training import Training
from understudy.core.architecture import Architecture

KINDS = {
    "3 epochs of 2,000": (2000, Training(epochs=3, batch_size=32, lr=0.006)),
    "3 epochs of 4,000": (4000, Training(epochs=3, batch_size=32, lr=0.003)),
    "12 epochs of 5,000": (5000, Training(epochs=12, lr=0.01, loss="mse+ce")),
}


@dataclass(frozen=True, kw_only=True)
class Edit:
    """What is done to uniform width."""

    without: tuple[str, ...] = ()  # blocks
    stages: tuple[float, float, float] = (1.0, 1.0, 1.0)  # by which factor the widths of a stage are multiplied
    inside: float = 1.0  # the same for the channels between the convolutions of a block


BLOCKS = ("layer1.0", "layer1.1", "layer1.2", "layer2.1", "layer2.2", "layer3.1", "layer3.2")  # keep their shape
EDITS = {
    "uniform width": Edit(),
    **{f"without {block}": Edit(without=(block,)) for block in BLOCKS},
    "without layer1.1, layer1.2": Edit(without=("layer1.1", "layer1.2")),
    "without layer2.2, layer3.2": Edit(without=("layer2.2", "layer3.2")),
    "without layer1.2, layer2.2, layer3.2": Edit(without=("layer1.2", "layer2.2", "layer3.2")),
    "early stages wider": Edit(stages=(1.25, 1.0, 0.8)),
    "late stages wider": Edit(stages=(0.8, 1.0, 1.25)),
    "late stages much wider": Edit(stages=(0.65, 1.0, 1.5)),
    "the middle stage wider": Edit(stages=(1.0, 1.25, 1.0)),
    "blocks narrower inside": Edit(inside=0.7),
    "blocks wider inside": Edit(inside=1.4),
    "late stages wider, without layer1.2": Edit(without=("layer1.2",), stages=(0.8, 1.0, 1.25)),
    "late stages and insides wider": Edit(stages=(0.8, 1.0, 1.25), inside=1.4),
}


def edited(cell: Cell, edit: Edit) -> Architecture:
    """Return the widest architecture with that edit that keeps the budget of MACs."""
    task = cell.by(Free())
    problem = task.problem(cell.reward)

    def at(factor: float) -> Architecture:
        widths = {}
        for group in task.space.groups:
            stage = 0 if group.name == "conv1" else int(group.name.removeprefix("layer")[0]) - 1
            inside = edit.inside if group.name.endswith(".conv1") else 1.0
            widths[group.name] = problem.widths.of(group, min(factor * edit.stages[stage] * inside, 1.0))
        return task.space.architecture(removed=edit.without, widths=widths)

    return at(widest(cell, at, 2.0))


def widest(cell: Cell, at: Callable[[float], Architecture], most: float) -> float:
    """Return the largest factor up to `most` at which an architecture keeps the budget of a cell."""
    low, high = 0.0, most
    for _ in range(30):
        middle = (low + high) / 2
        cost = cell.task.predict(at(middle))
        low, high = (low, middle) if cost is None or cell.reward.budgets.broken_by(cost) else (middle, high)
    return low


def shapes(cell: Cell) -> Iterator[tuple[str, Architecture]]:
    """Yield all that is trained, by name."""
    for called, edit in EDITS.items():
        yield called, edited(cell, edit)
    yield "free", Free().searcher(cell.by(Free()).problem(cell.reward)).propose()[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="CIFAR-10, as folders of images")
    parser.add_argument("--weights", type=Path, required=True, help="of the ResNet-20, as safetensors")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--macs", type=float, default=10.0, help="how many times fewer MACs")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(1)
    track = replace(TRACKS["cifar10-resnet20a"], points=(Point("macs", options.macs),), seeds=(options.seed,))
    bench = Bench.of(track, options.out / "results", options.out, data=options.data, weights=options.weights)
    cell = next(iter(bench.cells(["uniform"], ["included"])))
    print("| shape | MACs | parameters |", *(f"{kind}, % |" for kind in KINDS))
    print("| --- " * (3 + len(KINDS)) + "|")
    scores: dict[str, list[float]] = {kind: [] for kind in KINDS}
    for called, shape in shapes(cell):
        cost = cell.task.predict(shape)
        assert cost is not None
        print(f"| {called} | {cost.macs / 1e6:.2f}M | {cost.parameters / 1e3:.1f}K |", end="", flush=True)
        for kind, (examples, training) in KINDS.items():
            place = options.out / f"{shape.digest}-{kind}-{options.seed}.json"
            scores[kind].append(reading(cell, shape, examples, training, place)["score"])
            print(f" {100 * scores[kind][-1]:.2f} |", end="", flush=True)
        print()
    *short, long = scores.values()
    for kind, found in zip(KINDS, short, strict=False):
        print(f"tau of {kind} with the long training: {kendalltau(found, long).statistic:.2f}")


if __name__ == "__main__":
    main()
