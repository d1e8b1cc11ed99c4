"""DenseNet without bottlenecks for small images (Huang et al., 2017, section 4.2)."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class DenseLayer(nn.Module):
    """Norm, activation and a 3x3 convolution, whose few channels join those that came in."""

    def __init__(self, channels: int, growth: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(channels)
        self.conv = nn.Conv2d(channels, growth, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, channels + growth, H, W) for x (B, channels, H, W)."""
        return torch.cat([x, self.conv(torch.relu(self.norm(x)))], 1)


class Transition(nn.Module):
    """A 1x1 convolution that keeps the number of channels, and pooling to half the size."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(channels)
        self.conv = nn.Conv2d(channels, channels, 1, bias=False)
        self.pool = nn.AvgPool2d(2)

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, channels, H / 2, W / 2) for x (B, channels, H, W)."""
        pooled: Tensor = self.pool(self.conv(torch.relu(self.norm(x))))
        return pooled


class DenseNet(nn.Module):
    """A 3x3 stem, three dense blocks with transitions between them, one linear classifier."""

    def __init__(self, layers: int, *, input_channels: int, classes: int, width: int) -> None:
        super().__init__()
        growth = max(1, width // 2)
        self.stem = nn.Conv2d(input_channels, width, 3, padding=1, bias=False)
        stages: list[nn.Module] = []
        channels = width
        for block in range(3):
            stages.append(nn.Sequential(*(DenseLayer(channels + i * growth, growth) for i in range(layers))))
            channels += layers * growth
            if block < 2:
                stages.append(Transition(channels))
        self.stages = nn.Sequential(*stages)
        self.norm = nn.BatchNorm2d(channels)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(channels, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (B, classes) of images (B, input_channels, H, W)."""
        x = torch.relu(self.norm(self.stages(self.stem(images))))
        logits: Tensor = self.classifier(torch.flatten(self.pool(x), 1))
        return logits


def densenet(depth: int, *, input_channels: int = 3, classes: int = 10, width: int = 24) -> DenseNet:
    """Return DenseNet-40 with growth 12; `width` is the channels of the stem, twice the growth."""
    return DenseNet((depth - 4) // 3, input_channels=input_channels, classes=classes, width=width)
