"""What was found out about one architecture. No torch."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from understudy.core.architecture import Architecture, Space
from understudy.core.errors import ArchitectureError
from understudy.core.written import made, summed, unsummed, written

Status = Literal["ok", "stopped", "failed"]


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What a network costs. Parameters, MACs and bytes are predicted exactly; latency is measured.

    MACs and peak activation bytes are for one example; latency is the median of one forward pass.
    """

    parameters: int
    macs: int
    weight_bytes: int
    peak_activation_bytes: int = 0
    latency_ms: float | None = None
    latency_spread_ms: float | None = None  # interquartile range

    @property
    def size_mb(self) -> float:
        """Megabytes (10^6) of weights."""
        return self.weight_bytes / 1e6

    @property
    def memory_mb(self) -> float:
        """Megabytes (10^6) of activations that are alive at the same time."""
        return self.peak_activation_bytes / 1e6


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """One trained and scored student, or why there is none.

    `teacher`, `data` and `recipe` are digests; an evaluation answers for another proposal only where
    architecture and all three agree. `score` is on the validation split, in 0..1; 0 if failed.
    """

    architecture: Architecture
    teacher: str
    data: str
    recipe: str
    cost: Cost | None  # None if the student could not be built
    score: float
    seconds: float
    seed: int
    status: Status = "ok"  # "stopped": given up early as clearly bad; "failed": no score
    error: str | None = None

    @property
    def key(self) -> str:
        """What it answers for: the digests of architecture, teacher, data and recipe."""
        return "-".join((self.architecture.digest, self.teacher, self.data, self.recipe))

    def with_error(self, error: str) -> Evaluation:
        """Return this evaluation as a failed one, with the reason."""
        return replace(self, status="failed", error=error, score=0.0)

    def to_json(self) -> str:
        """Return this evaluation as JSON text; `from_json` reads it back."""
        fields: dict[str, Any] = {
            name: getattr(self, name)
            for name in ("teacher", "data", "recipe", "score", "seconds", "seed", "status", "error")
        }
        fields["architecture"] = json.loads(self.architecture.to_json())
        fields["cost"] = None if self.cost is None else asdict(self.cost)
        return json.dumps(summed(fields))

    @classmethod
    def from_json(cls, space: Space, text: str) -> Evaluation:
        """Read what `to_json` wrote, for the Space that it was made for.

        Raises:
            ArchitectureError: the text is no evaluation, or of another Space.
        """
        with written("an evaluation", text, ArchitectureError):
            fields = unsummed(json.loads(text))
            architecture = Architecture.from_json(space, json.dumps(fields["architecture"]))
            cost = None if fields["cost"] is None else made(Cost, fields["cost"])
            return made(cls, {**fields, "architecture": architecture, "cost": cost})
