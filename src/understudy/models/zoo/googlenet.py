"""GoogLeNet with batch norm for small images (Szegedy et al., 2015, table 1; 6.15M parameters in DECORE's table)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

# Per module: 1x1, 3x3 reduce, 3x3, 5x5 reduce, 5x5, pool projection, at the published width of the stem.
_STEM = 192
_STAGES = (
    ((64, 96, 128, 16, 32, 32), (128, 128, 192, 32, 96, 64)),
    (
        (192, 96, 208, 16, 48, 64),
        (160, 112, 224, 24, 64, 64),
        (128, 128, 256, 24, 64, 64),
        (112, 144, 288, 32, 64, 64),
        (256, 160, 320, 32, 128, 128),
    ),
    ((256, 160, 320, 32, 128, 128), (384, 192, 384, 48, 128, 128)),
)


def _conv(channels: int, out: int, kernel: int) -> list[nn.Module]:
    return [nn.Conv2d(channels, out, kernel, padding=kernel // 2), nn.BatchNorm2d(out), nn.ReLU(inplace=True)]


class Inception(nn.Module):
    """Four branches side by side; the 5x5 convolution is two of 3x3, as is usual for small images."""

    def __init__(self, channels: int, widths: tuple[int, ...]) -> None:
        super().__init__()
        one, reduce3, three, reduce5, five, pool = widths
        self.one = nn.Sequential(*_conv(channels, one, 1))
        self.three = nn.Sequential(*_conv(channels, reduce3, 1), *_conv(reduce3, three, 3))
        self.five = nn.Sequential(*_conv(channels, reduce5, 1), *_conv(reduce5, five, 3), *_conv(five, five, 3))
        self.pool = nn.Sequential(nn.MaxPool2d(3, stride=1, padding=1), *_conv(channels, pool, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, the branches' sum, H, W) for x (B, channels, H, W)."""
        return torch.cat([self.one(x), self.three(x), self.five(x), self.pool(x)], 1)


class GoogLeNet(nn.Module):
    """A 3x3 stem at full resolution, three stages of inception modules with max pooling between, one classifier."""

    def __init__(self, *, input_channels: int, classes: int, width: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(*_conv(input_channels, width, 3))
        stages: list[nn.Module] = []
        channels = width
        for stage in _STAGES:
            modules: list[nn.Module] = []
            for published in stage:
                widths = tuple(max(1, round(w * width / _STEM)) for w in published)
                modules.append(Inception(channels, widths))
                channels = widths[0] + widths[2] + widths[4] + widths[5]
            stages.append(nn.Sequential(*modules))
        self.stages = nn.ModuleList(stages)
        self.shrink = nn.MaxPool2d(3, stride=2, padding=1)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(channels, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (B, classes) of images (B, input_channels, H, W)."""
        x = self.stem(images)
        for index, stage in enumerate(self.stages):
            x = stage(x if index == 0 else self.shrink(x))
        logits: Tensor = self.classifier(torch.flatten(self.pool(x), 1))
        return logits


def googlenet(*, input_channels: int = 3, classes: int = 10, width: int = _STEM) -> GoogLeNet:
    """Return GoogLeNet; `width` is the channels of the stem, the modules' widths are in proportion."""
    return GoogLeNet(input_channels=input_channels, classes=classes, width=width)
