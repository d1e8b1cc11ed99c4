"""Numbers of channels that a module holds or a forward pass writes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.graph.test_rules import Net, check, conv, reasons, widths
from understudy.surgery.build import build
from understudy.surgery.masked import Masked


class Splitting(nn.Module):
    """Cuts at numbers that it holds, as Res2Net and dual path networks do."""

    def __init__(self, first: int, *, equal: bool = False, spoil: bool = False) -> None:
        super().__init__()
        self.first, self.equal, self.spoil = first, equal, spoil

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        if self.equal:
            return torch.split(x, self.first, 1)
        return x[:, : self.first // 1 if self.spoil else self.first], x[:, self.first :]


class ChannelsFirst(nn.LayerNorm):
    """A layer norm over dimension 1, as ConvNeXt has it."""

    def forward(self, x: Tensor) -> Tensor:
        x = F.layer_norm(x.permute(0, 2, 3, 1), self.normalized_shape, self.weight, self.bias, self.eps)
        return x.permute(0, 3, 1, 2)


def test_a_layer_norm_as_a_function_is_cut_where_its_module_holds_the_number() -> None:
    analysis = check(Net(lambda m, x: m["n"](x), n=ChannelsFirst(8)))
    assert widths(analysis) == {"stem": (8, 1)}
    assert build(analysis, analysis.space.full.with_width("stem", 3)).parts["n"].normalized_shape == (3,)


def test_a_layer_norm_of_a_written_number_needs_a_plain_graph() -> None:
    class Written(ChannelsFirst):
        def forward(self, x: Tensor) -> Tensor:
            return F.layer_norm(x.permute(0, 2, 3, 1), (8,), self.weight, self.bias).permute(0, 3, 1, 2)

    analysis = check(Net(lambda m, x: m["n"](x), n=Written(8)))
    assert reasons(analysis)["stem"] == "layer norm writes their number as 8"


def test_a_layer_norm_whose_number_is_used_otherwise_needs_a_plain_graph() -> None:
    class Scaled(ChannelsFirst):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) * self.normalized_shape[0] ** -0.5

    analysis = check(Net(lambda m, x: m["n"](x), n=Scaled(8)))
    assert reasons(analysis)["stem"] == "the forward pass computes with parts.n.normalized_shape"


def test_parts_of_a_size_that_a_module_holds_shrink_together() -> None:
    def body(m: Any, x: Tensor) -> Tensor:
        a, b = m["s"](x)
        return torch.cat([a, m["c"](b)], 1)

    analysis = check(Net(body, s=Splitting(4, equal=True), c=conv(4, 4)))
    assert widths(analysis) == {"stem": (8, 2), "parts.c": (4, 1)}
    assert build(analysis, analysis.space.full.with_width("stem", 4)).parts["s"].first == 2


def test_a_slice_at_a_number_that_a_module_holds_follows() -> None:
    def body(m: Any, x: Tensor) -> Tensor:
        a, b = m["s"](x)
        return torch.cat([m["c"](a), b], 1)

    analysis = check(Net(body, s=Splitting(3), c=conv(3, 4), after=9))
    assert widths(analysis) == {"stem": (3, 1), "stem#2": (5, 1), "parts.c": (4, 1)}
    assert build(analysis, analysis.space.full.with_width("stem", 2)).parts["s"].first == 2


def test_a_number_that_is_computed_with_as_well_needs_a_plain_graph() -> None:
    analysis = check(Net(lambda m, x: torch.cat(m["s"](x), 1), s=Splitting(3, spoil=True)))
    assert "stem" in reasons(analysis)


@pytest.mark.parametrize("kind", ["both", "set", "dict"])
def test_numbers_that_are_compared_with_each_other_need_a_plain_graph(kind: str) -> None:
    class Widening(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inputs, self.outputs = 4, 16
            self.a, self.b = conv(8, 4), conv(4, 16)

        def forward(self, x: Tensor) -> Tensor:
            x = self.a(x)
            y = self.b(x).view(x.shape[0], self.outputs, *x.shape[2:])
            same = {
                "both": lambda: self.inputs == self.outputs,  # of the student with 4 outputs, say
                "set": lambda: self.outputs in {self.inputs},
                "dict": lambda: {self.inputs: True}.get(self.outputs, False),
            }[kind]()
            return x + y if same else y

    analysis = check(Net(lambda m, x: m["w"](x), w=Widening(), after=16), draws=3)
    assert "computes with parts.w.outputs" in reasons(analysis)["parts.w.b"]
    student = build(analysis, analysis.space.full.with_width("parts.w.b", 4))
    masked = Masked(analysis, analysis.space.full.with_width("parts.w.b", 4))
    x = torch.randn(2, 3, 8, 8)
    assert (student(x) - masked.run(x)).abs().max() < 1e-5


def test_a_number_that_counts_two_things_freezes() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.n = 4

        def forward(self, x: Tensor) -> Tensor:
            return x[:, : self.n].reshape(-1, self.n, 8, 8) + x[:, :, :4].sum(2, keepdim=True)[:, : self.n]

    analysis = check(Net(lambda m, x: m["t"](x), t=Twice(), after=4))
    # All three uses count the same channels, so they follow; the rest of the stem is free.
    assert widths(analysis) == {"stem": (4, 1), "stem#2": (4, 1)}

    class Apart(Twice):
        def forward(self, x: Tensor) -> Tensor:
            return torch.cat([x[:, : self.n], x[:, : self.n] * self.n], 1)

    assert "computes with parts.t.n" in reasons(check(Net(lambda m, x: m["t"](x), t=Apart())))["stem"]
