"""The teachers of the tables: small enough that every student of theirs can be trained."""

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


def chain(*, in_channels: int = 3, classes: int = 10, width: int = 24) -> Chain:
    """Return an untrained Chain."""
    return Chain(in_channels=in_channels, classes=classes, width=width)


def skip(*, in_channels: int = 3, classes: int = 10, width: int = 24) -> Skip:
    """Return an untrained Skip."""
    return Skip(in_channels=in_channels, classes=classes, width=width)
