"""What a compression would do, without doing it: what can go, how far it reaches, how long it takes."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

from rich.console import Group
from rich.table import Table
from rich.text import Text

from understudy.config.methods import Decore
from understudy.core.architecture import Architecture, Frozen
from understudy.core.evaluation import Cost
from understudy.core.figures import FIGURE, amount, duration
from understudy.data.data import first_images
from understudy.jobs.door import Look, look_at
from understudy.jobs.glance import Glance
from understudy.jobs.latency import Reference, reference_for
from understudy.jobs.task import Task
from understudy.methods.feasibility import smallest
from understudy.training.loop import choose_compute

_FROZEN_SHOWN = 12
_AGENTS = 1.15  # most that a step with agents costs, in plain ones


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a task would do."""

    layers: int
    units: int
    groups: int
    frozen: tuple[Frozen, ...]
    teacher: Cost
    look: Look | Glance
    fewest_parameters: Cost
    fewest_macs: Cost
    latency: Reference | None  # of the teacher and a few students, where the goal is about it
    students: int
    seconds: float | None  # of search and final training; None if the sample could not be trained
    compute: str
    workers: int


def plan(task: Task, *, untrained: bool = False, run: Path | None = None) -> Plan:
    """Return what a task would do; its time is judged from one student, trained for one epoch.

    The student has every group at half width, or at full width where agents prune it while it trains. Nothing is
    left on disk. What `run`, the folder of a run that would go on, has measured is not measured again.

    Raises:
        GoalError: the latency asked for is out of reach.
        ModelError, DataError: the teacher is no better than a guess, or with another normalisation, unless `untrained`.
    """
    look = look_at(task)
    look.refuse(task.teacher, untrained=untrained)
    space, method, widths = task.space, task.settings.method, task.settings.widths
    latency = reference_for(task, run)
    seconds, compute = _estimate(task)
    return Plan(
        layers=len(space.layers),
        units=sum(unit.kind != "layer" for unit in space.units),
        groups=len(space.groups),
        frozen=space.frozen,
        teacher=task.cost,
        look=look,
        fewest_parameters=smallest(space, method, widths, task.predict, "parameters")[1],
        fewest_macs=smallest(space, method, widths, task.predict, "macs")[1],
        latency=latency,
        students=method.expected_students,
        seconds=seconds,
        compute=compute,
        workers=max(1, task.settings.device.workers),
    )


def plan_table(plan: Plan) -> Group:
    """Return the plan to print with rich."""
    facts = Table(title="What would be done", title_justify="left", show_header=False)
    parameters, macs = plan.fewest_parameters.parameters, plan.fewest_macs.macs
    rows = (
        (
            "the teacher",
            f"{plan.layers} layers, {plan.teacher.parameters:,} parameters, {amount(plan.teacher.macs)} MACs",
        ),
        ("its score", f"{plan.look.score} of {plan.look.score.examples} validation examples (± s.e.)"),
        ("can be removed", _counted(plan.units, "unit")),
        ("can be narrowed", _counted(plan.groups, "group") + " of channels"),
        ("keep their width", _counted(len(plan.frozen), "group") + (", see below" if plan.frozen else "")),
        ("least parameters", f"{parameters:,} ({plan.teacher.parameters / parameters:.1f}x fewer)"),
        ("least MACs", f"{amount(macs)} ({plan.teacher.macs / macs:.1f}x fewer)"),
        *_latency_row(plan.latency),
        ("students to train", str(plan.students)),
        ("computed in", f"{plan.compute}, {plan.workers} at a time"),
        ("time", "unknown: the sample failed" if plan.seconds is None else f"about {duration(plan.seconds)}"),
    )
    for row in rows:
        facts.add_row(*row)
    facts.caption = Text("\n".join(f"note: {note}" for note in plan.look.notes)) if plan.look.notes else None
    facts.caption_justify = "left"
    if not plan.frozen:
        return Group(facts)
    held = Table(title="What keeps its width", title_justify="left")
    for name in ("channels", "width", "because", "at"):
        held.add_column(name)
    for frozen in plan.frozen[:_FROZEN_SHOWN]:
        held.add_row(Text(frozen.name), str(frozen.width), Text(frozen.reason), Text(frozen.source))
    more = len(plan.frozen) - _FROZEN_SHOWN
    if more > 0:
        held.add_row(f"and {more} more", "", "", "")
    return Group(facts, held)


def _latency_row(known: Reference | None) -> tuple[tuple[str, str], ...]:
    if known is None:
        return ()
    text = FIGURE["latency_ms"].text
    return (
        (
            "least latency",
            f"{text(known.fastest.latency_ms)} (of {len(known.points)} measured, teacher {text(known.latency_ms)})",
        ),
    )


def _counted(number: int, what: str) -> str:
    return f"{number} {what}" + ("" if number == 1 else "s")


def _estimate(task: Task) -> tuple[float | None, str]:
    settings = task.settings
    images = first_images(task.data, task.data.train, settings.candidates.training.batch_size)
    compute = choose_compute(task.network, images, settings.device)
    once = replace(settings.candidates.training, epochs=1)
    short = replace(settings, candidates=replace(settings.candidates, training=once, stop_below=0.0))
    with tempfile.TemporaryDirectory() as folder:
        evaluator = replace(task, settings=short).evaluator(compute, Path(folder))
        sample = _SAMPLE[settings.method.job](task)
        evaluator(sample)  # kernels are compiled, teacher logits computed
        measured = evaluator(sample)
    if measured.status == "failed":
        return None, compute.name
    return _seconds(task, measured.seconds), compute.name


def _half(task: Task) -> Architecture:
    """Return the sample student of a search: every group at half width."""
    halves = {group.name: task.settings.widths.of(group, 0.5) for group in task.space.groups}
    return task.space.architecture(widths=halves)


def _search_seconds(task: Task, epoch: float) -> float:
    """Return the seconds of a search, from those of one epoch of a candidate."""
    settings = task.settings
    epochs = settings.candidates.training.epochs
    return settings.method.expected_students * epochs * epoch / max(1, settings.device.workers)


def _prune_seconds(task: Task, epoch: float) -> float:
    """Return the seconds of a loop with agents, from those of one epoch of a candidate."""
    method = cast(Decore, task.settings.method)
    return method.training.epochs * _AGENTS * epoch / _seen(task)


# By the job of a method: the sample student, and the seconds.
_SAMPLE: dict[str, Callable[[Task], Architecture]] = {"search": _half, "prune": lambda task: task.space.full}
_JOB_SECONDS = {"search": _search_seconds, "prune": _prune_seconds}


def _seen(task: Task) -> float:
    """Return the share of the training examples that a candidate sees."""
    available = len(task.data.train)
    return min(task.settings.candidates.examples or available, available) / available


def _seconds(task: Task, epoch: float) -> float:
    """Return the seconds of the whole task, from those of one epoch of a candidate."""
    settings = task.settings
    search = _JOB_SECONDS[settings.method.job](task, epoch)
    final = settings.final.training.epochs * epoch / _seen(task)
    # The teacher's forward passes cost about a third of a training step of its size, once for all finals.
    return search + final * (math.ceil(settings.final.students / max(1, settings.device.workers)) + 1)
