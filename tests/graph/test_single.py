"""Single channels: gates that many others meet, and channels that are written one by one."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.graph.test_rules import Net, check, conv, reasons, widths


def by_number(gates: Tensor) -> list[Tensor]:
    return [gates[:, i].unsqueeze(1) for i in range(2)]


def by_slice(gates: Tensor) -> list[Tensor]:
    return [gates[:, :1], gates[:, 1:]]


def by_chunk(gates: Tensor) -> list[Tensor]:
    return list(gates.chunk(2, 1))


@pytest.mark.parametrize("taken", [by_number, by_slice, by_chunk])
def test_a_gate_of_one_channel_does_not_hold_those_that_it_meets(taken: Any) -> None:
    def body(m: nn.ModuleDict, x: Tensor) -> Tensor:  # large selective kernels
        near, far = m["a"](x), m["b"](x)
        first, second = taken(m["gate"](x.mean(1, keepdim=True)).sigmoid())
        return m["out"](near * first + far * second)

    layers = {"a": conv(8, 6), "b": conv(8, 6), "gate": conv(1, 2), "out": conv(6, 8, 1)}
    analysis = check(Net(body, **layers))
    assert widths(analysis) == {"stem": (8, 1), "parts.a": (6, 1), "parts.out": (8, 1)}
    assert "parts.gate" in reasons(analysis)


def test_every_second_channel_may_be_written() -> None:
    def body(m: nn.ModuleDict, x: Tensor) -> Tensor:
        y = torch.zeros_like(x)
        y[:, 0::2] = torch.sin(x[:, 0::2])
        y[:, 1::2] = torch.cos(x[:, 1::2])
        return m["a"](y)

    analysis = check(Net(body, after=6, a=conv(8, 6, 1)))
    assert widths(analysis) == {"stem": (8, 2), "parts.a": (6, 1)}
