"""Lets einops, where a network uses it, work on what stands for tensors while a forward pass is recorded."""

from __future__ import annotations

import functools
import sys
from typing import Any

from torch import fx


def know_einops() -> None:
    """Let einops take proxies for tensors of torch, once it has been imported; its operations are then those of torch.

    einops asks each subclass of its backends whether a tensor is one of its own.
    """
    backends = sys.modules.get("einops._backends")
    if backends is not None:
        _backend(backends.TorchBackend)


@functools.cache
def _backend(torch_backend: Any) -> type:
    class Recorded(torch_backend):  # type: ignore[misc]
        framework_name = __package__.partition(".")[0]

        def is_appropriate_type(self, tensor: Any) -> bool:
            return isinstance(tensor, fx.Proxy)

        def is_float_type(self, x: Any) -> bool:
            return bool(x.node.meta["value"].is_floating_point())

        def shape(self, x: Any) -> list[Any]:  # as a list it is no key of einops's caches
            return list(x.shape)

    return Recorded
