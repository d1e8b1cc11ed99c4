"""Sums and scans over computed tensors: state spaces, crosses of features, statistics that are one number."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.graph.test_merged import last
from tests.graph.test_rules import Net, check, reasons, widths
from understudy.graph.analysis import analyse
from understudy.proof.prove import prove


class StateSpace(nn.Module):
    """A selective scan, as Mamba's, over tokens (B, T, 8) of 12 channels with 5 states each."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.inner, self.states = kind, 12, 5
        self.read, self.select = nn.Linear(8, 24, bias=False), nn.Linear(12, 3 + 2 * 5, bias=False)
        self.step, self.write = nn.Linear(3, 12), nn.Linear(12, 8, bias=False)
        self.decay = nn.Parameter(torch.arange(1.0, 6.0).log().repeat(12, 1))
        self.skip = nn.Parameter(torch.ones(12))

    def forward(self, x: Tensor) -> Tensor:
        u, gate = self.read(x).chunk(2, -1)
        count = self.decay.shape[1]
        step, b, c = self.select(u).split([3, count, count], -1)
        step, decay = F.softplus(self.step(step)), -torch.exp(self.decay.float())
        y = (self.summed if self.kind == "einsum" else self.broadcast)(u, step, decay, b, c)
        return self.write((y + u * self.skip) * F.silu(gate))

    def summed(self, u: Tensor, step: Tensor, decay: Tensor, b: Tensor, c: Tensor) -> Tensor:
        kept = torch.exp(torch.einsum("bld,dn->bldn", step, decay))
        added = torch.einsum("bld,bln,bld->bldn", step, b, u)
        state, found = torch.zeros((u.shape[0], u.shape[2], decay.shape[1])), []
        for i in range(u.shape[1]):
            state = kept[:, i] * state + added[:, i]
            found.append(torch.einsum("bdn,bn->bd", state, c[:, i]))
        return torch.stack(found, 1)

    def broadcast(self, u: Tensor, step: Tensor, decay: Tensor, b: Tensor, c: Tensor) -> Tensor:
        kept = torch.exp(step.unsqueeze(-1) * decay)
        added = step.unsqueeze(-1) * b.unsqueeze(2) * u.unsqueeze(-1)
        state, found = torch.zeros(u.size(0), self.inner, self.states, device=u.device), []
        for i in range(u.size(1)):
            state = kept[:, i] * state + added[:, i]
            found.append(state)
        return (torch.stack(found, 1) @ c.unsqueeze(-1)).squeeze(3)


@pytest.mark.parametrize("kind", ["einsum", "broadcast"])
def test_channels_of_a_state_space_shrink(kind: str) -> None:
    def body(m: Any, x: Tensor) -> Tensor:
        tokens = x[:, :, 0].transpose(1, 2)
        return (tokens + m["own"](tokens)).transpose(1, 2).unsqueeze(2)

    analysis = check(Net(body, own=StateSpace(kind)))
    assert widths(analysis)["stem"] == (8, 1) and widths(analysis)["parts.own.read"] == (24, 2)
    assert "joins it with channels of another dimension" in reasons(analysis)["parts.own.select#2"]


def test_crosses_of_features_by_tensordot_shrink() -> None:
    class Cross(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight, self.bias = nn.Parameter(torch.randn(8, 1)), nn.Parameter(torch.randn(8, 1))

        def forward(self, x: Tensor) -> Tensor:
            first = x.unsqueeze(2)
            again = torch.matmul(first, torch.tensordot(first, self.weight, dims=([1], [0])))
            return (again + self.bias + first).squeeze(2)

    analysis = check(Net(lambda m, x: m["own"](x.mean((2, 3))), own=Cross(), flat=True))
    assert widths(analysis)["stem"] == (8, 1)


def test_a_statistic_that_is_one_number_is_of_the_channels_that_stay() -> None:
    net = Net(lambda m, x: m["norm"](x) + m["norm"].weight.sum(), norm=nn.BatchNorm2d(8)).eval()
    analysis, proof = prove(analyse(net, torch.randn(2, 3, 8, 8)))
    assert not proof.refused and widths(analysis)["stem"] == (8, 1)


def test_a_layer_behind_channels_that_are_summed_with_a_fixed_tensor_shrinks() -> None:
    def body(m: Any, x: Tensor) -> Tensor:
        fixed = m["a"](x).flatten(2).transpose(1, 2)  # (B, N, 6), whose channels are summed with places
        return last(m["b"], (fixed @ torch.ones(6, 1)).transpose(1, 2).reshape(x.size(0), 1, 8, 8)) + x

    analysis = check(Net(body, a=nn.Conv2d(8, 6, 1), b=nn.Linear(1, 8)))
    assert reasons(analysis)["parts.a"] == "matmul sums them with a tensor of fixed size"
    assert widths(analysis)["stem"] == (8, 1)
