"""What is written of teacher, data and student, so that another machine can go on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from understudy.core.files import write_whole
from understudy.core.summary import Summary
from understudy.jobs.task import Task
from understudy.models.card import StudentCard
from understudy.models.code import code_of, not_copied, portable, read_code, write_code
from understudy.models.inputs import inputs_spec
from understudy.models.student import copy_student
from understudy.models.weights import save_weights, write_tensors
from understudy.runs.folder import Run
from understudy.runs.places import relative


def spec_of(task: Task) -> dict[str, Any] | None:
    """Return how the teacher is made, if names can say it, and of what is cut as well."""
    spec = task.teacher.spec
    if spec is None or (task.start is not None and task.start_folder is None):
        return None
    return {"name": portable(spec.name), "arguments": dict(spec.arguments)}


def code(task: Task, start: Path) -> dict[str, str]:
    """Return the texts of the Python files that make what is cut, by name; `start` is the folder of what was cut."""
    if task.start_folder is not None:
        return read_code(start)
    return {} if task.teacher.spec is None else code_of(task.teacher.spec.name)


def write_sources(task: Task, run: Run, warn: Callable[[str], object]) -> None:
    """Write down what `understudy resume` needs, once; nothing of it is a path of this machine."""
    teacher, folder = task.teacher, run.folder
    if task.policy is not None and not run.policy_from.is_file():
        write_tensors(run.policy_from, task.policy)
    if run.recall("proof") is None:
        run.remember("proof", task.proof.to_dict())
    if not (folder / "space.json").is_file():
        write_whole(folder / "space.json", task.space.to_json())
    spec = spec_of(task)
    if spec is not None and not (folder / "teacher.safetensors").is_file():
        save_weights(folder / "teacher.safetensors", teacher.module)
    if run.recall("source") is not None:
        return
    if task.start_folder is not None:
        copy_student(task.start_folder, run.start)
    if teacher.spec is not None:
        write_code(folder, code_of(teacher.spec.name))
        for package in not_copied(teacher.spec.name):
            warn(
                f"the model's file imports {package} from a folder beside it, which is not copied into {folder}: "
                "to go on or to load the student elsewhere, install it or give --model"
            )
    opened = task.opened
    data = None if opened is None else {**opened, "spec": relative(opened["spec"], folder)}
    run.remember("source", {"model": spec, "mean": teacher.mean, "std": teacher.std, "data": data})


def _made(task: Task, start: Path) -> dict[str, Any]:
    """Return how what is cut is made: by whom, if names can say it, and through which architectures."""
    if task.start_folder is not None:
        card, plan = StudentCard.read(start), (start / "architecture.json").read_text(encoding="utf-8")
        return {"model": card.model, "arguments": card.arguments, "starts": (*card.starts, plan)}
    spec = spec_of(task)
    model, arguments = (None, {}) if spec is None else (spec["name"], spec["arguments"])
    return {"model": model, "arguments": arguments, "starts": ()}


def card_of(task: Task, summary: Summary, start: Path) -> StudentCard:
    """Return what model.json says of the student of a finished run; `start` is the folder of what was cut."""
    data, spec = task.data, inputs_spec(task.example)
    return StudentCard(
        **_made(task, start),
        name=summary.name,
        input=tuple(spec) if isinstance(spec, list) else spec,
        objective=task.aim.objective.name,
        metric=task.aim.objective.metric,
        classes=tuple(data.classes),
        mean=tuple(data.mean),
        std=tuple(data.std),
        data_source=Path(data.source).name,
        data_digest=data.digest,
        teacher=summary.teacher,
        student=summary.student,
        latency=summary.latency,
        goal=summary.goal,
        versions=summary.versions,
    )
