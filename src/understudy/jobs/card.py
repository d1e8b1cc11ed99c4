"""What a student's folder says of the student."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from understudy.jobs.task import Task
from understudy.models.student import read_card


def spec_of(task: Task) -> dict[str, Any] | None:
    """Return how the teacher is made, if names can say it, and of what is cut as well."""
    spec = task.teacher.spec
    if spec is None or (task.start is not None and task.start_folder is None):
        return None
    return {"name": spec.name, "arguments": dict(spec.arguments)}


def _made(task: Task, start: Path) -> dict[str, Any]:
    """Return how what is cut is made: by whom, if names can say it, and through which architectures."""
    if task.start_folder is not None:
        card, plan = read_card(start), (start / "architecture.json").read_text(encoding="utf-8")
        return {"model": card["model"], "arguments": card["arguments"], "starts": [*card.get("starts", ()), plan]}
    spec = spec_of(task)
    model, arguments = (None, {}) if spec is None else (spec["name"], spec["arguments"])
    return {"model": model, "arguments": arguments, "starts": []}


def card_of(task: Task, summary: dict[str, Any], start: Path) -> dict[str, Any]:
    """Return what model.json says of the student of a finished run; `start` is the folder of what was cut."""
    data = task.data
    return {
        **_made(task, start),
        "input": list(data.shape),
        "classes": list(data.classes),
        "mean": list(data.mean),
        "std": list(data.std),
        "data": {"source": data.source, "digest": data.digest},
        "teacher": summary["teacher"],
        "student": summary["student"],
        "goal": summary["goal"],
        "versions": summary["versions"],
    }
