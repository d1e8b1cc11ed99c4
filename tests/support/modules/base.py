"""Small networks made of a few layers and a function, for cases that differ in one line of the forward pass."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

Forward = Callable[..., Any]


class Net(nn.Module):
    """a: 3 to 8 channels, norm, b: 8 to 8, c: 8 to 4, head: 4 to 3; more layers and values by name.

    What a case does stands between `a` with its norm and `b`, unless it has a forward pass of its own.
    """

    def __init__(self, between: Forward | None, whole: Forward | None, more: dict[str, Any]) -> None:
        super().__init__()
        self.a, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.b, self.c, self.head = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 4, 1), nn.Linear(4, 3)
        self.width, self.widths, self.config = 8, [8, 4], {"width": 8}
        self.scale = nn.Parameter(torch.rand(8) + 0.5)
        self.between, self.whole = between, whole
        for name, value in more.items():
            setattr(self, name, value)

    @property
    def channels(self) -> int:
        """Return how many channels `a` gives."""
        return self.a.out_channels

    def forward(self, x: Tensor) -> Any:
        """Return logits (B, 3), or what the case returns."""
        if self.whole is not None:
            return self.whole(self, x)
        y = torch.relu(self.norm(self.a(x)))
        return self.tail(y if self.between is None else self.between(self, y))

    def tail(self, y: Tensor) -> Tensor:
        """Return logits of 8 channels."""
        y = torch.relu(self.c(torch.relu(self.b(y))))
        return self.head(y.mean((2, 3)))


@dataclass(frozen=True, eq=False)
class Case:
    """One network by name; `make` is called with a fixed seed."""

    name: str
    make: Callable[[], nn.Module]
    example: tuple[int, ...] = (2, 3, 6, 6)
    tokens: int = 0  # the example is numbers below this, if not 0
    allowed: tuple[str, ...] = field(default=())

    def network(self) -> nn.Module:
        """Return it in evaluation mode with weights of seed 0."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return self.make().eval()

    def input(self) -> Tensor:
        """Return an example."""
        generator = torch.Generator().manual_seed(0)
        if self.tokens:
            return torch.randint(self.tokens, self.example, generator=generator)
        return torch.randn(self.example, generator=generator)


def between(name: str, forward: Forward, **more: Callable[[], Any]) -> Case:
    """A case whose line stands between two convolutions of 8 channels."""
    return Case(name, lambda: Net(forward, None, {key: value() for key, value in more.items()}))


def whole(name: str, forward: Forward, example: tuple[int, ...] = (2, 3, 6, 6), **more: Callable[[], Any]) -> Case:
    """A case with a forward pass of its own."""
    return Case(name, lambda: Net(None, forward, {key: value() for key, value in more.items()}), example)
