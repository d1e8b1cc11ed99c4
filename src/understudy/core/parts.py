"""What a Space is made of: layers, groups of channels, units, and what is frozen or refused. No torch."""

from __future__ import annotations

import math
from bisect import bisect_left
from dataclasses import dataclass
from typing import Literal

from understudy.core.errors import ArchitectureError

UnitKind = Literal["conv", "linear", "pool", "block", "branch", "joined", "layer"]


@dataclass(frozen=True, kw_only=True)
class Layer:
    """One layer of the teacher in execution order: a row of N2N's state (paper, section 3.1).

    `skip_start` and `skip_end` are how many layers back the innermost enclosing skip connection
    starts and how many layers ahead it ends; 0 outside of any.
    """

    name: str  # qualified module name in the teacher
    type: str  # "conv", "linear", "norm", "activation", "pool" or "other"
    kernel: int = 0
    stride: int = 0
    padding: int = 0
    outputs: int = 0  # channels or features that it emits, 0 where it keeps those that it gets
    parameters: int = 0
    skip_start: int = 0
    skip_end: int = 0
    group: str | None = None  # the group that its output channels belong to, if to exactly one
    kernels: tuple[int, ...] = ()  # legal kernel sizes, ascending, the teacher's last

    def check_kernel(self, kernel: int) -> None:
        """Raise ArchitectureError if a student may not have that kernel size here."""
        legal = self.kernels or (self.kernel,)
        if kernel not in legal:
            raise ArchitectureError(f"kernel of layer {self.name!r} must be one of {legal}, but got {kernel}")


@dataclass(frozen=True, kw_only=True)
class Group:
    """Channels of several tensors that must keep the same indices.

    `width` counts output channels of the layer that the group is named after. Channels go in slots
    of `step` (1 but for grouped convolutions and group norms), so a legal width is a multiple of it, and not under
    `least`: a variance over a single channel is none.
    """

    name: str
    width: int
    step: int = 1
    layers: tuple[str, ...] = ()  # every layer that emits or reads these channels
    # Why the teacher's own class cannot have other widths, so that the student is a plain graph; "" where it can.
    plain: str = ""
    least: int = 1  # channels

    def legal_widths(self, *, round_to: int = 1, minimum: int = 1) -> tuple[int, ...]:
        """Return the widths (channels, ascending) that are multiples of `round_to` and of the step.

        The teacher's own width is always legal, whatever it is a multiple of.
        """
        return (*self._rounded(round_to, minimum), self.width)

    def nearest(self, width: float, *, round_to: int = 1, minimum: int = 1) -> int:
        """Return the legal width (channels) nearest to `width`, the larger one of two equally near."""
        rounded = self._rounded(round_to, minimum)
        above = bisect_left(rounded, width)
        near: tuple[int, ...] = (*rounded[max(above - 1, 0) : above + 1], self.width)
        return min(near, key=lambda w: (abs(w - width), -w))

    def _rounded(self, round_to: int, minimum: int) -> range:
        """Return the legal widths below the teacher's own; searches ask for the nearest one by the million."""
        multiple = math.lcm(self.step, round_to)
        first = -(-max(minimum, self.least, 1) // multiple) * multiple
        return range(first, self.width, multiple)

    def check_width(self, width: int) -> None:
        """Raise ArchitectureError if a student may not have that width (channels)."""
        least = max(self.step, self.least)
        if not least <= width <= self.width or width % self.step:
            multiple = f", a multiple of {self.step}" if self.step > 1 else ""
            raise ArchitectureError(
                f"width of group {self.name!r} must be in {least}..{self.width}{multiple}, but got {width}"
            )

    def check_slots(self, slots: tuple[int, ...]) -> None:
        """Raise ArchitectureError if a student may not keep these slots (ascending), and no others."""
        size, least = self.width // self.step, -(-self.least // self.step)
        if len(slots) < least or slots[0] < 0 or slots[-1] >= size:
            number = "one" if least == 1 else str(least)
            raise ArchitectureError(
                f"channels of group {self.name!r} must be at least {number} of 0..{size - 1}, but got {list(slots)}"
            )


@dataclass(frozen=True, kw_only=True)
class Unit:
    """What can be removed as one.

    "conv" and "linear" are such a layer with its norm and activation, "block" is a module that keeps shape and
    channels, "branch" what an addition in a forward pass adds to its own input, "joined" what a concatenation joins to
    other tensors along channels. In a student, a removed block is one identity, otherwise each of `layers` becomes one;
    the last layer of a branch gives zeros, the last one of what is joined no channels.
    """

    name: str
    kind: UnitKind
    layers: tuple[str, ...]  # the leaf layers that go with it

    @property
    def is_block(self) -> bool:
        """Whether it is a step of the network's depth, however it is written down, rather than a layer of one."""
        return self.kind in ("block", "branch", "joined")


@dataclass(frozen=True, kw_only=True)
class Frozen:
    """Channels that must keep their full width, why, and the source line that needs them."""

    name: str
    width: int
    reason: str
    source: str = ""


@dataclass(frozen=True, kw_only=True)
class Refused:
    """A decision that a check of real students found wrong: a group's width, a unit's removal or a layer's kernel."""

    kind: Literal["group", "unit", "kernel"]
    name: str
    reason: str
