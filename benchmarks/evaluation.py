"""Where the processor time of one evaluation goes: by part of the evaluation, and by operation of torch.

    python -m benchmarks.evaluation [--network resnet18 --width 16 --images 2000 --epochs 2 --precision auto]

A student with all widths at a quarter, crop and flip, on random images of 32x32 pixels, scored on half as many. One
process, one thread. The parts are measured in one evaluation, by clocks around the functions that do them; the
operations in another one by the profiler of torch, as a share of all operations.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

from understudy.config.training import Augmentation, Candidates, Device, Training
from understudy.core.architecture import Architecture
from understudy.data import Data, Epoch
from understudy.data.data import first_images
from understudy.graph.analysis import analyse
from understudy.models import zoo
from understudy.training import evaluator as evaluating
from understudy.training.compute import choose_compute
from understudy.training.evaluator import Evaluator

PARTS: dict[str, tuple[Any, str]] = {
    "building the student": (evaluating.surgery, "build"),
    "backward pass": (torch.Tensor, "backward"),
    "optimiser": (torch.optim.AdamW, "step"),
    "gradient clipping": (nn.utils, "clip_grad_norm_"),
    "augmentation": (Epoch, "apply"),
    "recalibration of batch norm": (evaluating, "recalibrate"),
    "score": (Evaluator, "score"),
}
OPERATIONS = {
    "conv": "convolutions",
    "norm": "norms",
    "relu": "activations",
    "threshold": "activations",
    "add": "additions",
}


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", default="resnet18")
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--precision", default="auto", choices=("auto", "fp32", "bf16"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        evaluate, name = prepared(options, Path(folder))
        print(f"{options.network} of base width {options.width} with all widths at a quarter, {name}")
        evaluate()  # what is done once, such as choosing kernels, is no part of an evaluation
        spent = Counter[str]()
        with clocked(spent):
            start = time.process_time()
            evaluate()
            total = time.process_time() - start
        spent["forward pass, loss and all else"] = total - spent.total()  # type: ignore[assignment]
        shown(f"by part, of {total:.1f} processor seconds", spent, total)
        with profile(activities=[ProfilerActivity.CPU]) as profiled:
            evaluate()
    own = Counter[str]()
    for event in profiled.key_averages():
        kind = next((kind for part, kind in OPERATIONS.items() if part in event.key.lower()), "all else")
        own[kind] += event.self_cpu_time_total
    shown("by operation", own, own.total())


def prepared(options: argparse.Namespace, folder: Path) -> tuple[Callable[[], object], str]:
    """Return a function that evaluates the student, the teacher's logits being known, and how it is computed."""
    numbers = np.random.default_rng(0)
    count = options.images + options.images // 2
    images, labels = numbers.integers(0, 256, (count, 3, 32, 32), dtype=np.uint8), numbers.integers(0, 10, count)
    data = Data.from_arrays(
        images[: options.images], labels[: options.images], val=(images[options.images :], labels[options.images :])
    )
    torch.manual_seed(0)
    teacher = zoo.create(options.network, width=options.width).eval()
    analysis = analyse(teacher, first_images(data, data.val, 2))
    compute = choose_compute(
        teacher, first_images(data, data.train, 128), Device(device="cpu", precision=options.precision)
    )
    evaluator = Evaluator(
        analysis=analysis,
        teacher=teacher,
        data=data,
        candidates=Candidates(training=Training(epochs=options.epochs), examples=0, stop_below=0.0),
        augmentation=Augmentation(crop=4, flip=True),
        compute=compute,
        folder=folder,
    )
    evaluator.prepare()
    widths = {group.name: max(group.width // 4 // group.step, 1) * group.step for group in analysis.space.groups}
    student: Architecture = analysis.space.architecture(widths=widths)
    return partial(evaluator.evaluate, student), compute.name


@contextmanager
def clocked(spent: Counter[str]) -> Iterator[None]:
    """Add up the processor seconds of each part; what runs inside of another part counts to that one alone."""
    inside = False

    def timed(name: str, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        nonlocal inside
        if inside:
            return function(*args, **kwargs)
        inside, start = True, time.process_time()
        try:
            return function(*args, **kwargs)
        finally:
            inside = False
            spent[name] += time.process_time() - start  # type: ignore[assignment]

    with ExitStack() as patches:
        for name, (owner, attribute) in PARTS.items():
            function = getattr(owner, attribute)

            def call(*args: Any, _name: str = name, _function: Callable[..., Any] = function, **kwargs: Any) -> Any:
                return timed(_name, _function, *args, **kwargs)

            patches.enter_context(mock.patch.object(owner, attribute, call))
        yield


def shown(title: str, figures: Counter[str], total: float) -> None:
    """Print each figure's share, the largest first."""
    print(f"\n{title}")
    for name, figure in figures.most_common():
        print(f"  {name:34} {figure / total:6.1%}")


if __name__ == "__main__":
    main()
