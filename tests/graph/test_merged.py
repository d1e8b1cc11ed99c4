"""Weights that the forward pass merges of several parameters, and weights that are read from both sides."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.graph.test_rules import Net, check, reasons, widths
from tests.support import held
from understudy.graph.analysis import analyse


class Merged(nn.Linear):
    """A linear layer with a change of low rank, which it adds to its weight; `kind` says how that is written."""

    def __init__(self, inputs: int, outputs: int, kind: str) -> None:
        super().__init__(inputs, outputs)
        self.kind, self.scale = kind, 0.5
        self.down, self.up = nn.Parameter(torch.randn(3, inputs)), nn.Parameter(torch.randn(outputs, 3))
        self.mask = nn.Buffer((torch.rand(outputs, inputs) < 0.7).float())

    def forward(self, x: Tensor) -> Tensor:
        kinds = {
            "lora": lambda: F.linear(x, self.weight + self.up @ self.down * self.scale, self.bias),
            "first": lambda: F.linear(x, torch.matmul(self.up, self.down) + self.weight, self.bias),
            "turned": lambda: F.linear(x, self.weight + (self.down.T @ self.up.t()).T, self.bias),
            "multiplied": lambda: x @ (self.weight + self.up.mm(self.down)).t() + self.bias,
            "masked": lambda: F.linear(x, (self.weight + self.up @ self.down) * self.mask, self.bias),
            "low rank": lambda: F.linear(x, self.up @ self.down, self.bias),
        }
        return kinds[self.kind]()


def last(layer: nn.Module, x: Tensor) -> Tensor:
    return layer(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


@pytest.mark.parametrize("kind", ["lora", "first", "turned", "multiplied", "masked", "low rank"])
def test_merged_weights_shrink_along_both_dimensions(kind: str) -> None:
    net = Net(lambda m, x: last(m["own"], x).relu(), own=Merged(8, 12, kind), after=12)
    analysis = check(net)
    made = set(widths(analysis)) - {"stem"}
    assert widths(analysis)["stem"] == (8, 1) and len(made) == 1 and next(iter(made)).startswith("parts.own")
    assert analysis.shrinkable > 0.7 and not any(group.plain for group in analysis.space.groups)


def test_a_merged_weight_that_is_used_twice_is_counted_twice() -> None:
    own = Merged(8, 8, "lora")
    analysis = check(Net(lambda m, x: last(m["own"], last(m["own"], x).relu()), own=own))
    assert list(widths(analysis)) == ["stem"]


def test_a_change_of_low_rank_that_is_laid_out_otherwise_freezes_with_the_reason() -> None:
    class Laid(Merged):
        def forward(self, x: Tensor) -> Tensor:
            return F.linear(x, self.weight + (self.up @ self.down).view(self.weight.shape), self.bias)

    found = reasons(check(Net(lambda m, x: last(m["own"], x), own=Laid(8, 12, ""), after=12)))
    assert found["stem"] == "their weight meets a tensor of fixed size"


class Tied(nn.Module):
    """An autoencoder whose decoder has the weights of the encoder, the other way round."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.first, self.second = nn.Linear(8, 12), nn.Linear(12, 6)
        self.bias = nn.Parameter(torch.randn(12))

    def forward(self, x: Tensor) -> Tensor:
        w, v = self.first.weight, self.second.weight
        if self.kind == "layers":
            x = self.second(self.first(x).relu()).relu()
        else:
            x = F.linear(F.linear(x, w).relu(), v).relu()
        if self.kind == "multiplied":
            return (x @ v + self.bias).relu() @ w
        return F.linear(F.linear(x, v.t(), self.bias).relu(), w.T)


@pytest.mark.parametrize("kind", ["layers", "functions", "multiplied"])
def test_tied_weights_keep_the_same_channels_on_both_sides(kind: str) -> None:
    analysis = check(Net(lambda m, x: last(m["own"], x), own=Tied(kind)))
    assert widths(analysis) == {"stem": (8, 1), "parts.own.first": (12, 1), "parts.own.second": (6, 1)}


def test_norms_of_merged_weights_freeze_with_the_reason() -> None:
    class Directed(Merged):
        def forward(self, x: Tensor) -> Any:
            weight = self.weight + self.up @ self.down
            return F.linear(x, weight / weight.norm(dim=1, keepdim=True), self.bias)

    analysis = check(Net(lambda m, x: last(m["own"], x), own=Directed(8, 12, ""), after=12))
    assert reasons(analysis)["stem"] == "their weight meets a tensor of fixed size"


@pytest.mark.parametrize("cast", [lambda w, x: w.to(x.dtype), lambda w, x: w.to(x.device, x.dtype), lambda w, x: w])
def test_a_table_of_embeddings_that_is_cast_is_read_from_both_sides(cast: Any) -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words, self.layer = nn.Embedding(11, 8), nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            x = self.words(x)
            x = (x + torch.relu(self.layer(x)))[:, [-1]]  # the last token alone, as a list keeps its dimension
            return (x @ torch.transpose(cast(self.words.weight, x), 0, 1)).float()

    analysis = analyse(Tied().double().eval(), torch.randint(11, (2, 5)))
    assert held.check(analysis) == {"words"}


class Forked(nn.Linear):
    """Computes its weight in steps of which each reads the last one several times: there are 3 ** 24 ways through."""

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight
        for _ in range(24):
            weight = weight * torch.sigmoid(weight) + weight
        return F.linear(x, weight, self.bias)


def test_weights_are_followed_however_often_they_fork() -> None:
    analysis = check(Net(lambda m, x: last(m["own"], x).relu(), own=Forked(8, 12), after=12), draws=2)
    assert sorted(width for width, _ in widths(analysis).values()) == [8, 12]


class Orthogonal(nn.Linear):
    """Makes the rows of its weight orthogonal, step by step (Newton-Schulz)."""

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight / self.weight.norm()
        for _ in range(16):
            weight = 1.5 * weight - 0.5 * weight @ weight.t() @ weight
        return F.linear(x, weight, self.bias)


def test_weights_that_cannot_be_followed_freeze_however_often_they_fork() -> None:
    assert not analyse(nn.Sequential(nn.Linear(5, 8), nn.ReLU(), Orthogonal(8, 6)), torch.rand(2, 5)).space.groups


class Fork(nn.Module):
    """Many steps without a rule, each of which reads the last one three times, in the forward pass itself."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(5, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for _ in range(24):
            x = torch.addbmm(x, x[None, :, :2], x[None, :2])
        return self.last(x)


def test_what_has_no_rule_freezes_however_often_it_forks() -> None:
    assert reasons(analyse(Fork(), torch.rand(2, 5)))
