"""Padded sequences that are packed for a recurrent layer and padded again: each step is one node of the graph."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.utils import rnn
from torch.nn.utils.rnn import PackedSequence

from understudy.graph.fake import Packed, closed, flat
from understudy.graph.numbers import Watch

_PACK, _PAD = rnn.pack_padded_sequence, rnn.pad_packed_sequence
_FUNCTIONS = {function.__name__: function for function in (_PACK, _PAD)}


def with_nodes(tracer: fx.Tracer, args: Any, kwargs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return arguments, each `PackedSequence` that the forward pass makes of parts as a node."""

    def whole(value: Any) -> Any:
        made = isinstance(value, PackedSequence) and any(isinstance(part, fx.Proxy) for part in value)
        return tracer.create_proxy("call_function", PackedSequence, tuple(value), {}) if made else value

    return tuple(map(whole, args)), {name: whole(value) for name, value in kwargs.items()}


@contextmanager
def packing(tracer: fx.Tracer, watch: Watch, spaces: list[dict[str, Any]]) -> Iterator[None]:
    """Let the functions that pack and pad be nodes, which would look into what they are given.

    They are found under any name in the `spaces`, those of the teacher's code, and under their own everywhere else.
    """
    found = [(space, name, value) for space in spaces for name, value in space.items() if _is_one(value)]
    others = [vars(module) for module in list(sys.modules.values()) if hasattr(module, "__dict__")]
    found += [(space, name, space[name]) for space in others for name in _FUNCTIONS if _is_one(space.get(name))]

    def recorded(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            if watch.on and any(isinstance(value, fx.Proxy) for value in flat(closed((args, kwargs)))):
                return tracer.create_proxy("call_function", function, *with_nodes(tracer, args, kwargs))
            return function(*args, **kwargs)

        return call

    made = {name: recorded(function) for name, function in _FUNCTIONS.items()}
    try:
        for space, name, function in found:
            space[name] = made[function.__name__]
        yield
    finally:
        for space, name, function in found:
            space[name] = function


def _is_one(value: Any) -> bool:
    return any(value is function for function in _FUNCTIONS.values())


def run_packed(call: Any, args: Any, kwargs: Any, mode: FakeTensorMode, values: dict[int, Tensor]) -> Any:
    """Return what packing, padding or a recurrent layer gives for what is packed on fake tensors, else None.

    Where lengths are not known all sequences fill the padded tensor.

    Args:
        call: the function or layer.
        args: what it is given by position, fake tensors among it.
        kwargs: what it is given by name.
        mode: of the fake tensors.
        values: what is known of integers, by the identity of their fake tensors; more comes here.
    """
    given = next((part for part in (*args, *kwargs.values()) if isinstance(part, Packed)), None)
    if call is PackedSequence:
        return Packed(*args)
    if call is _PACK:
        return _pack(mode, values, *args, **kwargs)
    if given is None:
        return None
    if call is _PAD:
        return _pad(mode, values, *args, **kwargs)
    return _steps(call, given, mode, values) if isinstance(call, nn.RNNBase) else None


def _pack(
    mode: FakeTensorMode,
    values: dict[int, Tensor],
    input: Tensor,
    lengths: Any,
    batch_first: bool = False,
    enforce_sorted: bool = True,
) -> Packed:
    examples, steps = input.shape[:2] if batch_first else input.shape[1::-1]
    known = values.get(id(lengths)) if isinstance(lengths, Tensor) else torch.as_tensor(lengths)
    known = torch.full((examples,), steps) if known is None else known.cpu()
    made = _PACK(torch.zeros(input.shape[:2]), known, batch_first, enforce_sorted)
    rows = _empty(input, (len(made.data), *input.shape[2:]), mode)
    return Packed(rows, *(_known(part, mode, values) for part in made[1:]))


def _pad(
    mode: FakeTensorMode,
    values: dict[int, Tensor],
    sequence: Packed,
    batch_first: bool = False,
    padding_value: float = 0.0,
    total_length: int | None = None,
) -> tuple[Tensor, Tensor | None]:
    held = (None if part is None else values[id(part)] for part in sequence[1:])
    packed = PackedSequence(torch.zeros(len(sequence.data)), *held)
    padded, lengths = _PAD(packed, batch_first, padding_value, total_length)
    return _empty(sequence.data, (*padded.shape, *sequence.data.shape[1:]), mode), _known(lengths, mode, values)


def _steps(layer: nn.RNNBase, given: Packed, mode: FakeTensorMode, values: dict[int, Tensor]) -> Any:
    """As the layer, whose kernels look into the sizes of batches, which are numbers."""
    examples, ways = int(values[id(given.batch_sizes)][0]), 2 if layer.bidirectional else 1
    width = layer.proj_size or layer.hidden_size
    output = given._replace(data=_empty(given.data, (len(given.data), ways * width), mode))
    state, cell = (
        _empty(given.data, (ways * layer.num_layers, examples, size), mode) for size in (width, layer.hidden_size)
    )
    return output, ((state, cell) if isinstance(layer, nn.LSTM) else state)


def _empty(like: Tensor, shape: tuple[int, ...], mode: FakeTensorMode) -> Tensor:
    with mode:
        return like.new_empty(shape)


def _known(value: Tensor | None, mode: FakeTensorMode, values: dict[int, Tensor]) -> Tensor | None:
    if value is None:
        return None
    fake: Tensor = mode.from_tensor(value)
    values[id(fake)] = value
    return fake
