"""A small vision transformer on CIFAR-10, at a quarter of its MACs.

    python -m examples.vit --work runs/vit --data data/cifar10

DATA holds train/CLASS/* and test/CLASS/*. The short form needs none: its images are noise.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import understudy as us
from examples.side_by_side import Example, few, main, noise, trained


class Block(nn.Module):
    """Attention and an MLP, each behind a norm and added to what came in."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.size = width // heads

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, T, C) for x (B, T, C)."""
        batch, places, _ = x.shape
        query, key, value = self.qkv(self.norm1(x)).view(batch, places, 3, -1, self.size).permute(2, 0, 3, 1, 4)
        found = F.scaled_dot_product_attention(query, key, value)
        x = x + self.out(found.transpose(1, 2).reshape(batch, places, -1))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class ViT(nn.Module):
    """Patches of 4 x 4 pixels, a learned position each, and the mean over them (Dosovitskiy et al., 2021)."""

    def __init__(self, width: int = 96, depth: int = 6, heads: int = 6, patch: int = 4) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, patch, stride=patch)
        self.places = nn.Parameter(0.02 * torch.randn(1, (32 // patch) ** 2, width))
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(depth)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 10)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (B, 10) of images (B, 3, 32, 32)."""
        x = self.patches(images).flatten(2).transpose(1, 2) + self.places
        return self.head(self.norm(self.blocks(x)).mean(1))


def example(work: Path, options: argparse.Namespace) -> Example:
    """Return the example; its short form is a smaller network that has learned nothing."""
    short = options.short
    torch.manual_seed(0)
    if short:
        images, network = noise(100), ViT(width=16, depth=2, heads=2, patch=8).eval()
    else:
        images = few(us.Data.open(str(options.data)), 5000, 1500)
        place = work / "teacher.safetensors"
        network = trained(ViT(64, 4, 4), images, F.cross_entropy, place, epochs=8, batch=64, lr=0.002)
    training = us.Training(epochs=1 if short else 2, batch_size=64, lr=0.001)
    final = us.Training(epochs=1 if short else 3, batch_size=64, lr=0.001, loss="kl+ce")
    return Example(
        teacher=network,
        data=images,
        goal=us.Goal(macs="4x"),
        candidates=us.Candidates(training=training, examples=50 if short else 400),
        final=us.Final(students=1, training=final),
        students=5 if short else 15,
        more={"untrained": short},
        seeds=(0,) if short else (0, 1, 2),
    )


if __name__ == "__main__":
    main(example, __doc__, data="folder of the images")
