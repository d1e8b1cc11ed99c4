"""A teacher and all that was found out about it, once."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from understudy.core.architecture import Architecture, Refused, Space
from understudy.core.caller import alone, refuse_surroundings
from understudy.core.errors import ConfigError, TraceError, check_kind
from understudy.core.memory import enough_memory
from understudy.graph.folded import folded
from understudy.graph.groups import Groups, find_groups
from understudy.graph.kinds import leaf_classes
from understudy.graph.magnitudes import slot_magnitudes
from understudy.graph.refit import Refit
from understudy.graph.retrace import checked
from understudy.graph.surroundings import uncollected
from understudy.graph.tables import with_tables
from understudy.graph.trace import Example, Trace, check_example, named_inputs, trace
from understudy.graph.units import layers_of, refit_without, units_of

_MEMORY = ("while the network was analysed", "free some, or give a smaller example")


@dataclass(frozen=True, eq=False)
class Analysis:
    """What `analyse` found: the teacher's graph, its groups, and its Space. Pickles as the teacher alone."""

    trace: Trace
    groups: Groups
    leaf_modules: tuple[type[nn.Module], ...] = ()
    refused: tuple[Refused, ...] = ()  # what is not offered, because a check of students found it wrong
    folded: tuple[str, ...] = ()  # parameters that the module computed, which the teacher and its students have

    @property
    def teacher(self) -> nn.Module:
        """The module that was analysed, untouched; a copy with plain weights where it computed some (`folded`).

        Its plain tensors (`self.table = torch.randn(...)`) are buffers, in a copy that shares all tensors.
        """
        return self.trace.teacher

    @cached_property
    def space(self) -> Space:
        """What the teacher allows."""
        groups = self.groups
        with enough_memory(*_MEMORY), uncollected():
            layers, units = layers_of(groups), units_of(groups)
        return Space(layers=layers, groups=groups.groups, units=units, frozen=groups.frozen)

    def without(self, refused: Iterable[Refused]) -> Analysis:
        """Return the analysis in whose Space these decisions are not offered; names that it does not have are none."""
        space = self.space.without(refused)
        if space is self.space:
            return self
        groups = self.groups.without({found.name for found in space.refused if found.kind == "group"})
        narrowed = replace(self, groups=groups, refused=space.refused)
        narrowed.__dict__["space"] = space
        return narrowed

    def of(self, teacher: nn.Module) -> Analysis:
        """Return the analysis of another module of the teacher's structure, with the same decisions offered."""
        return analyse(teacher, self.trace.example, self.leaf_modules).without(self.refused)

    @cached_property
    def shrinkable(self) -> float:
        """The share of the parameters that lie in layers whose width can shrink, 0..1."""
        free = np.zeros(self.groups.slots + 1, dtype=bool)
        free[np.concatenate([*self.groups.slots_of, np.zeros(0, dtype=np.int64)])] = True
        plans = self.groups.parameters
        sizes = {name: p.numel() for name, p in self.teacher.named_parameters()}
        shrinking = (
            size
            for name, size in sizes.items()
            if name in plans and any(isinstance(d, np.ndarray) and free[d].any() for d in plans[name].dims)
        )
        return sum(shrinking) / max(sum(sizes.values()), 1)

    @property
    def magnitudes(self) -> npt.NDArray[np.float64]:
        """The mean squared weight of each slot of the teacher as it is now, (slots,); see `slot_magnitudes`."""
        # Sums show what edits of `p.data` leave out of the version; in float32 they make no copy of a float32 weight.
        parameters = self.teacher.parameters()
        state = tuple((id(p), p._version, float(p.detach().sum(dtype=torch.float32))) for p in parameters)
        if self._weighed.get("state") != state:
            self._weighed.update(state=state, magnitudes=slot_magnitudes(self.groups))
        return self._weighed["magnitudes"]  # type: ignore[no-any-return]

    @cached_property
    def _weighed(self) -> dict[str, Any]:
        return {}

    @cached_property
    def _refits(self) -> dict[frozenset[str], Refit]:
        return {}

    def refit(self, architecture: Architecture) -> Refit:
        """Return the pass over the teacher without the units that the architecture removes.

        Raises:
            ArchitectureError: the architecture was made for another teacher.
            SurgeryError: what is left does not fit together.
        """
        self.space.check_own(architecture)
        if architecture.removed not in self._refits:
            refit = refit_without(self.groups, map(self.space.unit, architecture.removed))
            refit.run()
            if len(self._refits) > 256:
                self._refits.clear()
            self._refits[architecture.removed] = refit
        return self._refits[architecture.removed]

    def __reduce__(self) -> Any:
        # The graph holds functions and nodes that do not travel; the teacher does.
        return _again, (self.trace.teacher, self.trace.example, self.leaf_modules, self.refused)


@alone
def analyse(teacher: nn.Module, example: Example, leaf_modules: tuple[type[nn.Module], ...] = ()) -> Analysis:
    """Trace a teacher on an example input and find out what it allows.

    Args:
        teacher: any traceable module; it is not touched. Layers that compute their weights (weight norm, spectral norm
            and other parametrizations, `torch.nn.utils.prune`) are analysed as plain ones with the same weights.
        example: the input: a tensor (B, ...), a tuple of positional ones, or keyword arguments by name.
        leaf_modules: classes to take as one operation; their channels freeze.

    Raises:
        TraceError: the teacher cannot be traced, or fails on the example, or the example is empty.
        MachineError: memory ran out.
        ConfigError: it is called inside of a mode of torch that sees every operation, or with hooks on every module.
    """
    refuse_surroundings()
    leaf_modules = leaf_classes(leaf_modules)
    with enough_memory(*_MEMORY), uncollected():
        check_example(teacher, example)
        plain, computed = folded(teacher, lambda module: module(**named_inputs(module, example)))
        traced = _traced(plain, example, leaf_modules)
        groups = checked(find_groups(traced))
        return Analysis(trace=traced, groups=groups, leaf_modules=leaf_modules, folded=computed)


def _traced(teacher: nn.Module, example: Example, leaf_modules: tuple[type[nn.Module], ...]) -> Trace:
    """Trace a teacher whose tables are buffers; as it is, where its code takes them for values to compute with."""
    other = with_tables(teacher)
    if other is not teacher:
        with contextlib.suppress(TraceError):
            return trace(other, example, leaf_modules=leaf_modules)
    return trace(teacher, example, leaf_modules=leaf_modules)


def check_analysis(given: Any) -> None:
    """Refuse what is no analysis.

    Raises:
        ConfigError: with what makes one.
    """
    check_kind(given, Analysis, "an analysis must be what us.analyse(teacher, example) returns", ConfigError)


def _again(
    teacher: nn.Module, example: Example, leaf_modules: tuple[type[nn.Module], ...], refused: tuple[Refused, ...]
) -> Analysis:
    return analyse(teacher, example, leaf_modules).without(refused)
