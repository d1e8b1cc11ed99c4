"""What torch's layers give for tensors without values, remembered.

A convolution on a fake tensor takes 0.6 ms, a linear layer 1.7 ms and a GRU 37 ms, a new fake tensor 0.1 ms: without
this, layers take half of the time of a recording.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from understudy.graph.fake import flat, map_structure

# Layers whose outputs' shapes follow from their settings, their parameters' shapes and those of their inputs.
_FORETOLD = frozenset(
    (
        *(nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d, nn.Linear),
        *(nn.LayerNorm, nn.RMSNorm, nn.GroupNorm, nn.PReLU, nn.RNN, nn.GRU, nn.LSTM),
    )
)
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "forward")
_PLAIN = (int, float, str, type(None), torch.dtype)
_MOST = 4096
_known: dict[Any, Any] = {}


def remembered(
    layer: nn.Module, kind: type, args: Any, kwargs: Any, mode: FakeTensorMode, run: Callable[[], Any]
) -> Any:
    """Return what a layer gives on fake tensors: by `run`, or as it did for the like of it before.

    Args:
        layer: a module.
        kind: its class, where it goes in disguise.
        args: what it is given by position, fake tensors among it.
        kwargs: what it is given by name.
        mode: of the fake tensors.
        run: computes the output.
    """
    key = _key(layer, kind, args, kwargs)
    if key is None:
        return run()
    if key not in _known:
        out = run()
        if not all(isinstance(part, Tensor) for part in flat(out)):
            return out
        if len(_known) >= _MOST:
            _known.clear()
        _known[key] = map_structure(out, _Made)
        return out
    with torch.no_grad(), mode:
        return map_structure(_known[key], lambda made: made.again())


class _Made:
    """How a tensor lies in memory."""

    def __init__(self, tensor: Tensor) -> None:
        self._size, self._stride = tuple(tensor.shape), tensor.stride()
        self._dtype, self._device = tensor.dtype, tensor.device

    def again(self) -> Tensor:
        return torch.empty_strided(self._size, self._stride, dtype=self._dtype, device=self._device)


def _key(layer: nn.Module, kind: type, args: Any, kwargs: Any) -> Any:
    """Return what decides a layer's output, or None if that is not known."""
    state = vars(layer)
    if kind not in _FORETOLD or any(state.get(name) for name in _HOOKS):
        return None
    given = flat((args, kwargs))
    tensors = [part for part in given if isinstance(part, Tensor)]
    if not tensors or not all(isinstance(part, (Tensor, *_PLAIN)) for part in given):
        return None
    device = tensors[0].device.type
    # Whether batches come first, or gradients are asked for, is among the settings; a list of tensors among parameters.
    settings = ((name, value) for name, value in state.items() if isinstance(value, (tuple, *_PLAIN)))
    return (
        kind,
        torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device),
        map_structure((args, tuple(sorted(kwargs.items()))), _look),
        tuple(settings),
        tuple((name, _look(parameter)) for name, parameter in layer.named_parameters()),
    )


def _look(value: Any) -> Any:
    if isinstance(value, Tensor):
        return tuple(value.shape), value.stride(), value.dtype, value.device
    return type(value), value
