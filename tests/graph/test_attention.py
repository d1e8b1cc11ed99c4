"""Attention in the ways it is written: heads go whole, where a module holds their number."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.graph.test_rules import check, reasons, widths
from understudy.graph.analysis import Analysis, analyse
from understudy.proof.prove import prove
from understudy.surgery.build import build
from understudy.surgery.plain import Plain


class Attention(nn.Module):
    """A layer of attention of 4 heads of 3 over 8 features; `kind` says how it is written."""

    def __init__(self, kind: str, *, shared: int = 4) -> None:
        super().__init__()
        self.kind, self.heads, self.shared, self.width, self.inner = kind, 4, shared, 3, 12
        self.gqa = shared < 4
        self.qkv = nn.Linear(8, 36)
        self.q, self.k, self.v = nn.Linear(8, 12), nn.Linear(8, 3 * shared), nn.Linear(8, 3 * shared)
        self.norm = nn.LayerNorm(3)
        self.table = nn.Parameter(torch.randn(20, 4))
        self.rows = nn.Parameter(torch.randn(4, 20))
        self.register_buffer("places", torch.randint(20, (16, 16)), persistent=False)
        self.proj = nn.Linear(12, 8)

    def forward(self, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        bias = None
        if self.kind == "separate" or self.gqa:
            q = self.q(x).view(b, n, self.heads, 3).transpose(1, 2)
            k, v = (part(x).view(b, n, self.shared, 3).transpose(1, 2) for part in (self.k, self.v))
        elif self.kind == "computed":
            q, k, v = self.qkv(x).reshape(b, n, 3, self.heads, self.inner // self.heads).permute(2, 0, 3, 1, 4)
        else:
            last = -1 if self.kind == "inferred" else self.width
            q, k, v = self.qkv(x).reshape(b, n, 3, self.heads, last).permute(2, 0, 3, 1, 4).unbind(0)
        if self.kind == "normed":
            q, k = self.norm(q), self.norm(k)
        if self.kind == "looked up":
            bias = self.rows[:, self.places]
        if self.kind == "biased":
            bias = self.table[self.places.view(-1)].view(n, n, -1).permute(2, 0, 1).unsqueeze(0)
        if self.kind in ("written", "biased", "looked up"):
            scores = (q * 3**-0.5) @ k.transpose(-2, -1)
            x = torch.softmax(scores if bias is None else scores + bias, dim=-1) @ v
        else:
            x = F.scaled_dot_product_attention(q, k, v, enable_gqa=self.gqa)
        return self.proj(x.transpose(1, 2).reshape(b, n, self.inner))


class Transformer(nn.Module):
    """Patches, a class token, a table of positions, one layer of attention, a head."""

    def __init__(self, kind: str = "fused", **more: Any) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 8, 2, stride=2)
        self.token = nn.Parameter(torch.randn(1, 1, 8))
        self.positions = nn.Parameter(torch.randn(1, 17, 8))
        self.before, self.attention, self.head = nn.LayerNorm(8), Attention(kind, **more), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(len(x), -1, -1), x], 1) + self.positions
        return self.head((x + self.attention(self.before(x)))[:, 0])


class Windows(Transformer):
    """Without a class token: as many positions as the bias has rows."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        return self.head((x + self.attention(self.before(x))).mean(1))


def halved(analysis: Analysis, name: str) -> Any:
    group = analysis.space.group(name)
    return build(analysis, analysis.space.full.with_width(name, group.width // 2)).attention


@pytest.mark.parametrize("kind", ["fused", "inferred", "normed", "written"])
def test_heads_of_one_layer_for_queries_keys_and_values(kind: str) -> None:
    analysis = check(Transformer(kind), draws=6)
    assert widths(analysis) == {"patches": (8, 1), "attention.qkv": (36, 9)}
    student = halved(analysis, "attention.qkv")
    assert (student.heads, student.width, student.inner) == (2, 3, 6)
    assert (student.qkv.out_features, student.proj.in_features) == (18, 6)


def test_heads_of_separate_layers_are_tied() -> None:
    analysis = check(Transformer("separate"), draws=6)
    assert widths(analysis) == {"patches": (8, 1), "attention.q": (12, 3)}


def test_queries_that_share_keys_go_with_them() -> None:
    analysis = check(Transformer(shared=2), draws=6)
    assert widths(analysis) == {"patches": (8, 1), "attention.q": (12, 6)}
    student = halved(analysis, "attention.q")
    assert (student.heads, student.shared, student.k.out_features) == (2, 1, 3)


def test_one_head_of_keys_serves_any_number_of_queries() -> None:
    analysis = check(Transformer(shared=1), draws=6)
    assert widths(analysis) == {"patches": (8, 1), "attention.q": (12, 3)}
    assert halved(analysis, "attention.q").k.out_features == 3


def test_a_table_of_relative_positions_has_a_column_for_each_head() -> None:
    analysis = check(Windows("biased"), draws=6)
    assert widths(analysis) == {"patches": (8, 1), "attention.qkv": (36, 9)}
    assert halved(analysis, "attention.qkv").table.shape == (20, 2)


def test_a_table_of_relative_positions_has_a_row_for_each_head() -> None:
    analysis = check(Windows("looked up"), draws=6)
    assert widths(analysis) == {"patches": (8, 1), "attention.qkv": (36, 9)} and reasons(analysis).keys() == {"head"}
    assert halved(analysis, "attention.qkv").rows.shape == (2, 20)


def test_heads_whose_number_is_computed_with_go_in_a_plain_graph() -> None:
    analysis = check(Transformer("computed"), draws=2)
    assert widths(analysis) == {"patches": (8, 1), "attention.qkv": (36, 9)}
    assert "computes with attention" in reasons(analysis)["attention.qkv"]
    student = build(analysis, analysis.space.full.with_width("attention.qkv", 9))
    assert isinstance(student, Plain) and student.attention.proj.in_features == 3


class Linear(nn.Module):
    """Attention without softmax: products over the features of keys and queries."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.a, self.b = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 6, 1), nn.Conv2d(8, 6, 1)
        self.head = nn.Linear(64, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head((self.a(x).flatten(2).transpose(1, 2) @ self.b(x).flatten(2)).mean(1))


def test_a_product_over_channels_ties_both_sides() -> None:
    assert widths(check(Linear())) == {"stem": (8, 1), "a": (6, 1)}


def test_a_product_of_channels_with_channels_stays() -> None:
    class Gram(Linear):
        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x)
            return (self.a(x).flatten(2) @ self.b(x).flatten(2).transpose(1, 2)).mean(1)

    assert {"a", "b"} <= set(reasons(check(Gram(), draws=2)))


@pytest.mark.parametrize("norm_first", [False, True])
def test_layers_of_torchs_own_transformer_are_looked_into(norm_first: bool) -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True, norm_first=norm_first)
    network = nn.Sequential(
        nn.Linear(3, 8), nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), nn.Linear(8, 5)
    )
    analysis = analyse(network.eval(), torch.randn(2, 4, 3))
    groups = {group.name: (group.width, group.step, bool(group.plain)) for group in analysis.space.groups}
    heads, hidden = "1.layers.0.self_attn.in_proj_weight", "1.layers.0.linear1"
    assert groups["0"] == (8, 1, True) and groups[heads] == (24, 12, True) and groups[hidden] == (16, 1, False)
    student = build(analysis, analysis.space.full.with_width(hidden, 6))
    assert [layer.linear1.out_features for layer in student[1].layers] == [6, 16]
    student = build(analysis, analysis.space.full.with_width(heads, 12).with_width("0", 5))
    weights = [student.get_parameter(f"1.layers.{index}.self_attn.in_proj_weight") for index in range(2)]
    assert [tuple(weight.shape) for weight in weights] == [(12, 5), (24, 5)]


class Halo(nn.Module):
    """Attention of blocks of pixels to the windows around them, with a table of relative places; as in HaloNet."""

    def __init__(self, heads: int = 2, width: int = 4, block: int = 2, halo: int = 1) -> None:
        super().__init__()
        self.heads, self.width, self.block, self.window, self.halo = heads, width, block, block + 2 * halo, halo
        self.stem = nn.Conv2d(3, 6, 1)
        self.q, self.kv = nn.Conv2d(6, heads * width, 1), nn.Conv2d(6, 2 * heads * width, 1)
        self.places = nn.Parameter(torch.randn(2 * self.window - 1, width))
        self.head = nn.Linear(heads * width, 3)

    def relative(self, q: Tensor) -> Tensor:
        b, blocks, pixels, _ = q.shape
        q = q.reshape(-1, self.block, self.block, self.width)
        n, height, side, _ = q.shape
        size = self.places.shape[0]
        x = F.pad((q @ self.places.transpose(-1, -2)).reshape(-1, side, size), [0, 1]).flatten(1)
        x = F.pad(x, [0, size - side]).reshape(-1, side + 1, size)[:, :side, self.window - 1 :]
        x = x.reshape(n, height, 1, side, self.window).expand(-1, -1, self.window, -1, -1)
        return x.permute(0, 1, 3, 2, 4).reshape(b, blocks, pixels, -1)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        b, _, height, width = x.shape
        rows, columns = height // self.block, width // self.block
        q = self.q(x).reshape(-1, self.width, rows, self.block, columns, self.block).permute(0, 1, 3, 5, 2, 4)
        q = q.reshape(b * self.heads, self.width, -1, rows * columns).transpose(1, 3)
        kv = F.pad(self.kv(x), [self.halo] * 4).unfold(2, self.window, self.block).unfold(3, self.window, self.block)
        kv = kv.reshape(b * self.heads, 2 * self.width, rows * columns, -1).permute(0, 2, 3, 1)
        k, v = torch.split(kv, [self.width, self.width], dim=-1)
        seen = (q @ k.transpose(-1, -2) + self.relative(q)).softmax(-1) @ v
        return self.head(seen.transpose(1, 3).reshape(b, self.heads * self.width, -1).mean(-1))


def test_windows_of_pixels_keep_the_width_of_heads_together() -> None:
    assert widths(check(Halo(), shape=(3, 6, 6))) == {"stem": (6, 1), "q": (8, 4)}


class Pieces(nn.Module):
    """Windows of pixels that a layer mixes, put together again as in Swin: the batch is a number that `int` makes."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.mix, self.head = nn.Conv2d(3, 8, 1), nn.Linear(8, 8), nn.Linear(8, 5)
        self.mean = torch.rand(1, 3, 1, 1, dtype=torch.float64)

    def forward(self, x: Tensor) -> Tensor:
        self.mean = self.mean.type_as(x)
        x = torch.relu(self.stem(x - self.mean)).permute(0, 2, 3, 1)
        height, width = x.shape[1:3]
        windows = x.reshape(x.shape[0], height // 2, 2, width // 2, 2, 8).transpose(2, 3).reshape(-1, 4, 8)
        windows = torch.relu(self.mix(windows))
        batch = int(windows.shape[0] / (height * width / 2 / 2))
        x = windows.view(batch, height // 2, width // 2, 2, 2, -1).transpose(2, 3).reshape(batch, height, width, -1)
        return self.head(x.mean((1, 2)))


def test_a_batch_that_int_computes_is_of_any_size_and_an_attribute_that_is_cast_is_the_same() -> None:
    analysis, proof = prove(analyse(Pieces().double().eval(), torch.randn(2, 3, 4, 4, dtype=torch.float64)))
    assert not proof.refused and not analysis.trace.draws
    assert {group.name: group.width for group in analysis.space.groups} == {"stem": 8, "mix": 8}
    assert analysis.trace.root(torch.randn(3, 3, 4, 4, dtype=torch.float64)).shape == (3, 5)


class Decoder(nn.Module):
    """What is given None for an input that has no default; the reshape writes a width."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor, marks: Tensor | None, scale: Tensor, bias: Tensor | None = None) -> Tensor:
        x = torch.relu(self.stem(x)).reshape(-1, 8) * scale
        return self.head(x if marks is None else x + marks)


def test_a_plain_student_takes_what_its_teacher_is_given() -> None:
    x, scale = torch.randn(2, 6), torch.ones(1)
    analysis = analyse(Decoder().eval(), (x, None, scale))
    student = build(analysis, analysis.space.full.with_width("stem", 4))
    assert isinstance(student, Plain)
    assert student(x, None, scale).shape == student(x=x, marks=None, scale=scale).shape == (2, 3)


@pytest.mark.parametrize("function", [False, True])
def test_a_mask_for_each_head_goes_with_its_head(function: bool) -> None:
    """In torch's layer, and where its function is called with weights of other layers, as WavLM does."""

    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.read, self.bias = nn.Linear(5, 8), nn.Linear(8, 4)
            self.attention, self.head = nn.MultiheadAttention(8, 4, batch_first=True), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            y = self.read(x)
            mask = self.bias(y).transpose(1, 2).unsqueeze(-1).expand(-1, -1, -1, x.shape[1]).flatten(0, 1)
            if not function:
                return self.head(self.attention(y, y, y, attn_mask=mask, need_weights=False)[0])
            own, z = self.attention, y.transpose(0, 1)
            weights = (own.in_proj_weight, own.in_proj_bias, None, None, False, 0.0)
            found = F.multi_head_attention_forward(z, z, z, 8, 4, *weights, own.out_proj.weight, own.out_proj.bias,
                                                   attn_mask=mask)[0]  # fmt: skip
            return self.head(found.transpose(0, 1))

    analysis, proof = prove(analyse(Masked().eval(), torch.randn(2, 3, 5)))
    assert not proof.refused
    assert widths(analysis) == {"read": (8, 1), "bias": (4, 1), "attention.out_proj": (8, 1)}


def test_coordinates_in_a_buffer_have_no_channels() -> None:
    """Swin v2 makes the bias of its heads by layers over a map of coordinates (1, 3, 3, 2), which held the heads."""

    class Positions(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.qkv, self.out, self.heads = nn.Linear(5, 36), nn.Linear(12, 3), 4
            self.made = nn.Sequential(nn.Linear(2, 10), nn.ReLU(), nn.Linear(10, 4, bias=False))
            self.scale = nn.Parameter(torch.ones(4, 1, 1))
            self.register_buffer("coordinates", torch.randn(1, 3, 3, 2))
            self.register_buffer("places", torch.randint(9, (6, 6)))

        def forward(self, x: Tensor) -> Tensor:
            q, k, v = self.qkv(x).reshape(len(x), 6, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
            table = self.made(self.coordinates).view(-1, self.heads)
            bias = table[self.places.view(-1)].view(6, 6, -1).permute(2, 0, 1)  # type: ignore[operator]
            scores = F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).transpose(-2, -1) * self.scale.exp()
            y = (scores + 16 * torch.sigmoid(bias).unsqueeze(0)).softmax(-1) @ v
            return self.out(y.transpose(1, 2).flatten(2))

    analysis, proof = prove(analyse(Positions().eval(), torch.randn(2, 6, 5)))
    assert not proof.refused
    assert widths(analysis) == {"qkv": (36, 9), "made.0": (10, 1)}
