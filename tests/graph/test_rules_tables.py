"""Tables and maps of which a forward pass takes rows or places."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.graph.test_rules import Net, check, conv, reasons, widths
from understudy.graph.analysis import analyse
from understudy.proof.prove import prove
from understudy.surgery.build import build


class Positions(nn.Module):
    """A table of more positions than tokens came, of which the first are added."""

    def __init__(self, batched: bool) -> None:
        super().__init__()
        self.tokens, self.batched = nn.Embedding(30, 16), batched
        self.table = nn.Parameter(torch.randn(1, 12, 16) if batched else torch.randn(12, 16))
        self.hidden, self.head = nn.Linear(16, 24), nn.Linear(24, 4)

    def forward(self, tokens: Tensor) -> Tensor:
        length = tokens.size(1)
        x = self.tokens(tokens) + (self.table[:, :length] if self.batched else self.table[:length])
        return self.head(self.hidden(x).relu().mean(1))  # type: ignore[no-any-return]


class Bag(nn.Module):
    """Rows of a table, averaged."""

    def __init__(self) -> None:
        super().__init__()
        self.bag, self.hidden, self.head = nn.EmbeddingBag(30, 16), nn.Linear(16, 24), nn.Linear(24, 4)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.hidden(self.bag(tokens)).relu())  # type: ignore[no-any-return]


class Generator(nn.Module):
    """A linear layer makes a small map, whose channels are the first of its three dimensions."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Embedding(30, 12), nn.BatchNorm2d(12)
        self.map, self.up = nn.Linear(12 * 7, 12 * 4), nn.ConvTranspose2d(12, 3, 2, 2)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.map(self.first(tokens).flatten(1)).view(tokens.size(0), 12, 2, 2)
        return self.up(self.norm(x).relu())  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("network", "names"),
    [
        (lambda: Positions(True), {"tokens", "hidden"}),
        (lambda: Positions(False), {"tokens", "hidden"}),
        (Bag, {"bag", "hidden"}),
        (Generator, {"first", "map"}),
    ],
    ids=["positions", "positions of one dimension less", "bag", "generator"],
)
def test_tables_of_which_rows_are_taken_and_maps_that_are_made(network: Any, names: set[str]) -> None:
    torch.manual_seed(0)
    analysis, proof = prove(analyse(network(), torch.randint(0, 30, (2, 7))))
    assert proof.refused == () and {group.name for group in analysis.space.groups} == names
    assert analysis.shrinkable > 0.95


def _last(m: Any, x: Tensor, by: str) -> Tensor:
    """Take one place of each row, for all channels of it; `by` says how the index gets as many."""
    x = m["norm"](x).flatten(2).transpose(1, 2)
    index = x.new_zeros((x.size(0), 1, 1), dtype=torch.long) + 3
    repeated = {
        "size": lambda: index.expand(-1, -1, x.size(2)),
        "shape": lambda: index.repeat(1, 1, x.shape[-1]),
        "number": lambda: index.expand(x.size(0), 1, m["norm"].num_features),
        "written": lambda: index.repeat(1, 1, 8),
    }
    return x.gather(1, repeated[by]()).transpose(1, 2).unsqueeze(-1)


@pytest.mark.parametrize("by", ["size", "shape", "number", "written"])
def test_an_index_of_gather_is_repeated_for_as_many_channels_as_there_are(by: str) -> None:
    analysis = check(Net(lambda m, x: _last(m, x, by), norm=nn.BatchNorm2d(8)))
    assert widths(analysis)["stem"] == (8, 1)
    plain = next(group.plain for group in analysis.space.groups if group.name == "stem")
    assert ("repeat writes their number as 8" in plain) if by == "written" else not plain


def test_rows_of_a_parameter_that_are_taken_one_by_one_have_channels() -> None:
    class Gates(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gates, self.a = nn.Parameter(torch.randn(3, 8)), conv(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            gates = torch.sigmoid(self.gates).view(3, -1, 1, 1)
            return x * gates[0] + self.a(x) * gates[2]

    analysis = check(Net(lambda m, x: m["g"](x), g=Gates()))
    assert widths(analysis) == {"stem": (8, 1)} and reasons(analysis).keys() == {"head"}
    assert build(analysis, analysis.space.full.with_width("stem", 3)).parts["g"].gates.shape == (3, 3)
