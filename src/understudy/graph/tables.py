"""Plain tensors that modules keep as attributes, as the buffers that they could be.

`self.positions = sincos(...)` is a table like any other, with channels to lose; but torch knows nothing of it. What is
analysed is therefore a copy of the network, over the same tensors, in which such a table is a buffer that no state dict
has. A table that the forward pass may replace is none.
"""

from __future__ import annotations

import dis
import inspect
from collections.abc import Iterator
from types import CodeType

from torch import Tensor, nn

from understudy.graph.copies import copied


def with_tables(teacher: nn.Module) -> nn.Module:
    """Return a copy of a network that shares its tensors and whose tables are buffers; itself if it has none."""
    if not any(True for _ in _tables(teacher)):
        return teacher
    tensors = (*teacher.parameters(), *teacher.buffers(), *(table for _, _, table in _tables(teacher)))
    made: nn.Module = copied(teacher, {id(tensor): tensor for tensor in tensors})
    for module, name, table in list(_tables(made)):
        delattr(module, name)
        module.register_buffer(name, table, persistent=False)
    return made


def _tables(root: nn.Module) -> Iterator[tuple[nn.Module, str, Tensor]]:
    """Yield the modules, names and tensors of attributes that could be buffers."""
    modules = [m for m in root.modules() if not type(m).__module__.startswith("torch.")]
    held = [(m, name, v) for m in modules for name, v in vars(m).items() if type(v) is Tensor and _is_table(v)]
    stored = _stored({type(m) for m in modules}) if held else set()
    yield from ((m, name, v) for m, name, v in held if name not in stored and not hasattr(type(m), name))


def _is_table(tensor: Tensor) -> bool:
    real = tensor.is_floating_point() or tensor.is_complex()
    return real and tensor.numel() > 1 and not tensor.requires_grad and not tensor.is_meta


def _stored(kinds: set[type]) -> set[str]:
    """Return the names of attributes that these classes set in methods that `forward` may call."""
    methods: dict[str, list[CodeType]] = {}
    for base in {base for kind in kinds for base in kind.__mro__ if base is not nn.Module}:
        for name, member in vars(base).items():
            if inspect.isfunction(member):
                methods.setdefault(name, []).append(inspect.unwrap(member).__code__)
    found, seen, waiting = set[str](), {"__init__"}, ["forward"]
    while waiting:
        name = waiting.pop()
        if name not in seen:
            seen.add(name)
            for code in _nested(methods.get(name, ())):
                found.update(i.argval for i in dis.get_instructions(code) if i.opname == "STORE_ATTR")
                waiting += code.co_names
    return found


def _nested(codes: tuple[CodeType, ...] | list[CodeType]) -> Iterator[CodeType]:
    for code in codes:
        yield code
        yield from _nested([inner for inner in code.co_consts if isinstance(inner, CodeType)])
