"""What networks take in 8 bits, by the size of files. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from understudy.core.architecture import Architecture, weighted_layers
from understudy.core.evaluation import Cost

_MARGIN = 1.05  # 12 students of ResNet-20 and MobileNetV2 had 0.1 to 4.8% more than what is fitted


@dataclass(frozen=True, kw_only=True)
class FileSizes:
    """Bytes of a network's file in 8 bits: what every file has, and what a layer and a parameter add.

    Beside a byte for each parameter a file has scales, biases in 32 bits, and the names and settings of its operations.
    """

    start: float
    per_layer: float  # of convolutions and linear layers
    per_parameter: float

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> FileSizes:
        """Return what `dataclasses.asdict` gave; other values are left alone."""
        return cls(**{name: float(values[name]) for name in ("start", "per_layer", "per_parameter")})

    def cost(self, cost: Cost, architecture: Architecture) -> Cost:
        """Return a cost with the bytes that the file in 8 bits hardly exceeds in the place of those of the weights."""
        fitted = self.start + self.per_layer * weighted_layers(architecture) + self.per_parameter * cost.parameters
        return replace(cost, weight_bytes=round(_MARGIN * fitted))
