"""A network that tells how far a handwritten digit is turned, at a quarter of its MACs: regression, scored by R2.

    python -m examples.angle --work runs/angle --short

Images are scikit-learn's digits at 16 x 16, turned by an angle of -60 to 60 degrees, which is the target.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn

import understudy as us
from examples.side_by_side import Example, main, trained

SIDE, MOST = 16, 60.0


def network(width: int = 16) -> nn.Module:
    """Return four convolutions and two linear layers; images (B, 1, 16, 16) -> angles (B, 1) in units of 60 degrees."""
    layers: list[nn.Module] = []
    before = 1
    for index, channels in enumerate((width, width, 2 * width, 2 * width)):
        layers += [nn.Conv2d(before, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels), nn.ReLU()]
        layers += [nn.MaxPool2d(2)] if index % 2 else []
        before = channels
    head = [nn.Flatten(), nn.Linear(2 * width * (SIDE // 4) ** 2, 4 * width), nn.ReLU(), nn.Linear(4 * width, 1)]
    return nn.Sequential(*layers, *head)


def turned(digits: Tensor, times: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return images (n, 1, 16, 16) of digits (m, 8, 8), each turned `times` times, and the angles (n, 1)."""
    images = digits.repeat(times, 1, 1)[:, None]
    angles = torch.rand(len(images), generator=torch.Generator().manual_seed(seed)) * 2 - 1
    radians = angles * math.radians(MOST)
    cos, sin, none = radians.cos(), radians.sin(), torch.zeros(len(images))
    turns = torch.stack([torch.stack([cos, -sin, none], 1), torch.stack([sin, cos, none], 1)], 1)
    grid = F.affine_grid(turns, [len(images), 1, SIDE, SIDE], align_corners=False)
    return F.grid_sample(images, 1.2 * grid, align_corners=False), angles[:, None]


def data(count: int, times: int) -> us.Data:
    """Return 1,200 digits to train with, 200 others to choose by, and the rest to test, none of them in two splits."""
    digits = torch.tensor(load_digits().images / 16.0).float()
    train, val, test = digits[: min(count, 1200)], digits[1200:1400], digits[1400:]
    return us.Data.from_inputs(
        *turned(train, times, 0), val=turned(val, 3, 1), test=turned(test, 3, 2), source="turned digits"
    )


def example(work: Path, options: argparse.Namespace) -> Example:
    """Return the example; its short form is a smaller network that has seen less."""
    short = options.short
    torch.manual_seed(0)
    digits = data(*((400, 1) if short else (1200, 5)))
    teacher = trained(
        network(8 if short else 16), digits, F.mse_loss, work / "teacher.safetensors", epochs=6 if short else 20
    )
    training = us.Training(epochs=1 if short else 2, batch_size=32, loss="mse+ce")
    return Example(
        teacher=teacher,
        data=digits,
        goal=us.Goal(macs="4x"),
        candidates=us.Candidates(training=training, examples=200 if short else 2000),
        final=us.Final(students=1, training=us.Training(epochs=2 if short else 15, loss="mse+ce")),
        students=5 if short else 30,
        more={"objective": "regression", "widths": us.Widths(round_to=1, min_width=2)},
        seeds=(0,) if short else (0, 1, 2),
    )


if __name__ == "__main__":
    main(example, __doc__)
