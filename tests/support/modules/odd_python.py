"""Networks that do with Python and with parameters what most networks do not."""

from __future__ import annotations

import functools
import types
import warnings
import weakref
from collections import OrderedDict
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from tests.support.modules.base import Case, Net, between, whole


class Negative(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return -weight


def _conv(inputs: int = 8, outputs: int = 8) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 1)


def _net(change: Any, forward: Any = None) -> Any:
    def make() -> nn.Module:
        net = Net(forward, None, {})
        change(net)
        return net

    return make


def _closure_over_layer(net: Net) -> None:
    net.between = lambda n, y, b=net.b: b(y)


def _closure_over_network(net: Net) -> None:
    net.hidden = lambda y: net.b(y)
    net.between = lambda n, y: n.hidden(y)


def _closure_over_tensor(net: Net) -> None:
    table = torch.rand(8, 1, 1)
    net.between = lambda n, y: y * table


def _closure_over_width(net: Net) -> None:
    width = 8
    net.between = lambda n, y: y.view(-1, width, 6, 6)


def _closure_over_parameter(net: Net) -> None:
    scale = net.scale
    net.between = lambda n, y: y * scale[:, None, None]


def _bound_method(net: Net) -> None:
    net.hidden = net.b.forward
    net.between = lambda n, y: n.hidden(y)


def _partial(net: Net) -> None:
    net.hidden = functools.partial(F.conv2d, weight=net.b.weight)
    net.between = lambda n, y: n.hidden(y)


def _partial_of_layer(net: Net) -> None:
    net.hidden = functools.partial(net.b)
    net.between = lambda n, y: n.hidden(y)


def _weak_parent(net: Net) -> None:
    parent = weakref.ref(net)
    net.child = types.SimpleNamespace(parent=parent)
    net.between = lambda n, y: y * n.child.parent().scale[:, None, None]


def _registry(net: Net) -> None:
    LAYERS["b"] = net.b
    net.between = lambda n, y: LAYERS["b"](y)


LAYERS: dict[str, nn.Module] = {}


def _hidden_list(net: Net) -> None:
    net.hidden = [_conv(), _conv()]
    net.between = lambda n, y: n.hidden[1](n.hidden[0](y))


def _hidden_parameters(net: Net) -> None:
    net.hidden = [nn.Parameter(torch.rand(8))]
    net.between = lambda n, y: y * n.hidden[0][:, None, None]


def _list_of_registered(net: Net) -> None:
    net.hidden = [net.b, net.b]
    net.between = lambda n, y: n.hidden[1](n.hidden[0](y))


def _cached_weight(net: Net) -> None:
    net.cached = net.b.weight.detach() * 2
    net.between = lambda n, y: F.conv2d(y, n.cached)


def _buffer_of_parameter(net: Net) -> None:
    net.register_buffer("part", net.scale.detach()[:4])
    net.between = lambda n, y: torch.cat([y[:, :4] * n.part[:, None, None], y[:, 4:]], 1)


def _expanded_parameter(net: Net) -> None:
    net.scale = nn.Parameter(torch.rand(1).expand(8))
    net.between = lambda n, y: y * n.scale[:, None, None]


def _strided_parameter(net: Net) -> None:
    net.b.weight = nn.Parameter(torch.randn(8, 8).t()[:, :, None, None])


def _channels_last(net: Net) -> None:
    net.to(memory_format=torch.channels_last)


def _transposed_weight(net: Net) -> None:
    net.between = lambda n, y: F.conv_transpose2d(n.b(y), n.b.weight)


def _tied_linear(net: Net) -> None:
    net.fc = nn.Linear(8, 8)
    net.between = lambda n, y: F.linear(n.fc(y.movedim(1, -1)), n.fc.weight.t()).movedim(-1, 1)


def _functional_norm(net: Net) -> None:
    net.other = nn.BatchNorm2d(8)
    net.between = lambda n, y: F.batch_norm(
        y, n.other.running_mean, n.other.running_var, n.other.weight, n.other.bias, n.training
    )


def _empty_parameter(net: Net) -> None:
    net.empty, net.single = nn.Parameter(torch.empty(0)), nn.Parameter(torch.tensor(0.5))
    net.between = lambda n, y: y * n.single


def _parametrized(net: Net) -> None:
    nn.utils.parametrize.register_parametrization(net.b, "weight", Negative())


def _weight_norm_of_inputs(net: Net) -> None:
    nn.utils.parametrizations.weight_norm(net.b, dim=1)


def _weight_norm_of_all(net: Net) -> None:
    nn.utils.parametrizations.weight_norm(net.b, dim=None)


def _backward_hook(net: Net) -> None:
    net.b.register_full_backward_hook(lambda module, gives, takes: None)


def _root_hook(net: Net) -> None:
    net.register_forward_hook(lambda module, args, out: out * 2)


def _scripted(net: Net) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it is deprecated
        net.extra = torch.jit.script(_conv())
    net.between = lambda n, y: n.extra(y)


def _same_thrice(net: Net) -> None:
    net.layers = nn.ModuleList([net.b] * 3)
    net.between = lambda n, y: functools.reduce(lambda z, layer: layer(z), n.layers, y)


def _frozen_half(net: Net) -> None:
    for p in net.a.parameters():
        p.requires_grad = False
    net.head.bias.requires_grad = False


def _double_layer(net: Net) -> None:
    net.extra = _conv().double()
    net.between = lambda n, y: n.extra(y.double()).to(y.dtype)


def _lazy(net: Net) -> None:
    net.lazy = nn.LazyConv2d(8, 1)
    net.lazy(torch.zeros(1, 8, 1, 1))
    net.between = lambda n, y: n.lazy(y)


def _while(net: Net, y: Tensor) -> Tensor:
    while y.shape[-1] > 2:
        y = F.avg_pool2d(net.conv(y), 2)
    return y


def _by_shape(net: Net, y: Tensor) -> Tensor:
    return net.layers[0 if y.shape[1] > 4 else 1](y)


def _asserted(net: Net, y: Tensor) -> Tensor:
    assert y.shape[1] == 8, "there must be 8 channels"
    torch._assert(y.shape[1] == 8, "there must be 8 channels")
    return y


def _raises(net: Net, y: Tensor) -> Tensor:
    if y.size(1) != net.width:
        raise ValueError("wrong width")
    return y


def _caught(net: Net, y: Tensor) -> Tensor:
    try:
        return y.view(-1, 8, 6, 6)
    except RuntimeError:
        return y * 0


def _generator(net: Net, y: Tensor) -> Tensor:
    def parts() -> Iterator[Tensor]:
        for layer in net.layers:
            yield layer(y)

    return sum(parts())


def _logged(net: Net, y: Tensor) -> Tensor:
    net.log = [*getattr(net, "log", [])[-1:], y.mean()]
    return y


def _recursive(net: Net, y: Tensor, depth: int = 3) -> Tensor:
    return y if depth == 0 else _recursive(net, torch.relu(net.conv(y)), depth - 1)


def _functional_call(net: Net, y: Tensor) -> Tensor:
    return torch.func.functional_call(net.conv, {"weight": net.conv.weight * 2, "bias": net.conv.bias}, (y,))


def _gradient(net: Net, y: Tensor) -> Tensor:
    with torch.enable_grad():
        z = y.detach().requires_grad_()
        (slope,) = torch.autograd.grad(z.square().sum(), z)
    return y + slope


def _within_limits(n: Net, y: Tensor) -> Tensor:
    with torch.no_grad():
        inside = (y > -0.2) & (y < 0.4)
    return y * inside


def _noisy_in_training(n: Net, y: Tensor) -> Tensor:
    if not n.training:
        return y
    zero, one = (torch.tensor(value, dtype=y.dtype) for value in (0.0, 1.0))
    return y + torch.distributions.Gumbel(zero, one).sample(y.shape)


def _two(name: str, forward: Any, **more: Any) -> Case:
    return between(f"py_{name}", forward, **more)


CASES: list[Case] = [
    *(
        Case(f"py{f.__name__}", _net(f))
        for f in (
            _closure_over_layer,
            _closure_over_network,
            _closure_over_tensor,
            _closure_over_width,
            _closure_over_parameter,
            _bound_method,
            _partial,
            _partial_of_layer,
            _weak_parent,
            _registry,
            _hidden_list,
            _hidden_parameters,
            _list_of_registered,
            _cached_weight,
            _buffer_of_parameter,
            _expanded_parameter,
            _strided_parameter,
            _channels_last,
            _transposed_weight,
            _tied_linear,
            _functional_norm,
            _empty_parameter,
            _parametrized,
            _weight_norm_of_inputs,
            _weight_norm_of_all,
            _backward_hook,
            _root_hook,
            _scripted,
            _same_thrice,
            _frozen_half,
            _double_layer,
            _lazy,
        )
    ),
    *(_two(f.__name__.strip("_"), f, conv=_conv) for f in (_while, _recursive, _functional_call)),
    *(_two(f.__name__.strip("_"), f) for f in (_asserted, _raises, _caught, _logged, _gradient)),
    *(
        _two(f.__name__.strip("_"), f, layers=lambda: nn.ModuleList([_conv(), _conv()]))
        for f in (_by_shape, _generator)
    ),
    _two("checkpoint", lambda n, y: checkpoint(n.conv, y, use_reentrant=False), conv=_conv),
    _two("checkpoint_reentrant", lambda n, y: checkpoint(n.conv, y, use_reentrant=True), conv=_conv),
    _two(
        "parameter_dict",
        lambda n, y: F.conv2d(y, n.p["w"], n.p["b"]),
        p=lambda: nn.ParameterDict({"w": torch.randn(8, 8, 1, 1), "b": torch.rand(8)}),
    ),
    _two(
        "parameter_list",
        lambda n, y: F.conv2d(F.conv2d(y, n.p[0]), n.p[1], groups=2),
        p=lambda: nn.ParameterList([torch.randn(8, 8, 1, 1), torch.randn(8, 4, 1, 1)]),
    ),
    _two("twice", lambda n, y: n.conv(y) + n.conv(n.norm(y)), conv=_conv),
    _two("twice_other", lambda n, y: n.conv(y) + n.conv(n.other(y)), conv=_conv, other=_conv),
    _two("twice_shapes", lambda n, y: n.conv(y) + F.interpolate(n.conv(F.avg_pool2d(y, 2)), size=(6, 6)), conv=_conv),
    _two(
        "sliced_sequential",
        lambda n, y: n.layers[-1](n.layers[:2](y)),
        layers=lambda: nn.Sequential(OrderedDict(p=_conv(), q=nn.ReLU(), r=_conv())),
    ),
    _two(
        "children",
        lambda n, y: functools.reduce(lambda z, m: m(z), reversed(list(n.layers.children())), y),
        layers=lambda: nn.Sequential(_conv(), _conv()),
    ),
    _two("by_name", lambda n, y: getattr(n, "co" + "nv")(y), conv=_conv),
    _two(
        "by_parameters",
        lambda n, y: y * dict(n.named_parameters())["a.weight"].mean(),
    ),
    _two("by_count", lambda n, y: y * (1000 / sum(p.numel() for p in n.parameters()))),
    _two("by_state", lambda n, y: y * n.state_dict()["a.weight"].shape[0]),
    _two("by_private", lambda n, y: F.conv2d(y, n.conv._parameters["weight"]), conv=_conv),
    _two("by_type", lambda n, y: n.conv(y) if type(n.conv) is nn.Conv2d else y, conv=_conv),
    _two("by_hasattr", lambda n, y: y / n.conv.weight.shape[0] if hasattr(n.conv, "weight") else y, conv=_conv),
    _two("weights_of_other", lambda n, y: F.conv2d(y, n.conv.weight + n.b.weight), conv=_conv),
    _two("mean_of_weights", lambda n, y: F.conv2d(y, torch.stack([n.conv.weight, n.b.weight]).mean(0)), conv=_conv),
    _two(
        "softmax_of_list",
        lambda n, y: sum(w * layer(y) for w, layer in zip(n.w.softmax(0), n.layers, strict=True)),
        w=lambda: nn.Parameter(torch.rand(3)),
        layers=lambda: nn.ModuleList([_conv(), _conv(), nn.Identity()]),
    ),
    _two("rezero", lambda n, y: y + n.alpha * n.conv(y), alpha=lambda: nn.Parameter(torch.zeros(1)), conv=_conv),
    _two("width_as_tensor", lambda n, y: y / n.size, size=lambda: torch.tensor(8.0)),
    _two("width_as_text", lambda n, y: y.view(-1, int(n.size), 6, 6), size=lambda: "8"),
    _two("width_as_float", lambda n, y: y / n.size, size=lambda: 8.0),
    _two("width_as_numpy", lambda n, y: y.reshape(-1, n.size, 6, 6), size=lambda: np.int64(8)),
    _two("width_as_torch_size", lambda n, y: y.view(-1, *n.size), size=lambda: torch.Size([8, 6, 6])),
    _two(
        "width_nested",
        lambda n, y: y.view(-1, n.cfg.widths["a"], 6, 6),
        cfg=lambda: types.SimpleNamespace(widths={"a": 8}),
    ),
    _two(
        "squeeze_literal",
        lambda n, y: y * torch.sigmoid(n.e(torch.relu(n.s(y.mean((2, 3), keepdim=True))))),
        s=lambda: _conv(8, 8 // 4),
        e=lambda: _conv(2, 8),
    ),
    _two(
        "squeeze_computed",
        lambda n, y: y * n.e(n.s(y)).view(-1, n.s.in_channels, 6, 6),
        s=lambda: _conv(8, 4),
        e=lambda: _conv(4, 8),
    ),
    _two(
        "concatenated_groups",
        lambda n, y: n.g(torch.cat([n.p(y), n.q(y)], 1)),
        p=lambda: _conv(8, 6),
        q=lambda: _conv(8, 2),
        g=lambda: nn.Conv2d(8, 8, 1, groups=4),
    ),
    _two(
        "concatenated_norm",
        lambda n, y: n.g(torch.cat([n.p(y), n.q(y)], 1)),
        p=lambda: _conv(8, 6),
        q=lambda: _conv(8, 2),
        g=lambda: nn.GroupNorm(4, 8),
    ),
    _two("every_second_of_depthwise", lambda n, y: n.d(y)[:, ::2], d=lambda: nn.Conv2d(8, 16, 3, padding=1, groups=8)),
    _two(
        "transposed_padding",
        lambda n, y: n.t(y)[:, :, :6, :6],
        t=lambda: nn.ConvTranspose2d(8, 8, 3, 2, output_padding=1, groups=2),
    ),
    _two("transposed_size", lambda n, y: n.t(y, output_size=(12, 12)), t=lambda: nn.ConvTranspose2d(8, 8, 3, 2, 1)),
    _two("fold", lambda n, y: F.fold(F.unfold(y, 3, padding=1), (6, 6), 3, padding=1)),
    _two("group_norm_function", lambda n, y: F.group_norm(y, 4)),
    _two("group_norm_computed", lambda n, y: F.group_norm(y, y.shape[1] // 2)),
    _two("instance_norm_function", lambda n, y: F.instance_norm(y, weight=n.scale)),
    _two("layer_norm_function", lambda n, y: F.layer_norm(y, y.shape[1:])),
    _two("layer_norm_last", lambda n, y: F.layer_norm(y.movedim(1, -1), (y.shape[1],), n.scale).movedim(-1, 1)),
    _two(
        "identity_of_none",
        lambda n, y: y if n.other(None) is None else n.conv(n.other(y)),
        other=nn.Identity,
        conv=_conv,
    ),
    _two("is_scripting", lambda n, y: y * 2 if torch.jit.is_scripting() or torch.jit.is_tracing() else y),
    _two("and_without_gradient", _within_limits),
    _two("transformed_distribution", _noisy_in_training),
    _two("on_cuda", lambda n, y: y.half() if y.is_cuda else y),
    _two("strides", lambda n, y: y if y.is_contiguous() else y.contiguous()),
    _two("stride_number", lambda n, y: y / y.stride(0)),
    _two("elements", lambda n, y: y / y[0].numel()),
    _two("dimension", lambda n, y: y.flatten(y.dim() - 2).view(*y.shape[: y.ndim - 2], 6, 6)),
    _two("data", lambda n, y: y + y.data.mean((2, 3), keepdim=True)),
    _two("from_numpy", lambda n, y: y * torch.from_numpy(np.sqrt(np.arange(1, 9)))[:, None, None].to(y)),
    _two("to_numpy", lambda n, y: y * float(y.detach().numpy().mean())),
    _two("noise_in_training", lambda n, y: y + torch.randn_like(y) * 0.1 if n.training else y),
    _two("conv_in_training", lambda n, y: y + n.conv(y).mean() if n.training else y, conv=_conv),
    whole("py_unused_input", lambda n, x: n.head(n.c(n.scale[None, :, None, None]).flatten(1)).expand(x.shape[0], -1)),
    whole("py_input_unchanged", lambda n, x: torch.cat([n.tail(n.a(x)), x.flatten(1)], 1)),
    whole(
        "py_normalised",
        lambda n, x: n.tail(n.a((x - n.mean) / n.std)),
        mean=lambda: nn.Buffer(torch.rand(1, 3, 1, 1)),
        std=lambda: nn.Buffer(torch.rand(3, 1, 1) + 0.5),
    ),
    whole("py_generator_output", lambda n, x: [n.tail(n.a(x)), (n.c(n.a(x)), None)]),
]
