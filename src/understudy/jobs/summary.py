"""The figures of a finished run, measured. The one place where the test split is read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from understudy.core.evaluation import Evaluation
from understudy.core.goal import Reward
from understudy.core.summary import FinalStudent, Network, Score, SearchTotals, Summary, asked_and_obtained
from understudy.core.timing import Comparison
from understudy.data import AnySplit
from understudy.graph.copies import copied
from understudy.jobs.int8 import EightBits, in_floats
from understudy.jobs.latency import beside_teacher
from understudy.jobs.speed import floor_ms, layers_beside
from understudy.jobs.task import Task
from understudy.runs.folder import Run, versions
from understudy.runs.predictions import Numbers, Predictions
from understudy.training.compute import Compute, cores, device_named
from understudy.training.loop import predict, rightly
from understudy.training.scoring import scored

_SIDE = 64  # pixels of a picture on the page
_LAYERS_MS, _FEWEST, _MOST = 1000.0, 5, 30  # of timing layers, and runs for it


def summarise(
    task: Task,
    run: Run,
    reward: Reward,
    compute: Compute,
    student: nn.Module,
    *,
    best: Evaluation,
    finished: Sequence[Evaluation],
    int8: EightBits | None = None,
) -> Summary:
    """Return all figures of a run, of which those of the test split and the times are measured here.

    What both networks answer on the test split is left in the run folder.

    Args:
        task: what was done.
        run: where.
        reward: whose budgets count.
        compute: how score is computed.
        student: the winner.
        best: its evaluation after the final training.
        finished: the evaluations of all final students, in floats.
        int8: what judged them in 8 bits, where the goal asks for that; `best` is of those figures.
    """
    assert best.cost is not None, "what was trained has a cost"
    teacher, examples, test = task.network, len(task.data.val), task.data.test
    both = None if test is None else _tested(task, run, test, compute, teacher, student)
    of_teacher, of_student = both or (None, None)
    floats = next(e for e in finished if e.architecture == best.architecture)
    assert floats.cost is not None, "what was trained has a cost"
    cost = floats.cost if int8 is None else in_floats(task, floats)
    found = Network(cost=cost, val=Score(value=floats.score, examples=examples), test=of_student)
    latency = _latency(task, student)
    run.remember("layers", _layers(task, student, latency[0]))
    eight = None if int8 is None else int8.figures(best, test)
    return Summary(
        name=best.architecture.digest,
        teacher=Network(
            cost=reward.teacher_cost,
            val=Score(value=reward.teacher_score, examples=examples),
            test=of_teacher,
        ),
        student=found,
        latency=latency,
        goal=asked_and_obtained(task.settings.goal, reward, found if eight is None else eight.network),
        search=_totals(run.evaluations()),
        finals=tuple(_final(e, int8) for e in finished),
        int8=eight,
        metric=task.aim.objective.metric,
        compute=compute.name,
        versions=versions(),
    )


def _totals(searched: Sequence[Evaluation]) -> SearchTotals:
    return SearchTotals(
        students=len(searched),
        stopped=sum(e.status == "stopped" for e in searched),
        failed=sum(e.status == "failed" for e in searched),
        seconds=round(sum(e.seconds for e in searched), 1),
    )


def _final(finished: Evaluation, int8: EightBits | None) -> FinalStudent:
    return FinalStudent(
        name=finished.architecture.digest,
        val=finished.score,
        status=finished.status,
        seconds=round(finished.seconds, 1),
        int8=None if int8 is None else int8.score(finished),
    )


def _tested(
    task: Task, run: Run, split: AnySplit, compute: Compute, teacher: nn.Module, student: nn.Module
) -> tuple[Score, Score]:
    """Return the score of teacher and student, and leave what classifiers predict in the run folder."""
    how: dict[str, Any] = {"normalise": task.data.normalise, "compute": compute, "aim": task.aim}
    placed, networks = split.to(compute.device), [compute.place(copied(model)) for model in (teacher, student)]
    if task.aim.objective.name != "classification" or split.labels is None:
        taught = None if split.labels is not None else predict(networks[0], placed, **how).cpu()
        was, now = (scored(network, placed, taught=taught, **how) for network in networks)
        return Score(value=was, examples=len(split)), Score(value=now, examples=len(split))
    labels = split.labels.cpu()
    answers = [predict(network, placed, **how).cpu() for network in networks]
    (taught, sure), (learned, as_sure) = map(_guesses, answers)
    found = Predictions(
        classes=task.data.classes,
        labels=labels.int().numpy(),
        teacher=taught.numpy(),
        student=learned.numpy(),
        teacher_confidence=sure.numpy(),
        student_confidence=as_sure.numpy(),
    )
    shown = np.concatenate([found.lost, found.gained])
    if task.data.are_images and split.shape[0] in (1, 3):
        found = replace(found, shown=shown, pictures=_pictures(split.batch(torch.from_numpy(shown))[0]))
    found.write(run.predictions)
    first, second = (
        Score(value=rightly(logits, labels).double().mean().item(), examples=len(split)) for logits in answers
    )
    return first, second


def _guesses(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Return the first guess of each example, -1 where there is none, and its probability."""
    lost = logits.isnan().any(1)
    sure, guess = torch.softmax(logits.float(), 1).max(1)
    return guess.int().masked_fill(lost, -1), sure.float().masked_fill(lost, 0.0)


def _pictures(images: Tensor) -> Numbers:
    """Return images (k, c, h, w) as bytes (k, h, w, c), of at most 64 pixels a side; what are no bytes is stretched."""
    wide = images.cpu().double()
    if max(wide.shape[2:]) > _SIDE:
        size = [max(round(side * _SIDE / max(wide.shape[2:])), 1) for side in wide.shape[2:]]
        wide = torch.nn.functional.interpolate(wide, size, mode="area")
    if images.dtype != torch.uint8 and len(wide):
        low, high = wide.amin((1, 2, 3), keepdim=True), wide.amax((1, 2, 3), keepdim=True)
        wide = 255 * (wide - low) / (high - low).clamp(min=1e-12)
    return wide.round().to(torch.uint8).permute(0, 2, 3, 1).contiguous().numpy()


def _latency(task: Task, student: nn.Module) -> tuple[Comparison, ...]:
    """Return how student and teacher compare, on a processor with one thread and with all cores."""
    one = beside_teacher(task, student)
    if device_named(task.settings.device.device).type != "cpu" or cores() == 1:
        return (one,)
    return one, beside_teacher(task, student, threads=cores())


def _layers(task: Task, student: nn.Module, whole: Comparison) -> dict[str, Any]:
    """Return how long each layer takes on the CPU in teacher and student, for the page; {} where nothing tells."""
    example, runtime = task.example, task.settings.goal.runtime
    if not isinstance(example, Tensor) or example.dim() != 4:
        return {}
    once = whole.first.median + whole.second.median
    repeats = min(max(int(_LAYERS_MS / max(once, 1e-6)), _FEWEST), _MOST)
    teacher = copied(task.network).cpu().float().eval()
    found = layers_beside((teacher, student), example, runtime, repeats=repeats)
    floor = floor_ms(found)
    return {
        "where": "1 thread, ONNX Runtime" if runtime == "onnxruntime" else "1 thread",
        "layers": [
            {
                "name": pair.path,
                "teacher": asdict(pair.first.time),
                "student": None if pair.second is None or pair.second.time is None else asdict(pair.second.time),
                "fewer_macs": pair.fewer,
                "reason": pair.reason(floor),
            }
            for pair in found
            if pair.first.time is not None
        ],
    }
