"""What networks take in 8 bits, by the size of files. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from understudy.core.evaluation import Cost


@dataclass(frozen=True, kw_only=True)
class FileSizes:
    """Bytes of a network's file in 8 bits: a line over its parameters, through two networks that were quantised.

    A file has more than a byte for each parameter: scales, biases in 32 bits, and the graph.
    """

    parameters: tuple[int, int]  # of the two, the larger first
    bytes: tuple[int, int]  # of their files

    def to_json(self) -> dict[str, Any]:
        """Return plain values; `from_json` reads them."""
        return {"parameters": list(self.parameters), "bytes": list(self.bytes)}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> FileSizes:
        """Return what `to_json` gave; other values are left alone."""
        first, second = values["parameters"]
        large, small = values["bytes"]
        return cls(parameters=(int(first), int(second)), bytes=(int(large), int(small)))

    def cost(self, cost: Cost) -> Cost:
        """Return a cost with the bytes of the file in 8 bits in the place of those of the weights."""
        (large, small), (most, least) = self.parameters, self.bytes
        each = (most - least) / (large - small) if large > small else 1.0
        return replace(cost, weight_bytes=round(least + each * (cost.parameters - small)))
