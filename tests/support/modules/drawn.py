"""Random networks out of the operations that rules know: convolutional steps on maps, then steps on tokens."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Step = Callable[["Drawn", Tensor], Tensor]


class Drawn(nn.Module):
    """The network of a seed: a stem, steps on maps (B, C, 6, 6), steps on tokens (B, 36, C), a head."""

    def __init__(self, seed: int, *, maps: int = 5, tokens: int = 2) -> None:
        super().__init__()
        self.rng, self.width, self.layers = random.Random(seed), 8, nn.ModuleDict()
        self.numbers: dict[str, int] = {}
        stem = self.add(nn.Conv2d(3, 8, 3, padding=1))
        self.steps: list[Step] = [lambda net, x: net.layers[stem](x)]
        self.steps += [self.rng.choice(MAPS)(self) for _ in range(self.rng.randint(1, maps))]
        self.steps.append(lambda net, x: x.flatten(2).transpose(1, 2))
        self.steps += [self.rng.choice(TOKENS)(self) for _ in range(self.rng.randint(0, tokens))]
        head = self.add(nn.Linear(self.width, 3))
        self.steps.append(lambda net, x: net.layers[head](x.mean(1)))
        del self.rng

    def add(self, layer: nn.Module) -> str:
        """Hold a layer; return its name."""
        name = f"n{len(self.layers)}"
        self.layers[name] = layer
        return name

    def forward(self, x: Tensor) -> Tensor:
        for step in self.steps:
            x = step(self, x)
        return x

    def divisor(self, *among: int) -> int:
        """Draw a number that divides the width, 1 if none of these does."""
        return self.rng.choice([n for n in among if self.width % n == 0 and self.width > n] or [1])


def _conv(net: Drawn) -> Step:
    groups, outputs = net.divisor(1, 1, 2, 4), net.rng.choice((8, 12, 16))
    kernel = net.rng.choice((1, 3))
    conv = net.add(nn.Conv2d(net.width, outputs, kernel, padding=kernel // 2, groups=groups))
    net.width = outputs
    norm = net.add(net.rng.choice((nn.BatchNorm2d(outputs), nn.GroupNorm(4, outputs), nn.InstanceNorm2d(outputs))))
    return lambda net, x: F.silu(net.layers[norm](net.layers[conv](x)))


def _depthwise(net: Drawn) -> Step:
    conv = net.add(nn.Conv2d(net.width, net.width, 3, padding=1, groups=net.width))
    return lambda net, x: x + torch.relu(net.layers[conv](x))


def _residual(net: Drawn) -> Step:
    a, b = net.add(nn.Conv2d(net.width, 6, 1)), net.add(nn.Conv2d(6, net.width, 3, padding=1))
    return lambda net, x: x + net.layers[b](torch.relu(net.layers[a](x)))


def _concatenated(net: Drawn) -> Step:
    a, before = net.add(nn.Conv2d(net.width, 4, 1)), net.rng.random() < 0.5
    net.width += 4
    return lambda net, x: torch.cat([net.layers[a](x), x] if before else [x, net.layers[a](x)], 1)


def _gate(net: Drawn) -> Step:
    a, b = net.add(nn.Conv2d(net.width, 4, 1)), net.add(nn.Conv2d(4, net.width, 1))
    pooled = net.rng.choice((lambda x: x.mean((2, 3), keepdim=True), lambda x: F.adaptive_avg_pool2d(x, 1)))
    return lambda net, x: x * torch.sigmoid(net.layers[b](torch.relu(net.layers[a](pooled(x)))))


def _sliced(net: Drawn) -> Step:
    whole = net.width
    least = min(2, whole - 1)
    at = net.rng.randint(least, max(least, whole - 2))
    a = net.add(nn.Conv2d(at, at, 1))
    kind = net.rng.choice(("slice", "split", "negative", "narrow"))

    def step(net: Drawn, x: Tensor) -> Tensor:
        if kind == "slice":
            first, last = x[:, :at], x[:, at:]
        elif kind == "split":
            first, last = x.split([at, whole - at], 1)
        elif kind == "negative":
            first, last = x[:, : at - whole], x[:, at - whole :]
        else:
            first, last = x.narrow(1, 0, at), x.narrow(1, at, whole - at)
        return torch.cat([net.layers[a](first), last], 1)

    return step


def _swapped(net: Drawn) -> Step:
    parts = net.divisor(2, 4)
    return lambda net, x: torch.cat(x.chunk(parts, 1)[::-1], 1) + x if parts > 1 else x


def _padded(net: Drawn) -> Step:
    before, after, whole = net.rng.randint(0, 3), net.rng.randint(0, 3), net.width
    net.width += before + after
    a = net.add(nn.Conv2d(whole, net.width, 1))
    return lambda net, x: net.layers[a](x) + F.pad(x, (0, 0, 0, 0, before, after))


def _shuffled(net: Drawn) -> Step:
    groups, whole, kind = net.divisor(2, 4), net.width, net.rng.choice(("computed", "written", "function"))

    def step(net: Drawn, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        if kind == "function":
            return F.channel_shuffle(x, groups)
        inner = c // groups if kind == "computed" else whole // groups
        return x.view(b, groups, inner, h, w).transpose(1, 2).reshape(b, c if kind == "computed" else whole, h, w)

    return step


def _normed(net: Drawn) -> Step:
    norm = net.add(nn.LayerNorm(net.width))
    kind = net.rng.choice(("layer", "mean", "written"))

    def step(net: Drawn, x: Tensor) -> Tensor:
        if kind == "layer":
            return net.layers[norm](x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        if kind == "mean":
            return x - x.mean(1, keepdim=True)
        return x * torch.rsqrt(x.pow(2).mean(1, keepdim=True) + 1e-3) * net.layers[norm].weight[:, None, None]

    return step


def _counted(net: Drawn) -> Step:
    name, whole = net.add(nn.Conv2d(net.width, net.width, 1)), net.width
    kind = net.rng.choice(("shape", "attribute", "view", "python", "len"))

    def step(net: Drawn, x: Tensor) -> Tensor:
        if kind == "shape":
            return x * x.shape[1] ** -0.5
        if kind == "attribute":
            return x / net.layers[name].out_channels + x
        if kind == "view":
            return net.layers[name](x.view(-1, whole, 36)[..., :36].view(-1, whole, 6, 6))
        return x * max(x.shape[1], 5) if kind == "python" else x.reshape(len(x), x.shape[1], -1).view(x.shape)

    return step


def _grouped_by_hand(net: Drawn) -> Step:
    groups, whole = net.divisor(2, 4), net.width
    weight = net.add(nn.Conv2d(whole, whole, 1, groups=groups))
    return lambda net, x: F.conv2d(x, net.layers[weight].weight, net.layers[weight].bias, groups=groups)


def _summed(net: Drawn) -> Step:
    groups, whole = net.divisor(2, 4), net.width
    net.width //= groups
    return lambda net, x: x.view(x.shape[0], groups, whole // groups, *x.shape[2:]).sum(1)


def _shared(net: Drawn) -> Step:
    a = net.add(nn.Conv2d(net.width, net.width, 1))
    return lambda net, x: torch.relu(net.layers[a](torch.relu(net.layers[a](x))))


def _attention(net: Drawn) -> Step:
    heads, width, residual = net.rng.choice((1, 2, 4)), net.rng.choice((2, 4)), net.width
    kind, fused = net.rng.choice(("written", "held", "inferred")), net.rng.random() < 0.5
    qkv, proj = net.add(nn.Linear(residual, 3 * heads * width)), net.add(nn.Linear(heads * width, residual))
    net.numbers[f"heads{qkv}"] = heads
    setattr(net, f"heads_{qkv}", heads)

    def step(net: Drawn, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        number: Any = getattr(net, f"heads_{qkv}") if kind == "held" else heads
        split = net.layers[qkv](x).reshape(b, n, 3, number, -1 if kind == "inferred" else width)
        q, k, v = split.permute(2, 0, 3, 1, 4).unbind(0)
        if fused:
            y = F.scaled_dot_product_attention(q, k, v)
        else:
            y = ((q @ k.transpose(-2, -1)) * width**-0.5).softmax(-1) @ v
        return x + net.layers[proj](y.transpose(1, 2).reshape(b, n, -1 if kind == "inferred" else heads * width))

    return step


def _mlp(net: Drawn) -> Step:
    up, gate, down = (net.add(nn.Linear(*sizes)) for sizes in ((net.width, 6), (net.width, 6), (6, net.width)))
    norm = net.add(net.rng.choice((nn.LayerNorm(net.width), nn.RMSNorm(net.width))))

    def step(net: Drawn, x: Tensor) -> Tensor:
        y = net.layers[norm](x)
        return x + net.layers[down](F.silu(net.layers[gate](y)) * net.layers[up](y))

    return step


def _projected(net: Drawn) -> Step:
    outputs = net.rng.choice((6, 8, 12))
    a = net.add(nn.Linear(net.width, outputs))
    net.width = outputs
    return lambda net, x: F.gelu(net.layers[a](x))


def _token(net: Drawn) -> Step:
    table = net.add(nn.Embedding(1, net.width))
    return lambda net, x: torch.cat([net.layers[table].weight.expand(len(x), -1, -1), x], 1)


MAPS: tuple[Callable[[Drawn], Step], ...] = (
    *(_conv, _conv, _depthwise, _residual, _concatenated, _gate, _sliced, _swapped, _padded, _shuffled, _normed),
    *(_counted, _grouped_by_hand, _summed, _shared),
)
TOKENS: tuple[Callable[[Drawn], Step], ...] = (_attention, _attention, _mlp, _projected, _token)
