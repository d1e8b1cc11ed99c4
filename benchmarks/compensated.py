"""What is left of a teacher's accuracy with fewer channels: plain slices, batch norm recalibrated, and compensated.

    python -m benchmarks.compensated resnet20 resnet56 --data data/cifar10 --weights shared
    python -m benchmarks.compensated teachers/mnist --data data/mnist
    python -m benchmarks.compensated segmentation angle --examples runs

Teachers are those of `understudy teach`, option-A ResNets (`benchmarks/option_a.py`) whose weights lie in
WEIGHTS/NAME.safetensors, or those of `examples/NAME.py` in their long form, whose folder is RUNS/NAME. Every group
loses the same share of its channels, those of the smallest weights. Without any training, and after one epoch of at
most 5,000 training examples by distillation from either start. Scores on at most 2,000 test examples, by which nothing
is chosen. Seconds are the processor's, those of the compensation and of one epoch.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from importlib import import_module
from pathlib import Path

from benchmarks import option_a
from understudy.config.checked import checked_together
from understudy.config.job import Compression
from understudy.config.training import Augmentation, Candidates, Device, Start, Training
from understudy.data import Data
from understudy.jobs.task import Task
from understudy.jobs.teach import load_teacher
from understudy.surgery.build import build
from understudy.training.loop import choose_compute

FEWER = (0.1, 0.3, 0.5)
STARTS: tuple[Start, ...] = ("inherited", "compensated")


def rows(task: Task, folder: Path, training: Training, augmented: bool) -> Iterator[str]:
    """Yield the cells of each share of channels that goes."""
    with checked_together():  # no epochs: nobody can ask for that
        none = Training(epochs=0, loss="ce")
    compute = choose_compute(task.teacher.module, task.example, Device(threads=1))
    evaluator = task.evaluator(compute, folder)
    if augmented:
        evaluator = replace(evaluator, augmentation=Augmentation(crop=4, flip=True))
    taught = []
    for each_training in (none, training):
        for start in STARTS:
            with checked_together():
                candidates = Candidates(weights=start, training=each_training, stop_below=0.0)
            taught.append(replace(evaluator, candidates=candidates))
            taught[-1].prepare()
    taught[1].glance(task.space.full.with_width(task.space.groups[0].name, task.space.groups[0].legal_widths()[0]))
    for fewer in FEWER:
        widths = {g.name: g.nearest((1.0 - fewer) * g.width) for g in task.space.groups}
        architecture = task.space.architecture(widths=widths)
        cost = task.predict(architecture)
        if cost is None:
            raise SystemExit(f"{task.teacher.spec}: no student has {fewer:.0%} fewer channels everywhere")
        student = compute.place(build(task.analysis, architecture))
        scores = [evaluator.score(student)]
        seconds = []
        for each in taught:
            began = time.process_time()
            scores.append(each(architecture).score)
            seconds.append(time.process_time() - began)
        cells = [
            f"{100 * evaluator.teacher_score:.1f}",
            f"{fewer:.0%}",
            f"{task.cost.parameters / cost.parameters:.1f}x",
        ]
        cells += [f"{100 * score:.1f}" for score in scores]
        yield " | ".join([*cells, f"{seconds[1] - seconds[0]:.1f}", f"{seconds[2] - seconds[0]:.1f}"])


def opened(name: str, options: argparse.Namespace) -> tuple[Task, Training, bool]:
    """Return a task by the name of its teacher, the training of one epoch, and whether images may be mirrored."""
    alone = Device(threads=1)
    if options.examples is not None:
        found = import_module(f"examples.{name}").example(
            options.examples / name, argparse.Namespace(short=False, data=options.data, weights=options.weights)
        )
        settings = Compression(device=alone, objective=found.more.get("objective", "auto"))
        task = Task.of(found.teacher, tested(found.data), settings)
        return task, replace(found.candidates.training, epochs=1), False
    data, settings = tested(Data.open(options.data)), Compression(device=alone)
    if name.startswith("resnet") and options.weights is not None:
        given = option_a.trained(int(name.removeprefix("resnet")), options.weights / f"{name}.safetensors")
        return Task.of(given, data, settings), Training(epochs=1), True
    return Task.of(load_teacher(name), data, settings), Training(epochs=1), False


def tested(data: Data) -> Data:
    """Return data whose validation split is of the test split."""
    assert data.test is not None
    return replace(data, val=data.test.subset(min(2000, len(data.test)), 0))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("teachers", nargs="+")
    parser.add_argument("--data", help="folder of the images")
    parser.add_argument("--weights", type=Path, help="folder of the ResNets' weights")
    parser.add_argument("--examples", type=Path, help="folder of the examples' runs")
    options = parser.parse_args()
    print(
        "| teacher | as it is | channels | parameters | slices | recalibrated | compensated | slices, 1 epoch |", end=""
    )
    print(" compensated, 1 epoch | s to compensate | s of an epoch |")
    print("|" + " --- |" * 11)
    for name in options.teachers:
        task, training, natural = opened(name, options)
        with tempfile.TemporaryDirectory() as folder:
            for row in rows(task, Path(folder), training, natural):
                print(f"| {Path(name).name} | {row} |", flush=True)


if __name__ == "__main__":
    main()
