"""Networks that move, join, cut and mix channels with plain operations."""

from __future__ import annotations

import operator
from functools import reduce

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.support.modules.base import Case, Net, between, whole


def _shuffled(net: Net, y: Tensor) -> Tensor:
    b, c, h, w = y.shape
    return y.view(b, 2, c // 2, h, w).transpose(1, 2).reshape(b, c, h, w)


def _filled(net: Net, y: Tensor) -> Tensor:
    z = torch.zeros_like(y)
    z[:, ::2] = y[:, ::2]
    return z


def _new(net: Net, y: Tensor) -> Tensor:
    z = y.new_zeros(y.shape[0], y.shape[1], 6, 6)
    z.add_(y)
    return z


def _rows(net: Net, y: Tensor) -> Tensor:
    return torch.stack([y[:, i] * (i + 1) for i in range(y.shape[1])], 1)


def _written(net: Net, y: Tensor) -> Tensor:
    y = y.clone()
    y[:, 0] = 0
    return y


def _resolutions(net: Net, x: Tensor) -> Tensor:
    y = torch.relu(net.a(x))
    return net.tail(torch.cat([F.interpolate(net.small(net.pool(y)), size=(6, 6)), net.wide(y)], 1))


def _pooled(net: Net, x: Tensor) -> Tensor:
    y = torch.relu(net.a(x))
    return net.tail(torch.cat([net.pool(y), net.down(y)], 1))


def _dense(net: Net, x: Tensor) -> Tensor:
    features = [torch.relu(net.a(x))]
    for layer in net.layers:
        features.append(torch.relu(layer(torch.cat(features, 1))))
    return net.tail(net.out(torch.cat(features, 1)))


def _attention(net: Net, x: Tensor) -> Tensor:
    y = net.a(x).flatten(2).transpose(1, 2)
    q, k, v = net.qkv(y).chunk(3, -1)
    return net.head(net.proj(torch.softmax(q @ k.transpose(1, 2) * 8**-0.5, -1) @ v).mean(1))


def _heads(net: Net, x: Tensor) -> Tensor:
    y = net.a(x).flatten(2).transpose(1, 2)
    b, n, c = y.shape
    q, k, v = net.qkv(y).reshape(b, n, 3, 2, c // 2).permute(2, 0, 3, 1, 4).unbind(0)
    y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, c)
    return net.head(net.proj(y).mean(1))


CASES: list[Case] = [
    between("split_swap", lambda n, y: torch.cat(y.split(4, 1)[::-1], 1)),
    between("split_sizes", lambda n, y: torch.cat(y.split([2, 6], 1), 1)),
    between("chunk_add", lambda n, y: torch.cat([reduce(operator.add, y.chunk(2, 1))] * 2, 1)),
    between("chunk_gate", lambda n, y: torch.cat([y.chunk(2, 1)[0] * torch.sigmoid(y.chunk(2, 1)[1]), y[:, :4]], 1)),
    between("glu", lambda n, y: torch.cat([F.glu(y, 1), F.glu(-y, 1)], 1)),
    between("unbind", lambda n, y: torch.stack(y.unbind(1)[::-1], 1)),
    between("tensor_split", lambda n, y: torch.cat(torch.tensor_split(y, 3, 1), 1)),
    between("shuffle", _shuffled),
    between("channel_shuffle", lambda n, y: F.channel_shuffle(y, 2)),
    between("flip", lambda n, y: y.flip(1)),
    between("flip_named", lambda n, y: torch.flip(y, dims=(1, 3))),
    between("tril_channels", lambda n, y: y.transpose(1, 3).tril().transpose(1, 3)),
    between("rot90_channels", lambda n, y: y[:, :6].rot90(1, (1, 2)).repeat(1, 2, 1, 1)[:, :8]),
    between("select", lambda n, y: y * y.select(1, 2)[:, None]),
    between("var_mean", lambda n, y: y * torch.var_mean(y, (1, 2), keepdim=True)[0]),
    between("fftshift", lambda n, y: torch.fft.fftshift(y)),
    between("roll", lambda n, y: y.roll(2, 1)),
    between("roll_space", lambda n, y: y.roll(2, 3)),
    between("cumsum", lambda n, y: y.cumsum(1)),
    between("cumsum_space", lambda n, y: y.cumsum(2)),
    between("softmax", lambda n, y: y.softmax(1) * 5),
    between("softmax_space", lambda n, y: y.flatten(2).softmax(-1).view_as(y)),
    between("log_softmax", lambda n, y: F.log_softmax(y, 1)),
    between("topk", lambda n, y: y * y.topk(2, 1)[0].mean(1, keepdim=True)),
    between("sort", lambda n, y: y.sort(1)[0]),
    between("argmax", lambda n, y: y * y.argmax(1, keepdim=True)),
    between("max_dim", lambda n, y: y + y.max(1, keepdim=True)[0]),
    between("amax", lambda n, y: y + y.amax((2, 3), keepdim=True)),
    between("mean", lambda n, y: y - y.mean(1, keepdim=True)),
    between("std", lambda n, y: y / (y.std((1, 2, 3), keepdim=True) + 1)),
    between("norm", lambda n, y: y / (y.norm(dim=1, keepdim=True) + 1)),
    between("normalize", lambda n, y: F.normalize(y, dim=1)),
    between("normalize_space", lambda n, y: F.normalize(y, dim=2)),
    between("prod", lambda n, y: y * y.prod(1, keepdim=True)),
    between("sum_all", lambda n, y: y + y.sum()),
    between("masked_fill", lambda n, y: y.masked_fill(y > 0.5, 0.25)),
    between("where", lambda n, y: torch.where(y > 0.3, y, y * 0.1)),
    between("where_mean", lambda n, y: torch.where(y > y.mean(), y, y * 0.1)),
    between("clamp", lambda n, y: y.clamp(0.1, 0.9)),
    between("index_list", lambda n, y: y[:, [1, 0, 3, 2, 5, 4, 7, 6]]),
    between("index_slice", lambda n, y: torch.cat([y[:, 4:], y[:, :4]], 1)),
    between("index_negative", lambda n, y: y + y[:, -1:]),
    between("index_step", lambda n, y: torch.cat([y[:, ::2], y[:, 1::2]], 1)),
    between("index_none", lambda n, y: y[:, :, None].squeeze(2)),
    between("index_ellipsis", lambda n, y: y[..., 0:1] + y),
    between("index_select", lambda n, y: y.index_select(1, torch.arange(7, -1, -1))),
    between("gather", lambda n, y: y.gather(1, y.argsort(1))),
    between("take_first", lambda n, y: y * y[:, 0].unsqueeze(1)),
    between("narrow", lambda n, y: torch.cat([y.narrow(1, 0, 4), y.narrow(1, 4, 4)], 1)),
    between("repeat", lambda n, y: y[:, :4].repeat(1, 2, 1, 1)),
    between("repeat_interleave", lambda n, y: y[:, :4].repeat_interleave(2, 1)),
    between("tile", lambda n, y: y[:, :4].tile(1, 2, 1, 1)),
    between("expand", lambda n, y: y.mean(1, keepdim=True).expand(-1, 8, -1, -1) + y),
    between("expand_as", lambda n, y: y.mean((2, 3), keepdim=True).expand_as(y) * y),
    between("pad_channels", lambda n, y: F.pad(y[:, :6], (0, 0, 0, 0, 1, 1))),
    between("pad_space", lambda n, y: F.pad(y, (1, 1, 0, 0), mode="reflect")),
    between("view_literal", lambda n, y: y.view(-1, 8, 36).view(-1, 8, 6, 6)),
    between("view_minus", lambda n, y: y.view(y.size(0), -1).view(y.size(0), -1, 6, 6)),
    between("view_halves", lambda n, y: y.view(-1, 2, 4, 6, 6).sum(1).repeat(1, 2, 1, 1)),
    between("unflatten", lambda n, y: y.unflatten(1, (2, 4)).flatten(1, 2)),
    between("unflatten_minus", lambda n, y: y.unflatten(1, (2, -1)).flip(1).flatten(1, 2)),
    between("movedim", lambda n, y: n.last(y.movedim(1, -1)).movedim(-1, 1), last=lambda: nn.Linear(8, 8)),
    between("permute", lambda n, y: n.ln(y.permute(0, 2, 3, 1)).permute(0, 3, 1, 2), ln=lambda: nn.LayerNorm(8)),
    between("transpose_space", lambda n, y: y.transpose(2, 3)),
    between("transpose_channels", lambda n, y: y[:, :6].transpose(1, 2).repeat(1, 2, 1, 1)[:, :8]),
    between(
        "einsum_mix", lambda n, y: torch.einsum("bchw,cd->bdhw", y, n.m), m=lambda: nn.Parameter(torch.randn(8, 8))
    ),
    between("einsum_scale", lambda n, y: torch.einsum("bchw,c->bchw", y, n.scale)),
    between("einsum_outer", lambda n, y: y * torch.einsum("bchw,bchw->bhw", y, y)[:, None]),
    between("matmul_self", lambda n, y: y + (y.flatten(2) @ y.flatten(2).mT).mean(2)[..., None, None]),
    between(
        "matmul_parameter", lambda n, y: (y.movedim(1, 3) @ n.m).movedim(3, 1), m=lambda: nn.Parameter(torch.eye(8))
    ),
    between(
        "tensordot",
        lambda n, y: torch.tensordot(y, n.m, ([1], [0])).movedim(3, 1),
        m=lambda: nn.Parameter(torch.eye(8)),
    ),
    between(
        "linear_function",
        lambda n, y: F.linear(y.movedim(1, 3), n.m).movedim(3, 1),
        m=lambda: nn.Parameter(torch.eye(8)),
    ),
    between("conv_function", lambda n, y: F.conv2d(y, n.m), m=lambda: nn.Parameter(torch.randn(8, 8, 1, 1))),
    between("conv_dynamic", lambda n, y: F.conv2d(y, n.m * 2), m=lambda: nn.Parameter(torch.randn(8, 8, 1, 1))),
    between("parameter_add", lambda n, y: y + n.scale.view(1, -1, 1, 1)),
    between("parameter_literal", lambda n, y: y * n.scale.view(1, 8, 1, 1)),
    between("parameter_slice", lambda n, y: torch.cat([y[:, :4] * n.scale[:4, None, None], y[:, 4:]], 1)),
    between("parameter_softmax", lambda n, y: y * n.scale.softmax(0)[:, None, None]),
    between("parameter_sum", lambda n, y: y * n.scale.sum()),
    between("parameter_mean", lambda n, y: y * n.a.weight.mean()),
    between("parameter_outer", lambda n, y: y * torch.outer(n.scale, n.scale).mean(1)[:, None, None]),
    between("in_place", lambda n, y: (y + 0).mul_(2).add_(1)),
    between("in_place_relu", lambda n, y: F.relu(y - 0.2, inplace=True) + y),
    between("write_first", _written),
    between("write_step", _filled),
    between("new_zeros", _new),
    between("zeros_like", lambda n, y: y + torch.zeros_like(y)),
    between("randn_shape", lambda n, y: y + 0 * torch.ones(y.shape)),
    between("rows", _rows),
    between("comprehension", lambda n, y: sum(y[:, i : i + 1] for i in range(8)) + y),
    between("nested", lambda n, y: (lambda z, k=3: z * k)(y)),
    between("pixel_shuffle", lambda n, y: F.interpolate(F.pixel_shuffle(y, 2), size=(6, 6)).repeat(1, 4, 1, 1)),
    between("pixel_unshuffle", lambda n, y: F.interpolate(F.pixel_unshuffle(y[:, :2], 2), size=(6, 6))),
    between("interpolate_size", lambda n, y: F.interpolate(F.avg_pool2d(y, 2), size=y.shape[-2:])),
    between("interpolate_scale", lambda n, y: F.interpolate(y, scale_factor=2, mode="bilinear")),
    between("unfold", lambda n, y: F.unfold(y, 1).view(y.shape[0], -1, 6, 6)),
    between("pool_channels", lambda n, y: F.max_pool3d(y, (2, 1, 1)).repeat(1, 2, 1, 1)),
    between("lrn", lambda n, y: F.local_response_norm(y, 3)),
    between("grid_sample", lambda n, y: F.grid_sample(y, torch.zeros(y.shape[0], 6, 6, 2), align_corners=False)),
    between(
        "outer_gate",
        lambda n, y: y * torch.sigmoid(n.gate(y.mean((2, 3))))[..., None, None],
        gate=lambda: nn.Linear(8, 8),
    ),
    between("single_gate", lambda n, y: y * torch.sigmoid(n.gate(y)), gate=lambda: nn.Conv2d(8, 1, 1)),
    between("maxout", lambda n, y: n.m(torch.max(y[:, :4], y[:, 4:])), m=lambda: nn.Conv2d(4, 8, 1)),
    between("complex", lambda n, y: torch.fft.fft2(y).abs()),
    between("fft_channels", lambda n, y: torch.fft.fft(y, dim=1).abs()),
    between("diff", lambda n, y: y - torch.cat([y[:, 1:], y[:, :1]], 1)),
    between("bool_sum", lambda n, y: y * (y > 0).sum(1, keepdim=True)),
    between("detach", lambda n, y: y + y.detach()),
    between("to_type", lambda n, y: y.to(torch.float64).to(y.dtype)),
    between("type_as", lambda n, y: y.mean((2, 3)).type_as(y)[..., None, None] * y),
    between("lerp", lambda n, y: torch.lerp(y, y.flip(3), 0.3)),
    between("addcmul", lambda n, y: torch.addcmul(y, y, y, value=0.5)),
    between("kthvalue", lambda n, y: y + y.kthvalue(2, 1, keepdim=True)[0]),
    between("median", lambda n, y: y - y.median(1, keepdim=True)[0]),
    between("cdist", lambda n, y: y + torch.cdist(y.flatten(2), y.flatten(2)).mean((1, 2))[:, None, None, None]),
    between("cosine", lambda n, y: y * F.cosine_similarity(y, y.flip(3), 1)[:, None]),
    whole(
        "cat_resolutions",
        _resolutions,
        pool=lambda: nn.MaxPool2d(2),
        small=lambda: nn.Conv2d(8, 4, 1),
        wide=lambda: nn.Conv2d(8, 4, 1),
    ),
    whole(
        "cat_pooled",
        _pooled,
        pool=lambda: nn.MaxPool2d(2),
        down=lambda: nn.Conv2d(8, 8, 3, 2, 1),
        b=lambda: nn.Conv2d(16, 8, 1),
    ),
    whole(
        "dense",
        _dense,
        layers=lambda: nn.ModuleList([nn.Conv2d(8 + 4 * i, 4, 1) for i in range(3)]),
        out=lambda: nn.Conv2d(20, 8, 1),
    ),
    whole("attention", _attention, qkv=lambda: nn.Linear(8, 24), proj=lambda: nn.Linear(8, 4)),
    whole("heads", _heads, qkv=lambda: nn.Linear(8, 24), proj=lambda: nn.Linear(8, 4)),
]
