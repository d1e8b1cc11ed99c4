"""Networks with unusual operations on tensors between their layers."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.support.modules.base import Case, Net, between, whole


class Double(torch.autograd.Function):
    """Twice its input, with a gradient of its own."""

    @staticmethod
    def forward(ctx: Any, y: Tensor) -> Tensor:
        return y * 2

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return gradients[0] * 2


def _scattered(net: Net, y: Tensor) -> Tensor:
    index = net.order.view(1, -1, 1, 1).expand_as(y)
    return torch.zeros_like(y).scatter(1, index, y)


def _scatter_added(net: Net, y: Tensor) -> Tensor:
    index = (net.order % 4).view(1, -1, 1, 1).expand_as(y)
    return torch.zeros_like(y).scatter_add_(1, index, y)


def _written_rows(net: Net, y: Tensor) -> Tensor:
    y = y.clone()
    y[:, 1:3] += 1
    y[:, ::2].mul_(2)
    return y


def _written_out(net: Net, y: Tensor) -> Tensor:
    z = torch.empty_like(y)
    with torch.no_grad():
        torch.add(y, 1, out=z)
    return z


def _copied_into(net: Net, y: Tensor) -> Tensor:
    z = torch.ones(y.shape[0], 8, 6, 6, dtype=y.dtype)
    z[:, : y.shape[1]].copy_(y)
    return z


def _best(net: Net, y: Tensor) -> Tensor:
    values, places = y.mean((2, 3)).topk(4, 1)
    chosen = y.gather(1, places[:, :, None, None].expand(-1, -1, 6, 6))
    return torch.cat([chosen, chosen * values[..., None, None]], 1)


def _covariance(net: Net, x: Tensor) -> Tensor:
    y = torch.relu(net.a(x)).flatten(2)
    return net.head(net.fc(torch.einsum("bci,bdi->bcd", y, y).flatten(1) / y.shape[2]))


def _triangle(net: Net, x: Tensor) -> Tensor:
    y = torch.relu(net.a(x)).flatten(2)
    rows, columns = torch.triu_indices(8, 8)
    return net.head(net.fc((y @ y.mT)[:, rows, columns]))


def _dynamic(net: Net, y: Tensor) -> Tensor:
    b, c, h, w = y.shape
    weight = net.maker(y.mean((2, 3))).view(b * c, 1, 3, 3)
    return F.conv2d(y.reshape(1, b * c, h, w), weight, padding=1, groups=b * c).view(b, c, h, w)


def _experts(net: Net, y: Tensor) -> Tensor:
    gate = net.gate(y.mean((2, 3))).softmax(-1)
    return torch.einsum("be,bechw->bchw", gate, torch.stack([expert(y) for expert in net.experts], 1))


def _efficient_attention(net: Net, y: Tensor) -> Tensor:
    gate = net.conv(y.mean((2, 3)).unsqueeze(1)).squeeze(1)
    return y * torch.sigmoid(gate)[:, :, None, None]


def _response(net: Net, y: Tensor) -> Tensor:
    energy = y.norm(dim=(2, 3), keepdim=True)
    return y + net.scale.view(1, -1, 1, 1) * y * energy / (energy.mean(1, keepdim=True) + 1e-6)


def _root_mean(net: Net, y: Tensor) -> Tensor:
    return y * torch.rsqrt(y.pow(2).mean(1, keepdim=True) + 1e-6) * net.scale.view(-1, 1, 1)


def _non_local(net: Net, y: Tensor) -> Tensor:
    q, k, v = (layer(y).flatten(2) for layer in net.qkv)
    return y + (v @ torch.softmax(q.mT @ k / math.sqrt(q.shape[1]), -1).mT).view_as(y)


def _unpooled(net: Net, y: Tensor) -> Tensor:
    z, places = F.max_pool2d(y, 2, return_indices=True)
    return F.max_unpool2d(z, places, 2) + y


def _coordinates(net: Net, y: Tensor) -> Tensor:
    column = torch.linspace(-1, 1, y.shape[3]).expand(y.shape[0], 1, y.shape[2], -1).to(y)
    return net.conv(torch.cat([y, column, column.mT], 1))


def _batch_of_halves(net: Net, y: Tensor) -> Tensor:
    b, c, h, w = y.shape
    return net.conv(y.reshape(b * 2, c // 2, h, w)).reshape(b, c, h, w)


def _sequence(net: Net, y: Tensor) -> Tensor:
    out, _ = net.rnn(y.flatten(2).transpose(1, 2))
    return out.transpose(1, 2).unflatten(2, (6, 6))


def _cells(net: Net, y: Tensor) -> Tensor:
    state = torch.zeros(y.shape[0], 8).to(y)
    for column in y.mean(2).unbind(-1):
        state = net.cell(column, state)
    return y * torch.sigmoid(state)[:, :, None, None]


def _gumbel(net: Net, y: Tensor) -> Tensor:
    return y * F.gumbel_softmax(y.mean((2, 3)), dim=1)[..., None, None]


def _drop_path(net: Net, y: Tensor) -> Tensor:
    keep = torch.rand(y.shape[0], 1, 1, 1).to(y) < 0.9 if net.training else 1.0
    return y + net.conv(y) * keep


def _shift(net: Net, y: Tensor) -> Tensor:
    fold = y.shape[1] // 4
    left, right, rest = y[:, :fold].roll(1, 3), y[:, fold : 2 * fold].roll(-1, 3), y[:, 2 * fold :]
    return torch.cat([left, right, rest], 1)


def _pairs(net: Net, y: Tensor) -> Tensor:
    z = torch.view_as_complex(torch.stack(y.chunk(2, 1), -1).contiguous())
    return torch.cat([z.abs(), z.angle()], 1)


def _mixed(net: Net, y: Tensor) -> Tensor:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        z = net.conv(y)
    return z.to(y.dtype)


def _unseen(net: Net, y: Tensor) -> Tensor:
    with torch.no_grad():
        weights = net.conv(y).mean((2, 3), keepdim=True)
    return y * weights


def _as_batch(net: Net, y: Tensor) -> Tensor:
    return net.conv(y.transpose(0, 1).flip(1)).transpose(0, 1)


def _conv(inputs: int = 8, outputs: int = 8) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 1)


SQUARE = (2, 3, 8, 8)  # as high and wide as there are channels
CASES: list[Case] = [
    between("odd_scatter", _scattered, order=lambda: nn.Buffer(torch.randperm(8))),
    between("odd_scatter_add", _scatter_added, order=lambda: nn.Buffer(torch.arange(8))),
    between(
        "odd_index_add",
        lambda n, y: torch.zeros_like(y).index_add(1, n.order, y),
        order=lambda: nn.Buffer(torch.randperm(8)),
    ),
    between(
        "odd_index_copy", lambda n, y: y.index_copy(1, n.order, y[:, :2]), order=lambda: nn.Buffer(torch.tensor([3, 5]))
    ),
    between(
        "odd_index_fill", lambda n, y: y.index_fill(1, n.order, 0.5), order=lambda: nn.Buffer(torch.tensor([3, 5]))
    ),
    between("odd_index_put", lambda n, y: y.clone().index_put_((torch.tensor([0]),), torch.tensor(1.0).to(y))),
    between("odd_take_along", lambda n, y: torch.take_along_dim(y, y.argsort(1), 1)),
    between("odd_masked_scatter", lambda n, y: y.masked_scatter(y > 0.5, y.flip(1))),
    between(
        "odd_boolean_index",
        lambda n, y: torch.cat([y[:, n.mask], y[:, ~n.mask]], 1),
        mask=lambda: nn.Buffer(torch.arange(8) % 3 == 0),
    ),
    between(
        "odd_where_mask",
        lambda n, y: torch.where(n.mask, y, -y),
        mask=lambda: nn.Buffer((torch.arange(8) % 2 == 0)[:, None, None]),
    ),
    between("odd_where_made", lambda n, y: torch.where(torch.arange(y.shape[1])[:, None, None] < 4, y, y * 2)),
    between("odd_write_rows", _written_rows),
    between("odd_write_out", _written_out),
    between("odd_copy_into", _copied_into),
    between("odd_best", _best),
    between("odd_add_range", lambda n, y: y + torch.arange(y.shape[1]).view(-1, 1, 1)),
    between("odd_scale_range", lambda n, y: y * torch.linspace(1, 2, y.shape[1])[:, None, None].to(y)),
    between("odd_coordinates", _coordinates, conv=lambda: _conv(10)),
    between("odd_cumprod", lambda n, y: y.cumprod(1)),
    between("odd_cummax", lambda n, y: y.cummax(1)[0]),
    between("odd_logsumexp", lambda n, y: y - torch.logsumexp(y, 1, keepdim=True)),
    between("odd_softmax_negative", lambda n, y: y * y.softmax(-3)),
    between("odd_softmin", lambda n, y: F.softmin(y, dim=1) * 8),
    between("odd_roll_negative", lambda n, y: y.roll((1, -1), (-3, -1))),
    between("odd_roll_flat", lambda n, y: y.roll(5)),
    between("odd_rot", lambda n, y: torch.rot90(y, 1, (2, 3))),
    between("odd_rot_channels", lambda n, y: torch.rot90(y, 2, (1, 2))),
    between("odd_unfold_channels", lambda n, y: y.unfold(1, 2, 2).mean(-1).repeat(1, 2, 1, 1)),
    between("odd_unfold_space", lambda n, y: y.unfold(3, 3, 1).mean(-1)),
    between("odd_stack_interleave", lambda n, y: n.conv(torch.stack([y, -y], 2).flatten(1, 2)), conv=lambda: _conv(16)),
    between("odd_stack_outer", lambda n, y: n.conv(torch.stack([y, -y], 1).flatten(1, 2)), conv=lambda: _conv(16)),
    between("odd_unbind_last", lambda n, y: torch.stack(y.unbind(-1)[::-1], -1)),
    between("odd_split_thirds", lambda n, y: torch.cat(y.chunk(3, 1)[::-1], 1)),
    between("odd_hsplit", lambda n, y: torch.cat(torch.hsplit(y, 2)[::-1], 1)),
    between("odd_dstack", lambda n, y: torch.hstack([y[:, 4:], y[:, :4]])),
    between("odd_last_half", lambda n, y: torch.cat([y[:, -4:], y[:, :-4]], -3)),
    between("odd_half_of_shape", lambda n, y: torch.cat([y[:, y.shape[1] // 2 :], y[:, : y.shape[1] // 2]], 1)),
    between("odd_negative_step", lambda n, y: y[:, 1:8:3].repeat(1, 3, 1, 1)[:, :8]),
    between("odd_shift", _shift),
    between("odd_squeeze", lambda n, y: y.mean((2, 3), keepdim=True).squeeze()[:, :, None, None] * y),
    between("odd_squeeze_all", lambda n, y: y * y[:, :1].squeeze().unsqueeze(1)),
    between("odd_einsum_ellipsis", lambda n, y: torch.einsum("b...,b...->b...", y, y.flip(3))),
    between(
        "odd_einsum_three",
        lambda n, y: torch.einsum("bchw,c,cd->bdhw", y, n.scale, n.m),
        m=lambda: nn.Parameter(torch.randn(8, 8)),
    ),
    between("odd_einsum_diagonal", lambda n, y: y * torch.einsum("bcc->bc", y.flatten(2)[:, :, :8])[..., None, None]),
    between("odd_einsum_lists", lambda n, y: torch.einsum(y, [0, 1, 2, 3], n.scale, [1], [0, 1, 2, 3])),
    between(
        "odd_bmm",
        lambda n, y: torch.bmm(n.m.expand(y.shape[0], 8, 8), y.flatten(2)).view_as(y),
        m=lambda: nn.Parameter(torch.randn(8, 8)),
    ),
    between("odd_baddbmm", lambda n, y: torch.baddbmm(y[:, 0], y[:, 1], y[:, 2]).unsqueeze(1) + y),
    between("odd_kron", lambda n, y: y * torch.kron(n.scale[:4], torch.ones(2).to(y))[:, None, None]),
    between("odd_cross", lambda n, y: torch.cat([torch.linalg.cross(y[:, :3], y[:, 3:6], dim=1), y[:, :5]], 1)),
    between("odd_cov", lambda n, y: y * torch.cov(y.transpose(0, 1).flatten(1)).diagonal()[:, None, None]),
    between(
        "odd_matrix_inverse",
        lambda n, y: (torch.linalg.inv(n.m) @ y.flatten(2)).view_as(y),
        m=lambda: nn.Parameter(torch.eye(8) + 0.1),
    ),
    between(
        "odd_softmax_matrix",
        lambda n, y: torch.einsum("dc,bchw->bdhw", n.m.softmax(-1), y),
        m=lambda: nn.Parameter(torch.randn(8, 8)),
    ),
    between(
        "odd_outer_parameter",
        lambda n, y: F.conv2d(y, (n.u[:, None] * n.v)[..., None, None]),
        u=lambda: nn.Parameter(torch.randn(8)),
        v=lambda: nn.Parameter(torch.randn(8)),
    ),
    whole("odd_covariance", _covariance, fc=lambda: nn.Linear(64, 4)),
    whole("odd_triangle", _triangle, fc=lambda: nn.Linear(36, 4)),
    between("odd_dynamic", _dynamic, maker=lambda: nn.Linear(8, 72)),
    between("odd_hyper", lambda n, y: F.conv2d(y, n.maker(n.scale).view(8, 8, 1, 1)), maker=lambda: nn.Linear(8, 64)),
    between(
        "odd_experts",
        _experts,
        gate=lambda: nn.Linear(8, 3),
        experts=lambda: nn.ModuleList([_conv() for _ in range(3)]),
    ),
    between("odd_eca", _efficient_attention, conv=lambda: nn.Conv1d(1, 1, 3, padding=1)),
    between("odd_grn", _response),
    between("odd_rms", _root_mean),
    between("odd_non_local", _non_local, qkv=lambda: nn.ModuleList([_conv(), _conv(), _conv()])),
    between("odd_maxout_view", lambda n, y: y.view(y.shape[0], -1, 2, 6, 6).amax(2).repeat(1, 2, 1, 1)),
    between("odd_unpool", _unpooled),
    between("odd_batch_halves", _batch_of_halves, conv=lambda: _conv(4, 4)),
    between("odd_lstm", _sequence, rnn=lambda: nn.LSTM(8, 4, bidirectional=True, batch_first=True)),
    between("odd_lstm_projected", _sequence, rnn=lambda: nn.LSTM(8, 16, proj_size=8, batch_first=True)),
    between("odd_gru", _sequence, rnn=lambda: nn.GRU(8, 8, 2, batch_first=True)),
    between(
        "odd_rnn_channels", lambda n, y: n.rnn(y.flatten(2))[0].view_as(y), rnn=lambda: nn.RNN(36, 36, batch_first=True)
    ),
    between("odd_cells", _cells, cell=lambda: nn.GRUCell(8, 8)),
    between(
        "odd_mha",
        lambda n, y: n.mha(*[y.flatten(2).mT] * 3)[0].mT.reshape(y.shape),
        mha=lambda: nn.MultiheadAttention(8, 2, batch_first=True),
    ),
    between("odd_gumbel", _gumbel),
    between("odd_rand", lambda n, y: y + 0.1 * torch.rand_like(y)),
    between("odd_dropout_always", lambda n, y: F.dropout(y, 0.2)),
    between("odd_drop_path", _drop_path, conv=_conv),
    between("odd_complex_pairs", _pairs),
    between(
        "odd_complex_parameter",
        lambda n, y: (y * n.w).real,
        w=lambda: nn.Parameter(torch.randn(8, 1, 1, dtype=torch.complex64)),
    ),
    between("odd_polar", lambda n, y: torch.polar(y.abs(), y).imag),
    between(
        "odd_rfft_gate",
        lambda n, y: torch.fft.irfft2(torch.fft.rfft2(y) * n.w, s=(6, 6)),
        w=lambda: nn.Parameter(torch.randn(8, 6, 4)),
    ),
    between("odd_half", lambda n, y: y.half().to(y.dtype)),
    between(
        "odd_view_bits",
        lambda n, y: y.contiguous().view(torch.int32 if y.dtype is torch.float32 else torch.int64).to(y.dtype) * 1e-9,
    ),
    between("odd_integers", lambda n, y: (y * 10).long() / 10),
    between("odd_autocast", _mixed, conv=_conv),
    between("odd_no_grad", _unseen, conv=_conv),
    between("odd_function", lambda n, y: Double.apply(y)),
    between("odd_transpose_batch", _as_batch, conv=lambda: nn.Identity()),
    between("odd_negative_pad", lambda n, y: F.pad(y, (0, 0, 0, 0, -1, 1))),
    between(
        "odd_circular_pad", lambda n, y: F.pad(y.unsqueeze(1), (0, 0, 0, 0, 1, 1), mode="circular").squeeze(1)[:, :8]
    ),
    between("odd_pool_over_channels", lambda n, y: F.avg_pool1d(y.flatten(2).mT, 2).mT.repeat(1, 2, 1).view_as(y)),
    between(
        "odd_interpolate_channels",
        lambda n, y: F.interpolate(y.flatten(2).mT, size=8, mode="linear").mT.reshape(y.shape),
    ),
    between("odd_fractional", lambda n, y: F.adaptive_max_pool2d(y, 3, return_indices=True)[0]),
    between(
        "odd_affine",
        lambda n, y: F.grid_sample(
            y, F.affine_grid(n.theta.expand(y.shape[0], 2, 3), y.shape, align_corners=False), align_corners=False
        ),
        theta=lambda: nn.Parameter(torch.eye(2, 3)),
    ),
    between("odd_quantile", lambda n, y: y - y.quantile(0.5, dim=1, keepdim=True)),
    between(
        "odd_bucketize",
        lambda n, y: n.table.weight[torch.bucketize(y.mean((2, 3)), n.edges)].sum(-1)[..., None, None] * y,
        table=lambda: nn.Embedding(4, 8),
        edges=lambda: nn.Buffer(torch.tensor([0.1, 0.2, 0.5])),
    ),
    between("odd_nan_to_num", lambda n, y: (y / y).nan_to_num(0.5) + y),
    between("odd_python_operators", lambda n, y: abs(-((1 - y) ** 2)) + 2**y / 3 + y % 1),
    between("odd_unique", lambda n, y: y * y.unique().numel()),
    between("odd_nonzero", lambda n, y: y * (y > 0).nonzero().shape[0]),
    between("odd_item", lambda n, y: y * y.mean().item()),
    between("odd_vmap", lambda n, y: torch.vmap(lambda z: z * 2)(y)),
    between("odd_vmap_channels", lambda n, y: torch.vmap(lambda z: z - z.mean(), in_dims=1, out_dims=1)(y)),
    whole("odd_square_vector", lambda n, x: n.tail((y := torch.relu(n.a(x))) * y.mean((0, 2, 3))), SQUARE),
    whole("odd_square_scale", lambda n, x: n.tail(torch.relu(n.a(x)) * n.scale), SQUARE),
    whole(
        "odd_square_matmul",
        lambda n, x: n.tail(torch.relu(n.a(x)) @ n.m),
        SQUARE,
        m=lambda: nn.Parameter(torch.randn(8, 8)),
    ),
    whole("odd_square_transpose", lambda n, x: n.tail(torch.relu(n.a(x)).transpose(1, 2)), SQUARE),
    whole("odd_square_linear", lambda n, x: n.tail(n.fc(torch.relu(n.a(x)))), SQUARE, fc=lambda: nn.Linear(8, 8)),
    whole("odd_square_norm", lambda n, x: n.tail(F.layer_norm(n.a(x), (8, 8))), SQUARE),
    whole("odd_square_both", lambda n, x: n.tail((y := n.a(x)) + y.transpose(1, 3)), SQUARE),
]
