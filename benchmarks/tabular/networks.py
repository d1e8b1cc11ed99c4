"""The teachers of the tables: small enough that every student of theirs can be trained, or was by others."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def conv(arriving: int, width: int, stride: int = 1) -> nn.Sequential:
    """Return a 3x3 convolution with its norm and activation."""
    return nn.Sequential(
        nn.Conv2d(arriving, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU(inplace=False)
    )


class Chain(nn.Module):
    """Four convolutions one after the other, the image halved by the first and by a pooling, one linear classifier."""

    def __init__(self, *, in_channels: int, classes: int, width: int) -> None:
        super().__init__()
        self.before = nn.Sequential(conv(in_channels, width, 2), conv(width, width))
        self.after = nn.Sequential(conv(width, width), conv(width, width))
        self.classifier = nn.Linear(width, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (B, classes) of images (B, in_channels, H, W)."""
        # A function, not a layer: one that can be removed would double the table.
        x = self.after(nn.functional.max_pool2d(self.before(images), 2))
        logits: Tensor = self.classifier(x.mean((2, 3)))
        return logits


class Skip(nn.Module):
    """A strided stem, a residual branch of two convolutions, two more convolutions, one linear classifier."""

    def __init__(self, *, in_channels: int, classes: int, width: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(in_channels, width, 2, 2, bias=False), nn.BatchNorm2d(width), nn.ReLU())
        self.inner = conv(width, width)
        self.outer = nn.Sequential(nn.Conv2d(width, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width))
        self.pool = nn.AvgPool2d(2)
        self.third, self.fourth = conv(width, width), conv(width, width)
        self.classifier = nn.Linear(width, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (B, classes) of images (B, in_channels, H, W)."""
        x = self.stem(images)
        x = torch.relu(x + self.outer(self.inner(x)))
        x = self.fourth(self.third(self.pool(x)))
        logits: Tensor = self.classifier(x.mean((2, 3)))
        return logits


class MobileBlock(nn.Module):
    """MobileNetV2's block: six times the channels, a depthwise 5x5 convolution, a linear projection."""

    def __init__(self, arriving: int, width: int, stride: int) -> None:
        super().__init__()
        hidden = 6 * arriving
        self.expansion = nn.Sequential(nn.Conv2d(arriving, hidden, 1, bias=False), nn.BatchNorm2d(hidden), nn.ReLU())
        self.depthwise = nn.Sequential(
            nn.Conv2d(hidden, hidden, 5, stride, 2, groups=hidden, bias=False), nn.BatchNorm2d(hidden), nn.ReLU()
        )
        self.projection = nn.Sequential(nn.Conv2d(hidden, width, 1, bias=False), nn.BatchNorm2d(width))
        self.residual = stride == 1 and arriving == width

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, width, H / stride, W / stride) of (B, arriving, H, W)."""
        y: Tensor = self.projection(self.depthwise(self.expansion(x)))
        return x + y if self.residual else y


class Macro(nn.Module):
    """The largest network of NAS-Bench-Macro.

    A stem, stages of 2, 3 and 3 blocks, each with half the pixels and twice the channels of the one before, a head.
    """

    def __init__(self, *, in_channels: int, classes: int, width: int) -> None:
        super().__init__()
        self.stem = conv(in_channels, width)
        blocks = []
        for depth in (2, 3, 3):
            blocks.append(MobileBlock(width, 2 * width, 2))
            width *= 2
            blocks += [MobileBlock(width, width, 1) for _ in range(depth - 1)]
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Sequential(nn.Conv2d(width, 1280, 1, bias=False), nn.BatchNorm2d(1280), nn.ReLU())
        self.classifier = nn.Linear(1280, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (B, classes) of images (B, in_channels, H, W)."""
        logits: Tensor = self.classifier(self.head(self.blocks(self.stem(images))).mean((2, 3)))
        return logits


def chain(*, in_channels: int = 3, classes: int = 10, width: int = 24) -> Chain:
    """Return an untrained Chain."""
    return Chain(in_channels=in_channels, classes=classes, width=width)


def skip(*, in_channels: int = 3, classes: int = 10, width: int = 24) -> Skip:
    """Return an untrained Skip."""
    return Skip(in_channels=in_channels, classes=classes, width=width)


def macro(*, in_channels: int = 3, classes: int = 10, width: int = 32) -> Macro:
    """Return an untrained Macro."""
    return Macro(in_channels=in_channels, classes=classes, width=width)
