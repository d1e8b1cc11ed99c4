"""Networks that read a number of channels in some way and compute with it: (way of reading) x (place of use)."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tests.support.modules.base import Case, Net, between

Read = Callable[[Net, Tensor], Any]
Use = Callable[[Tensor, Any], Any]

WAYS: dict[str, Read] = {
    "shape": lambda net, y: y.shape[1],
    "size": lambda net, y: y.size(1),
    "size_dim": lambda net, y: y.size(dim=1),
    "len": lambda net, y: len(y[0]),
    "attribute": lambda net, y: net.width,
    "list": lambda net, y: net.widths[0],
    "dict": lambda net, y: net.config["width"],
    "property": lambda net, y: net.channels,
    "out_channels": lambda net, y: net.a.out_channels,
    "in_channels": lambda net, y: net.b.in_channels,
    "num_features": lambda net, y: net.norm.num_features,
    "getattr": lambda net, y: getattr(net.a, "out_" + "channels"),
    "vars": lambda net, y: vars(net.a)["out_channels"],
    "weight_shape": lambda net, y: net.a.weight.shape[0],
    "weight_input": lambda net, y: net.b.weight.shape[1],
    "weight_size": lambda net, y: net.a.weight.size(0),
    "weight_len": lambda net, y: len(net.a.weight),
    "bias_numel": lambda net, y: net.a.bias.numel(),
    "norm_weight": lambda net, y: net.norm.weight.shape[0],
    "buffer": lambda net, y: net.norm.running_mean.numel(),
    "parameters": lambda net, y: next(net.a.parameters()).shape[0],
    "state_dict": lambda net, y: net.norm.state_dict()["weight"].shape[0],
    "own_parameter": lambda net, y: net.scale.shape[0],
    "flattened": lambda net, y: net.a.weight.flatten(1).shape[0],
    "stride": lambda net, y: y[:1].contiguous().stride(0) // 36,
    "numel": lambda net, y: y[0].numel() // 36,
    "repr": lambda net, y: int(net.a.extra_repr().split(",")[1]),
}

USES: dict[str, Use] = {
    "sqrt": lambda y, n: y / math.sqrt(n),
    "power": lambda y, n: y * n**-0.5,
    "float": lambda y, n: y + float(n),
    "numpy": lambda y, n: y * float(np.sqrt(np.asarray(n))),
    "numpy_prod": lambda y, n: y / int(np.prod([n, 2])),
    "compare": lambda y, n: y if n >= 8 else y * 2,
    "equal": lambda y, n: y * 3 if n == 8 else y,
    "modulo": lambda y, n: y if n % 2 else y * 1.5,
    "range": lambda y, n: sum((y * (i + 1) for i in range(n)), torch.zeros(1)) / 36,
    "round": lambda y, n: y * round(n / 3),
    "shift": lambda y, n: y + (n >> 1),
    "maximum": lambda y, n: y * max(n, 3),
    "log": lambda y, n: y * math.log2(n),
    "divmod": lambda y, n: y + divmod(n, 3)[1],
    "string": lambda y, n: y * len("x" * n),
    "bool": lambda y, n: y if bool(n - 7) else -y,
    "tensor": lambda y, n: y * torch.tensor(float(n)),
    "arange": lambda y, n: y * torch.arange(1.0, n + 1).view(1, -1, 1, 1),
    "ones": lambda y, n: y + torch.ones(1, n, 1, 1),
    "full": lambda y, n: y * torch.full((n, 1, 1), 0.5),
    "slice": lambda y, n: torch.cat([y[:, : n // 2], y[:, n // 2 :]], 1),
    "narrow": lambda y, n: torch.cat([y.narrow(1, 0, n - 2), y.narrow(1, n - 2, 2)], 1),
    "split": lambda y, n: torch.cat(torch.split(y, n // 2, 1)[::-1], 1),
    "reshape": lambda y, n: y.reshape(-1, n, 6, 6),
    "expand": lambda y, n: y + y.mean((1, 2, 3), keepdim=True).expand(-1, n, -1, -1),
    "index": lambda y, n: y + y[:, n - 1 :],
    "groups": lambda y, n: torch.nn.functional.group_norm(y, n // 2),
    "linspace": lambda y, n: y * torch.linspace(0.5, 1.5, n)[:, None, None],
    "roll": lambda y, n: torch.roll(y, n // 2, 1),
    "mask": lambda y, n: y * (torch.arange(8) < n).view(1, 8, 1, 1),
}


def _case(way: str, use: str) -> Case:
    return between(f"{way}-{use}", lambda net, y: USES[use](y, WAYS[way](net, y)))


def cases(every: int) -> list[Case]:
    """Return pairs, one of `every` in such a way that all ways and all uses take part."""
    pairs = ((i, way, j, use) for i, way in enumerate(WAYS) for j, use in enumerate(USES))
    return [_case(way, use) for i, way, j, use in pairs if (i + j) % every == 0]
