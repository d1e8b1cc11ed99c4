"""Networks of unusual layers, of layers that share or are replaced, and of inputs that are no images."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune

from tests.support.modules.base import Case, Net, between, whole


class Wrapped(nn.Module):
    """A layer behind attributes, keyword arguments or a mode."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor, scale: float = 1.0, *, shift: float = 0.0) -> Tensor:
        return self.layer(x) * scale + shift


class Two(nn.Module):
    """Of two inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return torch.relu(self.one(x) + self.two(y))


class OwnConv(nn.Conv2d):
    """A subclass with a forward pass of its own."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) / self.out_channels


class Standardised(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return F.conv2d(x, weight, self.bias, self.stride, self.padding)


class Doubled(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * 2


class Table(nn.Module):
    """Positions added to a sequence, a token in front of it."""

    def __init__(self, mode: str) -> None:
        super().__init__()
        self.embed, self.mode = nn.Embedding(20, 8), mode
        self.position, self.token = nn.Parameter(torch.randn(1, 6, 8)), nn.Parameter(torch.randn(1, 1, 8))
        self.norm, self.up, self.down = nn.LayerNorm(8), nn.Linear(8, 16), nn.Linear(16, 8)
        self.rnn = nn.GRU(8, 8, batch_first=True)
        self.lstm = nn.LSTM(8, 4, batch_first=True, bidirectional=True)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.conv, self.head = nn.Conv1d(8, 8, 3, padding=1), nn.Linear(8, 3)
        self.out = nn.Linear(8, 20, bias=False)
        self.bag = nn.EmbeddingBag(20, 8)

    def forward(self, x: Tensor) -> Tensor:
        y = self.embed(x)
        if self.mode == "tied":
            return self.out(self.down(F.gelu(self.up(y)))).mean(1)
        if self.mode == "tied_function":
            return F.linear(y + self.down(F.gelu(self.up(y))), self.embed.weight).mean(1)
        if self.mode == "bag":
            return self.head(self.down(torch.relu(self.up(self.bag(x)))))
        if self.mode == "position":
            y = torch.cat([self.token.expand(y.shape[0], -1, -1), y + self.position], 1)
        elif self.mode == "gru":
            y = self.rnn(y)[0]
        elif self.mode == "lstm":
            y = self.lstm(y)[0]
        elif self.mode == "attention":
            y = y + self.attention(y, y, y, need_weights=False)[0]
        elif self.mode == "encoder":
            y = self.layer(y)
        elif self.mode == "conv":
            y = self.conv(y.transpose(1, 2)).transpose(1, 2)
        elif self.mode == "one_hot":
            y = F.one_hot(x, 20).float() @ self.embed.weight
        elif self.mode == "scaled":
            y = y * self.embed.embedding_dim**0.5
        y = y + self.down(F.gelu(self.up(self.norm(y))))
        return self.head(y.mean(1))


def _tied() -> nn.Module:
    net = Table("tied")
    net.out.weight = net.embed.weight
    return net


def _net(change: Any) -> Any:
    def make() -> nn.Module:
        net = Net(None, None, {})
        change(net)
        return net

    return make


def _hooked(net: Net) -> None:
    net.a.register_forward_hook(lambda module, args, out: out * module.out_channels / 8)


def _pre_hooked(net: Net) -> None:
    net.b.register_forward_pre_hook(lambda module, args: (args[0] * args[0].shape[1],))


def _replaced(net: Net) -> None:
    plain = net.b.forward
    net.b.forward = lambda x: plain(x) / 2  # type: ignore[method-assign]


def _replaced_width(net: Net) -> None:
    weight = net.b
    net.b.forward = lambda x: F.conv2d(x, weight.weight) / weight.in_channels  # type: ignore[method-assign]


def _shared_weight(net: Net) -> None:
    net.b = nn.Conv2d(8, 8, 1)
    net.c = nn.Sequential(nn.Conv2d(8, 8, 1), nn.Conv2d(8, 4, 1))  # type: ignore[assignment]
    net.c[0].weight = net.b.weight


def _shared_bias(net: Net) -> None:
    net.b.bias = net.a.bias


def _shared_module(net: Net) -> None:
    net.b = nn.Sequential(net.b, nn.ReLU(), net.b)  # type: ignore[assignment]


def _two_names(net: Net) -> None:
    net.again = net.b
    net.whole = lambda n, x: n.head(n.c(n.again(torch.relu(n.b(n.a(x))))).mean((2, 3)))


def _scale_shared(net: Net) -> None:
    net.norm.weight = net.scale


def _frozen(net: Net) -> None:
    net.a.weight.requires_grad_(False)


def _parametrized(net: Net) -> None:
    parametrize.register_parametrization(net.b, "weight", Doubled())


def _auxiliary(net: Net, x: Tensor) -> Any:
    y = torch.relu(net.a(x))
    if net.training:
        return net.tail(y), net.aux(y).mean((2, 3))
    return net.tail(y)


def _training_scale(net: Net, x: Tensor) -> Tensor:
    y = torch.relu(net.a(x))
    return net.tail(y / y.shape[1] if net.training else y)


def _training_norm(net: Net, x: Tensor) -> Tensor:
    y = net.a(x)
    y = F.batch_norm(y, net.norm.running_mean, net.norm.running_var, net.norm.weight, net.norm.bias, net.training)
    return net.tail(torch.relu(F.dropout(y, 0.3, net.training)))


def _flat(net: Net, x: Tensor) -> Tensor:
    return net.head(net.fc(torch.relu(net.a(x)).flatten(1)))


def _unbatched(net: Net, x: Tensor) -> Tensor:
    y = torch.relu(net.a(x))
    return net.tail(torch.stack([net.pool(y[0]), net.pool(y[1])]))


def _loop(net: Net, x: Tensor) -> Tensor:
    y = net.a(x)
    for name in net.steps:
        y = torch.relu(net.layers[name](y)) + y
    return net.tail(y)


def _layer(name: str, make: Any) -> Case:
    return between(f"layer_{name}", lambda n, y: n.layer(y), layer=make)


CASES: list[Case] = [
    *(
        _layer(name, make)
        for name, make in {
            "depthwise": lambda: nn.Conv2d(8, 8, 3, padding=1, groups=8),
            "grouped": lambda: nn.Conv2d(8, 8, 1, groups=4),
            "grouped_wide": lambda: nn.Conv2d(8, 8, 3, padding=1, groups=2),
            "multiplied": lambda: nn.Sequential(nn.Conv2d(8, 16, 1, groups=8), nn.Conv2d(16, 8, 1)),
            "transposed": lambda: nn.Sequential(nn.ConvTranspose2d(8, 6, 2, 2), nn.Conv2d(6, 8, 1)),
            "transposed_grouped": lambda: nn.ConvTranspose2d(8, 8, 2, 2, groups=4),
            "dilated": lambda: nn.Conv2d(8, 8, 3, padding=2, dilation=2),
            "circular": lambda: nn.Conv2d(8, 8, 3, padding=1, padding_mode="circular"),
            "same": lambda: nn.Conv2d(8, 8, 3, padding="same"),
            "even": lambda: nn.Conv2d(8, 8, (2, 4), padding=1),
            "groupnorm": lambda: nn.GroupNorm(4, 8),
            "groupnorm_one": lambda: nn.GroupNorm(1, 8),
            "groupnorm_all": lambda: nn.GroupNorm(8, 8),
            "groupnorm_plain": lambda: nn.GroupNorm(2, 8, affine=False),
            "instancenorm": lambda: nn.InstanceNorm2d(8, affine=True),
            "instancenorm_tracked": lambda: nn.InstanceNorm2d(8, track_running_stats=True),
            "layernorm_space": lambda: nn.LayerNorm((6, 6)),
            "layernorm_all": lambda: nn.LayerNorm((8, 6, 6)),
            "batchnorm_plain": lambda: nn.BatchNorm2d(8, affine=False),
            "batchnorm_batch": lambda: nn.BatchNorm2d(8, track_running_stats=False),
            "lrn": lambda: nn.LocalResponseNorm(3),
            "prelu": lambda: nn.PReLU(8),
            "prelu_one": lambda: nn.PReLU(),
            "softmax2d": lambda: nn.Softmax2d(),
            "dropout2d": lambda: nn.Dropout2d(0.5),
            "channelshuffle": lambda: nn.ChannelShuffle(2),
            "pixelshuffle": lambda: nn.Sequential(nn.PixelShuffle(2), nn.Conv2d(2, 8, 1)),
            "pixelunshuffle": lambda: nn.Sequential(nn.PixelUnshuffle(2), nn.Conv2d(32, 8, 1)),
            "upsample": lambda: nn.Upsample(scale_factor=2),
            "padding": lambda: nn.ReflectionPad2d(1),
            "flatten": lambda: nn.Sequential(nn.Flatten(2), nn.Unflatten(2, (6, 6))),
            "unflatten": lambda: nn.Sequential(nn.Unflatten(1, (2, 4)), nn.Flatten(1, 2)),
            "identity": lambda: nn.Identity(),
            "glu": lambda: nn.Sequential(nn.Conv2d(8, 16, 1), nn.GLU(1)),
            "pool3d": lambda: nn.AvgPool3d((1, 2, 2)),
            "pad3d": lambda: nn.ConstantPad3d((0, 0, 0, 0, 0, 0), 1.0),
            "adaptive": lambda: nn.AdaptiveAvgPool2d(3),
            "maxpool": lambda: nn.MaxPool2d(2),
            "lppool": lambda: nn.LPPool2d(2, 2),
            "wrapped": lambda: Wrapped(nn.Conv2d(8, 8, 1)),
            "own": lambda: OwnConv(8, 8, 1),
            "standardised": lambda: Standardised(8, 8, 1),
            "weight_norm": lambda: parametrizations.weight_norm(nn.Conv2d(8, 8, 1)),
            "weight_norm_hook": lambda: nn.utils.weight_norm(nn.Conv2d(8, 8, 1)),
            "spectral_norm": lambda: parametrizations.spectral_norm(nn.Conv2d(8, 8, 1)),
            "spectral_norm_hook": lambda: nn.utils.spectral_norm(nn.Conv2d(8, 8, 1)),
            "orthogonal": lambda: parametrizations.orthogonal(nn.Conv2d(8, 8, 1)),
            "pruned": lambda: prune.l1_unstructured(nn.Conv2d(8, 8, 1), "weight", 0.5),
            "pruned_structured": lambda: prune.ln_structured(nn.Conv2d(8, 8, 1), "weight", 0.5, n=2, dim=0),
        }.items()
    ),
    *(
        Case(f"net_{f.__name__.strip('_')}", _net(f))
        for f in (
            _hooked,
            _pre_hooked,
            _replaced,
            _replaced_width,
            _shared_weight,
            _shared_bias,
            _shared_module,
            _two_names,
            _scale_shared,
            _frozen,
            _parametrized,
        )
    ),
    *(
        Case(f"tokens_{mode}", lambda mode=mode: Table(mode), (2, 6), 20)
        for mode in (
            "plain",
            "tied_function",
            "bag",
            "position",
            "gru",
            "lstm",
            "attention",
            "encoder",
            "conv",
            "one_hot",
            "scaled",
        )
    ),
    Case("tokens_tied", _tied, (2, 6), 20),
    between("keyword_call", lambda n, y: n.layer(y, scale=2.0, shift=1.0), layer=lambda: Wrapped(nn.Conv2d(8, 8, 1))),
    between("keyword_input", lambda n, y: n.layer(input=y), layer=lambda: nn.Conv2d(8, 8, 1)),
    between("keyword_relu", lambda n, y: n.layer(input=y), layer=lambda: nn.ReLU()),
    between("two_inputs", lambda n, y: n.layer(y, n.b(y)), layer=Two),
    between("two_alike", lambda n, y: n.layer(y, y), layer=Two),
    between(
        "bilinear",
        lambda n, y: n.layer(y.movedim(1, 3), y.movedim(1, 3)).movedim(3, 1),
        layer=lambda: nn.Bilinear(8, 8, 8),
    ),
    between("attribute_of_removed", lambda n, y: n.layer(y) / n.layer.groups, layer=lambda: nn.Conv2d(8, 8, 1)),
    between("stride_of_removed", lambda n, y: n.layer(y)[:, :, :: n.layer.stride[0]], layer=lambda: nn.Conv2d(8, 8, 1)),
    between("slope_of_removed", lambda n, y: n.layer(y) * n.layer.negative_slope, layer=lambda: nn.LeakyReLU(0.2)),
    between("weight_of_removed", lambda n, y: n.layer(y) + n.layer.bias.mean(), layer=lambda: nn.Conv2d(8, 8, 1)),
    between("eps_of_norm", lambda n, y: n.layer(y) + n.layer.eps, layer=lambda: nn.BatchNorm2d(8)),
    between(
        "layer_scale",
        lambda n, y: y + n.gamma[:, None, None] * n.layer(y),
        layer=lambda: nn.Conv2d(8, 8, 1),
        gamma=lambda: nn.Parameter(torch.full((8,), 1e-9)),
    ),
    between(
        "zero_gamma", lambda n, y: y + n.layer(n.b(y)) / n.a.out_channels, layer=lambda: _zeroed(nn.BatchNorm2d(8))
    ),
    between("dead", lambda n, y: y + torch.relu(n.layer(y) - 100) / n.a.out_channels, layer=lambda: nn.Conv2d(8, 8, 1)),
    between("buffer", lambda n, y: y * n.table, table=lambda: nn.Buffer(torch.rand(8, 1, 1))),
    between("buffer_flat", lambda n, y: y - n.table.view(1, -1, 1, 1), table=lambda: nn.Buffer(torch.rand(8))),
    between("tensor_attribute", lambda n, y: y * n.table, table=lambda: torch.rand(8, 1, 1)),
    between("permutation", lambda n, y: y[:, n.order], order=lambda: nn.Buffer(torch.randperm(8))),
    between("mask_buffer", lambda n, y: y * n.mask, mask=lambda: nn.Buffer((torch.rand(8, 1, 1) > 0.5).float())),
    between("tensor_made", lambda n, y: y * torch.tensor([1.0, 2, 3, 4, 5, 6, 7, 8])[:, None, None]),
    between(
        "sequential_index",
        lambda n, y: n.layers[1](n.layers[0](y)),
        layers=lambda: nn.Sequential(nn.Conv2d(8, 8, 1), nn.ReLU()),
    ),
    whole(
        "module_dict",
        _loop,
        layers=lambda: nn.ModuleDict({k: nn.Conv2d(8, 8, 1) for k in "pq"}),
        steps=lambda: ["p", "q", "p"],
    ),
    whole(
        "parameter_list",
        lambda n, x: n.tail(sum((p[:, None, None] * n.a(x) for p in n.ps), n.a(x))),
        ps=lambda: nn.ParameterList([torch.rand(8), torch.rand(8)]),
    ),
    whole("auxiliary", _auxiliary, aux=lambda: nn.Conv2d(8, 3, 1)),
    whole("training_scale", _training_scale),
    whole("training_norm", _training_norm),
    whole("flat", _flat, fc=lambda: nn.Linear(288, 4)),
    whole("flat_literal", lambda n, x: n.head(n.fc(n.a(x).view(-1, 8 * 36))), fc=lambda: nn.Linear(288, 4)),
    whole("unbatched", _unbatched, pool=lambda: nn.MaxPool2d(2)),
    whole("argmax_output", lambda n, x: n.tail(n.a(x) / n.a.out_channels).argmax(1)),
    whole("dict_output", lambda n, x: {"logits": n.tail(n.a(x)), "features": [n.c(n.a(x))]}),
    whole("softmax_output", lambda n, x: (n.tail(n.a(x) * 100) * 1e4).softmax(-1)),
    whole(
        "conv1d",
        lambda n, x: n.head(n.q(torch.relu(n.n1(n.p(x)))).mean(2)),
        (2, 3, 9),
        p=lambda: nn.Conv1d(3, 8, 3),
        n1=lambda: nn.BatchNorm1d(8),
        q=lambda: nn.Conv1d(8, 4, 3),
    ),
    whole(
        "conv3d",
        lambda n, x: n.head(n.q(torch.relu(n.n3(n.p(x)))).mean((2, 3, 4))),
        (2, 3, 4, 4, 4),
        p=lambda: nn.Conv3d(3, 8, 3),
        n3=lambda: nn.BatchNorm3d(8),
        q=lambda: nn.Conv3d(8, 4, 1),
    ),
    whole("pool_rank", lambda n, x: n.head(F.max_pool1d(n.p(x), 2)), (2, 3), p=lambda: nn.Linear(3, 8)),
    whole(
        "norm_rank",
        lambda n, x: n.head(n.q(n.n1(n.p(x)))),
        (2, 5, 3),
        p=lambda: nn.Linear(3, 8),
        n1=lambda: nn.BatchNorm1d(5),
        q=lambda: nn.Linear(8, 4),
    ),
    whole(
        "rank_2",
        lambda n, x: n.head(n.q(torch.relu(n.n1(n.p(x))))),
        (4, 3),
        p=lambda: nn.Linear(3, 8),
        n1=lambda: nn.BatchNorm1d(8),
        q=lambda: nn.Linear(8, 4),
    ),
    whole(
        "torch_encoder",
        lambda n, x: n.head(n.q(n.encoder(n.p(x))).mean(1)),
        (2, 5, 3),
        p=lambda: nn.Linear(3, 8),
        encoder=lambda: nn.TransformerEncoder(_block(nn.TransformerEncoderLayer, activation="gelu"), 2),
        q=lambda: nn.Linear(8, 4),
    ),
    whole(
        "torch_encoder_layer",
        lambda n, x: n.head(n.q(n.block(n.p(x), src_key_padding_mask=x[..., 0] > 1)).mean(1)),
        (2, 5, 3),
        p=lambda: nn.Linear(3, 8),
        block=lambda: _block(nn.TransformerEncoderLayer, norm_first=True),
        q=lambda: nn.Linear(8, 4),
    ),
    whole(
        "torch_decoder",
        lambda n, x: n.head(n.q(n.decoder(n.p(x), n.p(x.flip(1)))).mean(1)),
        (2, 5, 3),
        p=lambda: nn.Linear(3, 8),
        decoder=lambda: nn.TransformerDecoder(_block(nn.TransformerDecoderLayer), 2),
        q=lambda: nn.Linear(8, 4),
    ),
    whole(
        "rank_4_linear",
        lambda n, x: n.head(n.q(torch.relu(n.p(x))).mean((1, 2))),
        (2, 4, 4, 3),
        p=lambda: nn.Linear(3, 8),
        q=lambda: nn.Linear(8, 4),
    ),
]


def _zeroed(norm: nn.BatchNorm2d) -> nn.BatchNorm2d:
    nn.init.zeros_(norm.weight)
    return norm


def _block(kind: Any, **settings: Any) -> nn.Module:
    return kind(8, 2, 16, dropout=0.0, batch_first=True, **settings)  # type: ignore[no-any-return]
