"""Operations that are seldom met: quantiles, limits, integrals, diagonals, products of vectors, losses on the way."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.graph.test_rules import Net, check, conv, reasons, widths
from understudy.graph.analysis import analyse


def over_space(y: Tensor) -> Tensor:
    return y.flatten(2)


SPACE: dict[str, Any] = {
    "quantile": lambda y: torch.quantile(over_space(y), 0.9, dim=-1),
    "quantile of several": lambda y: over_space(y).quantile(torch.tensor([0.1, 0.9]), 2, keepdim=True)[1].squeeze(2),
    "nanquantile": lambda y: over_space(y).nanquantile(0.5, dim=2),
    "aminmax": lambda y: torch.aminmax(over_space(y), dim=-1)[1] - over_space(y).aminmax(dim=2).min,
    "trapezoid": lambda y: torch.trapezoid(over_space(y), dx=0.1) + torch.trapz(over_space(y), torch.arange(64.0)),
    "running": lambda y: torch.cumulative_trapezoid(over_space(y), dim=2)[..., -1],
    "diagonal": lambda y: torch.diagonal(y, dim1=-2, dim2=-1).mean(-1) + torch.linalg.diagonal(y, offset=1).mean(-1),
    "msort": lambda y: torch.msort(y.permute(2, 3, 0, 1))[0, 0],
    "bucketize": lambda y: torch.bucketize(y.mean((2, 3)), torch.linspace(0, 1, 5)).float(),
    "searchsorted": lambda y: torch.searchsorted(torch.linspace(0, 1, 5), y.mean((2, 3)), right=True).float(),
    "special": lambda y: torch.special.entr(torch.arctan(y.mean((2, 3))).abs()),
}


@pytest.mark.parametrize("name", SPACE)
def test_operations_over_space_keep_channels_apart(name: str) -> None:
    analysis = check(Net(lambda m, x: m["a"](SPACE[name](x)), flat=True, after=6, a=nn.Linear(8, 6)))
    assert widths(analysis) == {"stem": (8, 1), "parts.a": (6, 1)}


CHANNELS: dict[str, Any] = {
    "quantile": lambda y: torch.quantile(y, 0.9, dim=1, keepdim=True),
    "aminmax": lambda y: torch.aminmax(y, dim=1, keepdim=True)[0],
    "trapezoid": lambda y: torch.trapezoid(y, dim=1).unsqueeze(1),
    "diagonal": lambda y: torch.diagonal(y, dim1=1, dim2=2)[:, None],
    "searchsorted": lambda y: torch.searchsorted(y.mean((0, 2, 3)), y[:, :1].contiguous()).float(),
}


@pytest.mark.parametrize("name", CHANNELS)
def test_operations_over_channels_hold_them(name: str) -> None:
    analysis = check(Net(lambda m, x: m["a"](x + CHANNELS[name](x)), after=6, a=conv(8, 6, 1)))
    assert "stem" in reasons(analysis) and "parts.a" in widths(analysis)


PRODUCTS: dict[str, Any] = {
    "inner": lambda m, y: torch.inner(y, m["a"].weight) + m["a"].bias,
    "of two": lambda m, y: m["a"](y) * torch.inner(y, m["b"](y)).sum(1, keepdim=True),
    "vecdot": lambda m, y: m["a"](y) * torch.linalg.vecdot(y, m["b"](y)).unsqueeze(1),
    "outer": lambda m, y: m["a"](torch.outer(torch.ones(len(y)), m["b"](y).mean(0))),
}


@pytest.mark.parametrize("name", PRODUCTS)
def test_products_of_vectors_are_over_channels_that_both_have(name: str) -> None:
    def body(m: nn.ModuleDict, x: Tensor) -> Tensor:
        return PRODUCTS[name](m, x.mean((2, 3)))

    layers = {"a": nn.Linear(8, 6)} if name == "inner" else {"a": nn.Linear(8, 6), "b": nn.Linear(8, 8)}
    found = widths(check(Net(body, flat=True, after=6, **layers)))
    assert {"stem", "parts.a.weight" if name == "inner" else "parts.a"} <= set(found)


def test_a_layer_stays_without_which_a_sum_would_be_over_other_channels() -> None:
    def body(m: nn.ModuleDict, x: Tensor) -> Tensor:
        x = x.mean((2, 3))
        return m["a"](x) * torch.einsum("bi,bi->b", m["b"](x), m["c"](x))[:, None]

    net = Net(body, flat=True, after=6, a=nn.Linear(8, 6), b=nn.Linear(8, 5), c=nn.Linear(8, 5))
    analysis = analyse(net.eval(), torch.randn(2, 3, 8, 8))
    assert {"layer:parts.b", "layer:parts.c"}.isdisjoint(unit.name for unit in analysis.space.units)


@pytest.mark.parametrize("kind", ["function", "sum", "none", "module", "by place"])
def test_a_loss_on_the_way_is_over_the_channels_that_stay(kind: str) -> None:
    def body(m: nn.ModuleDict, x: Tensor) -> Tensor:  # the commitment of a VQ-VAE
        code = m["b"](x).sigmoid()
        found = {
            "function": lambda: F.mse_loss(code.detach(), x),
            "sum": lambda: F.smooth_l1_loss(code, x, reduction="sum"),
            "none": lambda: F.huber_loss(code, x, reduction="none").mean(),
            "module": lambda: m["loss"](code, x),
            "by place": lambda: F.l1_loss(code, x, None, None, "mean"),
        }[kind]()
        return m["a"](code) + found

    analysis = check(Net(body, after=6, a=conv(8, 6, 1), b=conv(8, 8, 1), loss=nn.L1Loss()))
    assert widths(analysis) == {"stem": (8, 1), "parts.a": (6, 1)}


def test_a_loss_against_a_tensor_of_fixed_size_holds_the_channels() -> None:
    def body(m: nn.ModuleDict, x: Tensor) -> Tensor:
        return m["a"](x) + F.mse_loss(x, torch.ones(2, 8, 8, 8)[: len(x)])

    net = Net(body, after=6, a=conv(8, 6, 1)).eval()
    assert reasons(analyse(net, torch.randn(2, 3, 8, 8)))["stem"] == "no rule for mse_loss with these arguments"


class Scaled(nn.ConvTranspose2d):
    """Scales its weight as it goes, as networks with equalised learning rates do."""

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        weight = self.weight / 3
        return F.conv_transpose2d(x, weight, self.bias, self.stride, self.padding, self.output_padding, self.groups)


@pytest.mark.parametrize("kind", ["scaled", "tied", "own", "grouped"])
def test_a_transposed_convolution_as_a_function_is_one(kind: str) -> None:
    def body(m: nn.ModuleDict, x: Tensor) -> Tensor:
        if kind == "tied":  # the decoder of an autoencoder
            return F.conv_transpose2d(m["a"](x).relu(), m["a"].weight, m["p"].bias, padding=1)
        return F.conv_transpose2d(x, m["p"].weight, groups=8) if kind == "grouped" else m["p"](x)

    layers = {
        "scaled": {"p": Scaled(8, 6, 3, stride=2, output_padding=1)},
        "tied": {"a": conv(8, 6), "p": conv(3, 8)},
        "own": {"p": Scaled(8, 6, 2)},
        "grouped": {"p": nn.ConvTranspose2d(8, 8, 2, groups=8)},
    }[kind]
    analysis = check(Net(body, after=8 if kind in ("tied", "grouped") else 6, **layers))
    expected = {"stem": (8, 1), "parts.a" if kind == "tied" else "parts.p": (6, 1)}
    assert widths(analysis) == ({} if kind == "grouped" else expected)
