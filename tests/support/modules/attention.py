"""`nn.MultiheadAttention` and what torch makes of it, on sequences (B, N, 5); functions that are kept whole by fx."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from tests.support.modules.base import Case, between

_SEQUENCE = (2, 6, 5)


class Attending(nn.Module):
    """An embedding, attention with these options, a head; `call` says how it is called."""

    def __init__(self, call: Any, **options: Any) -> None:
        super().__init__()
        self.embed, self.memory = nn.Linear(5, 16), nn.Linear(5, 16)
        self.attention = nn.MultiheadAttention(16, 4, **{"batch_first": True, **options})
        self.head, self.call = nn.Linear(16, 3), call
        self.mask = nn.Buffer(torch.triu(torch.ones(6, 6, dtype=torch.bool), 1))

    def forward(self, x: Tensor) -> Any:
        y = self.embed(x)
        found = self.call(self, y, x)
        y, *rest = found if isinstance(found, tuple) else (found,)
        logits = self.head((y if y.dim() == 3 else y[None]).mean(1))
        return (logits, *(weights for weights in rest if weights is not None)) if rest else logits


class Layers(nn.Module):
    """A stack of torch's transformer layers between an embedding and a head."""

    def __init__(self, kind: str, **options: Any) -> None:
        super().__init__()
        self.kind, self.embed, self.head = kind, nn.Linear(5, 16), nn.Linear(16, 3)
        options = {"batch_first": True, **options}
        if kind == "encoder":
            nested = not options.get("norm_first", False)
            layer = nn.TransformerEncoderLayer(16, 4, 24, **options)
            self.stack: Any = nn.TransformerEncoder(layer, 2, enable_nested_tensor=nested)
        elif kind == "decoder":
            self.stack = nn.TransformerDecoder(nn.TransformerDecoderLayer(16, 4, 24, **options), 2)
        else:
            self.stack = nn.Transformer(16, 2, 1, 1, 24, **options)

    def forward(self, x: Tensor) -> Tensor:
        y = self.embed(x)
        if self.kind == "encoder":
            return self.head(self.stack(y, src_key_padding_mask=x[..., 0] > 2).mean(1))
        causal = nn.Transformer.generate_square_subsequent_mask(4).to(x.dtype)
        return self.head(
            self.stack(*((y[:, :4], y) if self.kind == "decoder" else (y, y[:, :4])), tgt_mask=causal).mean(1)
        )


@fx.wrap
def kept_whole(x: Tensor, weight: Tensor, bias: Tensor, heads: int) -> Tensor:
    b, n, c = x.shape
    q, k, v = F.linear(x, weight, bias).reshape(b, n, 3, heads, c // heads).permute(2, 0, 3, 1, 4).unbind(0)
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, c)


@fx.wrap
def branching(y: Tensor) -> Tensor:
    return y * 2 if bool(y.mean() > 0) else y


@fx.wrap
def missing_places(size: tuple[int, int], multiple: int) -> tuple[int, int]:
    return (multiple - size[0] % multiple) % multiple, (multiple - size[1] % multiple) % multiple


def padded(y: Tensor) -> Tensor:
    """Pad rows and columns (of 6) to a multiple of 4 and take them away again, as window attention does."""
    rows, columns = missing_places((y.shape[2], y.shape[3]), 4)
    return F.pad(y, (0, columns, 0, rows))[..., : y.shape[2], : y.shape[3]]


class Whole(nn.Module):
    """Attention in a function that fx keeps whole."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.qkv, self.out, self.head = (
            *(nn.Linear(5, 16), nn.Linear(16, 48), nn.Linear(16, 16)),
            nn.Linear(16, 3),
        )
        self.heads = 4

    def forward(self, x: Tensor) -> Tensor:
        y = self.embed(x)
        y = y + self.out(kept_whole(y, self.qkv.weight, self.qkv.bias, self.heads))
        return self.head(y.mean(1))


class Ready(nn.Module):
    """Makes itself ready when it is first called; its reshape is for a plain graph."""

    def __init__(self, counts: bool) -> None:
        super().__init__()
        self.a, self.b, self.counts = nn.Linear(5, 8), nn.Linear(8, 3), counts
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.ready = True
        self.calls = self.calls + 1 if self.counts else 1
        return self.b(self.a(x).reshape(-1, 6, 8).mean(1))


class Rows(nn.Module):
    """Layers that share one weight, by rows."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.both, self.head = kind, nn.Linear(5, 16), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        weight, bias = self.both.weight, self.both.bias
        if self.kind == "halves":
            y = F.linear(x, weight[:8], bias[:8]) * torch.sigmoid(F.linear(x, weight[8:], bias[8:]))
        elif self.kind == "overlapping":
            y = F.linear(x, weight[:8]) + F.linear(x, weight[4:12])
        elif self.kind == "one":
            y = F.linear(x, weight[4:12], bias[4:12])
        elif self.kind == "whole":
            y = F.linear(x, weight[:8], bias[:8]) + self.both(x)[..., 8:]
        else:
            y = F.linear(x, weight[:8], bias[8:])
        return self.head(torch.relu(y).mean(1))


def _case(name: str, call: Any, **options: Any) -> Case:
    return Case(f"mha_{name}", lambda: Attending(call, **options), _SEQUENCE)


def _itself(net: Any, y: Tensor, **more: Any) -> Any:
    return y + net.attention(y, y, y, **more)[0]


CASES = [
    _case("plain", lambda n, y, x: _itself(n, y)),
    _case("without_weights", lambda n, y, x: _itself(n, y, need_weights=False)),
    _case("sequence_first", lambda n, y, x: _itself(n, y, need_weights=False), batch_first=False),
    _case("without_bias", lambda n, y, x: _itself(n, y), bias=False),
    _case("weights", lambda n, y, x: n.attention(y, y, y)),
    _case("weights_of_heads", lambda n, y, x: n.attention(y, y, y, average_attn_weights=False)),
    _case("dropout", lambda n, y, x: _itself(n, y), dropout=0.3),
    _case("dropout_fused", lambda n, y, x: _itself(n, y, need_weights=False), dropout=0.3),
    _case("masked", lambda n, y, x: _itself(n, y, attn_mask=n.mask)),
    _case("padded", lambda n, y, x: _itself(n, y, key_padding_mask=x[..., 0] > 2, attn_mask=n.mask)),
    _case("causal", lambda n, y, x: _itself(n, y, need_weights=False, attn_mask=n.mask, is_causal=True)),
    _case("mask_of_heads", lambda n, y, x: _itself(n, y, attn_mask=n.mask.expand(4 * y.shape[0], 6, 6))),
    _case("cross", lambda n, y, x: n.attention(y, (m := n.memory(x)), m)[0]),
    _case("three", lambda n, y, x: n.attention(y, n.memory(x), y)[0]),
    _case("by_name", lambda n, y, x: n.attention(query=y, key=y, value=y)[0]),
    _case("twice", lambda n, y, x: _itself(n, _itself(n, y))),
    _case("wide_memory", lambda n, y, x: n.attention(y, x, x)[0], kdim=5, vdim=5),
    _case("added", lambda n, y, x: _itself(n, y), add_bias_kv=True, add_zero_attn=True),
    _case("one_example", lambda n, y, x: n.attention(y[0], y[0], y[0])[0]),
    _case("weight_read", lambda n, y, x: _itself(n, y) * n.attention.in_proj_weight.mean()),
    Case(
        "mha_in_sequential",
        lambda: nn.Sequential(nn.Linear(5, 16), Layers("encoder").stack, nn.Flatten(), nn.Linear(96, 3)),
        _SEQUENCE,
    ),
    Case("mha_encoder", lambda: Layers("encoder"), _SEQUENCE),
    Case("mha_encoder_first", lambda: Layers("encoder", norm_first=True, activation="gelu", dropout=0.0), _SEQUENCE),
    Case("mha_decoder", lambda: Layers("decoder"), _SEQUENCE),
    Case("mha_transformer", lambda: Layers("both"), _SEQUENCE),
    Case("mha_kept_whole", Whole, _SEQUENCE),
    between("mha_kept_whole_branch", lambda n, y: branching(y)),
    between("kept_whole_sizes", lambda n, y: padded(y)),
    Case("ready_once", lambda: Ready(False), _SEQUENCE),
    Case("ready_never", lambda: Ready(True), _SEQUENCE),
    *(
        Case(f"rows_{kind}", lambda kind=kind: Rows(kind), _SEQUENCE)  # type: ignore[misc]
        for kind in ("halves", "overlapping", "one", "whole", "other")
    ),
]
