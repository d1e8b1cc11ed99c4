"""Networks with modules of their own: what they keep, give, read and derive from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.support.modules.base import Case, Net, between, whole


def _conv(inputs: int = 8, outputs: int = 8) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 1)


@dataclass
class Parts:
    """Two tensors."""

    low: Tensor
    high: Tensor


class Named(NamedTuple):
    """Two tensors."""

    low: Tensor
    high: Tensor


class Layer(nn.Module):
    """A convolution, and what a case needs of a module of its own."""

    WIDTH = 8

    def __init__(self) -> None:
        super().__init__()
        self.conv = _conv()

    def forward(self, y: Tensor) -> Any:
        return self.conv(y)


class Keeps(Layer):
    """Stores what it gives for another module."""

    def forward(self, y: Tensor) -> Tensor:
        self.last = self.conv(y)
        return self.last


class GivesParts(Layer):
    def forward(self, y: Tensor) -> Parts:
        return Parts(self.conv(y), y)


class GivesNamed(Layer):
    def forward(self, y: Tensor) -> Named:
        return Named(low=self.conv(y), high=y)


class GivesDict(Layer):
    def forward(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        return {**features, "out": self.conv(features["in"])}


class Optional_(Layer):
    """Takes a second tensor, or none."""

    def forward(self, y: Tensor, skip: Tensor | None = None, *rest: Tensor, scale: float = 1.0) -> Tensor:
        y = self.conv(y) * scale
        return sum(rest, y if skip is None else y + skip)


class Toggle(Layer):
    """Another way with every second call."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, y: Tensor) -> Tensor:
        self.calls += 1
        return self.conv(y) if self.calls % 2 else self.conv(y) + y


class ClassWidth(Layer):
    def forward(self, y: Tensor) -> Tensor:
        return self.conv(y).view(-1, self.WIDTH, 6, 6)


class Moving(nn.Module):
    """Subtracts a moving average of the channels, which it keeps in a buffer."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.register_buffer("average", torch.zeros(1 if kind == "resized" else 8))

    def forward(self, y: Tensor) -> Tensor:
        now = y.mean((0, 2, 3)).detach()
        if self.kind == "resized" and self.average.shape != now.shape:
            self.average = torch.zeros_like(now)
        if self.kind == "assigned":
            self.average = 0.9 * self.average + 0.1 * now
        elif self.training:
            self.average.mul_(0.9).add_(now, alpha=0.1)
        return y - self.average[:, None, None]


class Counting(nn.Module):
    """Counts batches in a buffer without a dimension."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros((), dtype=torch.long))

    def forward(self, y: Tensor) -> Tensor:
        self.seen += 1
        return y


class NormAct(nn.BatchNorm2d):
    """A batch norm that applies an activation, as timm has."""

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(super().forward(x))


class Residual(nn.Sequential):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + x


class Mean(nn.ModuleList):
    def forward(self, x: Tensor) -> Tensor:
        return sum(layer(x) for layer in self) / len(self)


class ScaledConv(nn.Conv2d):
    """A convolution with a gain for each of its channels."""

    def __init__(self) -> None:
        super().__init__(8, 8, 1)
        self.gain = nn.Parameter(torch.rand(8, 1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(x, self.weight * self.gain, self.bias)


class Custom(nn.Module):
    """Looks up what is not there in its layer, and is called in a way of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = _conv()

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("inner"), name)

    def forward(self, y: Tensor) -> Tensor:
        return self.inner(y) / self.out_channels


def _reused(net: Net, y: Tensor) -> Tensor:
    return net.keeps(y) + net.conv(net.keeps.last)


def _parts(net: Net, y: Tensor) -> Tensor:
    parts = net.layer(y)
    return parts.low + parts.high


def _features(net: Net, y: Tensor) -> Tensor:
    out = net.layer({"in": y, "unused": y * 2})
    return out["out"] + out["unused"]


def _two(name: str, forward: Any, **more: Any) -> Case:
    return between(f"py_{name}", forward, **more)


CASES: list[Case] = [
    _two("reused", _reused, keeps=Keeps, conv=_conv),
    _two("dataclass", _parts, layer=GivesParts),
    _two("namedtuple", _parts, layer=GivesNamed),
    _two("dictionary", _features, layer=GivesDict),
    _two("optional", lambda n, y: n.layer(y, None, y, y, scale=0.5), layer=Optional_),
    _two("optional_skip", lambda n, y: n.layer(y, skip=y), layer=Optional_),
    _two("toggle_twice", lambda n, y: n.layer(n.layer(y)), layer=Toggle),
    _two("class_width", lambda n, y: n.layer(y), layer=ClassWidth),
    _two("moving", lambda n, y: n.layer(y), layer=lambda: Moving("written")),
    _two("moving_assigned", lambda n, y: n.layer(y), layer=lambda: Moving("assigned")),
    _two("moving_resized", lambda n, y: n.layer(y), layer=lambda: Moving("resized")),
    _two("counting", lambda n, y: n.layer(y), layer=Counting),
    _two("norm_act", lambda n, y: n.layer(y), layer=lambda: NormAct(8)),
    _two("residual", lambda n, y: n.layer(y), layer=lambda: Residual(_conv(), nn.ReLU(), _conv())),
    _two("module_list", lambda n, y: n.layer(y), layer=lambda: Mean([_conv(), _conv()])),
    _two("scaled_conv", lambda n, y: n.layer(y), layer=ScaledConv),
    _two("getattr", lambda n, y: n.layer(y), layer=Custom),
    whole("py_dataclass_output", lambda n, x: Parts(n.tail(n.a(x)), n.a(x))),
]
