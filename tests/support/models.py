"""Networks that several tests use, analysed once, and how to draw architectures of them."""

from __future__ import annotations

import random
from functools import cache

import torch
from torch import Tensor, nn

from understudy.core.architecture import Architecture, Space
from understudy.graph.analysis import Analysis, analyse
from understudy.graph.flops import counting
from understudy.models import zoo


@cache
def zoo_analysis(name: str) -> Analysis:
    """A zoo network of base width 8 with weights of seed 0, on two images of 32 x 32."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = zoo.create(name, width=8).eval()
    return analyse(model, images(2))


def images(batch: int, channels: int = 3, size: int = 32, seed: int = 0) -> Tensor:
    return torch.randn(batch, channels, size, size, generator=torch.Generator().manual_seed(seed))


def random_architecture(space: Space, seed: int, *, remove: float = 0.2, shrink: bool = True) -> Architecture:
    rng = random.Random(seed)
    removed = [u.name for u in space.units if u.kind != "layer" and rng.random() < remove]
    widths = {g.name: rng.choice(g.legal_widths()) for g in space.groups if shrink}
    kernels = {layer.name: rng.choice(layer.kernels) for layer in space.layers if layer.kernels and shrink}
    return space.architecture(removed=removed, widths=widths, kernels=kernels)


def random_widths(space: Space, seed: int) -> Architecture:
    rng = random.Random(seed)
    return space.architecture(widths={g.name: rng.choice(g.legal_widths()) for g in space.groups})


def parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def macs(model: nn.Module, x: Tensor) -> int:
    """MACs of one example as torch's flop counter sees them (it counts two for each)."""
    with counting() as counter, torch.no_grad():
        model(x)
    return int(counter.get_total_flops()) // 2 // len(x)
