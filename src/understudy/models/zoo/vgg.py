"""VGG with batch norm for small images (Simonyan and Zisserman, 2015, table 1, columns A, B, D, E)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

# Convolutions in each of the five stages; the stages are 1, 2, 4, 8 and 8 times the base width wide.
_STAGES = {11: (1, 1, 2, 2, 2), 13: (2, 2, 2, 2, 2), 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}
_WIDTHS = (1, 2, 4, 8, 8)


class VGG(nn.Module):
    """Five stages of 3x3 convolutions, each ended by max pooling, and one linear classifier.

    The ImageNet classifier of three wide layers is replaced by a single one, as is usual for CIFAR-10.
    So VGG-16 has 14.72M parameters; the 14.98M of DECORE's table have one more hidden layer of 512 (1.8%).
    """

    def __init__(self, stages: tuple[int, ...], *, input_channels: int, classes: int, width: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = input_channels
        for depth, factor in zip(stages, _WIDTHS, strict=True):
            for _ in range(depth):
                out = factor * width
                layers += [nn.Conv2d(channels, out, 3, padding=1), nn.BatchNorm2d(out), nn.ReLU(inplace=True)]
                channels = out
            # Images of 28 pixels keep one pixel to the end; ceil_mode changes nothing at 32.
            layers.append(nn.MaxPool2d(2, ceil_mode=True))
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(channels, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (B, classes) of images (B, input_channels, H, W), H and W at most 32."""
        logits: Tensor = self.classifier(torch.flatten(self.features(images), 1))
        return logits


def vgg(depth: int, *, input_channels: int = 3, classes: int = 10, width: int = 64) -> VGG:
    """Return VGG-11, 13, 16 or 19; `width` is the channels of the first stage."""
    return VGG(_STAGES[depth], input_channels=input_channels, classes=classes, width=width)
