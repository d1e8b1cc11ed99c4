"""Which widths students may have. No torch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Annotated

from understudy.config.checked import Checked, Range
from understudy.core.architecture import Group

_MULTIPLE = 8  # of most methods: hardware rewards it


@dataclass(frozen=True, kw_only=True)
class Widths(Checked):
    """The widths that students may have, for every method."""

    factors: Annotated[tuple[float, ...], Range(0.0, 1.0, above=True)] = (
        *(0.05, 0.07, 0.1, 0.14, 0.2, 0.28, 0.4, 0.55, 0.75, 1.0),
    )
    """Widths to choose from, as fractions of a group's, rising. decore and uniform know no factors."""
    round_to: Annotated[int | None, Range(1)] = None
    """Widths are multiples of this (1: any). Default: 8, which hardware rewards; 1 for decore."""
    min_width: Annotated[int | None, Range(1)] = None
    """Fewest channels of a group. Default: 8; 1 for decore."""

    def problems(self) -> Iterator[str]:
        """Yield what is wrong between factors."""
        if list(self.factors) != sorted(set(self.factors)):
            yield f"factors must rise, but got {self.factors}"

    def with_default(self, number: int) -> Widths:
        """Return the same, with a number for what was not given."""
        round_to, min_width = self.round_to or number, self.min_width or number
        return (
            self
            if (round_to, min_width) == (self.round_to, self.min_width)
            else replace(self, round_to=round_to, min_width=min_width)
        )

    def of(self, group: Group, factor: float) -> int:
        """Return the legal width (channels) of a group that is nearest to that fraction of it."""
        return self.nearest(group, factor * group.width)

    def nearest(self, group: Group, width: float) -> int:
        """Return the legal width (channels) of a group that is nearest to `width`."""
        return group.nearest(width, round_to=self.round_to or _MULTIPLE, minimum=self.min_width or _MULTIPLE)

    def legal(self, group: Group) -> tuple[int, ...]:
        """Return all legal widths (channels) of a group, rising."""
        return group.legal_widths(round_to=self.round_to or _MULTIPLE, minimum=self.min_width or _MULTIPLE)

    def options(self, group: Group) -> list[int]:
        """Return the width (channels) of a group that each factor stands for."""
        return [self.of(group, factor) for factor in self.factors]
