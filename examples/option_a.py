"""A CIFAR-10 ResNet-20 with parameter-free shortcuts, trained by others, at a quarter of its MACs.

    python -m examples.option_a --work runs/option_a --data data/cifar10 --weights resnet20.safetensors

DATA holds train/CLASS/* and test/CLASS/* in the original pixels. WEIGHTS is what akamaster/pytorch_resnet_cifar10
gives, re-saved as safetensors: `benchmarks/option_a.py`. The short form needs neither: random weights and noise.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

import understudy as us
from benchmarks import option_a
from examples.side_by_side import Example, few, main, noise
from understudy.models.spec import Teacher


def example(work: Path, options: argparse.Namespace) -> Example:
    """Return the example."""
    short = options.short
    if short:
        torch.manual_seed(0)
        images, teacher = noise(100), Teacher(module=option_a.OptionA(1).eval())
    else:
        images, teacher = few(us.Data.open(str(options.data)), 2500, 1500), option_a.trained(20, options.weights)
    training = us.Training(epochs=1 if short else 2, batch_size=64)
    return Example(
        teacher=teacher,
        data=images,
        goal=us.Goal(macs="4x"),
        candidates=us.Candidates(training=training, examples=50 if short else 400),
        final=us.Final(students=1, training=us.Training(epochs=1 if short else 3, loss="mse+ce")),
        students=5 if short else 15,
        more={"widths": us.Widths(round_to=1, min_width=2), "untrained": short},
        seeds=(0,) if short else (0, 1, 2),
    )


if __name__ == "__main__":
    main(example, __doc__, data="folder of the images", weights="file of the weights")
