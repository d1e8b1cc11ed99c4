"""The latencies of one run, measured while nothing of it trains, and what to expect of what was not measured.

latency.json of a run folder holds the teacher's latency, those that the estimate is from, and each student's.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from understudy.core.architecture import Architecture, weighted_layers
from understudy.core.errors import DamageError, GoalError
from understudy.core.evaluation import Cost, Evaluation
from understudy.core.figures import FIGURE
from understudy.core.files import understood
from understudy.core.int8 import FileSizes
from understudy.core.timing import Comparison, Timing
from understudy.cost.estimate import LatencyEstimate, Point
from understudy.cost.measure import compare
from understudy.export.onnx import in_onnxruntime
from understudy.jobs.task import Task
from understudy.methods.feasibility import smallest
from understudy.runs.folder import Run, is_run
from understudy.training.compute import device_named

_SECONDS = 0.5  # of measuring a student beside the teacher
_FACTORS = (0.7, 0.5, 0.35, 0.25, 0.1)  # of all widths, of networks that the estimate is from


@dataclass(frozen=True, kw_only=True)
class Reference:
    """What a run's latencies go by: the teacher's when the run began, and those of a few architectures."""

    latency_ms: float
    spread_ms: float  # interquartile range
    points: tuple[Point, ...]

    @property
    def fastest(self) -> Point:
        """The fastest of the architectures that were measured."""
        return min(self.points, key=lambda point: point.latency_ms)

    def over(self, ratio: Timing) -> dict[str, float]:
        """Return the latency and its spread (ms) of a network that is so many times faster than the teacher."""
        own = self.latency_ms
        return {"latency_ms": own / ratio.median, "spread_ms": own / ratio.low - own / ratio.high}

    def to_json(self) -> dict[str, Any]:
        """Return this as plain values; `from_json` reads them."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Reference:
        """Return what `to_json` gave."""
        return cls(**{**values, "points": tuple(Point(**point) for point in values["points"])})


class Latencies:
    """Measures students beside the teacher, once each, and estimates what was not measured.

    A student's latency is the teacher's when the run began, divided by how many times faster the student is where both
    are timed in turns: what slows the machine down on one day and not on another slows both. The estimate is fitted
    again as students are measured. Each call of `measured` adds to it, so a search that is replayed from the store
    sees the same estimates again.
    """

    def __init__(self, task: Task, run: Run, reference: Reference | None, sizes: FileSizes | None = None) -> None:
        self._task, self._run, self._reference, self._sizes = task, run, reference, sizes
        known = run.recall("latency") or {}
        self._students: dict[str, dict[str, float]] = known.get("students", {})
        if reference is not None:
            self._points = {str(number): point for number, point in enumerate(reference.points)}
            self._estimate = LatencyEstimate.of(reference.points)
            self._save()

    @property
    def teacher(self) -> Cost:
        """The teacher's cost, with its latency where the goal limits it."""
        cost, reference = self._task.cost, self._reference
        if reference is None:
            return cost
        return replace(cost, latency_ms=reference.latency_ms, latency_spread_ms=reference.spread_ms)

    def predict(self, architecture: Architecture) -> Cost | None:
        """Return the predicted cost, None if it cannot be built.

        With a latency to expect where the goal limits it, and with the bytes of a file in 8 bits where it asks for
        them.
        """
        cost = self._task.predict(architecture)
        if cost is not None and self._sizes is not None:
            cost = self._sizes.cost(cost, architecture)
        if cost is None or self._reference is None:
            return cost
        return replace(cost, latency_ms=self._estimate(weighted_layers(architecture), cost.macs))

    def measured(self, evaluation: Evaluation) -> Evaluation:
        """Return an evaluation as the goal counts it, if there is a student: its latency, and its bytes in 8 bits."""
        if self._sizes is not None and evaluation.cost is not None:
            evaluation = replace(evaluation, cost=self._sizes.cost(evaluation.cost, evaluation.architecture))
        if self._reference is None or evaluation.status == "failed" or evaluation.cost is None:
            return evaluation
        architecture = evaluation.architecture
        latency_ms, spread_ms = self.of(architecture)
        self._points[architecture.digest] = Point(
            layers=weighted_layers(architecture), macs=evaluation.cost.macs, latency_ms=latency_ms
        )
        self._estimate = LatencyEstimate.of(list(self._points.values()))
        return replace(evaluation, cost=replace(evaluation.cost, latency_ms=latency_ms, latency_spread_ms=spread_ms))

    def of(self, architecture: Architecture) -> tuple[float, float]:
        """Return the latency of an architecture's student and its spread (ms), measured once in a run."""
        assert self._reference is not None, "only a goal for latency asks"
        known = self._students.get(architecture.digest)
        if known is None:
            ratio = beside_teacher(self._task, self._task.build(architecture), seconds=_SECONDS).ratio
            known = self._reference.over(ratio)
            self._students[architecture.digest] = known
            self._save()
        return known["latency_ms"], known["spread_ms"]

    def _save(self) -> None:
        assert self._reference is not None
        self._run.remember("latency", {**self._reference.to_json(), "students": self._students})


def reference_for(task: Task, folder: Path | None) -> Reference | None:
    """Return what the latencies of a run in that folder go by, measured unless the run has it; None without a goal.

    Raises:
        GoalError: no architecture that was measured is as fast as the goal asks for.
        ExtraError, ExportError: the goal's runtime is not installed, or does not take the teacher.
    """
    if task.settings.goal.runtime == "onnxruntime":
        task.teacher_in_onnxruntime(1)  # before any work, also where the latency is only shown
    if task.settings.goal.latency_ms is None:
        return None
    if folder is not None and is_run(folder) and (known := Run(folder).recall("latency")) is not None:
        with understood(folder / "latency.json", DamageError):
            return Reference.from_json({name: value for name, value in known.items() if name != "students"})
    teacher = task.network
    own = beside_teacher(task, teacher, seconds=_SECONDS).first
    found = [
        Point(
            layers=weighted_layers(architecture),
            macs=cost.macs,
            latency_ms=own.median / beside_teacher(task, task.build(architecture), seconds=_SECONDS).ratio.median,
        )
        for architecture, cost in _samples(task)
    ]
    reference = Reference(latency_ms=own.median, spread_ms=own.spread, points=tuple(found))
    _refuse_what_is_out_of_reach(task, reference)
    return reference


def beside_teacher(task: Task, student: nn.Module, *, threads: int = 1, seconds: float = 1.0) -> Comparison:
    """Time the teacher and a student in turns, one image at a time, in the runtime of the goal.

    PyTorch runs them on the device that was asked for, ONNX Runtime on the CPU, where it will serve them.
    """
    if task.settings.goal.runtime == "torch":
        device = device_named(task.settings.device.device)
        return compare(task.network, student, task.example, device=device, threads=threads, seconds=seconds)
    teacher, own = task.teacher_in_onnxruntime(threads), in_onnxruntime(student, task.example, threads=threads)
    found = compare(teacher, own, task.example, threads=threads, seconds=seconds)
    return replace(found, where=f"{found.where}, ONNX Runtime")


def _samples(task: Task) -> Iterator[tuple[Architecture, Cost]]:
    """Yield what is cut, the smallest architecture, and some between, each that can be built once."""
    space = task.space
    some = [unit.name for unit in space.units if unit.kind != "layer"][::2]
    wanted = [space.full, smallest(space, task.settings.method, task.settings.widths, task.predict, "macs")[0]]
    for factor in _FACTORS:
        wanted.append(space.architecture(widths={g.name: g.nearest(factor * g.width) for g in space.groups}))
    for factor in (1.0, _FACTORS[2]):
        widths = {g.name: g.nearest(factor * g.width) for g in space.groups}
        wanted.append(space.architecture(removed=some, widths=widths).canonical())
    for architecture in dict.fromkeys(wanted):
        cost = task.predict(architecture)
        if cost is not None:
            yield architecture, cost


def _refuse_what_is_out_of_reach(task: Task, reference: Reference) -> None:
    cost = replace(task.cost, latency_ms=reference.latency_ms)
    most = task.settings.goal.budgets(cost, score=0.0).latency_ms
    least = reference.fastest
    if most is not None and least.latency_ms > most:
        figure = FIGURE["latency_ms"]
        raise GoalError(
            f"a goal must be within reach of the fastest student, but latency_ms asks for {figure.text(most)}, and of "
            f"{len(reference.points)} architectures that were measured the fastest takes "
            f"{figure.text(least.latency_ms)}, with {least.layers} layers and {least.macs:,} MACs; the teacher takes "
            f"{figure.text(reference.latency_ms)}. Ask for no less than that."
        )
