"""ResNets for CIFAR-10 with parameter-free shortcuts (He et al., 2016, section 4.2, option A), as Y. Idelbayev trained.

State dicts of the public repository akamaster/pytorch_resnet_cifar10 load into them. `understudy` takes them as
`benchmarks/option_a.py:resnet`.
"""

from __future__ import annotations

import copy
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from understudy.models.spec import Teacher
from understudy.models.weights import read_weights

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Block(nn.Module):
    """Two 3x3 convolutions; where the shape changes the shortcut takes every second pixel and adds zero channels."""

    def __init__(self, channels: int, out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, out, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out)
        self.conv2 = nn.Conv2d(out, out, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out)
        self.stride, self.more = stride, out - channels
        self.shortcut: nn.Module | None = None  # what stands for the padding, if anything does

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, out, H / stride, W / stride) for x (B, channels, H, W)."""
        residual = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))
        if self.shortcut is not None:
            x = self.shortcut(x)
        elif self.more:
            x = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.more // 2, self.more // 2))
        return torch.relu(residual + x)


class OptionA(nn.Module):
    """A 3x3 stem, three stages of blocks, one linear classifier."""

    def __init__(self, per_stage: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        widths = ((16, 16), (16, 32), (32, 64))
        stages = [
            nn.Sequential(
                *(Block(before if i == 0 else out, out, 1 if i or out == 16 else 2) for i in range(per_stage))
            )
            for before, out in widths
        ]
        self.layer1, self.layer2, self.layer3 = stages
        self.linear = nn.Linear(64, 10)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (B, 10) of images (B, 3, 32, 32)."""
        x = torch.relu(self.bn1(self.conv1(images)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(torch.flatten(F.adaptive_avg_pool2d(x, 1), 1))


def resnet(depth: int = 20) -> OptionA:
    """Return the network of 20, 32, 44, 56 or 110 layers, untrained."""
    return OptionA((depth - 2) // 6)


def trained(depth: int, weights: Path) -> Teacher:
    """Return the network with the weights of a file, and the normalisation that it was trained with."""
    module = resnet(depth)
    module.load_state_dict(read_weights(weights))  # without counts of batches, which older files do not have
    return Teacher(module=module.eval(), mean=MEAN, std=STD)


def with_shortcuts_as_convolutions(network: nn.Module) -> nn.Module:
    """Return a copy that computes the same with each padded shortcut written as a convolution of zeros and ones.

    torch-pruning 1.6.1 takes the padding of channels for an operation that keeps them and builds networks that do not
    run. Other networks are copied as they are.
    """
    twin = copy.deepcopy(network)
    for block in twin.modules():
        if isinstance(block, Block) and block.more:
            channels, before = block.conv1.in_channels, block.more // 2
            block.shortcut = nn.Conv2d(channels, channels + block.more, 1, stride=block.stride, bias=False)
            with torch.no_grad():
                block.shortcut.weight.zero_()
                block.shortcut.weight[torch.arange(channels) + before, torch.arange(channels)] = 1.0
    freeze_shortcuts(twin)
    return twin


def freeze_shortcuts(network: nn.Module) -> None:
    """Keep convolutions that stand for shortcuts from being trained, since what they stand for has no parameters."""
    for block in network.modules():
        if isinstance(block, Block) and block.shortcut is not None:
            block.shortcut.requires_grad_(False)
