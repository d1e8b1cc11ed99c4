"""Attention, positions and masks as the libraries of trained transformers write them, on tokens (B, N)."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.support.modules.base import Case, between

_HEADS, _WIDTH, _TOKENS = 4, 4, 7


class Projection(nn.Module):
    """A linear layer whose weight is (inputs, outputs), and which counts the latter itself."""

    def __init__(self, outputs: int, inputs: int, *, counted: bool = True) -> None:
        super().__init__()
        self.nf, self.counted, self.literal = outputs, counted, [outputs]
        self.weight, self.bias = nn.Parameter(torch.randn(inputs, outputs) / 4), nn.Parameter(torch.randn(outputs))

    def forward(self, x: Tensor) -> Tensor:
        sizes = x.size()[:-1] + ((self.nf if self.counted else self.literal[0]),)  # noqa: RUF005  as GPT-2 has it
        return torch.addmm(self.bias, x.view(-1, x.size(-1)), self.weight).view(sizes)


class Rotary(nn.Module):
    """The angles of positions, from frequencies that a buffer holds."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("inv_freq", 1.0 / (10.0 ** (torch.arange(0, width, 2) / width)), persistent=False)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        places = torch.arange(x.shape[1], device=x.device)[None, :, None]
        angles = (places * self.inv_freq[None, None, :].float()).to(x.dtype)
        angles = torch.cat((angles, angles), dim=-1)
        return angles.cos().to(dtype=x.dtype), angles.sin().to(dtype=x.dtype)


def _turned(x: Tensor) -> Tensor:
    first, second = x[..., : x.shape[-1] // 2], x[..., x.shape[-1] // 2 :]
    return torch.cat((-second, first), dim=-1)


def _repeated(x: Tensor, times: int) -> Tensor:
    b, heads, n, width = x.shape
    return x[:, :, None].expand(b, heads, times, n, width).reshape(b, heads * times, n, width)


class Attention(nn.Module):
    """Heads of one width; `kind` says how positions come in, how masks are made, how many share keys."""

    def __init__(self, kind: str, residual: int = 16) -> None:
        super().__init__()
        shared = 2 if kind in ("grouped", "rotary", "normed") else _HEADS
        self.kind, self.head_dim, self.times, self.n_heads = kind, _WIDTH, _HEADS // shared, _HEADS
        self.q, self.k, self.v = (nn.Linear(residual, n * _WIDTH) for n in (_HEADS, shared, shared))
        self.out = nn.Linear(_HEADS * _WIDTH, residual)
        self.rotary = Rotary(_WIDTH)
        self.q_norm, self.k_norm = nn.Parameter(torch.rand(_WIDTH) + 0.5), nn.Parameter(torch.rand(_WIDTH) + 0.5)
        self.bias = nn.Embedding(9, _HEADS)

    def forward(self, x: Tensor, *, mask: Tensor | None = None) -> Tensor:
        shape = (*x.shape[:-1], -1, self.head_dim)
        q, k, v = self.q(x).view(shape), self.k(x).view(shape), self.v(x).view(shape)
        if self.kind == "normed":
            q = self.q_norm * (q * torch.rsqrt(q.pow(2).mean(-1, keepdim=True) + 1e-6))
            k = self.k_norm * (k * torch.rsqrt(k.pow(2).mean(-1, keepdim=True) + 1e-6))
        q, k, v = (t.transpose(1, 2) for t in (q, k, v))
        if self.kind == "rotary":
            cos, sin = (t.unsqueeze(1) for t in self.rotary(x))
            q, k = q * cos + _turned(q) * sin, k * cos + _turned(k) * sin
        if self.times > 1:
            k, v = _repeated(k, self.times), _repeated(v, self.times)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=self.positions(x, mask))
        return self.out(y.transpose(1, 2).reshape(*x.shape[:-1], -1))

    def positions(self, x: Tensor, mask: Tensor | None) -> Tensor | None:
        n = x.shape[1]
        if self.kind == "zeros":
            return torch.zeros((1, self.n_heads, n, n), device=x.device, dtype=x.dtype)
        if self.kind == "relative":
            places = torch.arange(n, device=x.device)
            distances = (places[:, None] - places[None, :]).clamp(-4, 4) + 4
            return self.bias(distances).permute(2, 0, 1).unsqueeze(0)
        if self.kind == "masked":
            return (1.0 - mask[:, None, None, :].to(x.dtype)) * torch.finfo(x.dtype).min  # type: ignore[index]
        return None


def _wrapped(forward: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(forward)
    def wrapper(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        if kwargs.get("use_cache") is None:
            kwargs["use_cache"] = False
        return forward(self, *args, **kwargs)

    return wrapper


class Layer(nn.Module):
    """Attention and an MLP, called with the mask by name, as a decoder's layer is."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.first, self.second, self.attention = nn.LayerNorm(16), nn.LayerNorm(16), Attention(kind)
        self.up, self.down = Projection(24, 16, counted=kind != "written"), Projection(16, 24)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        x = x + self.attention(self.first(x), mask=mask)
        return x + self.down(F.gelu(self.up(self.second(x)), approximate="tanh"))


class Text(nn.Module):
    """Tokens to logits (B, 3), with positions that a buffer holds and a mask that is made on the way."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.embed, self.place, self.sort = (
            kind,
            nn.Embedding(20, 16),
            nn.Embedding(12, 16),
            nn.Embedding(2, 16),
        )
        self.register_buffer("position_ids", torch.arange(12).expand((1, -1)), persistent=False)
        self.register_buffer("sorts", torch.zeros((1, 12), dtype=torch.long), persistent=False)
        self.layers = nn.ModuleList(Layer(kind) for _ in range(2))
        self.pooler, self.head = nn.Linear(16, 16), nn.Linear(16, 3)

    @_wrapped
    def forward(self, input_ids: Tensor, use_cache: bool | None = None, **kwargs: Any) -> Tensor:
        places = self.position_ids[:, : input_ids.size(1)]
        sorts = torch.gather(self.sorts.expand(input_ids.shape[0], -1), dim=1, index=places.expand(input_ids.shape))
        x = self.embed(input_ids) + self.place(places) + self.sort(sorts)
        mask = (input_ids > 3).long()
        for layer in self.layers:
            x = layer(x, mask=mask)
        if self.kind == "picked":
            first = x.index_select(1, torch.tensor([0])).squeeze(1)
        else:
            last = (input_ids == 2).int().argmax(-1) if self.kind == "last" else torch.zeros_like(input_ids[:, 0])
            first = x[torch.arange(x.shape[0]), last]
        return self.head(nn.Tanh()(self.pooler(first)))


def _responses(net: Any, y: Tensor) -> Tensor:
    norms = torch.linalg.vector_norm(y, ord=2, dim=(2, 3), keepdim=True)
    return y * (norms / (norms.mean(dim=1, keepdim=True) + 1e-6)) + y


def _scaled(net: Any, y: Tensor) -> Tensor:
    scale = torch.sqrt(torch.tensor(y.shape[-1], dtype=torch.float32) * 3)
    return y / scale.to(dtype=y.dtype)


_KINDS = ("plain", "grouped", "rotary", "normed", "zeros", "relative", "masked", "written", "picked", "last")
CASES = [
    *(Case(f"text_{kind}", lambda kind=kind: Text(kind), (2, _TOKENS), tokens=20) for kind in _KINDS),  # type: ignore[misc]
    between("text_responses", _responses),
    between("text_norms", lambda n, y: y / (y.norm(dim=1, keepdim=True) + 1e-3)),
    between("text_norm_of_all", lambda n, y: y / (torch.norm(y) + 1e-3)),
    between("text_scaled", _scaled),
    between("text_made_here", lambda n, y: nn.Hardswish()(nn.Dropout(0.0)(y))),
    between("text_norm_made_here", lambda n, y: nn.InstanceNorm2d(8)(y)),
    between("text_zeros_written", lambda n, y: y + torch.zeros(y.shape[0], 8, 1, 1)),
    between("text_zeros_counted", lambda n, y: y + torch.ones(y.shape[0], n.width, 1, 1)),
    between("text_zeros_of_shape", lambda n, y: y + torch.ones(y.shape[0], y.shape[1], 1, 1)),
]
