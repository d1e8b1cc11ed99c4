"""Convolutions that compute their weights in the forward pass, as papers and their many copies write it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.support.modules.base import Case

Weight = Callable[[nn.Conv2d], Tensor]


class Computing(nn.Conv2d):
    """A convolution whose weight a function makes."""

    made: Weight

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.made(self), self.bias, self.stride, self.padding, self.dilation, self.groups)


class Net(nn.Module):
    """A residual block of three such convolutions with group norms."""

    def __init__(self, made: Weight) -> None:
        super().__init__()
        self.convs = nn.ModuleList(Computing(*sizes, 3, padding=1) for sizes in ((3, 12), (12, 16), (16, 12)))
        self.norms, self.head = nn.ModuleList(nn.GroupNorm(2, size) for size in (12, 16)), nn.Linear(12, 3)
        for conv in self.convs:
            conv.made = made  # type: ignore[assignment]

    def forward(self, x: Tensor) -> Any:
        x = torch.relu(self.norms[0](self.convs[0](x)))
        y = torch.relu(self.norms[1](self.convs[1](x)))
        return self.head((x + self.convs[2](y)).mean((2, 3)))


def _standardised(conv: nn.Conv2d) -> Tensor:
    """As the authors of weight standardisation have it."""
    weight = conv.weight
    mean = weight.mean(dim=1, keepdim=True).mean(dim=2, keepdim=True).mean(dim=3, keepdim=True)
    weight = weight - mean
    std = weight.view(weight.size(0), -1).std(dim=1).view(-1, 1, 1, 1) + 1e-5
    return weight / std.expand_as(weight)


def _big_transfer(conv: nn.Conv2d) -> Tensor:
    """As the authors of Big Transfer have it."""
    var, mean = torch.var_mean(conv.weight, dim=[1, 2, 3], keepdim=True, unbiased=False)
    return (conv.weight - mean) / torch.sqrt(var + 1e-10)


def _of_rows(conv: nn.Conv2d) -> Tensor:
    mean = conv.weight.flatten(1).mean(1)[:, None, None, None]
    norm = conv.weight.reshape(conv.weight.shape[0], -1).norm(dim=1, keepdim=True)
    return (conv.weight - mean) / (norm.clamp(min=1e-6).view(-1, 1, 1, 1) + conv.weight.std((1, 2, 3), keepdim=True))


CASES = [
    Case(f"weight_{name.strip('_')}", lambda made=made: Net(made))  # type: ignore[misc]
    for name, made in (("standardised", _standardised), ("big_transfer", _big_transfer), ("of_rows", _of_rows))
]
