"""All that a run folder tells, as values, for the page. No torch."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from understudy.core.architecture import Architecture, Space
from understudy.core.errors import DamageError, RunError
from understudy.core.evaluation import Cost, Evaluation
from understudy.core.figures import FIGURES
from understudy.core.files import read_text, understood
from understudy.core.goal import Reward
from understudy.core.summary import Score, Summary
from understudy.core.timing import Comparison, Timing
from understudy.methods.ranking import merit_for
from understudy.runs.curve import Epoch, read_curve
from understudy.runs.folder import Run, State
from understudy.runs.predictions import Predictions

_BUFFERS = ("running_mean", "running_var", "num_batches_tracked")
_NOTES = 50  # the last ones of a log
_EPOCH = re.compile(r"epoch (\d+)/\d+  (\d+)/(\d+) channels kept .*score ([\d.]+)% with masks")


@dataclass(frozen=True, kw_only=True)
class AgentsEpoch:
    """Where DECORE's agents were after an epoch."""

    epoch: int
    kept: float  # share of the channels that they would keep
    score: float  # of the masked network, 0..1


@dataclass(frozen=True, kw_only=True)
class LayerTime:
    """How long a layer takes in the teacher and in the student."""

    name: str
    teacher: Timing  # ms
    student: Timing | None  # None where it was removed, or is a part of another one
    fewer_macs: float  # how many times
    reason: str  # why it is not as much faster, "" where it is


@dataclass(frozen=True, kw_only=True, eq=False)
class Facts:
    """What is known of a run, finished or not."""

    folder: Path
    state: State
    method: str
    expected: int  # students of the whole search, 0 if not known
    asked: tuple[tuple[str, str], ...]
    space: Space | None
    reward: Reward | None  # as if the final score were not asked of candidates; None before the teacher was measured
    evaluations: tuple[Evaluation, ...]
    summary: Summary | None
    metric: str  # what the score is, such as accuracy
    finals: tuple[Evaluation, ...]
    predictions: Predictions | None
    parameters: Mapping[str, int]  # of the winner's layers, by name
    agents: Mapping[str, tuple[float, ...]]  # probabilities to keep each channel of a group
    epochs: tuple[AgentsEpoch, ...]
    notes: tuple[str, ...]  # warnings of run.log
    curves: Mapping[str, tuple[Epoch, ...]]  # of the final trainings, by the student's name
    times: tuple[LayerTime, ...]  # of the teacher's layers
    timed_where: str  # such as "1 thread, ONNX Runtime"

    @property
    def trained(self) -> tuple[tuple[int, Evaluation, Cost], ...]:
        """The evaluations that can be judged, each with its number and its cost; a latency may be still to measure."""
        numbered = enumerate(self.evaluations)
        return tuple((n, e, e.cost) for n, e in numbered if e.status != "failed" and e.cost and self._measured(e.cost))

    def earned(self, evaluation: Evaluation) -> float | None:
        """Return the reward of an evaluation, None where it cannot be judged."""
        known = self.reward is not None and evaluation.cost is not None and self._measured(evaluation.cost)
        return self.reward.plain(evaluation) if self.reward is not None and known else None

    def _measured(self, cost: Cost) -> bool:
        limits = () if self.reward is None else self.reward.budgets.limits()
        return all(getattr(cost, name) is not None for name, _ in limits)

    @property
    def best(self) -> Evaluation | None:
        """The winner after its final training, or the best that the search has found so far."""
        if self.summary is not None:
            return next((e for e in self.finals if e.architecture.digest == self.summary.name), None)
        ordered = self.ordered
        return ordered[0] if ordered else None

    @property
    def ordered(self) -> list[Evaluation]:
        """The trained evaluations, the best first."""
        if self.reward is None:
            return []
        return sorted((e for _, e, _ in self.trained), key=merit_for(self.reward), reverse=True)

    @classmethod
    def read(cls, folder: Path) -> Facts:
        """Read a run folder.

        Raises:
            RunError, ConfigError: it is no run, or a file in it is damaged.
        """
        run = Run(folder)
        settings, space, summary = run.settings, run.space, run.recall("summary")
        found = None
        if summary is not None:
            with understood(folder / "summary.json", DamageError):
                found = Summary.from_json(summary)
        log = (folder / "run.log").read_text(encoding="utf-8", errors="replace") if _is_file(folder, "run.log") else ""
        layers = run.recall("layers") or {}
        with understood(folder / "layers.json", DamageError):
            times = tuple(map(_layer_time, layers.get("layers", ())))
        names = [*(figure.goal for figure in FIGURES), "score", "score_drop"]
        pruned = settings.method.job == "prune"
        return cls(
            folder=folder,
            state=run.state,
            method=settings.method.called,
            expected=settings.method.expected_students,
            asked=tuple((n, str(value)) for n in names if (value := getattr(settings.goal, n)) is not None),
            space=space,
            reward=_reward(run),
            evaluations=tuple(run.evaluations()),
            summary=found,
            metric=str((run.recall("teacher") or {}).get("metric", "score")),
            finals=() if space is None else tuple(_finals(run, space)),
            predictions=Predictions.read(run.predictions) if run.predictions.is_file() else None,
            parameters={} if found is None else _parameters(run.students / f"{found.name}.safetensors"),
            agents=_agents(run.policy) if pruned and run.policy.is_file() else {},
            epochs=tuple(_epochs(log)) if pruned else (),
            notes=tuple(line.partition(" WARNING ")[2] for line in log.splitlines() if " WARNING " in line)[-_NOTES:],
            curves={path.stem: read_curve(path) for path in sorted(run.students.glob("*.curve"))},
            times=times,
            timed_where=str(layers.get("where", "")),
        )


@dataclass(frozen=True, kw_only=True)
class LayerRow:
    """A layer of the teacher beside what became of it in a student."""

    name: str
    type: str
    state: str  # "kept", "narrower", "removed"
    width: int  # of its output, 0 where it has none of its own
    student_width: int
    kernel: int
    student_kernel: int
    parameters: int
    student_parameters: int | None  # None where only the architecture is known


def layer_rows(architecture: Architecture, parameters: Mapping[str, int]) -> list[LayerRow]:
    """Return the layers that hold parameters or were removed, in the teacher's order."""
    gone, rows = gone_layers(architecture), []
    for layer in architecture.space.layers:
        removed = layer.name in gone
        if not layer.parameters and not (removed and layer.outputs):
            continue
        grouped = layer.group is not None and layer.outputs > 0
        width = 0 if removed else architecture.width(str(layer.group)) if grouped else layer.outputs
        kernel = architecture.kernel(layer.name)
        left = 0 if removed else parameters.get(layer.name) if parameters else None
        same = width == layer.outputs and kernel == layer.kernel and left in (None, layer.parameters)
        rows.append(
            LayerRow(
                name=layer.name,
                type=layer.type,
                state="removed" if removed else "kept" if same else "narrower",
                width=layer.outputs,
                student_width=width,
                kernel=layer.kernel,
                student_kernel=0 if removed else kernel,
                parameters=layer.parameters,
                student_parameters=left,
            )
        )
    return rows


def gone_layers(architecture: Architecture) -> set[str]:
    """Return the layers of removed units."""
    return {layer for unit in architecture.removed for layer in architecture.space.unit(unit).layers}


def width_shares(architecture: Architecture) -> list[float]:
    """Return the share of its channels that each group keeps, 0 for one whose layers are all removed."""
    gone, widths = gone_layers(architecture), dict(architecture.widths)
    return [
        0.0 if group.layers and gone.issuperset(group.layers) else widths.get(group.name, group.width) / group.width
        for group in architecture.space.groups
    ]


def difference(teacher: Score, student: Score, predictions: Predictions | None) -> tuple[float, float]:
    """Return by how much the student is more accurate, and the standard error of that.

    Where it is known who was right where, from pairs: teacher and student mostly fail together, so their difference
    is known better than either score.
    """
    gain = student.value - teacher.value
    if predictions is None:
        return gain, float(np.hypot(teacher.error, student.error))
    right = [(guess == predictions.labels).astype(float) for guess in (predictions.teacher, predictions.student)]
    return gain, float(np.std(right[1] - right[0]) / np.sqrt(len(predictions.labels)))


def _layer_time(values: Mapping[str, Any]) -> LayerTime:
    student = None if values["student"] is None else Timing(**values["student"])
    return LayerTime(**{**values, "teacher": Timing(**values["teacher"]), "student": student})


def _is_file(folder: Path, name: str) -> bool:
    return (folder / name).is_file()


def _reward(run: Run) -> Reward | None:
    teacher = run.recall("teacher")
    if teacher is None:
        return None
    with understood(run.folder / "teacher.json", DamageError):
        cost, score = Cost(**teacher["cost"]), float(teacher["score"])
    budgets = run.settings.goal.budgets(cost, score)
    if budgets.limits():  # the score that is asked for is that of the final training
        budgets = replace(budgets, score=0.0)
    return Reward(teacher_cost=cost, teacher_score=score, budgets=budgets, capped=run.settings.method.capped)


def _finals(run: Run, space: Space) -> Iterator[Evaluation]:
    """Yield the final students as the goal counts them: their latencies and, where it asks for 8 bits, their files."""
    int8, latency = (run.recall("int8") or {}).get("students", {}), run.recall("latency")
    for path in sorted(run.students.glob("*.json")):
        text = read_text(path, DamageError)
        with understood(path, DamageError):
            (found,) = run.with_latencies([Evaluation.from_json(space, text)])
        known = int8.get(path.stem)
        if known is not None and found.cost is not None:
            with understood(run.folder / "int8.json", DamageError):
                faster = Comparison.from_json(known["latency"]).ratio.median
                ms = None if latency is None else float(latency["latency_ms"]) / faster
                found = replace(found, cost=replace(found.cost, weight_bytes=int(known["bytes"]), latency_ms=ms))
        yield found


def _parameters(path: Path) -> dict[str, int]:
    """Return the parameters of each layer, from the head of a weights file."""
    found: dict[str, int] = {}
    if path.is_file():
        with _weights(path) as file:
            for name in file.keys():  # noqa: SIM118 (it is no dict)
                layer, _, leaf = name.rpartition(".")
                if leaf not in _BUFFERS:
                    found[layer] = found.get(layer, 0) + int(np.prod(file.get_slice(name).get_shape(), dtype=np.int64))
    return found


def _agents(path: Path) -> dict[str, tuple[float, ...]]:
    with _weights(path) as file:
        weights = {name: np.asarray(file.get_tensor(name), dtype=np.float64) for name in file.keys()}  # noqa: SIM118
    return {name: tuple((1.0 / (1.0 + np.exp(-each))).ravel().tolist()) for name, each in weights.items()}


def _weights(path: Path) -> Any:
    from safetensors import SafetensorError, safe_open

    try:
        return safe_open(path, framework="numpy")
    except (SafetensorError, OSError) as error:
        raise RunError(f"{path} must be as it was written, but is damaged: {error}") from error


def _epochs(log: str) -> Iterator[AgentsEpoch]:
    known: dict[int, AgentsEpoch] = {}
    for epoch, kept, of, right in _EPOCH.findall(log):  # a run that was continued may tell of an epoch twice
        known[int(epoch)] = AgentsEpoch(epoch=int(epoch), kept=int(kept) / int(of), score=float(right) / 100)
    yield from (known[epoch] for epoch in sorted(known))
