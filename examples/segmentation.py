"""A U-Net that finds handwritten digits on clutter, at a quarter of its MACs.

    python -m examples.segmentation --work runs/segmentation --short

Images are 32 x 32: two of scikit-learn's digits, twice as large as they come, on shreds of other digits and noise.
Each pixel is of a whole digit or of none, which only its surroundings tell; the score is the mean IoU of both classes.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn

import understudy as us
from examples.side_by_side import Example, main, trained

SIDE = 32


class Twice(nn.Sequential):
    """Two 3x3 convolutions with batch norm and ReLU."""

    def __init__(self, channels: int, out: int) -> None:
        super().__init__(*self._one(channels, out), *self._one(out, out))

    @staticmethod
    def _one(channels: int, out: int) -> tuple[nn.Module, ...]:
        return nn.Conv2d(channels, out, 3, padding=1, bias=False), nn.BatchNorm2d(out), nn.ReLU()


class UNet(nn.Module):
    """Three scales, joined by concatenation (Ronneberger, Fischer, Brox, 2015)."""

    def __init__(self, width: int = 12) -> None:
        super().__init__()
        self.down1, self.down2, self.bottom = Twice(1, width), Twice(width, 2 * width), Twice(2 * width, 4 * width)
        self.grow2, self.up2 = nn.ConvTranspose2d(4 * width, 2 * width, 2, stride=2), Twice(4 * width, 2 * width)
        self.grow1, self.up1 = nn.ConvTranspose2d(2 * width, width, 2, stride=2), Twice(2 * width, width)
        self.head = nn.Conv2d(width, 2, 1)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (B, 2, 32, 32) of images (B, 1, 32, 32)."""
        fine = self.down1(images)
        middle = self.down2(F.max_pool2d(fine, 2))
        x = self.bottom(F.max_pool2d(middle, 2))
        x = self.up2(torch.cat([self.grow2(x), middle], 1))
        x = self.up1(torch.cat([self.grow1(x), fine], 1))
        return self.head(x)


def scenes(digits: Tensor, count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return images (n, 1, 32, 32) with values in 0..1 and the class of each pixel (n, 32, 32)."""
    numbers = torch.Generator().manual_seed(seed)

    def below(most: int) -> int:
        return int(torch.randint(most, (), generator=numbers))

    images = 0.25 * torch.rand(count, SIDE, SIDE, generator=numbers)
    targets = torch.zeros(count, SIDE, SIDE, dtype=torch.int64)
    for image, target in zip(images, targets, strict=True):
        for _ in range(8):  # clutter: 6 x 6 pixels of digits
            shred = digits[below(len(digits)), below(10) :, below(10) :][:6, :6]
            top, left = below(SIDE - 6), below(SIDE - 6)
            place = image[top : top + shred.shape[0], left : left + shred.shape[1]]
            place.copy_(torch.maximum(place, shred))
        for left in (0, SIDE // 2):  # at any height, the left one before the right one
            index, top = below(len(digits)), below(SIDE // 2 + 1)
            where = (slice(top, top + SIDE // 2), slice(left, left + SIDE // 2))
            image[where] = torch.maximum(image[where], digits[index])
            target[where] = (digits[index] > 0.3).long()
    return images[:, None], targets


def data(train: int, test: int) -> us.Data:
    """Return scenes of the first 1,200 digits to train with, of 200 others to choose by and of the rest to test."""
    found = load_digits()
    digits = F.interpolate(torch.tensor(found.images / 16.0).float()[:, None], scale_factor=2, mode="bilinear")[:, 0]
    parts = [scenes(digits[a:b], n, a) for a, b, n in ((0, 1200, train), (1200, 1400, test), (1400, 1797, test))]
    return us.Data.from_inputs(*parts[0], val=parts[1], test=parts[2], source="digits on clutter")


def example(work: Path, options: argparse.Namespace) -> Example:
    """Return the example; its short form is a smaller network that has seen little."""
    short = options.short
    torch.manual_seed(0)
    pictures = data(*((200, 60) if short else (1500, 400)))
    teacher = trained(
        UNet(4 if short else 8),
        pictures,
        F.cross_entropy,
        work / "teacher.safetensors",
        epochs=2 if short else 12,
        batch=32,
    )
    training = us.Training(epochs=1 if short else 2, batch_size=32, loss="kl+ce")
    return Example(
        teacher=teacher,
        data=pictures,
        goal=us.Goal(macs="4x"),
        candidates=us.Candidates(training=training, examples=100 if short else 400),
        final=us.Final(students=1, training=us.Training(epochs=1 if short else 8, batch_size=32, loss="kl+ce")),
        students=5 if short else 15,
        more={"objective": "segmentation", "widths": us.Widths(round_to=1, min_width=2), "untrained": short},
        seeds=(0,) if short else (0, 1, 2),
    )


if __name__ == "__main__":
    main(example, __doc__)
