"""Networks that are written with einops: its operations are torch's once a forward pass is recorded."""

from __future__ import annotations

import einops
import pytest
import torch
from einops.layers.torch import EinMix, Rearrange, Reduce
from torch import Tensor, nn

from tests.graph.test_rules import check, reasons, widths
from tests.support import held
from understudy.graph.analysis import analyse


class Attention(nn.Module):
    """Attention as it is written with einops, the number of heads an attribute."""

    def __init__(self, width: int = 8, heads: int = 2, inner: int = 3) -> None:
        super().__init__()
        self.heads, self.scale = heads, inner**-0.5
        self.norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * heads * inner, bias=False)
        self.out = nn.Linear(heads * inner, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            einops.rearrange(t, "b n (h d) -> b h n d", h=self.heads) for t in self.qkv(self.norm(x)).chunk(3, dim=-1)
        )
        weights = (einops.einsum(q, k, "b h i d, b h j d -> b h i j") * self.scale).softmax(-1)
        return einops.rearrange(weights @ v, "b h n d -> b n (h d)")


class Patches(nn.Module):
    """A vision transformer of one block, of layers of einops and of its functions."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Sequential(Rearrange("b c (h p) (w q) -> b (h w) (p q c)", p=4, q=4), nn.Linear(48, 8))
        self.token = nn.Parameter(torch.randn(1, 1, 8))
        self.attention = Attention()
        self.mlp = nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 12), nn.GELU(), nn.Linear(12, 8))
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x)
        x = torch.cat((einops.repeat(self.token, "1 1 d -> b 1 d", b=x.shape[0]), x), dim=1)
        x = x + self.attention.out(self.attention(x))
        return self.head(einops.reduce(x + self.mlp(x), "b n d -> b d", "mean"))


def test_a_vision_transformer_shrinks_throughout() -> None:
    analysis = check(Patches())
    assert widths(analysis) == {"patches.1": (8, 1), "attention.qkv": (18, 9), "mlp.1": (12, 1)}
    assert reasons(analysis) == {
        "head": "it is an output",
        "attention.qkv": "the forward pass computes with attention.heads",
    }


class Maps(nn.Module):
    """Maps that become tokens, are packed with others, and become maps again."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.tokens = nn.Linear(6, 6)
        self.mix = EinMix("b n c -> b n k", weight_shape="c k", bias_shape="k", c=6, k=7)
        self.pool = Reduce("b (h p) (w q) c -> b c h w", "max", p=2, q=2)
        self.head = nn.Sequential(nn.Conv2d(7, 4, 1), Reduce("b c h w -> b c", "mean"))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        height, width = x.shape[-2:]
        x, shapes = einops.pack([einops.rearrange(x, "b c h w -> b h w c")], "b * c")
        (x,) = einops.unpack(self.mix(x + torch.tanh(self.tokens(x))), shapes, "b * c")
        return self.head(self.pool(einops.rearrange(x, "b h w c -> b h w c", h=height, w=width)))


def test_packed_maps_and_layers_of_einops_carry_channels() -> None:
    analysis = held.analysed(Maps(), 2, 3, 8, 8)
    assert held.check(analysis) == {"stem", "mix.weight"}


@pytest.mark.parametrize("pattern", ["b c h w -> b (c h w)", "b c h w -> b (h w c)"])
def test_what_is_flattened_follows_in_either_order(pattern: str) -> None:
    model = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), Rearrange(pattern), nn.Linear(6 * 64, 5))
    assert widths(check(model)) == {"0": (6, 1)}


def test_einops_itself_goes_on_as_before() -> None:
    analyse(Patches().eval(), torch.randn(2, 3, 8, 8))
    x = torch.arange(12.0).reshape(2, 6)
    assert einops.rearrange(x, "a (b c) -> b a c", b=3).shape == (3, 2, 2)
    with pytest.raises(einops.EinopsError):
        einops.rearrange(x, "a (b c) -> b a c", b=4)


class Asking(nn.Module):
    """Methods of all kinds, of which one asks for a kind by its name."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 8, 1), nn.Linear(8, 5)

    @staticmethod
    def half(size: object) -> int:
        return size // 2 if isinstance(size, int) else int(size / 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.stem(x))[:, :, : self.half(8)].mean((2, 3)))


def test_int_stays_a_kind_where_a_static_method_asks_for_it() -> None:
    assert widths(check(Asking())) == {"stem": (8, 1)}
