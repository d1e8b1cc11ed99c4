"""The decisions of a Space as numbers, for every method: units, widths and kernels <-> Architecture. No torch.

A decision has options, and a choice is the index of one. Options of a unit are 0 (gone) and 1, of a width channels, of
a kernel sizes; several may be the same.

Shapes: B = architectures, D = decisions, U = decisions on units, X = layers of the Space, in the order of the suffix.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from understudy.core.architecture import Architecture, Layer, Space

Kind = Literal["unit", "width", "kernel"]
Name = tuple[str, str]  # kind, and the unit, group or layer that it is about
UNIT_OPTIONS = (0, 1)


class Decisions:
    """Choices <-> architectures of a Space; what is not decided stays as in `start`, the teacher unless given."""

    def __init__(
        self, space: Space, options: Mapping[Name, Sequence[int]], *, start: Architecture | None = None
    ) -> None:
        self.space, self.options = space, {name: tuple(values) for name, values in options.items()}
        self.names = list(self.options)
        self._removed = [name for name in (start.removed if start else ()) if ("unit", name) not in self.options]
        layers = {layer.name: index for index, layer in enumerate(space.layers)}
        units = [name for kind, name in self.names if kind == "unit"]
        inside = [set(space.unit(name).layers) for name in [*units, *self._removed]]
        self._unit_D = np.array([kind == "unit" for kind, _ in self.names], dtype=bool)
        self._gone_of_UX = _rows(inside, layers)
        outer = [[float(a < b) for b in inside] for a in inside[: len(units)]]
        self._outer_UU = np.array(outer).reshape(len(units), len(inside))
        self._about_DX = _rows([_about(space, kind, name) for kind, name in self.names], layers)
        # A width says nothing once the layer that it is named after is gone, or all that have these channels.
        self._named_DX = _rows([{name} if kind == "width" else set() for kind, name in self.names], layers)
        self._zero_D = [np.array([value == 0 for value in values]) for values in self.options.values()]

    def architecture(self, choices: Iterable[int]) -> Architecture:
        """Return what choices, one for each decision, stand for."""
        decided = {name: values[choice] for (name, values), choice in zip(self.options.items(), choices, strict=True)}
        gone = [name for (kind, name), value in decided.items() if kind == "unit" and not value]
        return self.space.architecture(
            removed=[*self._removed, *gone],
            widths={name: value for (kind, name), value in decided.items() if kind == "width"},
            kernels={name: value for (kind, name), value in decided.items() if kind == "kernel"},
        )

    def values(self, architecture: Architecture) -> list[int]:
        """Return what an architecture has for each decision: 0 or 1, channels, a kernel size."""
        return [value_in(architecture, kind, name) for kind, name in self.names]

    def choices(self, architecture: Architecture) -> list[int]:
        """Return the choices nearest to an architecture; the larger of two values, the last of equal options."""
        found = []
        for value, options in zip(self.values(architecture), self.options.values(), strict=True):
            nearest = min(options, key=lambda option: (abs(option - value), -option))
            found.append(len(options) - 1 - options[::-1].index(nearest))
        return found

    def matter(self, choices_BD: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Return which choices change the student, (B, D): not those on what is gone with the units that go."""
        removed_BD = np.zeros(choices_BD.shape, dtype=bool)
        for decision in np.flatnonzero(self._unit_D):
            removed_BD[:, decision] = self._zero_D[decision][choices_BD[:, decision]]
        before_BU = np.ones((len(choices_BD), len(self._removed)))
        removed_BU = np.concatenate([removed_BD[:, self._unit_D], before_BU], 1)
        gone_BX = (removed_BU @ self._gone_of_UX > 0).astype(float)
        matter_BD: NDArray[np.bool_] = gone_BX @ self._about_DX.T < np.maximum(self._about_DX.sum(1), 1.0)
        matter_BD &= gone_BX @ self._named_DX.T == 0
        matter_BD[:, self._unit_D] = removed_BU @ self._outer_UU.T == 0
        return matter_BD


def value_in(architecture: Architecture, kind: str, name: str) -> int:
    """Return what an architecture has: 0 or 1 for a unit, channels for a width, a size for a kernel."""
    if kind == "unit":
        return int(name not in architecture.removed)
    return architecture.width(name) if kind == "width" else architecture.kernel(name)


def kernel_options(layer: Layer) -> list[int]:
    """Return the legal kernel sizes of a layer up to its own, rising."""
    return [kernel for kernel in layer.kernels if kernel <= layer.kernel]


def _about(space: Space, kind: str, name: str) -> set[str]:
    """Return the layers that a decision is about."""
    if kind == "unit":
        return set(space.unit(name).layers)
    return set(space.group(name).layers) or {name} if kind == "width" else {name}


def _rows(sets: Sequence[set[str]], layers: Mapping[str, int]) -> NDArray[np.float64]:
    """Return a row for each set of names of layers, 1 where it has one."""
    rows = np.zeros((len(sets), len(layers)))
    for row, names in zip(rows, sets, strict=True):
        row[[layers[name] for name in names if name in layers]] = 1.0
    return rows
