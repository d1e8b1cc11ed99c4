"""Final students in 8 bits, where the goal asks for them: what they take and how right they are.

int8.json                   sizes of files to expect, and what was measured of each final student
students/NAME.int8.onnx     a final student in 8 bits
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from torch import nn

from understudy.core.architecture import Architecture, weighted_layers
from understudy.core.errors import DamageError, ExportError, GoalError
from understudy.core.evaluation import Cost, Evaluation
from understudy.core.extras import optional
from understudy.core.figures import FIGURE, share
from understudy.core.files import understood
from understudy.core.int8 import FileSizes
from understudy.core.summary import InEightBits, Network, Score
from understudy.core.timing import Comparison
from understudy.cost.estimate import LatencyEstimate, Point
from understudy.cost.measure import compare
from understudy.data import AnySplit
from understudy.export.int8 import in_eight_bits
from understudy.export.onnx import OnnxModel
from understudy.jobs.latency import Reference
from understudy.jobs.task import Task
from understudy.methods.feasibility import smallest
from understudy.report.progress import Display
from understudy.runs.folder import Run, is_run
from understudy.training.compute import Compute
from understudy.training.loop import predict
from understudy.training.scoring import scored

_SEEN = 32  # training images by which sizes are found out: scales take as much, whatever they are
_SECONDS = 0.5  # of measuring a student beside the teacher


def sizes_for(task: Task, folder: Path) -> FileSizes | None:
    """Return what files in 8 bits take in a run in that folder, measured unless the run has it; None without that goal.

    Raises:
        GoalError: the network cannot be quantised, or not even the smallest student's file is as small as asked for.
        ExtraError: the packages of the extra `export` are missing.
    """
    if not task.settings.goal.int8:
        return None
    for package in ("onnx", "onnxscript", "onnxruntime"):
        optional(package, extra="export")
    if is_run(folder) and (known := Run(folder).recall("int8")) is not None:
        with understood(folder / "int8.json", DamageError):
            return FileSizes.from_json(known)
    settings, space = task.settings, task.space
    least, cost = smallest(space, settings.method, settings.widths, task.predict, "parameters")
    narrow = space.architecture(widths=dict(least.widths))
    points = []
    for architecture in dict.fromkeys((space.full, narrow, least)):
        if (predicted := task.predict(architecture)) is not None:
            size = _bytes(task, task.build(architecture))
            layers = weighted_layers(architecture)
            points.append(Point(layers=layers, macs=predicted.parameters, latency_ms=size))
    found = LatencyEstimate.of(points)  # parameters in the place of MACs, bytes in that of milliseconds
    most = settings.goal.budgets(replace(task.cost, latency_ms=1.0), score=0.0).size_mb
    if most is not None and points[-1].latency_ms / 1e6 > most:
        figure = FIGURE["size_mb"]
        raise GoalError(
            f"a goal must be within reach of the smallest student, but size_mb asks for {figure.text(most)}, and the "
            f"file of the smallest one in 8 bits has {figure.text(points[-1].latency_ms / 1e6)}, of "
            f"{cost.parameters:,} parameters. Ask for no less than that."
        )
    return FileSizes(start=found.start, per_layer=found.per_layer, per_parameter=found.per_mac)


def _bytes(task: Task, network: nn.Module) -> int:
    """Return the bytes of a network's file in 8 bits."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "network.onnx"
        try:
            in_eight_bits(network, task.data, path, examples=_SEEN)
        except ExportError as error:
            raise GoalError(f"goal 'int8' needs a network that can be quantised: {error}") from error
        return path.stat().st_size


def in_floats(task: Task, evaluation: Evaluation) -> Cost:
    """Return the cost of a student as it was trained, with the bytes of its weights in floats."""
    assert evaluation.cost is not None, "what was trained has a cost"
    predicted = task.predict(evaluation.architecture)
    assert predicted is not None, "what was trained could be built"
    return replace(evaluation.cost, weight_bytes=predicted.weight_bytes)


class EightBits:
    """Quantises the final students of a run, once each, and judges them in 8 bits."""

    def __init__(self, task: Task, run: Run, sizes: FileSizes, reference: Reference | None) -> None:
        self._task, self._run, self._sizes, self._reference = task, run, sizes, reference
        self._students: dict[str, dict[str, Any]] = (run.recall("int8") or {}).get("students", {})
        self._save()

    def all(
        self, finished: Sequence[Evaluation], student: Callable[[Architecture], nn.Module], display: Display
    ) -> list[Evaluation]:
        """Return final students with the figures that they have in 8 bits; failed ones as they are.

        Args:
            finished: evaluated in floats.
            student: returns one with its weights.
            display: told of each.
        """
        found = []
        with display.steps("final students in 8 bits", len(finished), unit="students"):
            for floats in finished:
                name, one = floats.architecture.digest, floats
                if floats.status != "failed":
                    one = self.evaluated(floats, student(floats.architecture))
                    told = one.error or f"{share(one.score)}, in floats {share(floats.score)}"
                    display.say(f"final student {name} in 8 bits: {told}")
                display.step()
                found.append(one)
        return found

    def evaluated(self, evaluation: Evaluation, student: nn.Module) -> Evaluation:
        """Return the evaluation of a final student with the figures that it has in 8 bits, or why it has none.

        Args:
            evaluation: of the student in floats.
            student: with its weights.
        """
        assert evaluation.cost is not None, "what was trained has a cost"
        name = evaluation.architecture.digest
        try:
            known = self._students.get(name) or self._measured(name, student)
        except ExportError as error:
            return evaluation.with_error(str(error))
        cost = replace(evaluation.cost, weight_bytes=known["bytes"])
        if self._reference is not None:
            over = self._reference.over(Comparison.from_json(known["latency"]).ratio)
            cost = replace(cost, latency_ms=over["latency_ms"], latency_spread_ms=over["spread_ms"])
        return replace(evaluation, cost=cost, score=known["score"])

    def figures(self, evaluation: Evaluation, split: AnySplit | None) -> InEightBits:
        """Return the figures of a student that was evaluated, with its score on the test split."""
        assert evaluation.cost is not None, "what was trained has a cost"
        name = evaluation.architecture.digest
        test = (
            None if split is None else Score(value=self._score(OnnxModel(self._path(name)), split), examples=len(split))
        )
        val = Score(value=evaluation.score, examples=len(self._task.data.val))
        latency = Comparison.from_json(self._students[name]["latency"])
        return InEightBits(network=Network(cost=evaluation.cost, val=val, test=test), latency=latency)

    def score(self, evaluation: Evaluation) -> float | None:
        """Return the validation score (0..1) that a final student has in 8 bits, None if it could not be quantised."""
        known = self._students.get(evaluation.architecture.digest)
        return None if known is None else float(known["score"])

    def _measured(self, name: str, student: nn.Module) -> dict[str, Any]:
        task, path = self._task, self._path(name)
        model = in_eight_bits(student, task.data, path)
        found = compare(task.teacher_in_onnxruntime(1), model, task.example, seconds=_SECONDS)
        known = {
            "score": self._score(model, task.data.val),
            "bytes": path.stat().st_size,
            "latency": asdict(replace(found, where=f"{found.where}, ONNX Runtime")),
        }
        self._students[name] = known
        self._save()
        return known

    def _score(self, model: OnnxModel, split: AnySplit) -> float:
        task = self._task
        how: dict[str, Any] = {"normalise": task.data.normalise, "compute": Compute(), "aim": task.aim}
        taught = None if split.labels is not None else predict(task.network, split, **how)
        return scored(model, split, taught=taught, **how)

    def _path(self, name: str) -> Path:
        return self._run.students / f"{name}.int8.onnx"

    def _save(self) -> None:
        self._run.remember("int8", {**asdict(self._sizes), "students": self._students})
