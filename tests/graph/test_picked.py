"""Rows that are picked at computed places, or put there, keep their channels: experts, masks, graphs."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from understudy.core.errors import TraceError
from understudy.cost.predict import predict
from understudy.graph.analysis import analyse
from understudy.proof.prove import prove
from understudy.surgery.build import build

Step = Callable[[nn.ModuleDict, Tensor], Tensor]


class Steps(nn.Module):
    """An embedding of each token, a step on (examples, tokens, 16), a head."""

    def __init__(self, step: Step) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.step = step
        self.parts = nn.ModuleDict({"embed": nn.Linear(10, 16), "head": nn.Linear(16, 3), "gate": nn.Linear(16, 3)})
        self.parts["experts"] = nn.ModuleList(nn.Sequential(nn.Linear(16, 24), nn.GELU()) for _ in range(3))
        self.parts["out"] = nn.ModuleList(nn.Linear(24, 16) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        x = self.parts["embed"](x)
        return self.parts["head"](x + self.step(self.parts, x))  # type: ignore[no-any-return]


def expert(parts: nn.ModuleDict, index: int, x: Tensor) -> Tensor:
    return parts["out"][index](parts["experts"][index](x))  # type: ignore[no-any-return,index]


def added(parts: nn.ModuleDict, x: Tensor) -> Tensor:
    """Each expert gets the tokens that are sent to it: how many is not known (Mixtral)."""
    rows = x.reshape(-1, x.shape[-1])
    weights, chosen = torch.topk(parts["gate"](rows).softmax(1), 2, dim=-1)
    mask, out = F.one_hot(chosen, 3).permute(2, 1, 0), torch.zeros_like(rows)
    for index in range(3):
        place, row = torch.where(mask[index])
        out.index_add_(
            0, row, expert(parts, index, rows[None, row].reshape(-1, x.shape[-1])) * weights[row, place, None]
        )
    return out.reshape(x.shape)


def written(parts: nn.ModuleDict, x: Tensor) -> Tensor:
    """The same with a part that is written (Mistral)."""
    rows = x.flatten(0, 1)
    weights, chosen = torch.topk(parts["gate"](rows), 2)
    out = torch.zeros_like(rows)
    for index in range(3):
        row, place = torch.where(chosen == index)
        out[row] += weights.softmax(1)[row, place, None] * expert(parts, index, rows[row])
    return out.view_as(x)


def masked(parts: nn.ModuleDict, x: Tensor) -> Tensor:
    """Of each example the tokens that a mask takes."""
    taken = x[parts["gate"](x).softmax(-1)[..., 0] > 0.3]
    return expert(parts, 0, taken).sum(0) / 9


def sorted_by(parts: nn.ModuleDict, x: Tensor) -> Tensor:
    order = parts["gate"](x)[..., :1].argsort(1)
    return expert(parts, 0, torch.take_along_dim(x, order, 1))


@pytest.mark.parametrize("step", [added, written, masked, sorted_by])
def test_rows_that_are_picked_keep_their_channels(step: Step) -> None:
    analysis, proof = prove(analyse(Steps(step), torch.randn(2, 5, 10)))
    used = {f"parts.experts.{index}.0" for index in (range(3) if step in (added, written) else range(1))}
    assert {group.name for group in analysis.space.groups} == {"parts.embed", *used}
    assert all(found.kind == "unit" for found in proof.refused)  # without the gate there are more classes than experts


class Ensemble(nn.Module):
    """Linear layers side by side, as products of matrices to which something is added."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Parameter(torch.randn(3, 6, 16)), nn.Parameter(torch.randn(3, 16, 2))
        self.offset, self.shift = nn.Parameter(torch.zeros(3, 1, 16)), nn.Parameter(torch.zeros(3, 1, 2))

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.baddbmm(self.offset, x.expand(3, -1, -1), self.first).relu()
        return torch.baddbmm(self.shift, hidden, self.last).mean(0)


class Waves(nn.Module):
    """Real and imaginary parts that one layer mixes, put together again (fast Fourier convolution)."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.mix, self.head = nn.Conv1d(6, 8, 1), nn.Conv1d(16, 16, 1), nn.Conv1d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x.unsqueeze(2).expand(-1, -1, 8)).relu()
        waves = torch.fft.rfft(x)
        parts = self.mix(torch.cat([waves.real, waves.imag], 1)).relu().chunk(2, 1)
        return self.head(x + torch.fft.irfft(torch.complex(*parts), n=8))  # type: ignore[no-any-return]


class Bags(nn.Module):
    """Bags of rows of which it is told where each starts, and what its members weigh."""

    def __init__(self) -> None:
        super().__init__()
        self.bag, self.hidden, self.head = nn.EmbeddingBag(30, 16, mode="sum"), nn.Linear(16, 24), nn.Linear(24, 4)

    def forward(self, members: Tensor, starts: Tensor, weights: Tensor) -> Tensor:
        return self.head(self.hidden(self.bag(members, starts, weights)).relu())  # type: ignore[no-any-return]


def test_matrices_waves_and_bags_keep_their_channels() -> None:
    bags = (torch.randint(30, (9,)), torch.tensor([0, 4, 5]), torch.rand(9))
    for network, example, names in (
        (Ensemble(), torch.randn(4, 6), {"first"}),
        (Waves(), torch.randn(2, 6), {"first"}),
        (Bags(), bags, {"bag", "hidden"}),
    ):
        analysis, proof = prove(analyse(network, example))
        assert proof.refused == () and {group.name for group in analysis.space.groups} == names


class Grouped(nn.Module):
    """All experts in one call, which takes few widths."""

    def __init__(self) -> None:
        super().__init__()
        self.weights, self.head = nn.Parameter(torch.randn(2, 16, 16)), nn.Linear(16, 2)
        self.register_buffer("ends", torch.tensor([1, 4], dtype=torch.int32))

    def forward(self, x: Tensor) -> Tensor:
        multiply = getattr(F, "grouped_mm", None) or torch._grouped_mm
        return self.head(multiply(x, self.weights, offs=self.ends))  # type: ignore[no-any-return]


def test_experts_that_are_multiplied_in_groups_are_refused_with_the_way_out() -> None:
    with pytest.raises(TraceError, match=r"test_picked\.py:\d+: .* does so by grouped_mm\. Multiply by torch\.bmm"):
        analyse(Grouped(), torch.randn(4, 16))


class Chosen(nn.Module):
    """Each row is multiplied by the two matrices of the expert that it chose, of which one is held transposed."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.gate, self.head = nn.Linear(10, 16), nn.Linear(16, 3), nn.Linear(16, 3)
        self.up, self.down = nn.Parameter(torch.randn(3, 24, 16)), nn.Parameter(torch.randn(3, 24, 16))
        self.shift = nn.Parameter(torch.randn(3, 24))

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x).flatten(0, -2)
        chosen = self.gate(x).argmax(-1)
        hidden = torch.bmm(self.up[chosen], x.unsqueeze(-1)).squeeze(-1) + self.shift[chosen]
        down = self.down[chosen].transpose(-2, -1)
        return self.head(x + (down @ hidden.relu().unsqueeze(-1)).squeeze(-1))  # type: ignore[no-any-return]


def test_matrices_that_each_row_picks_are_cut_as_weights() -> None:
    analysis, proof = prove(analyse(Chosen(), torch.randn(2, 10)))
    assert [found.name for found in proof.refused] == ["layer:gate"]  # without it a row would choose one of 16
    assert {group.name: group.width for group in analysis.space.groups} == {"embed": 16, "up": 24}
    assert predict(analysis, analysis.space.full).macs == 10 * 16 + 3 * 16 + 2 * 24 * 16 + 3 * 16
    student = build(analysis, analysis.space.full.with_width("up", 5).with_width("embed", 7))
    assert (student.up.shape, student.down.shape, student.shift.shape) == ((3, 5, 7), (3, 5, 7), (3, 5))
