"""What a network takes, as JSON: for a lone tensor of float32 its shape without the batch, else types and names too."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


def inputs_spec(inputs: Any) -> Any:
    """Return what JSON can say of inputs for n examples; `blank` makes such inputs."""
    if isinstance(inputs, Mapping):
        return {"named": {str(name): inputs_spec(part) for name, part in inputs.items()}}
    if isinstance(inputs, (tuple, list)):
        return {"parts": [inputs_spec(part) for part in inputs]}
    if inputs is None:
        return None
    shape = list(inputs.shape[1:])
    return (
        shape if inputs.dtype == torch.float32 else {"dtype": str(inputs.dtype).removeprefix("torch."), "shape": shape}
    )


def blank(spec: Any, count: int) -> Any:
    """Return inputs of that many examples, all zeros.

    Raises:
        ValueError: the spec is none of ours.
    """
    if spec is None:
        return None
    if isinstance(spec, (list, tuple)):
        return torch.zeros(count, *_sizes(spec))
    if isinstance(spec, Mapping) and isinstance(spec.get("named"), Mapping):
        return {name: blank(part, count) for name, part in spec["named"].items()}
    if isinstance(spec, Mapping) and isinstance(spec.get("parts"), (list, tuple)):
        return tuple(blank(part, count) for part in spec["parts"])
    if isinstance(spec, Mapping) and set(spec) == {"dtype", "shape"}:
        dtype = getattr(torch, str(spec["dtype"]), None)
        if isinstance(dtype, torch.dtype):
            return torch.zeros(count, *_sizes(spec["shape"]), dtype=dtype)
    raise ValueError(f"input must be sizes, or parts with types, but got {spec!r}")


def lone(inputs: Any) -> bool:
    """Return whether inputs are one tensor of float32, as images are once they are normalised."""
    return isinstance(inputs, Tensor) and inputs.dtype == torch.float32


def _sizes(sizes: Any) -> list[int]:
    if not all(type(size) is int and size > 0 for size in sizes):
        raise ValueError(f"sizes of an input must be whole numbers above 0, but got {sizes!r}")
    return list(sizes)
