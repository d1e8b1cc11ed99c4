"""What batch size and learning rate get the most out of few image passes?

    python -m benchmarks.pace --data data/cifar10 --weights resnet20.safetensors --out runs/pace

The student of uniform width of the track cifar10-resnet20a (`benchmarks/evidence/tracks.py`), from compensated weights:
as candidates are trained (3 epochs of 4,000 images, mse) and as small final students are (12 epochs of 5,000, mse+ce).
`--student FILE` adds what a search found, an architecture as JSON. Scores on the validation split, by a seed that no
comparison uses; each is kept in OUT, so that the command goes on where it was interrupted. One thread.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path

import torch

from benchmarks.evidence.cell import Cell
from benchmarks.evidence.results import Bench
from benchmarks.evidence.tracks import TRACKS, Point
from understudy.config.methods import UniformWidth
from understudy.config.training import Candidates, Training
from understudy.core.architecture import Architecture
from understudy.core.files import write_whole

KINDS = {
    "3 epochs of 4,000, mse": (4000, Training(epochs=3)),
    "12 epochs of 5,000, mse+ce": (5000, Training(epochs=12, loss="mse+ce")),
}
PACES = ((128, 0.003), (128, 0.01), (64, 0.003), (64, 0.006), (32, 0.003), (32, 0.006), (32, 0.01))


def reading(cell: Cell, shape: Architecture, examples: int, training: Training, place: Path) -> dict[str, float]:
    """Return the score of one training and its processor seconds, from the file if it is there."""
    if not place.is_file():
        candidates = Candidates(training=training, examples=examples, stop_below=0.0)
        evaluator = replace(cell.evaluator, candidates=candidates)
        evaluator.prepare()
        began = time.process_time()
        score = evaluator(shape).score
        write_whole(place, json.dumps({"score": score, "seconds": time.process_time() - began}))
    return dict(json.loads(place.read_text(encoding="utf-8")))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="CIFAR-10, as folders of images")
    parser.add_argument("--weights", type=Path, required=True, help="of the ResNet-20, as safetensors")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--macs", type=float, default=10.0, help="how many times fewer MACs the student has")
    parser.add_argument("--student", type=Path, help="another architecture, as JSON")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(1)
    track = replace(TRACKS["cifar10-resnet20a"], points=(Point("macs", options.macs),), seeds=(options.seed,))
    bench = Bench.of(track, options.out / "results", options.out, data=options.data, weights=options.weights)
    cell = next(iter(bench.cells(["uniform"], ["included"])))
    method = UniformWidth(students=1)
    shapes = {"uniform": method.searcher(cell.by(method).problem(cell.reward)).propose()[0]}
    if options.student:
        known = options.student.read_text(encoding="utf-8")
        shapes[options.student.stem] = Architecture.from_json(cell.task.space, known)
    print("| student | training | batch | learning rate | score, % | seconds |\n| --- | --- | --- | --- | --- | --- |")
    for called, shape in shapes.items():
        for kind, (examples, training) in KINDS.items():
            for batch, lr in PACES:
                place = options.out / "readings" / f"{shape.digest}-{kind}-{batch}-{lr:g}-{options.seed}.json"
                place.parent.mkdir(exist_ok=True)
                own = reading(cell, shape, examples, replace(training, batch_size=batch, lr=lr), place)
                score, seconds = 100 * own["score"], own["seconds"]
                print(f"| {called} | {kind} | {batch} | {lr:g} | {score:.2f} | {seconds:.1f} |", flush=True)


if __name__ == "__main__":
    main()
