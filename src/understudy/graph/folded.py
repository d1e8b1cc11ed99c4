"""Layers that compute their weights, as layers that have them: weight norm, spectral norm, any parametrization, masks.

A trained layer of that kind computes the same weights at every call in evaluation mode, so a copy of the network can
hold them as plain parameters, as `remove_parametrizations`, `remove_weight_norm`, `remove_spectral_norm` and
`prune.remove` leave them. What a student learns is these weights; what held them (a norm, zeros) is gone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize, prune, remove_spectral_norm, remove_weight_norm
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from understudy.core.memory import out_of_memory
from understudy.core.nested import leaves
from understudy.graph.copies import copied
from understudy.graph.seeds import seeded

_SAME = 1e-3  # of the largest output; weights in float32 differ in their last digits

Call = Callable[[nn.Module], Any]


def folded(teacher: nn.Module, call: Call) -> tuple[nn.Module, tuple[str, ...]]:
    """Return a copy of a network with plain weights, and the names of those that were computed.

    It is the network itself where none are, or where the copy gives something else or fails, as one does whose forward
    pass reads what the weights are computed from.

    Args:
        teacher: is not touched.
        call: runs a network on an example and returns its outputs.
    """
    names = [(f"{path}." if path else "") + name for path, m in teacher.named_modules() for name, _ in _computed(m)]
    if not names:
        return teacher, ()
    plain: nn.Module = copied(teacher)
    try:
        for module in list(plain.modules()):
            _fold(module)
        if not _alike(_outputs(teacher, call), _outputs(plain, call)):
            return teacher, ()
    except Exception as error:
        if out_of_memory(error):
            raise
        return teacher, ()
    return plain, tuple(names)


def _computed(module: nn.Module) -> Iterator[tuple[str, Callable[[nn.Module], object] | None]]:
    """Yield the name of each tensor that a module computes by a hook, with what takes the hook off, or otherwise."""
    if parametrize.is_parametrized(module):
        yield from ((str(name), None) for name in module.parametrizations)  # type: ignore[union-attr]
    for hook in module._forward_pre_hooks.values():
        if isinstance(hook, WeightNorm):
            yield hook.name, lambda m, name=hook.name: remove_weight_norm(m, name)  # type: ignore[misc]
        elif isinstance(hook, SpectralNorm):
            yield hook.name, lambda m, name=hook.name: remove_spectral_norm(m, name)  # type: ignore[misc]
        elif isinstance(hook, prune.BasePruningMethod):
            yield hook._tensor_name, lambda m, name=hook._tensor_name: prune.remove(m, name)  # type: ignore[misc]


def _fold(module: nn.Module) -> None:
    """Make the tensors that a module computes its own."""
    found = list(_computed(module))
    values = {name: _value(module, name) for name, _ in found}
    if parametrize.is_parametrized(module):
        originals = {str(name): list(part.parameters()) for name, part in module.parametrizations.items()}  # type: ignore[operator, union-attr]
        # Not by `remove_parametrizations`: it changes the class, which a copy shares with its original.
        del module.parametrizations
        module.__class__ = type(module).__bases__[0]
        for name, parameters in originals.items():
            if parameters:
                module.register_parameter(name, nn.Parameter(values[name], any(p.requires_grad for p in parameters)))
            else:
                module.register_buffer(name, values[name])
    for name, take_off in found:
        if take_off is not None:
            take_off(module)
            getattr(module, name).data = values[name]
    for hooks in (module._state_dict_hooks, module._load_state_dict_pre_hooks) if found else ():
        for key, hook in list(hooks.items()):  # they read and write the tensors that are gone
            if getattr(getattr(hook, "hook", hook), "__module__", "").startswith("torch.nn.utils."):
                del hooks[key]


def _value(module: nn.Module, name: str) -> Tensor:
    """Return a tensor that a module computes, as in evaluation mode; in double precision where that works."""
    own: Tensor = _computed_by(module, name)
    try:
        return _computed_by(copied(module).double(), name).to(own.dtype)
    except Exception as error:
        if out_of_memory(error):
            raise
        return own


def _computed_by(module: nn.Module, name: str) -> Tensor:
    alone = copied(module).eval()
    with torch.no_grad(), seeded():
        for hook in alone._forward_pre_hooks.values():
            if isinstance(hook, WeightNorm | SpectralNorm | prune.BasePruningMethod):
                hook(alone, ())
        return getattr(alone, name).detach().clone()  # type: ignore[no-any-return]


def _outputs(module: nn.Module, call: Call) -> list[Tensor]:
    with torch.no_grad(), seeded():
        found = call(copied(module).eval())
    return [leaf.cpu().double() for _, leaf in leaves(found) if isinstance(leaf, Tensor) and not leaf.is_complex()]


def _alike(ours: list[Tensor], theirs: list[Tensor]) -> bool:
    return len(ours) == len(theirs) and all(
        a.shape == b.shape
        and torch.allclose(
            a, b, rtol=_SAME, atol=_SAME * float(a.abs().nan_to_num().max() if a.numel() else 0), equal_nan=True
        )
        for a, b in zip(ours, theirs, strict=True)
    )
