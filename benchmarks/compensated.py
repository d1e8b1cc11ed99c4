"""What is left of a teacher's accuracy with fewer channels: plain slices, batch norm recalibrated, and compensated.

    python -m benchmarks.compensated resnet20 resnet56 --data data/cifar10 --weights shared
    python -m benchmarks.compensated teachers/mnist --data data/mnist

Teachers are those of `understudy teach`, or option-A ResNets (`benchmarks/option_a.py`) whose weights lie in
WEIGHTS/NAME.safetensors. Every group loses the same share of its channels, those of the smallest weights. Without any
training, and after one epoch of 5,000 images by distillation from either start. Accuracies on 2,000 test images, by
which nothing is chosen. Seconds are the processor's, those of the compensation and of one epoch.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from benchmarks import option_a
from understudy.config.checked import checked_together
from understudy.config.job import Compression
from understudy.config.training import Augmentation, Candidates, Device, Start, Training
from understudy.data import Data
from understudy.jobs.task import Task
from understudy.jobs.teach import load_teacher
from understudy.models.spec import Teacher
from understudy.surgery.build import build
from understudy.training.loop import accuracy, choose_compute

FEWER = (0.1, 0.3, 0.5)
STARTS: tuple[Start, ...] = ("inherited", "compensated")


def rows(task: Task, folder: Path, augmented: bool) -> Iterator[str]:
    """Yield the cells of each share of channels that goes."""
    with checked_together():  # no epochs: nobody can ask for that
        none = Training(epochs=0, loss="ce")
    compute = choose_compute(task.teacher.module, task.example, Device(threads=1))
    evaluator = task.evaluator(compute, folder)
    if augmented:
        evaluator = replace(evaluator, augmentation=Augmentation(crop=4, flip=True))
    taught = []
    for training in (none, Training(epochs=1)):
        for start in STARTS:
            with checked_together():
                candidates = Candidates(weights=start, training=training, stop_below=0.0)
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
        scores = [accuracy(student, task.data.val, normalise=task.data.normalise, compute=compute)]
        seconds = []
        for each in taught:
            began = time.process_time()
            scores.append(each(architecture).score)
            seconds.append(time.process_time() - began)
        cells = [f"{fewer:.0%}", f"{task.cost.parameters / cost.parameters:.1f}x"]
        cells += [f"{100 * score:.1f}" for score in scores]
        yield " | ".join([*cells, f"{seconds[1] - seconds[0]:.1f}", f"{seconds[2] - seconds[0]:.1f}"])


def opened(name: str, weights: Path | None) -> tuple[Teacher, bool]:
    """Return a teacher by name or folder, and whether its images are natural ones, which may be mirrored."""
    if name.startswith("resnet") and weights is not None:
        return option_a.trained(int(name.removeprefix("resnet")), weights / f"{name}.safetensors"), True
    return load_teacher(name), False


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("teachers", nargs="+")
    parser.add_argument("--data", required=True)
    parser.add_argument("--weights", type=Path, help="folder of the ResNets' weights")
    options = parser.parse_args()
    data = Data.open(options.data)
    assert data.test is not None
    data = replace(data, val=data.test.subset(2000, 0))
    print("| teacher | channels | parameters | slices | recalibrated | compensated | slices, 1 epoch |", end="")
    print(" compensated, 1 epoch | s to compensate | s of an epoch |")
    print("|" + " --- |" * 10)
    for name in options.teachers:
        teacher, natural = opened(name, options.weights)
        task = Task.of(teacher, data, Compression(device=Device(threads=1)))
        with tempfile.TemporaryDirectory() as folder:
            for row in rows(task, Path(folder), natural):
                print(f"| {Path(name).name} | {row} |", flush=True)


if __name__ == "__main__":
    main()
