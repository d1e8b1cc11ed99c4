"""Blocks of well-known architectures as their authors write them, each small."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.support.modules.base import Case
from tests.support.modules.written import Written, weight


def _perceiver(net: Any, x: Tensor) -> Tensor:
    """Latents attend to inputs of another width; heads lie in the batch."""
    y, heads = net.table[None].repeat(len(x), 1, 1), net.heads
    k, v = net.kv(x).chunk(2, dim=-1)
    q, k, v = (
        t.reshape(t.shape[0], t.shape[1], heads, -1).permute(0, 2, 1, 3).reshape(t.shape[0] * heads, t.shape[1], -1)
        for t in (net.q(y), k, v)
    )
    seen = torch.einsum("bij,bjd->bid", (torch.einsum("bid,bjd->bij", q, k) / 2).softmax(-1), v)
    seen = seen.reshape(-1, heads, seen.shape[1], seen.shape[2]).permute(0, 2, 1, 3).reshape(len(x), y.shape[1], -1)
    return net.head((y + net.out(seen)).mean(1))


def _heads_first(net: Any, x: Tensor) -> Tensor:
    """Attention whose heads come before the examples."""
    q, k, v = (torch.cat(part(x).split(3, dim=2), dim=0) for part in (net.q, net.k, net.v))
    seen = torch.bmm((torch.bmm(q, k.transpose(1, 2)) / 2).softmax(-1), v)
    return net.head(torch.cat(seen.split(len(x), dim=0), dim=2))


def _mixed_experts(net: Any, x: Tensor) -> tuple[Tensor, ...]:
    """Experts that several tasks weigh, each by a gate of its own."""
    x = torch.relu(net.bottom(x.mean(1)))
    found = torch.stack([torch.relu(expert(x)) for expert in net.experts], 1)
    gates = (F.softmax(gate(x), 1).unsqueeze(1) for gate in net.gates)
    return tuple(head(torch.bmm(gate, found).squeeze(1)) for gate, head in zip(gates, net.heads, strict=True))


def _selected(net: Any, x: Tensor) -> Tensor:
    """Selective kernels, as the first of many copies writes them."""
    x = net.stem(x)
    parts = torch.cat([conv(torch.relu(x)).unsqueeze_(dim=1) for conv in net.convs], dim=1)
    squeezed = net.squeeze(parts.sum(1).mean(-1).mean(-1))
    weights = torch.cat([fc(squeezed).unsqueeze_(1) for fc in net.fcs], dim=1).softmax(1)
    return net.tail((parts * weights.unsqueeze(-1).unsqueeze(-1)).sum(1))


def _context(net: Any, x: Tensor) -> Tensor:
    """A global context block, with a layer norm over (C, 1, 1)."""
    x = net.stem(x)
    b, c, h, w = x.size()
    mask = net.mask(x).view(b, 1, h * w).softmax(2).unsqueeze(-1)
    return net.tail(torch.relu(x + net.add(torch.matmul(x.view(b, c, h * w).unsqueeze(1), mask).view(b, c, 1, 1))))


def _style(net: Any, x: Tensor) -> Tensor:
    """A generator that starts from a constant map and takes its style from an adaptive norm."""
    style = net.map(x.mean((2, 3)))
    y = net.table.repeat(len(x), 1, 1, 1)
    for norm, plain, conv in zip(net.norms, net.plain, net.convs, strict=True):
        gamma, beta = norm(style).unsqueeze(-1).unsqueeze(-1).chunk(2, 1)
        y = F.leaky_relu(conv((1 + gamma) * plain(y) + beta), 0.2)
    return net.tail(y)


def _filtered(net: Any, x: Tensor) -> Tensor:
    """A global filter: a table of complex numbers over frequencies, for each channel."""
    y = net.stem(x).permute(0, 2, 3, 1)
    _, h, w, _ = y.shape
    changed = torch.fft.rfft2(net.norm(y), dim=(1, 2), norm="ortho") * torch.view_as_complex(net.table)
    y = y + torch.fft.irfft2(changed, s=(h, w), dim=(1, 2), norm="ortho")
    return net.head((y + net.mlp(y)).mean((1, 2)))


def _text(net: Any, x: Tensor) -> Tensor:
    """A TextCNN, whose kernels span the whole width of what is embedded."""
    x = net.read(x).unsqueeze(1)
    pooled = [F.max_pool1d(y := torch.relu(conv(x)).squeeze(3), y.size(2)).squeeze(2) for conv in net.convs]
    return net.head(torch.cat(pooled, 1))


def _codes(net: Any, x: Tensor) -> Tensor:
    """Vector quantisation: the nearest of a table of codes, by distances that are written out."""
    y = net.stem(x).permute(0, 2, 3, 1).contiguous()
    flat, table = y.view(-1, y.shape[-1]), net.table.weight
    far = torch.sum(flat**2, dim=1, keepdim=True) + torch.sum(table**2, dim=1) - 2 * torch.matmul(flat, table.t())
    code = net.table(torch.argmin(far, dim=1)).view(y.shape)
    return net.tail((y + (code - y).detach()).permute(0, 3, 1, 2).contiguous())


def _flows(net: Any, x: Tensor) -> Tensor:
    """Steps of a differential equation that knows the time."""
    x = net.read(x)
    for step in range(3):
        x = x + net.down(torch.tanh(net.up(torch.cat([x, torch.full_like(x[..., :1], step / 3)], -1)))) / 3
    return net.head(x)


def _video(net: Any, x: Tensor) -> Tensor:
    """Positions in space and time are two tables; a class token is split from the others, as in MViT."""
    x = torch.cat([net.token.expand(len(x), -1).unsqueeze(1), net.read(x)], 1)
    positions = torch.repeat_interleave(net.times, net.places.shape[0], dim=0)
    positions.add_(net.places.unsqueeze(0).expand(2, -1, -1).reshape(-1, net.places.shape[1]))
    x = x + torch.cat([net.first.unsqueeze(0), positions], 0).unsqueeze(0)
    token, rest = torch.tensor_split(x, indices=(1,), dim=1)
    rest = net.mix(rest.transpose(1, 2)).transpose(1, 2)
    return net.head(torch.relu(torch.cat((token, rest), 1)).mean(1))


def _shifted(net: Any, x: Tensor) -> Tensor:
    """Scores by relative position are shifted, with sizes that are taken together, as in ESPnet and Hugging Face."""
    b, n, _ = x.shape
    y = net.read(x)
    q, k, v = (part(y).view(b, n, net.heads, -1).transpose(1, 2) for part in (net.q, net.k, net.v))
    places = net.place(x.new_ones(1, 2 * n - 1, 5)).view(1, -1, net.heads, q.shape[-1]).transpose(1, 2)
    scores = torch.matmul(q, places.transpose(-2, -1))
    padded = torch.cat([torch.zeros((*scores.size()[:3], 1), dtype=x.dtype), scores], dim=-1)
    shape = scores.size()[:2] + (scores.shape[3] + 1, scores.shape[2])  # noqa: RUF005  as they have it
    shifted = padded.view(*padded.size()[:2], padded.size(3), padded.size(2)) + padded.view(*shape)
    scores = q @ k.transpose(-2, -1) + shifted[:, :, 1:].view_as(scores)[:, :, :, :n]
    return net.head(y.mean(1) + net.out((scores.softmax(-1) @ v).transpose(1, 2).reshape(b, n, -1)).mean(1))


def _partial(net: Any, x: Tensor) -> Tensor:
    """A partial convolution in place, as in FasterNet."""
    x = torch.relu(net.stem(x))
    y = x.clone()
    y[:, : net.part, :, :] = net.conv(x[:, : net.part, :, :])
    return net.tail(x + net.down(torch.relu(net.up(y))))


def _frames(net: Any, x: Tensor) -> Tensor:
    """A temporal shift: some channels come from the frame before, some from the one behind."""
    y = torch.relu(net.stem(x)).view(-1, 2, 8, 6, 6)
    b, n, c, h, w = y.size()
    fold = c // 4
    out = torch.zeros_like(y)
    out[:, :-1, :fold] = y[:, 1:, :fold]
    out[:, 1:, fold : 2 * fold] = y[:, :-1, fold : 2 * fold]
    out[:, :, 2 * fold :] = y[:, :, 2 * fold :]
    return net.tail(torch.relu(net.up(out.view(b * n, c, h, w))))


def _networks() -> dict[str, Any]:
    def linears(*sizes: tuple[int, int]) -> nn.ModuleList:
        return nn.ModuleList(nn.Linear(*size) for size in sizes)

    def stem(**more: Any) -> dict[str, Any]:
        tail = nn.Sequential(nn.Conv2d(8, 6, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 3))
        return {"stem": nn.Conv2d(3, 8, 3, padding=1), "tail": tail, **more}

    heads = {name: nn.Linear(5, 12) for name in "qkv"} | {"head": nn.Linear(12, 3)}
    add = nn.Sequential(nn.Conv2d(8, 4, 1), nn.LayerNorm([4, 1, 1]), nn.ReLU(), nn.Conv2d(4, 8, 1))
    mlp = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8))
    return {
        "perceiver": Written(
            _perceiver,
            heads=4,
            table=weight(3, 10),
            kv=nn.Linear(5, 16),
            q=nn.Linear(10, 8),
            out=nn.Linear(8, 10),
            head=nn.Linear(10, 3),
        ),
        "heads_first": Written(_heads_first, **heads),
        "shifted": Written(
            _shifted,
            heads=4,
            read=nn.Linear(5, 16),
            **{name: nn.Linear(16, 16) for name in "qkv"},
            place=nn.Linear(5, 16),
            out=nn.Linear(16, 16),
            head=nn.Linear(16, 3),
        ),
        "mixed_experts": Written(
            _mixed_experts,
            bottom=nn.Linear(5, 20),
            experts=linears((20, 12), (20, 12), (20, 12)),
            gates=linears((20, 3), (20, 3)),
            heads=linears((12, 2), (12, 1)),
        ),
        "text": Written(
            _text,
            read=nn.Linear(5, 12),
            convs=nn.ModuleList(
                [nn.Conv2d(1, 7, (2, 12)), nn.Conv2d(1, 7, (3, 12), padding=(2, 0), bias=False, stride=(2, 1))]
            ),
            head=nn.Linear(14, 3),
        ),
        "flows": Written(
            _flows, read=nn.Linear(5, 12), up=nn.Linear(13, 20), down=nn.Linear(20, 12), head=nn.Linear(12, 3)
        ),
        "video": Written(
            _video,
            token=weight(12),
            read=nn.Linear(5, 12),
            times=weight(2, 12),
            places=weight(3, 12),
            first=weight(12),
            mix=nn.Conv1d(12, 12, 3, padding=1, groups=12),
            head=nn.Linear(12, 3),
        ),
        "codes": Written(_codes, **stem(table=nn.Embedding(20, 8))),
        "selected": Written(
            _selected,
            **stem(
                convs=nn.ModuleList(nn.Conv2d(8, 8, 3, padding=d, dilation=d, groups=2) for d in (1, 2)),
                squeeze=nn.Linear(8, 5),
                fcs=linears((5, 8), (5, 8)),
            ),
        ),
        "partial": Written(
            _partial,
            part=2,
            **stem(conv=nn.Conv2d(2, 2, 3, padding=1), up=nn.Conv2d(8, 12, 1), down=nn.Conv2d(12, 8, 1)),
        ),
        "frames": Written(_frames, **stem(up=nn.Conv2d(8, 8, 1))),
        "context": Written(_context, **stem(mask=nn.Conv2d(8, 1, 1), add=add)),
        "style": Written(
            _style,
            map=nn.Linear(3, 10),
            table=weight(1, 8, 4, 4),
            norms=linears((10, 16), (10, 24)),
            plain=nn.ModuleList(nn.InstanceNorm2d(size) for size in (8, 12)),
            convs=nn.ModuleList([nn.Conv2d(8, 12, 3, padding=1), nn.ConvTranspose2d(12, 8, 4, 2, 1)]),
            tail=nn.Conv2d(8, 3, 1),
        ),
        "filtered": Written(
            _filtered,
            stem=nn.Conv2d(3, 8, 1),
            norm=nn.LayerNorm(8),
            table=weight(6, 4, 8, 2),
            mlp=mlp,
            head=nn.Linear(8, 3),
        ),
    }


def _make(name: str) -> nn.Module:
    made: nn.Module = _networks()[name]
    return made


_TOKENS = ("perceiver", "heads_first", "mixed_experts", "text", "flows", "video", "shifted")
CASES = [
    Case(f"style_{name}", lambda name=name: _make(name), (2, 6, 5) if name in _TOKENS else (2, 3, 6, 6))  # type: ignore[misc]
    for name in _networks()
]
