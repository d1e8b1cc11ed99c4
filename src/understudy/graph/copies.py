"""Deep copies of networks, with other tensors or modules in the place of some."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from functools import lru_cache
from types import MemberDescriptorType
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from understudy.core.errors import TraceError, a_kind
from understudy.core.memory import out_of_memory


def copied(module: nn.Module, instead: Mapping[int, Any] | None = None) -> Any:
    """Return a deep copy of a module; what has its id in `instead` is replaced by what stands there.

    Tensors that hooks compute before each call (weight norm, pruning by `torch.nn.utils.prune`) are no leaves of
    autograd, which `copy.deepcopy` refuses; their values are copied.

    Raises:
        TraceError: it holds what nothing can copy, such as a lock, a generator or an open file; the message names it.
    """
    memo = dict(instead or {})
    for part in module.modules():
        for name, value in vars(part).items():
            for held in _held(value) if name not in _WITHOUT_TENSORS else ():
                if isinstance(held, Tensor) and not held.is_leaf:
                    memo.setdefault(id(held), held.detach().clone())
                elif isinstance(held, RemovableHandle) and _is_spent(held):
                    memo.setdefault(id(held), held)
    try:
        made = _copy(module, memo)
    except Exception as error:  # whatever a class's own __deepcopy__ raises
        if out_of_memory(error):
            raise
        raise TraceError(
            f"a network must be one that copy.deepcopy can copy, but it cannot{_blamed(module)}: {error}. Set to None "
            "what the forward pass does not need, or leave it out of the class's __getstate__"
        ) from error
    _refuse_lost_slots(module, made)
    return made


def _refuse_lost_slots(module: nn.Module, made: nn.Module) -> None:
    """Refuse a network whose `__slots__` hold what its copy has not: the state of torch's modules leaves them out."""
    for path, part in module.named_modules():
        for name in _slots(type(part)):  # type: ignore[arg-type]  # which mypy does not know to be hashable
            other = dict(made.named_modules()).get(path)
            if type(other) is type(part) and hasattr(part, name) and not hasattr(other, name):
                raise TraceError(
                    f"a network must be one that copy.deepcopy can copy, but it loses {f'{path}.{name}'.lstrip('.')}, "
                    f"which stands in __slots__ of {type(part).__name__}: leave __slots__ out of the class"
                )


@lru_cache(maxsize=1024)
def _slots(kind: type) -> tuple[str, ...]:
    """Return the names of a class's slots."""
    return tuple(n for base in kind.__mro__ for n, o in vars(base).items() if isinstance(o, MemberDescriptorType))


def _is_spent(handle: RemovableHandle) -> bool:
    """Return whether a handle is one of hooks whose module is gone, which torch cannot copy: it removes nothing."""
    return any(ref() is None for ref in (handle.hooks_dict_ref, *(handle.extra_dict_ref or ())))


def _blamed(module: nn.Module) -> str:
    """Return which attribute of which module cannot be copied, as far as one can be told."""
    for path, part in module.named_modules():
        for name, value in vars(part).items():
            if name in _WITHOUT_TENSORS or name == "_buffers":
                continue
            try:
                copy.deepcopy(value)
            except Exception:  # whatever a class raises
                return f": {path}.{name}".replace(": .", ": ") + f" is {a_kind(value)}"
    return ""


# What every module has, and what holds no tensor that a pass has computed.
_WITHOUT_TENSORS = frozenset(vars(nn.Module())) - {"_buffers"}


def _held(value: Any) -> Iterator[Any]:
    """Yield what lists, tuples and dictionaries hold, and anything else as it is."""
    if isinstance(value, dict | list | tuple):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _held(part)
    else:
        yield value


def _copy(value: Any, memo: dict[int, Any]) -> Any:
    """As `copy.deepcopy`, which takes most of its time for the empty dictionaries that each module has."""
    kind = type(value)
    if kind in _IMMUTABLE:
        return value
    if kind in (dict, OrderedDict):
        if id(value) in memo:
            return memo[id(value)]
        made = memo[id(value)] = kind()
        for key, part in value.items():
            made[_copy(key, memo)] = _copy(part, memo)
        return made
    if kind is Tensor and value.dim() == 0 and id(value) not in memo and _is_plain(value):  # what batch norms count in
        memo[id(value)] = value.clone()
        return memo[id(value)]
    if not isinstance(value, nn.Module) or id(value) in memo or any(getattr(kind, n, None) is not o for n, o in _USUAL):
        return copy.deepcopy(value, memo)
    made = memo[id(value)] = kind.__new__(kind)  # type: ignore[call-overload]
    state = value.__getstate__() if hasattr(value, "__getstate__") else vars(value)
    made.__setstate__({n: v if type(v) in _IMMUTABLE else _copy(v, memo) for n, v in state.items()})
    return made


def _is_plain(number: Tensor) -> bool:
    """Return whether a tensor of one number has memory of its own and nothing else."""
    return not number.requires_grad and number.untyped_storage().nbytes() == number.element_size() and not vars(number)


_IMMUTABLE = (int, float, bool, str, type(None))
# A class that has none of these of its own is copied by its state.
_USUAL = [(n, getattr(object, n, None)) for n in ("__deepcopy__", "__reduce_ex__", "__reduce__")]


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
