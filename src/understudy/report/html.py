"""The page of a run: one HTML file that needs no network. No torch."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from understudy.core.evaluation import Cost, Evaluation
from understudy.core.extras import optional
from understudy.core.figures import BY_GOAL, FIGURE, FIGURES, amount, digits, share
from understudy.core.files import write_whole
from understudy.core.summary import Asked, Summary
from understudy.report import charts
from understudy.report.behaviour import Behaviour
from understudy.report.facts import Facts, difference, layer_rows
from understudy.report.pictures import Picture, pictures
from understudy.report.tables import in_eight_bits

_PARTS = Path(__file__).parent / "page"
_LISTED = 20  # rows of a list of which a page shows the first ones


@dataclass(frozen=True, kw_only=True)
class Card:
    """A large number and what it means."""

    number: str
    label: str
    note: str


def write_report(run: Path, out: Path) -> Path:
    """Write the page of a run folder, of a run that goes on as well.

    Raises:
        ExtraError: jinja2 or plotly is missing.
        RunError, ConfigError: it is no run, or a file in it is damaged.
    """
    for needed in ("jinja2", "plotly"):
        optional(needed, extra="report")
    write_whole(out, page(Facts.read(run)))
    return out


def page(facts: Facts) -> str:
    """Return the page.

    Raises:
        ExtraError: jinja2 or plotly is missing.
    """
    jinja2, offline = optional("jinja2", extra="report"), optional("plotly.offline", extra="report")
    # The names of classes, layers and folders are anybody's: what is no markup of ours is escaped.
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_PARTS), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"share": share, "amount": amount}
    behaviour = None if facts.predictions is None else Behaviour.of(facts.predictions)
    best = facts.best
    rows = [] if best is None else layer_rows(best.architecture, facts.parameters)
    drawn = dict(_charts(facts, behaviour, rows))
    data = {"charts": drawn, **_students(facts)}
    text: str = environment.get_template("page.html").render(
        facts=facts,
        summary=facts.summary,
        cards=[] if facts.summary is None else _cards(facts, facts.summary),
        budgets=[] if facts.summary is None else [(b, *_asked(b)) for b in facts.summary.goal],
        compared=[] if facts.summary is None else _compared(facts.summary),
        eight={} if facts.summary is None else {each.name: each.int8 for each in facts.summary.finals},
        best=best,
        best_first=_front(facts),
        rows=rows,
        behaviour=behaviour,
        pictures=_shown(facts),
        figures=charts.figures_of(facts) if facts.trained else [],
        drawn=drawn,
        listed=_LISTED,
        data=_safe(data),
        plotly=offline.get_plotlyjs(),
        style=(_PARTS / "page.css").read_text(encoding="utf-8"),
        script=(_PARTS / "page.js").read_text(encoding="utf-8"),
    )
    return text


def _shown(facts: Facts) -> list[tuple[str, list[Picture]]]:
    """Return the images that only one of both gets right, under their headings."""
    found = facts.predictions
    if found is None:
        return []
    both = ("Only the teacher is right", found.lost), ("Only the student is right", found.gained)
    return [(title, shown) for title, places in both if (shown := pictures(found, places))]


def _safe(values: Any) -> str:
    """Return JSON that can stand in a script element: nothing in it ends one or opens a comment."""
    text = json.dumps(values, separators=(",", ":"))
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def _charts(facts: Facts, behaviour: Behaviour | None, rows: Any) -> Iterator[tuple[str, charts.Chart]]:
    if facts.trained and facts.reward is not None:
        yield "pareto", charts.pareto(facts, charts.figures_of(facts)[0])
        yield "rewards", charts.rewards(facts)
    if facts.evaluations and facts.space is not None and facts.space.groups and not facts.agents:
        yield "widths", charts.widths(facts)
    if facts.evaluations and not facts.agents and (removed := charts.removals(facts)) is not None:
        yield "removals", removed
    if facts.agents:
        yield "agents", charts.agents(facts)
    if facts.epochs:
        yield "loop", charts.loop(facts)
    if (sizes := charts.layers(rows)) is not None:
        yield "layers", sizes
    if facts.summary is not None and facts.summary.latency:
        yield "latency", charts.latency(facts.summary.latency)
    if facts.summary is not None and facts.times:
        yield "times", charts.layer_times(facts.times)
    if facts.summary is not None and any(facts.curves.values()):
        yield "curves", charts.curves(facts.curves, facts.summary.name)
    if behaviour is not None:
        yield "classes", charts.classes(behaviour)
        yield "calibration", charts.calibration(behaviour)


def _cards(facts: Facts, summary: Summary) -> Iterator[Card]:
    teacher, student = summary.teacher.cost, summary.student.cost
    for name, label in (("parameters", "fewer parameters"), ("macs", "fewer multiply-accumulates")):
        was, now = getattr(teacher, name), getattr(student, name)
        number = f"{digits(was / now)}x" if now else "-"
        yield Card(number=number, label=label, note=f"{amount(was)} in the teacher, {amount(now)} in the student")
    for pair in summary.latency[:1]:
        told = str(pair).partition(" ")
        number, label = (told[0], told[2]) if pair.measurable else ("≈ 1x", "no measurable difference in time")
        note = f"{pair.first} ms and {pair.second} ms for one example, {pair.where}; medians and quartiles"
        yield Card(number=number, label=label, note=note)
    split = "test" if summary.teacher.test is not None and summary.student.test is not None else "val"
    was, now = getattr(summary.teacher, split), getattr(summary.student, split)
    what = {"test": "test", "val": "validation"}[split] + f" {summary.metric}"
    note = f"teacher {summary.told(was)}, student {summary.told(now)}, of {now.examples:,} examples"
    if summary.told(now) != str(now):
        yield Card(number=f"{100 * (now.value - was.value):+.2f}", label=f"points of {what}", note=note)
        return
    gain, error = difference(was, now, facts.predictions if split == "test" else None)
    label = f"points of {what} (± {100 * error:.2g})"
    yield Card(number=f"{100 * gain:+.2f}", label=label, note=f"{note}; ± one standard error")


def _asked(budget: Asked) -> tuple[str, str, str]:
    """Return a budget's label, its limit and what was obtained."""
    form = " in 8 bits" if budget.int8 else ""
    if budget.is_floor:
        return budget.name.replace("_", " ") + form, f"≥ {share(budget.limit)}", share(budget.obtained)
    figure = BY_GOAL[budget.name]
    return figure.label + form, f"≤ {figure.number(budget.limit)}", figure.number(budget.obtained)


def _compared(summary: Summary) -> Iterator[tuple[str, str, str, str]]:
    for figure in FIGURES:
        was, now = figure.of(summary.teacher.cost), figure.of(summary.student.cost)
        if was is not None and now is not None and not figure.measured:
            times = f"{digits(was / now)}x" if now else "-"
            yield figure.label, figure.number(was), figure.number(now), times
    for pair in summary.latency:
        yield f"ms for 1 example, {pair.where}", str(pair.first), str(pair.second), str(pair)
    for split, name in (("val", summary.called("validation")), ("test", summary.called("test"))):
        was, now = getattr(summary.teacher, split), getattr(summary.student, split)
        if was is not None and now is not None:
            yield name, summary.told(was), summary.told(now), f"{100 * (now.value - was.value):+.2f} points"
    if summary.int8 is not None:
        for label, first, second, change in in_eight_bits(summary, summary.int8):
            yield f"in 8 bits: {label}", first, second, change


def _front(facts: Facts) -> list[tuple[int, Evaluation, Cost]]:
    """Return the students of the Pareto front, the most accurate first."""
    if not facts.trained:
        return []
    figure = charts.figures_of(facts)[0]
    costs = [float(figure.of(cost) or 0.0) for _, _, cost in facts.trained]
    places = charts.front(costs, [e.score for _, e, _ in facts.trained])
    return [facts.trained[place] for place in reversed(places)][:_LISTED]


def _students(facts: Facts) -> dict[str, Any]:
    """Return what the page says of each student when it is pointed at, short: there may be thousands."""
    space = facts.space
    if space is None or not facts.evaluations:
        return {"students": [], "groups": [], "units": [], "metric": facts.metric, "figures": []}
    groups = {group.name: number for number, group in enumerate(space.groups)}
    units = {unit.name: number for number, unit in enumerate(space.units)}
    figures = charts.figures_of(facts)
    limits = {} if facts.reward is None else dict(facts.reward.budgets.limits())
    return {
        "groups": [[group.name, group.width] for group in space.groups],
        "units": list(units),
        "metric": facts.metric,
        "figures": [[f.name, f.label, limits.get(f.name)] for f in figures],
        "students": [
            {
                "d": e.architecture.digest,
                "s": e.status,
                "a": round(e.score, 6),
                "t": round(e.seconds, 2),
                "c": None if e.cost is None else [_number(FIGURE[f.name].of(e.cost)) for f in figures],
                "r": _number(facts.earned(e)),
                "u": sorted(units[name] for name in e.architecture.removed),
                "w": [[groups[name], width] for name, width in e.architecture.widths],
                "k": list(e.architecture.kernels),
                **({} if e.error is None else {"e": e.error}),
            }
            for e in facts.evaluations
        ],
        "teacher": None if facts.reward is None else [_number(f.of(facts.reward.teacher_cost)) for f in figures],
        "finals": [
            [_number(f.of(e.cost)) for f in figures]
            for e in facts.finals
            if e.cost is not None and e.status != "failed"
        ],
    }


def _number(number: float | None) -> float | None:
    return None if number is None else round(number, 6)
