"""Residual networks for small images (He et al., 2016)."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class BasicBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut, which is a 1x1 convolution where the shape changes."""

    def __init__(self, channels: int, out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, out, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out)
        self.conv2 = nn.Conv2d(out, out, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or channels != out:
            self.shortcut = nn.Sequential(nn.Conv2d(channels, out, 1, stride=stride, bias=False), nn.BatchNorm2d(out))

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, out, H / stride, W / stride) for x (B, channels, H, W)."""
        residual = torch.relu(self.bn1(self.conv1(x)))
        residual = self.bn2(self.conv2(residual))
        return torch.relu(residual + self.shortcut(x))


class ResNet(nn.Module):
    """A 3x3 stem, stages of basic blocks that halve the size and double the width, one linear classifier."""

    def __init__(self, blocks: tuple[int, ...], *, input_channels: int, classes: int, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(input_channels, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        stages: list[nn.Module] = []
        channels = width
        for stage, depth in enumerate(blocks):
            out = width * 2**stage
            strides = (1 if stage == 0 else 2, *(1 for _ in range(depth - 1)))
            members = [BasicBlock(channels if i == 0 else out, out, stride) for i, stride in enumerate(strides)]
            stages.append(nn.Sequential(*members))
            channels = out
        self.stages = nn.Sequential(*stages)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(channels, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (B, classes) of images (B, input_channels, H, W)."""
        x = torch.relu(self.bn1(self.conv1(images)))
        logits: Tensor = self.classifier(torch.flatten(self.pool(self.stages(x)), 1))
        return logits


def resnet(depth: int, *, input_channels: int = 3, classes: int = 10, width: int = 64) -> ResNet:
    """Return ResNet-18 or 34 with a CIFAR stem: 3x3, stride 1, no max pooling."""
    blocks = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3)}[depth]
    return ResNet(blocks, input_channels=input_channels, classes=classes, width=width)


def resnet_thin(depth: int, *, input_channels: int = 3, classes: int = 10, width: int = 16) -> ResNet:
    """Return ResNet-20, 56 or 110 (section 4.2): three stages, 6n + 2 layers.

    Where the width doubles the shortcut is a 1x1 convolution, not the paper's zero padding, which writes
    channel counts into the forward pass; ResNet-56 has 0.3% more parameters for it.
    """
    per_stage = (depth - 2) // 6
    return ResNet((per_stage,) * 3, input_channels=input_channels, classes=classes, width=width)
