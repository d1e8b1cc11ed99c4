"""Convolutions whose weights are standardised in the forward pass, as those of NFNets and of BiT are."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.support.modules.base import Case, between


class Standardised(nn.Conv2d):
    """With a gain of each output, as `ScaledStdConv2d` of timm, or without, as its `StdConv2d`."""

    def __init__(self, *sizes: int, gain: bool = True, written: bool = False, **more: Any) -> None:
        super().__init__(*sizes, **more)
        self.scale, self.written, self.literal = self.weight[0].numel() ** -0.5, written, [self.out_channels]
        self.gain = nn.Parameter(torch.rand(self.out_channels, 1, 1, 1) + 0.5) if gain else None

    def forward(self, x: Tensor) -> Tensor:
        outputs = self.literal[0] if self.written else self.out_channels
        gain = None if self.gain is None else (self.gain * self.scale).view(-1)
        weight = F.batch_norm(
            self.weight.reshape(1, outputs, -1), None, None, weight=gain, training=True, momentum=0.0, eps=1e-6
        ).reshape_as(self.weight)
        return F.conv2d(x, weight, self.bias, self.stride, self.padding, self.dilation, self.groups)


class Elsewhere(Standardised):
    """The standardised weight is used for something else as well."""

    def forward(self, x: Tensor) -> Tensor:
        flat = self.weight.reshape(1, self.out_channels, -1)
        weight = F.batch_norm(flat, None, None, training=True, momentum=0.0).reshape_as(self.weight)
        return F.conv2d(x, weight, self.bias, self.stride, self.padding) + weight.sum()


def _case(name: str, make: Any) -> Case:
    return between(f"standardised_{name}", lambda n, y: n.c1(torch.relu(n.c0(y))), c0=make, c1=make)


CASES = [
    _case("gain", lambda: Standardised(8, 8, 3, padding=1)),
    _case("plain", lambda: Standardised(8, 8, 3, padding=1, gain=False, bias=False)),
    _case("grouped", lambda: Standardised(8, 8, 3, padding=1, groups=2)),
    _case("depthwise", lambda: Standardised(8, 8, 3, padding=1, groups=8)),
    _case("written", lambda: Standardised(8, 8, 1, written=True)),
    _case("elsewhere", lambda: Elsewhere(8, 8, 1)),
    between("standardised_residual", lambda n, y: y + 0.2 * n.c0(y), c0=lambda: Standardised(8, 8, 1)),
]
