"""Networks with parameters of several dimensions, of which what they meet says where the channels are."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.support.modules.base import Case
from tests.support.modules.written import Written, weight


def _class_token(net: Any, x: Tensor) -> Tensor:
    y = net.read(x)
    first = net.token.to(y.dtype) + torch.zeros(y.shape[0], 1, y.shape[-1], dtype=y.dtype, device=y.device)
    y = net.norm(torch.cat([first, y], dim=1) + net.positions.to(y.dtype))
    return (y + net.up(F.gelu(net.down(y))))[:, 0] @ net.project


def _latents(net: Any, x: Tensor) -> Tensor:
    latents, y = net.latents.unsqueeze(0).repeat(x.size(0), 1, 1), net.read(x)
    scores = net.query(latents) @ y.transpose(1, 2)
    return net.head(net.norm(latents + scores.softmax(-1) @ net.value(y)).relu().mean(1))


def _queries(net: Any, x: Tensor) -> Tensor:
    y = net.read(x).transpose(0, 1) + net.positions.unsqueeze(1)
    asked = net.asked.unsqueeze(1).repeat(1, x.size(0), 1)
    return net.head(F.relu(net.query(asked)).mean(0) + y.mean(0))


def _turned(net: Any, x: Tensor) -> Tensor:
    y = net.conv(x.transpose(1, 2)) + net.places.t().unsqueeze(0)
    return net.head((y * net.gains.permute(1, 0).sigmoid()).relu().mean(-1))


def _basis(net: Any, x: Tensor) -> Tensor:
    for base, coefficients in ((net.first, net.inner), (net.second, net.outer)):
        basis = torch.exp(-((x[..., None] - net.grid) ** 2))
        x = base(F.silu(x)) + F.linear(basis.view(*basis.shape[:-2], -1), coefficients)
    return net.head(torch.tanh(x).mean(1))


def _masks(net: Any, x: Tensor) -> Tensor:
    y = F.relu(net.conv(x.transpose(1, 2)))
    masks = torch.sigmoid(net.mask(y)).view(x.shape[0], net.speakers, y.shape[1], -1)
    apart = (y.unsqueeze(1) * masks).view(x.shape[0] * net.speakers, y.shape[1], -1)
    return net.head(apart.mean(-1)).view(x.shape[0], -1)


def _masked(net: Any, x: Tensor) -> Tensor:
    y = torch.relu(F.linear(x, net.mask * net.first.weight, net.first.bias))
    y = torch.relu(F.linear(y, net.second.weight * net.scale[:, None] * net.both, net.second.bias))
    return net.head(torch.tanh(y @ (net.third * net.turned.t())).mean(1))


def _standardised(net: Any, x: Tensor) -> Tensor:
    y = x.transpose(1, 2)
    for layer in (net.first, net.second):
        weight = layer.weight - layer.weight.mean(dim=(1, 2), keepdim=True)
        y = torch.relu(F.conv1d(y, weight / (weight.std(dim=(1, 2), keepdim=True) + 1e-5), layer.bias))
    return net.head(y.mean(-1))


def _ternary(net: Any, x: Tensor) -> Tensor:
    for layer in (net.first, net.second):
        scale = layer.weight.abs().mean()
        rounded = (layer.weight / scale).clamp(-1, 1) * scale
        x = torch.relu(F.linear(x, layer.weight + (rounded - layer.weight).detach(), layer.bias))
    return net.head(x.mean(1))


def _cosine(net: Any, x: Tensor) -> Tensor:
    y = F.normalize(net.first(x).transpose(1, 2), dim=1).transpose(1, 2) * net.scale
    return F.linear(F.normalize(net.second(y).mean(1)), F.normalize(net.classes))


def _distances(net: Any, x: Tensor) -> Tensor:
    y = net.first(x).relu().mean(1)
    near = torch.exp(-torch.cdist(y, net.centres).pow(2) / 8)
    other = net.first(x.flip(1)).amax(1)
    apart = torch.stack([F.cosine_similarity(y, other), F.pairwise_distance(y, other), net.apart(other, y)], 1)
    last = net.last(near).unsqueeze(1)
    return net.head(near) + net.beside(apart) + torch.cdist(last, 2 * last)[..., 0]


def _two_inputs(net: Any, x: Tensor) -> Tensor:
    y = net.form(net.first(x[:, 0]).relu(), net.second(x[:, 1]).relu())
    return net.head(torch.tanh(y + net.linear(y)))


def _projected(net: Any, x: Tensor) -> Tensor:
    found, (state, cells) = net.lstm(net.read(x))
    return net.head(torch.cat([found[:, -1], state[-1]], 1)) + net.beside(cells[0])


def _mixed(net: Any, x: Tensor) -> Tensor:
    y = net.read(x)
    y = y + net.down(net.up(net.norm(y).transpose(1, 2)).relu()).transpose(1, 2)
    u, v = F.gelu(net.wide(y)).chunk(2, -1)
    return net.head((y + net.narrow(u * net.along(v))).mean(1))


def _scan(net: Any, x: Tensor) -> Tensor:
    x, gate = net.read(x).chunk(2, -1)
    step, given, taken = torch.split(net.select(x), [2, 4, 4], -1)
    step, decay = F.softplus(net.step(step)), -torch.exp(net.decay)
    kept = torch.exp(torch.einsum("bld,dn->bldn", step, decay))
    new = torch.einsum("bld,bln,bld->bldn", step, given, x)
    state, found = torch.zeros(x.shape[0], x.shape[-1], 4), []
    for i in range(x.shape[1]):
        state = kept[:, i] * state + new[:, i]
        found.append(torch.einsum("bdn,bn->bd", state, taken[:, i]))
    return net.head(((torch.stack(found, 1) + x * net.past) * F.silu(gate)).mean(1))


def _modes(net: Any, x: Tensor) -> Tensor:
    y = net.read(x).transpose(1, 2)
    found = torch.fft.rfft(y)
    changed = torch.zeros_like(found)
    changed[:, :, :3] = torch.einsum("bix,iox->box", found[:, :, :3], torch.view_as_complex(net.weights))
    y = F.gelu(torch.fft.irfft(changed, n=y.size(-1)) + net.beside(y))
    return net.head(y.mean(-1))


def _networks() -> dict[str, Any]:
    linear = nn.Linear
    return {
        "modes": (
            _modes,
            {
                "read": linear(5, 12),
                "weights": weight(12, 12, 3, 2),
                "beside": nn.Conv1d(12, 12, 1),
                "head": linear(12, 3),
            },
        ),
        "scan": (
            _scan,
            {
                "read": linear(5, 24),
                "select": linear(12, 10),
                "step": linear(2, 12),
                "decay": weight(12, 4),
                "past": weight(12),
                "head": linear(12, 3),
            },
        ),
        "distances": (
            _distances,
            {
                "first": linear(5, 12),
                "centres": weight(8, 12),
                "apart": nn.PairwiseDistance(),
                "last": linear(8, 10),
                "head": linear(8, 1),
                "beside": linear(3, 1),
            },
        ),
        "two_inputs": (
            _two_inputs,
            {
                "first": linear(5, 8),
                "second": linear(5, 7),
                "form": nn.Bilinear(8, 7, 10),
                "linear": linear(10, 10),
                "head": linear(10, 3),
            },
        ),
        "projections": (
            _projected,
            {
                "read": linear(5, 8),
                "lstm": nn.LSTM(8, 9, 2, batch_first=True, bidirectional=True, proj_size=6, bias=False),
                "head": linear(18, 3),
                "beside": linear(9, 3),
            },
        ),
        "mixed": (
            _mixed,
            {
                "read": linear(5, 12),
                "norm": nn.LayerNorm(12),
                "up": linear(6, 7),
                "down": linear(7, 6),
                "wide": linear(12, 32),
                "along": nn.Conv1d(6, 6, 1),
                "narrow": linear(16, 12),
                "head": linear(12, 3),
            },
        ),
        "masked": (
            _masked,
            {
                "first": linear(5, 12),
                "second": linear(12, 10),
                "third": weight(10, 8),
                "turned": weight(8, 10),
                "scale": weight(10),
                "mask": nn.Buffer(torch.ones(12, 5).tril()),
                "both": nn.Buffer(torch.ones(10, 12).triu()),
                "head": linear(8, 3),
            },
        ),
        "standardised": (
            _standardised,
            {"first": nn.Conv1d(5, 12, 3), "second": nn.Conv1d(12, 10, 3), "head": linear(10, 3)},
        ),
        "ternary": (_ternary, {"first": linear(5, 12), "second": linear(12, 10), "head": linear(10, 3)}),
        "cosine": (
            _cosine,
            {"first": linear(5, 12), "scale": weight(12), "second": linear(12, 10), "classes": weight(3, 10)},
        ),
        "class_token": (
            _class_token,
            {
                "read": linear(5, 12, bias=False),
                "token": weight(12),
                "positions": weight(7, 12),
                "norm": nn.LayerNorm(12),
                "down": linear(12, 16),
                "up": linear(16, 12),
                "project": weight(12, 3),
            },
        ),
        "latents": (
            _latents,
            {
                "read": linear(5, 12),
                "latents": weight(4, 12),
                "query": linear(12, 12),
                "value": linear(12, 12),
                "norm": nn.LayerNorm(12),
                "head": linear(12, 3),
            },
        ),
        "queries": (
            _queries,
            {
                "read": linear(5, 12),
                "positions": weight(6, 12),
                "asked": weight(4, 10),
                "query": linear(10, 12),
                "head": linear(12, 3),
            },
        ),
        "turned": (
            _turned,
            {"conv": nn.Conv1d(5, 12, 1), "places": weight(6, 12), "gains": weight(6, 12), "head": linear(12, 3)},
        ),
        "basis": (
            _basis,
            {
                "first": linear(5, 12),
                "inner": weight(12, 20),
                "second": linear(12, 8),
                "outer": weight(8, 48),
                "grid": nn.Parameter(torch.linspace(-1, 1, 4), requires_grad=False),
                "head": linear(8, 3),
            },
        ),
        "masks": (
            _masks,
            {"conv": nn.Conv1d(5, 12, 3), "mask": nn.Conv1d(12, 24, 1), "head": linear(12, 3), "speakers": 2},
        ),
    }


def _make(name: str) -> nn.Module:
    forward, parts = _networks()[name]
    return Written(forward, **parts)


CASES = [Case(f"table_{name}", lambda name=name: _make(name), example=(2, 6, 5)) for name in _networks()]
