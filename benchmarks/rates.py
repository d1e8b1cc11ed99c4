"""Which learning rate suits which network? Students of uniform width, trained to the end at several rates.

    python -m benchmarks.rates --data data/cifar10 --out runs/rates
    python -m benchmarks.rates --networks digits angle --seeds 1 2 3 --out runs/rates

The teachers are those of `examples/`, a ResNet-20 and a network without norms on scikit-learn's digits, and a VGG-16
of base width 16 on 10,000 images of CIFAR-10. Scores on the validation split, from compensated weights; each is kept
in OUT, so that the command goes on where it was interrupted. One thread. MiniLM needs its package, see
`examples/minilm.py`; CIFAR-10 is needed for the vision transformer and the VGG.
"""

from __future__ import annotations

import argparse
import json
import time
from argparse import Namespace
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

import understudy as us
from examples import angle, minilm, segmentation, vit
from examples.side_by_side import few, trained
from understudy.core.files import write_whole
from understudy.jobs.teach import teach
from understudy.models.spec import Teacher

DEVICE = us.Device(device="cpu", threads=1, workers=0)


@dataclass(frozen=True, kw_only=True)
class Case:
    """A teacher on data, and how long its student is trained."""

    teacher: nn.Module | Teacher
    data: us.Data
    goal: us.Goal
    epochs: int
    batch: int = 128
    loss: Any = "mse+ce"
    more: dict[str, Any] = field(default_factory=dict)


def of_example(module: Any, epochs: int, **changes: Any) -> Callable[[Path, Path | None], Case]:
    """Return what makes the case of an example in its long form."""

    def make(work: Path, data: Path | None) -> Case:
        found = module.example(work, Namespace(short=False, data=data))
        kept = {"teacher": found.teacher, "data": found.data, "goal": found.goal, "more": dict(found.more)}
        return Case(**kept, epochs=epochs, **changes)

    return make


def digits(work: Path, data: Path | None) -> Case:
    """Return the ResNet-20 of `make demo`, at 30 times fewer MACs."""
    shown, crop = us.Data.digits(), us.Augmentation(crop=1)
    teacher = teach("zoo:resnet20", shown, work, teaching=us.Teaching(augmentation=crop, device=DEVICE))
    more = {"augmentation": crop, "widths": us.Widths(round_to=1, min_width=2)}
    return Case(teacher=teacher, data=shown, goal=us.Goal(macs="30x"), epochs=10, more=more)


def no_norms(work: Path, data: Path | None) -> Case:
    """Return three linear layers on digits, at 20 times fewer MACs."""
    torch.manual_seed(0)
    layers = nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 10)
    network, shown = nn.Sequential(nn.Flatten(), *layers), us.Data.digits()
    teacher = trained(network, shown, F.cross_entropy, work / "teacher.safetensors", epochs=20)
    return Case(teacher=teacher, data=shown, goal=us.Goal(macs="20x"), epochs=10)


def vgg(work: Path, data: Path | None) -> Case:
    """Return a VGG-16 of base width 16 on 10,000 images of CIFAR-10, at 8 times fewer MACs."""
    shown, varied = few(us.Data.open(str(data)), 10_000, 2000), us.Augmentation(crop=4, flip=True)
    training = us.Training(epochs=12, optimizer="sgd", lr=0.1, loss="ce", label_smoothing=0.1)
    teaching = us.Teaching(training=training, augmentation=varied, device=DEVICE)
    teacher = teach("zoo:vgg16", shown, work, teaching=teaching, arguments={"width": 16})
    return Case(teacher=teacher, data=shown, goal=us.Goal(macs="8x"), epochs=8, more={"augmentation": varied})


CASES: dict[str, Callable[[Path, Path | None], Case]] = {
    "digits": digits,
    "angle": of_example(angle, 15, loss="mse"),
    "segmentation": of_example(segmentation, 10),
    "vgg": vgg,
    "no-norms": no_norms,
    "vit": of_example(vit, 8),
    "minilm": of_example(minilm, 2, batch=32, loss="mse"),
}


def score(case: Case, lr: float, batch: int, seed: int, folder: Path) -> float:
    """Return the validation score of a student, from the file if it is there."""
    place = folder / f"{batch}-{lr:g}-{seed}.json"
    if not place.is_file():
        began = time.process_time()
        result = us.compress(
            case.teacher,
            case.data,
            run=folder / place.stem,
            method=us.UniformWidth(students=1),
            goal=case.goal,
            candidates=us.Candidates(training=us.Training(epochs=1, batch_size=32, lr=0.0005), examples=64),
            final=us.Final(
                students=1, training=us.Training(epochs=case.epochs, batch_size=batch, lr=lr, loss=case.loss)
            ),
            device=DEVICE,
            seed=seed,
            progress=False,
            **case.more,
        )
        found = {"score": result.summary.student.val.value, "seconds": time.process_time() - began}
        write_whole(place, json.dumps(found))
    return float(json.loads(place.read_text(encoding="utf-8"))["score"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="CIFAR-10, as folders of images")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--networks", nargs="+", choices=CASES, default=tuple(CASES))
    parser.add_argument("--rates", type=float, nargs="+", default=(0.0005, 0.001, 0.003, 0.01, 0.03))
    parser.add_argument("--batch", type=int, help="another batch size than the network's")
    parser.add_argument("--seeds", type=int, nargs="+", default=(1, 2))
    options = parser.parse_args()
    torch.set_num_threads(1)
    print("| network | batch |", *(f"{rate:g} |" for rate in options.rates))
    print("| --- " * (2 + len(options.rates)) + "|")
    for name in options.networks:
        folder = options.out / name
        folder.mkdir(parents=True, exist_ok=True)
        case = CASES[name](folder, options.data)
        batch = options.batch or case.batch
        for rate in options.rates:
            mean = fmean(score(case, rate, batch, seed, folder) for seed in options.seeds)
            start = f"| {name} | {batch} " if rate == options.rates[0] else ""
            print(f"{start}| {100 * mean:.2f} ", end="", flush=True)
        print("|")


if __name__ == "__main__":
    main()
