"""Deep copies of networks, with other tensors or modules in the place of some."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor, nn


def copied(module: nn.Module, instead: Mapping[int, Any] | None = None) -> Any:
    """Return a deep copy of a module; what has its id in `instead` is replaced by what stands there.

    Tensors that hooks compute before each call (weight norm, pruning by `torch.nn.utils.prune`) are no leaves of
    autograd, which `copy.deepcopy` refuses; their values are copied.
    """
    memo = dict(instead or {})
    for part in module.modules():
        for value in _held(vars(part)):
            if isinstance(value, Tensor) and not value.is_leaf:
                memo.setdefault(id(value), value.detach().clone())
    return copy.deepcopy(module, memo)


def _held(value: Any) -> Iterator[Any]:
    """Yield what lists, tuples and dictionaries hold, and anything else as it is."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list | tuple):
        for part in value:
            yield from _held(part)
    else:
        yield value


def tensor_at(root: nn.Module, name: str) -> Tensor:
    """Return the parameter, buffer or plain tensor of that name."""
    path, _, leaf = name.rpartition(".")
    return getattr(root.get_submodule(path), leaf)  # type: ignore[no-any-return]


def first_names(root: nn.Module) -> dict[str, str]:
    """Return, for each name of a parameter or buffer, the first name that the same tensor has."""
    first: dict[int, str] = {}
    named = (*root.named_parameters(remove_duplicate=False), *root.named_buffers(remove_duplicate=False))
    return {name: first.setdefault(id(tensor), name) for name, tensor in named}


def overlapping(root: nn.Module) -> frozenset[str]:
    """Return the parameters and buffers that lie in the memory of another one."""
    held: dict[int, list[str]] = {}
    for name, tensor in (*root.named_parameters(), *root.named_buffers()):
        if tensor.numel():
            held.setdefault(tensor.untyped_storage().data_ptr(), []).append(name)
    return frozenset(name for names in held.values() if len(names) > 1 for name in names)
