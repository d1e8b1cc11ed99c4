"""What a forward pass stores in its modules: a plain graph has it where it is used, unless the next pass reads it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from understudy.graph.analysis import analyse
from understudy.proof.prove import prove


class Series(nn.Module):
    """Attention over time whose views write their sizes; `enter` and `leave` are what a test does with the series."""

    kept: Any = None

    def __init__(self, enter: Callable[[Any, Tensor], Tensor], leave: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.enter, self.leave = enter, leave
        self.first, self.query, self.last = nn.Linear(3, 16), nn.Linear(16, 16), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.first(self.enter(self, x)))
        heads = self.query(x).view(x.shape[0], -1, 4, 4).transpose(1, 2)
        scores = (heads @ heads.mT).softmax(-1)
        return self.leave(self, self.last(x + (scores @ heads).transpose(1, 2).reshape(x.shape[0], -1, 16)))


def normalised(self: Any, x: Tensor) -> Tensor:
    self.mean, self.scales = x.mean(1, keepdim=True).detach(), [x.std(1, keepdim=True) + 1e-5]
    return (x - self.mean) / self.scales[0]


def restored(self: Any, x: Tensor) -> Tensor:
    self.scales.append(x)
    return x * self.scales[0] + self.mean


@pytest.mark.parametrize("runs", [0, 1])
def test_what_is_stored_anew_before_it_is_read_holds_nothing(runs: int) -> None:
    model, x = Series(normalised, restored).eval(), torch.randn(2, 7, 3)
    for _ in range(runs):
        model(x)
    proved, proof = prove(analyse(model, x))
    assert [group.width for group in proved.space.groups] == [16] and proved.space.groups[0].plain
    assert not proof.refused


def asked_for(self: Any, x: Tensor) -> Tensor:
    before = getattr(self, "mean", 0.0)
    self.mean = x.mean(1, keepdim=True)
    return x - before


def of_the_class(self: Any, x: Tensor) -> Tensor:
    before = self.kept
    self.kept = x.mean(1, keepdim=True)
    return x if before is None else x - before


def by_dict(self: Any, x: Tensor) -> Tensor:
    before = vars(self).get("mean", 0.0)
    self.mean = x.mean(1, keepdim=True)
    return x - before


def in_a_list(self: Any, x: Tensor) -> Tensor:
    self.past.append(x.mean(1, keepdim=True))
    return x - sum(self.past)


@pytest.mark.parametrize("enter", [asked_for, of_the_class, by_dict, in_a_list])
def test_what_the_next_pass_reads_holds_the_channels_of_a_plain_graph(enter: Callable[[Any, Tensor], Tensor]) -> None:
    model = Series(enter, lambda self, x: x).eval()
    model.past = []
    analysis = analyse(model, torch.randn(2, 7, 3))
    assert not analysis.space.groups
    assert any("view writes their number" in frozen.reason for frozen in analysis.space.frozen)


class Codes(nn.Module):
    """The nearest of some codes, which training mode replaces by moving means of what they stood for."""

    def __init__(self) -> None:
        super().__init__()
        self.codes = nn.Parameter(torch.randn(4, 6))

    def forward(self, x: Tensor) -> Tensor:
        nearest = torch.cdist(x, self.codes).argmin(-1)
        found = self.codes[nearest]
        if self.training:
            means = [x.mean(0)]
            self.codes = nn.Parameter(0.9 * self.codes + 0.1 / len(means) * means[0])
        return found


def test_what_is_computed_may_take_a_parameters_place() -> None:
    model = nn.Sequential(
        nn.Linear(3, 16), nn.ReLU(), nn.Linear(16, 6), Codes(), nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 2)
    )
    proved, proof = prove(analyse(model.eval(), torch.randn(5, 3)))
    assert {"0", "4"} <= {group.name for group in proved.space.groups}
    assert not proof.refused
    assert isinstance(model[3].codes, nn.Parameter)
