"""What a run found, as tables for people. No torch."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from understudy.config.text import expected_students
from understudy.core.evaluation import Cost, Evaluation
from understudy.core.figures import amount, share
from understudy.core.goal import Reward
from understudy.methods.ranking import merit_for
from understudy.runs.folder import Run

_FIGURES = (
    ("parameters", "parameters", "count"),
    ("MACs", "macs", "count"),
    ("MB of weights", "size_mb", "mb"),
    ("MB of activations", "memory_mb", "mb"),
    ("ms for 1 image, 1 thread", "latency_ms", "ms"),
    ("ms for 1 image, {threads} threads", "latency_all_ms", "ms"),
    ("validation accuracy", "val", "share"),
    ("test accuracy", "test", "share"),
)


class PlainTable(Table):
    """A table that Python's own `print` shows as well."""

    def __str__(self) -> str:
        console = Console(width=shutil.get_terminal_size((100, 24)).columns)
        with console.capture() as capture:
            console.print(self)
        return capture.get()


def result_table(summary: Mapping[str, Any]) -> PlainTable:
    """Return the table of a finished run: teacher against student, then asked against obtained."""
    table = PlainTable(title="Teacher and understudy", title_justify="left")
    for name in ("", "teacher", "student", "change"):
        table.add_column(name, justify="left" if not name else "right")
    teacher, student = summary["teacher"], summary["student"]
    for label, field, kind in _FIGURES:
        if field in student and (field != "latency_all_ms" or student["threads"] > 1):
            table.add_row(label.format_map(student), *_compared(teacher, student, field, kind))
    for budget in summary["goal"]:
        if budget is summary["goal"][0]:
            table.add_section()
            table.add_row("[bold]goal", "[bold]asked", "[bold]obtained", "")
        mark = Text("✓", style="green") if budget["kept"] else Text("✗", style="red")
        table.add_row(budget["name"], budget["asked"], _obtained(budget), mark)
    return table


def in_a_line(summary: Mapping[str, Any]) -> str:
    """Return a finished run in a few words: the student's size, its accuracy, the budgets that are not kept."""
    teacher, student = summary["teacher"], summary["student"]
    broken = ", ".join(budget["name"] for budget in summary["goal"] if not budget["kept"])
    goal = f"not kept: {broken}" if broken else "all budgets kept"
    return (
        f"{student['parameters']:,} parameters ({teacher['parameters'] / student['parameters']:.1f}x fewer), "
        f"{share(student['val'])} on validation, teacher {share(teacher['val'])}"
        + (f"; {goal}" if summary["goal"] else "")
    )


def runs_table(runs: Iterable[Run]) -> Table:
    """Return the table of runs: state, method, students, best student and goal of each."""
    table = Table(title="Runs", title_justify="left")
    for name in ("run", "state", "method", "students", "best so far", "goal"):
        table.add_column(name)
    for run in runs:
        settings = run.settings
        evaluations, of = run.evaluations(), expected_students(settings.compression().method)
        asked = ((f.name, getattr(settings.goal, f.name)) for f in fields(settings.goal))
        goal = ", ".join(f"{name} {value}" for name, value in asked if value is not None)
        students = f"{len(evaluations)}/{of}"
        table.add_row(str(run.folder), run.state, settings.method, students, _best(run, evaluations), goal or "-")
    return table


def _best(run: Run, evaluations: Sequence[Evaluation]) -> str:
    """Return the figures of the winner, or of the best so far."""
    summary, teacher = run.recall("summary"), run.recall("teacher")
    if summary is not None:
        return _brief(summary["student"]["val"], summary["student"]["parameters"])
    if teacher is None:
        return "-"
    cost, accuracy = Cost(**teacher["cost"]), teacher["accuracy"]
    reward = Reward(teacher_cost=cost, teacher_accuracy=accuracy, budgets=run.settings.goal.budgets(cost, accuracy))
    trained = [e for e in evaluations if e.status != "failed"]
    best = max(trained, key=merit_for(reward), default=None)
    return "-" if best is None or best.cost is None else _brief(best.accuracy, best.cost.parameters)


def _brief(accuracy: float, parameters: int) -> str:
    return f"{share(accuracy)}, {amount(parameters)} parameters"


def _compared(teacher: Mapping[str, Any], student: Mapping[str, Any], field: str, kind: str) -> tuple[str, str, str]:
    was, now = teacher.get(field), student.get(field)
    if was is None or now is None:
        return "-", "-", ""
    if kind == "share":
        return share(was), share(now), f"{100 * (now - was):+.2f} points"
    ratio = f"{was / now:.1f}x {'faster' if kind == 'ms' else 'smaller'}"
    if kind == "ms":
        return _spread(teacher, field), _spread(student, field), ratio
    form = ".3g" if kind == "mb" else ",.0f"
    return format(was, form), format(now, form), ratio


def _spread(figures: Mapping[str, Any], field: str) -> str:
    """Return a median, give or take half the interquartile range."""
    return f"{figures[field]:.2f} ± {figures[field.replace('_ms', '_spread_ms')] / 2:.2f}"


def _obtained(budget: Mapping[str, Any]) -> str:
    sign, limit, obtained = ("≥", *_pair(budget)) if "accuracy" in budget["name"] else ("≤", *_pair(budget))
    return f"{obtained} ({sign} {limit})"


def _pair(budget: Mapping[str, Any]) -> tuple[str, str]:
    limit, obtained = budget["limit"], budget["obtained"]
    if "accuracy" in budget["name"]:
        return share(limit), share(obtained)
    if budget["name"] in ("params", "macs"):
        return f"{limit:,.0f}", f"{obtained:,.0f}"
    return f"{limit:.3g}", f"{obtained:.3g}"
