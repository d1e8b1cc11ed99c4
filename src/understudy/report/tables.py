"""What a run found, as tables for people. No torch."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator, Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from understudy.core.console import LEAST
from understudy.core.errors import DamageError
from understudy.core.evaluation import Cost, Evaluation
from understudy.core.figures import BY_GOAL, FIGURE, FIGURES, Figure, amount, digits, share
from understudy.core.files import understood
from understudy.core.goal import Reward
from understudy.core.summary import Asked, InEightBits, Score, Summary
from understudy.methods.ranking import merit_for
from understudy.runs.folder import Run


class PlainTable(Table):
    """A table that Python's own `print` shows as well."""

    def __str__(self) -> str:
        console = Console(width=max(shutil.get_terminal_size((100, 24)).columns, LEAST))
        with console.capture() as capture:
            console.print(self)
        return capture.get()


def result_table(summary: Summary) -> PlainTable:
    """Return the table of a finished run: teacher against student, then asked against obtained."""
    table = PlainTable(title="Teacher and understudy", title_justify="left", caption_justify="left")
    for name in ("", "teacher", "student", "change"):
        table.add_column(name, justify="left" if not name else "right", no_wrap=name == "change")
    teacher, student = summary.teacher, summary.student
    for figure in FIGURES:
        if not figure.measured:
            table.add_row(figure.label, *_compared(figure, teacher.cost, student.cost))
    for timed in summary.latency:
        table.add_row(f"ms for 1 example, {timed.where}", str(timed.first), str(timed.second), str(timed))
    for split in ("val", "test"):
        was, now = getattr(teacher, split), getattr(student, split)
        if was is not None and now is not None:
            name = summary.called({"val": "validation", "test": "test"}[split])
            table.add_row(name, summary.told(was), summary.told(now), _points(was, now))
    if summary.int8 is not None:
        table.add_section()
        table.add_row("[bold]in 8 bits (int8)", "[bold]teacher", "[bold]int8", "")
        for row in in_eight_bits(summary, summary.int8):
            table.add_row(*row)
    if summary.goal:
        table.add_section()
        table.add_row("[bold]goal", "[bold]asked", "[bold]obtained", "")
    for budget in summary.goal:
        mark = Text("✓", style="green") if budget.kept else Text("✗", style="red")
        table.add_row(budget.name + (" (int8)" if budget.int8 else ""), budget.asked, _obtained(budget), mark)
    table.caption = Text("\n".join(summary.notes)) if summary.notes else None
    return table


def in_eight_bits(summary: Summary, found: InEightBits) -> Iterator[tuple[str, str, str, str]]:
    """Yield what the student is in 8 bits beside the teacher: a label, both figures and the change."""
    yield ("MB of the file", *_compared(FIGURE["size_mb"], summary.teacher.cost, found.network.cost))
    yield (
        f"ms for 1 example, {found.latency.where}",
        str(found.latency.first),
        str(found.latency.second),
        str(found.latency),
    )
    for split, name in (("val", "validation"), ("test", "test")):
        was, now = getattr(summary.teacher, split), getattr(found.network, split)
        if was is not None and now is not None:
            yield summary.called(name), summary.told(was), summary.told(now), _points(was, now)


def numbers_of(summary: Summary) -> dict[str, float]:
    """Return the figures of teacher and student as numbers by name, for a log."""
    both = {"teacher": summary.teacher, "student": summary.student}
    both |= {} if summary.int8 is None else {"int8": summary.int8.network}
    found = {"result/all_budgets_kept": float(summary.kept)}
    for name, network in both.items():
        scores = {"val_score": network.val, "test_score": network.test}
        found |= {f"result/{name}/{which}": score.value for which, score in scores.items() if score is not None}
        costs = {figure.name: figure.of(network.cost) for figure in FIGURES}
        found |= {f"result/{name}/{figure}": float(value) for figure, value in costs.items() if value is not None}
    return found


def in_a_line(summary: Summary) -> str:
    """Return a finished run in a few words: the student's size, its score, the budgets that are not kept."""
    teacher, student = summary.teacher, summary.student
    broken = ", ".join(budget.name for budget in summary.goal if not budget.kept)
    goal = f"not kept: {broken}" if broken else "all budgets kept"
    fewer = teacher.cost.parameters / student.cost.parameters
    return (
        f"{student.cost.parameters:,} parameters ({fewer:.1f}x fewer), "
        f"{share(student.val.value)} on validation, teacher {share(teacher.val.value)}"
        + (f"; {goal}" if summary.goal else "")
    )


def runs_table(rows: Iterable[Sequence[str]]) -> Table:
    """Return the table of runs, from the row of each."""
    table = Table(title="Runs", title_justify="left")
    table.add_column("run", overflow="fold")
    for name in ("state", "method", "students", "best so far", "goal"):
        table.add_column(name)
    for row in rows:
        table.add_row(*map(Text, row))
    return table


def run_row(run: Run) -> tuple[str, ...]:
    """Return folder, state, method, number of students, best student and goal of a run.

    Raises:
        ConfigError, RunError: a file of it is damaged, or its database does not answer.
    """
    settings = run.settings
    evaluations, of = run.evaluations(), settings.method.expected_students
    names = [*(figure.goal for figure in FIGURES), "score", "score_drop"]
    asked = ((name, getattr(settings.goal, name)) for name in names)
    goal = ", ".join(f"{name} {value}" for name, value in asked if value is not None)
    students = f"{len(evaluations)}/{of}" if of else str(len(evaluations))
    return str(run.folder), run.state, settings.method.called, students, _best(run, evaluations), goal or "-"


def _best(run: Run, evaluations: Sequence[Evaluation]) -> str:
    """Return the figures of the winner, or of the best so far."""
    summary, teacher = run.recall("summary"), run.recall("teacher")
    if summary is not None:
        with understood(run.folder / "summary.json", DamageError):
            student = Summary.from_json(summary).student
        return _brief(student.val.value, student.cost.parameters)
    if teacher is None:
        return "-"
    with understood(run.folder / "teacher.json", DamageError):
        cost, score = Cost(**teacher["cost"]), float(teacher["score"])
    budgets, capped = run.settings.goal.budgets(cost, score), run.settings.method.capped
    reward = Reward(teacher_cost=cost, teacher_score=score, budgets=budgets, capped=capped)
    # A student whose latency is still to be measured cannot be ranked yet.
    limited = [name for name, _ in reward.budgets.limits()]
    trained = [e for e in evaluations if e.status != "failed" and _known(e, limited)]
    best = max(trained, key=merit_for(reward), default=None)
    return "-" if best is None or best.cost is None else _brief(best.score, best.cost.parameters)


def _known(evaluation: Evaluation, figures: Sequence[str]) -> bool:
    return all(getattr(evaluation.cost, name) is not None for name in figures)


def _brief(score: float, parameters: int) -> str:
    return f"{share(score)}, {amount(parameters)} parameters"


def _compared(figure: Figure, teacher: Cost, student: Cost) -> tuple[str, str, str]:
    was, now = figure.of(teacher), figure.of(student)
    assert was is not None and now is not None, "it is predicted"
    change = (
        "" if not was or not now else f"{digits(was / now)}x smaller" if now <= was else f"{digits(now / was)}x larger"
    )
    return figure.number(was), figure.number(now), change


def _points(was: Score, now: Score) -> str:
    return f"{100 * (now.value - was.value):+.2f} points"


def _obtained(budget: Asked) -> str:
    if budget.is_floor:
        return f"{share(budget.obtained)} (≥ {share(budget.limit)})"
    number = BY_GOAL[budget.name].number
    return f"{number(budget.obtained)} (≤ {number(budget.limit)})"
