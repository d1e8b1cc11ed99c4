"""MobileNetV2 for small images (Sandler et al., 2018, table 2)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

# Expansion, channels, blocks, stride, at the published stem of 32; the first two strides of 2 are 1 for 32 pixels.
_STEM = 32
_STAGES = (
    *((1, 16, 1, 1), (6, 24, 2, 1), (6, 32, 3, 2), (6, 64, 4, 2)),
    *((6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1)),
)
_LAST = 1280


def _conv(channels: int, out: int, kernel: int, *, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    conv = nn.Conv2d(channels, out, kernel, stride=stride, padding=kernel // 2, groups=groups, bias=False)
    return [conv, nn.BatchNorm2d(out)]


class InvertedResidual(nn.Module):
    """A wide depthwise convolution between two 1x1 ones; a shortcut where the shape stays."""

    def __init__(self, channels: int, out: int, *, expansion: int, stride: int) -> None:
        super().__init__()
        inner = channels * expansion
        layers: list[nn.Module] = []
        if expansion > 1:
            layers += [*_conv(channels, inner, 1), nn.ReLU6(inplace=True)]
        layers += [*_conv(inner, inner, 3, stride=stride, groups=inner), nn.ReLU6(inplace=True)]
        self.layers = nn.Sequential(*layers, *_conv(inner, out, 1))
        self.shortcut = stride == 1 and channels == out

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, out, H / stride, W / stride) for x (B, channels, H, W)."""
        y: Tensor = self.layers(x)
        return x + y if self.shortcut else y


class MobileNetV2(nn.Module):
    """A 3x3 stem, seven stages of inverted residuals, a 1x1 convolution, one linear classifier."""

    def __init__(self, *, input_channels: int, classes: int, width: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(*_conv(input_channels, width, 3), nn.ReLU6(inplace=True))
        stages: list[nn.Module] = []
        channels = width
        for expansion, published, depth, stride in _STAGES:
            out = max(1, published * width // _STEM)
            blocks: list[nn.Module] = []
            for i in range(depth):
                blocks.append(InvertedResidual(channels, out, expansion=expansion, stride=stride if i == 0 else 1))
                channels = out
            stages.append(nn.Sequential(*blocks))
        self.stages = nn.Sequential(*stages)
        last = max(1, _LAST * width // _STEM)
        self.last = nn.Sequential(*_conv(channels, last, 1), nn.ReLU6(inplace=True))
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(last, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (B, classes) of images (B, input_channels, H, W)."""
        x = self.last(self.stages(self.stem(images)))
        logits: Tensor = self.classifier(torch.flatten(self.pool(x), 1))
        return logits


def mobilenet_v2(*, input_channels: int = 3, classes: int = 10, width: int = _STEM) -> MobileNetV2:
    """Return MobileNetV2; `width` is the channels of the stem, the stages' widths are in proportion."""
    return MobileNetV2(input_channels=input_channels, classes=classes, width=width)
