"""Networks as people write them: recurrent layers, einsum, extremes, places, and weights of their own."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.support.modules.base import Case


class Written(nn.Module):
    """Layers by name, and a forward pass that reads them."""

    def __init__(self, forward: Any, **parts: Any) -> None:
        super().__init__()
        self.run = forward
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, x: Tensor) -> Any:
        """Return what the function gives."""
        return self.run(self, x)


def weight(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(shape) * 0.3)


def _last_state(net: Any, x: Tensor) -> Tensor:
    _, (h, _) = net.rnn(x)
    return net.head(torch.cat((h[-2], h[-1]), 1))


def _first_state(net: Any, x: Tensor) -> Tensor:
    zeros = torch.zeros(net.layers, x.size(0), net.hidden).to(x.device)
    return net.head(net.rnn(x, zeros)[0][:, -1])


def _handed_on(net: Any, x: Tensor) -> Tensor:
    _, state = net.encoder(x)
    return net.head(net.decoder(x.flip(1), state)[0])


def _cells(net: Any, x: Tensor) -> Tensor:
    h, c = torch.zeros(x.size(0), 10), x.new_zeros(x.size(0), 10)
    for step in x.unbind(1):
        h, c = net.cell(net.read(step), (h, c))
    return net.head(h)


def _by_hand(net: Any, x: Tensor) -> Tensor:
    h = x.new_zeros(x.size(0), net.hidden)
    for step in x.unbind(1):
        z, n = (net.read(step) + net.back(h)).chunk(2, 1)
        h = torch.sigmoid(z) * h + (1 - torch.sigmoid(z)) * torch.tanh(n)
    return net.head(h)


def _experts(net: Any, x: Tensor) -> Tensor:
    h = torch.relu(torch.einsum("btd,edh->bteh", net.read(x), net.up))
    y = torch.einsum("bteh,ehd->bted", h, net.down)
    return net.head((y * net.gate(x).softmax(-1).unsqueeze(-1)).sum(2).amax(1))


def _own_weights(net: Any, x: Tensor) -> Tensor:
    y = torch.relu(x @ net.first + net.bias)
    y = F.linear(y, net.second * net.scale)
    square = torch.matmul(y.pow(2), net.third.pow(2).t())
    return net.head(torch.relu(square).mean(1))


def _graph(net: Any, x: Tensor) -> Tensor:
    h = net.read(x)
    message = torch.relu(net.edge(torch.cat([h[:, net.source], h[:, net.target]], -1)))
    total = torch.zeros(x.shape[0], x.shape[1], message.shape[-1]).index_add(1, net.target, message)
    places = net.target.view(1, -1, 1).expand_as(message)
    return net.head((h + total + torch.zeros_like(h).scatter_add(1, places, message)).max(dim=1).values)


def _extremes(net: Any, x: Tensor) -> Tensor:
    x = net.conv(x.transpose(1, 2))
    a, b = torch.split(x, x.size(1) // 2, 1)
    x = torch.max(a, b)
    top, _ = torch.max(x, dim=1, keepdim=True)
    x = F.glu(net.wide(x * torch.sigmoid(top)), dim=1)
    return net.head(torch.where(x > 0, x, x.expm1()).max(dim=-1)[0])


def _data(net: Any, x: Tensor) -> Tensor:
    x = torch.relu(net.conv(x.transpose(1, 2)))
    batch, channels, length = x.data.size()
    return net.head(x.view(batch, channels, length).mean(-1))


def _pairs(net: Any, x: Tensor) -> Tensor:
    y = net.read(x)
    return net.head((y @ y.transpose(1, 2))[:, net.row, net.column])


def _shared_table(net: Any, x: Tensor) -> Tensor:
    y = net.table(x[:, :, 0].abs().long().clamp(max=6))
    return F.linear(F.layer_norm(y + net.up(torch.relu(net.down(y))), (12,)), net.table.weight)


def _masked_in_place(net: Any, x: Tensor) -> Tensor:
    y = torch.relu(net.read(x))
    net.second.data *= net.mask
    net.third.data.clamp_(-0.5, 0.5)
    return net.head(torch.relu(F.linear(F.linear(y, net.second), net.third)).mean(1))


def _written_where(net: Any, x: Tensor) -> Tensor:
    absent = x[..., 0] > 0.5
    y = net.read(x)
    y[absent] = net.token
    y[y > 1] = 1.0
    y = torch.relu(net.up(y)).clone()
    y[absent] = 0
    score = net.gate(y).squeeze(-1)
    score[absent] = float("-inf")
    return net.head((y * score.softmax(1).unsqueeze(-1)).sum(1))


def _features(net: Any, x: Tensor) -> Tensor:
    tokens = x[:, 0, :, None] * net.scales[None] + net.offsets[None]
    tokens = torch.cat([net.token.expand(x.shape[0], -1, -1), tokens], 1)
    return net.head(tokens[:, 0] + net.down(torch.relu(net.up(tokens))).mean(1))


def _constants(net: Any, x: Tensor) -> Tensor:
    batch, length, _ = x.shape
    turn = torch.eye(length)[None].expand(batch, -1, -1)
    empty = turn.detach().new_zeros(batch, 1, length)
    rows, columns = torch.tril_indices(length, length, -1)
    y = torch.cat([turn, empty], 1) @ net.read(x)
    return net.head((torch.relu(y[:, rows]) * y[:, columns]).mean(1))


def _split_attention(net: Any, x: Tensor) -> Tensor:
    y = torch.relu(net.two(net.read(x.transpose(1, 2))))
    batch, channels, length = y.shape
    y = y.reshape(batch, 2, channels // 2, length)
    scores = net.back(torch.relu(net.squeeze(y.sum(1).mean(-1, keepdim=True))))
    scores = scores.view(batch, 1, 2, -1).transpose(1, 2).softmax(1).reshape(batch, -1)
    return net.head((y * scores.reshape(batch, 2, channels // 2, 1)).sum(1).mean(-1))


def _linear_attention(net: Any, x: Tensor) -> Tensor:
    x = net.read(x)
    q, k, v = (part.unflatten(-1, (4, -1)) for part in net.qkv(x).chunk(3, -1))
    q, k = F.elu(q) + 1, F.elu(k) + 1
    scale = 1 / torch.einsum("bthd,bhd->bth", q, k.sum(1))
    y = torch.einsum("bthd,bhde,bth->bthe", q, torch.einsum("bthd,bthe->bhde", k, v), scale)
    return net.head((x + net.out(y.flatten(2))).mean(1))


def _networks() -> dict[str, Any]:
    rows, columns = torch.tril_indices(6, 6, -1)
    edges = {"source": torch.tensor([0, 1, 2, 3, 4, 5, 0]), "target": torch.tensor([1, 2, 3, 4, 5, 0, 3])}
    linear = nn.Linear
    return {
        "lstm": (_last_state, {"rnn": nn.LSTM(5, 9, 2, batch_first=True, bidirectional=True), "head": linear(18, 3)}),
        "gru_state": (
            _first_state,
            {"rnn": nn.GRU(5, 10, 2, batch_first=True), "head": linear(10, 3), "layers": 2, "hidden": 10},
        ),
        "seq2seq": (
            _handed_on,
            {
                "encoder": nn.LSTM(5, 8, batch_first=True),
                "decoder": nn.LSTM(5, 8, batch_first=True),
                "head": linear(8, 5),
            },
        ),
        "lstm_cells": (_cells, {"read": linear(5, 8), "cell": nn.LSTMCell(8, 10), "head": linear(10, 3)}),
        "gru_by_hand": (
            _by_hand,
            {"read": linear(5, 20), "back": linear(10, 20, bias=False), "head": linear(10, 3), "hidden": 10},
        ),
        "expert_weights": (
            _experts,
            {
                "read": linear(5, 8),
                "up": weight(3, 8, 12),
                "down": weight(3, 12, 8),
                "gate": linear(5, 3),
                "head": linear(8, 3),
            },
        ),
        "own_weights": (
            _own_weights,
            {
                "first": weight(5, 12),
                "bias": weight(12),
                "second": weight(10, 12),
                "third": weight(8, 10),
                "scale": 1 / math.sqrt(12),
                "head": linear(8, 3),
            },
        ),
        "graph": (_graph, {"read": linear(5, 8), "edge": linear(16, 8), "head": linear(8, 3), **edges}),
        "extremes": (_extremes, {"conv": nn.Conv1d(5, 24, 3), "wide": nn.Conv1d(12, 20, 1), "head": linear(10, 3)}),
        "data": (_data, {"conv": nn.Conv1d(5, 12, 3), "head": linear(12, 3)}),
        "pairs": (
            _pairs,
            {
                "read": linear(5, 12),
                "head": nn.Sequential(linear(15, 12), nn.ReLU(), linear(12, 3)),
                "row": rows,
                "column": columns,
            },
        ),
        "masked_in_place": (
            _masked_in_place,
            {
                "read": linear(5, 16),
                "second": weight(12, 16),
                "third": weight(10, 12),
                "mask": (torch.rand(12, 16) < 0.6).float(),
                "head": linear(10, 3),
            },
        ),
        "where": (
            _written_where,
            {
                "read": linear(5, 12),
                "token": weight(12),
                "up": linear(12, 16),
                "gate": linear(16, 1),
                "head": linear(16, 3),
            },
        ),
        "features": (
            _features,
            {
                "scales": weight(5, 12),
                "offsets": weight(5, 12),
                "token": weight(1, 1, 12),
                "up": linear(12, 16),
                "down": linear(16, 12),
                "head": linear(12, 3),
            },
        ),
        "split_attention": (
            _split_attention,
            {
                "read": nn.Conv1d(5, 12, 1),
                "two": nn.Conv1d(12, 16, 3, groups=2),
                "squeeze": nn.Conv1d(8, 6, 1),
                "back": nn.Conv1d(6, 16, 1),
                "head": linear(8, 3),
            },
        ),
        "linear_attention": (
            _linear_attention,
            {"read": linear(5, 16), "qkv": linear(16, 48), "out": linear(16, 16), "head": linear(16, 3)},
        ),
        "constants": (_constants, {"read": linear(5, 12), "head": linear(12, 3)}),
        "shared_table": (_shared_table, {"table": nn.Embedding(7, 12), "up": linear(16, 12), "down": linear(12, 16)}),
    }


_BUFFERS = ("source", "target", "row", "column", "mask")


def _make(name: str) -> nn.Module:
    forward, parts = _networks()[name]
    network = Written(forward, **{k: v for k, v in parts.items() if k not in _BUFFERS})
    for key in _BUFFERS:
        if key in parts:
            network.register_buffer(key, parts[key])
    return network


CASES = [Case(f"written_{name}", lambda name=name: _make(name), example=(2, 6, 5)) for name in _networks()]
