"""What stands in the graph for tensors: shapes, types, and operations on tensors without values."""

from __future__ import annotations

import contextlib
import copy
import functools
import logging
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensor,
    FakeTensorMode,
    UnsupportedOperatorException,
)
from torch.nn.utils.rnn import PackedSequence


@dataclass(frozen=True)
class Signature:
    """Shape and dtype of a tensor in the teacher's forward pass."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def bytes(self) -> int:
        """Bytes of the tensor."""
        return math.prod(self.shape) * self.dtype.itemsize


class Packed(NamedTuple):
    """What stands for the parts of a `PackedSequence`, which looks into what it is made of.

    `data` has a row for each step of each sequence, (R, ...).
    """

    data: Any
    batch_sizes: Any
    sorted_indices: Any = None
    unsorted_indices: Any = None


def source_line(node: fx.Node) -> str:
    """Return "file.py:12: code" of the user's line behind a node, or "" if unknown."""
    return str(node.meta.get("line", ""))


def map_structure(value: Any, function: Callable[[Any], Any]) -> Any:
    """Return nested tuples, lists, dicts and slices with the function applied to each leaf."""
    return fx.node.map_aggregate(value, function)


def flat(value: Any) -> list[Any]:
    """Return the leaves of nested tuples, lists, dicts and slices."""
    found: list[Any] = []
    map_structure(value, found.append)
    return found


def like(tensor: Tensor, mode: FakeTensorMode) -> Tensor:
    """Return a tensor of the mode without values that is like another one, a parameter if that is one."""
    plain = type(tensor) in (Tensor, nn.Parameter) and tensor.layout is torch.strided and tensor.device.type == "cpu"
    if not plain or tensor.is_conj() or tensor.is_neg() or tensor.is_quantized or vars(tensor):
        return mode.from_tensor(tensor)
    # As `from_tensor`, which looks for much more, at an eighth of its time.
    memory = torch.empty(tensor.untyped_storage().nbytes() // tensor.element_size(), dtype=tensor.dtype, device="meta")
    meta = memory.as_strided(tensor.shape, tensor.stride(), tensor.storage_offset())
    made = FakeTensor(mode, meta.requires_grad_(tensor.requires_grad), tensor.device)
    if isinstance(tensor, nn.Parameter):
        made._is_param = True
    return made


def run_fake(
    call: Callable[..., Any], args: Any, kwargs: Any, mode: FakeTensorMode, values: Mapping[int, Tensor] | None = None
) -> Any:
    """Run an operation on fake tensors; one that looks at values inside runs on real tensors instead.

    Those are zeros, but for fake tensors whose identity is in `values`.
    """
    args, kwargs = _opened(args), _opened(kwargs)
    try:
        with torch.no_grad(), mode, _quietly():
            return closed(call(*args, **kwargs))
    except (DataDependentOutputException, DynamicOutputShapeException, UnsupportedOperatorException):
        out = _on_values(call, args, kwargs, values or {})
        return map_structure(out, lambda v: mode.from_tensor(v) if isinstance(v, Tensor) else v)


def _opened(value: Any) -> Any:
    """Return nested arguments with packed sequences of torch in the place of what stands for them."""
    if isinstance(value, Packed):
        return PackedSequence(*value)
    if type(value) in (tuple, list):
        return type(value)(map(_opened, value))
    return {name: _opened(part) for name, part in value.items()} if type(value) is dict else value


def closed(value: Any) -> Any:
    """Return nested values with what stands for packed sequences in the place of torch's."""
    if isinstance(value, PackedSequence):
        return Packed(*value)
    return type(value)(map(closed, value)) if type(value) in (tuple, list) else value


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Torch prints a stack for what does not fit on fake tensors; here that is an answer, not an accident."""
    log = logging.getLogger("torch._subclasses.fake_tensor")
    disabled, log.disabled = log.disabled, True
    try:
        yield
    finally:
        log.disabled = disabled


def _on_values(call: Callable[..., Any], args: Any, kwargs: Any, values: Mapping[int, Tensor]) -> Any:
    """Return what an operation gives for zeros, or for ones where it gives no elements for zeros.

    How many rows a mask takes is not known; none tell nothing of what is computed of them.
    """
    found: list[Any] = []
    for number in (0, 1):
        real = map_structure((args, kwargs), functools.partial(_real, values=values, number=number))
        with contextlib.suppress(*((Exception,) if found else ())), torch.no_grad(), torch.random.fork_rng(devices=[]):
            found.append(closed(copy.deepcopy(call)(*real[0], **real[1])))
        if all(v.numel() for v in flat(found[-1]) if isinstance(v, Tensor)):
            break
    return found[-1]


def _real(value: Any, values: Mapping[int, Tensor], number: int) -> Any:
    if id(value) in values:
        return values[id(value)].clone()  # may be overwritten
    return torch.full(value.shape, number, dtype=value.dtype) if isinstance(value, Tensor) else value
