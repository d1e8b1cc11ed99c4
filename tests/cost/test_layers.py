from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from understudy.core.timing import Timing
from understudy.cost.layers import Layer, Pair, falls_short, layer_times, layers_of, pairs


def layer(macs: int, ms: float, *, memory_bytes: int = 0, width: int = 8) -> Layer:
    return Layer(macs=macs, memory_bytes=memory_bytes, width=width, time=Timing(median=ms, low=ms, high=ms))


@pytest.mark.parametrize(
    ("second", "reason"),
    [
        (layer(100, 2.0), ""),  # half of what MACs promise
        (layer(100, 5.0), "other"),
        (layer(100, 5.0, width=9), "odd width"),
        (layer(100, 5.0, width=9, memory_bytes=101), "memory-bound"),
        (layer(100, 2.9, memory_bytes=101), "launch-bound"),
        (layer(900, 10.0), ""),  # too little to see
        (None, ""),
    ],
)
def test_why_fewer_macs_are_not_less_time(second: Layer | None, reason: str) -> None:
    assert Pair(path="conv", first=layer(1000, 10.0), second=second).reason(floor_ms=1.0) == reason


def test_half_the_factor_is_enough() -> None:
    assert falls_short(10.0, 4.9) and not falls_short(10.0, 5.0)
    assert falls_short(1.5, 0.9) and not falls_short(1.5, 1.0)


def test_layers_of_a_network_and_their_times() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Identity(), nn.Flatten(), nn.Linear(144, 10)).eval()
    smaller = nn.Sequential(nn.Conv2d(3, 2, 3), nn.Identity(), nn.Flatten(), nn.Linear(72, 10)).eval()
    images = torch.zeros(2, 3, 8, 8)
    times = layer_times([network, smaller], images, repeats=4)
    (first, total), (second, _) = (layers_of(m, images, t) for m, t in zip((network, smaller), times, strict=True))
    assert {path: len(runs) for path, runs in times[0].items()} == {"0": 4, "2": 4, "3": 4}
    assert (first["0"].macs, first["0"].width, first["3"].macs) == (2 * 4 * 27 * 36, 4, 2 * 1440)
    assert total == first["0"].macs + first["3"].macs
    assert first["3"].memory_bytes == 4 * (2 * 144 + 2 * 10 + 144 * 10 + 10)
    assert [(p.path, p.fewer) for p in pairs(first, second) if p.first.macs] == [("0", 2.0), ("3", 2.0)]
    assert all(not module._forward_hooks for module in network.modules())


class Queries(nn.Module):
    """A learned query, expanded and given to a layer as its input, as class tokens and latents are."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.layer = nn.Parameter(torch.zeros(1, 3, 4)), nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        return x[:, :1, 0, :1] + self.layer(self.query.expand(len(x), -1, -1))


def test_layers_that_are_given_a_view_of_a_parameter_are_counted() -> None:
    layers, total = layers_of(Queries(), torch.zeros(1, 3, 8, 8), {})
    assert layers["layer"].macs == total == 3 * 4 * 5
