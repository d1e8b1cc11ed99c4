"""The charts of a page, as Plotly figures of plain values. No torch.

Colours are told apart by people who see fewer of them (after Okabe and Ito), and never alone: shapes and dashes differ
as well. Background, text and grid are the page's, light or dark, and set there.
"""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from typing import Any

from understudy.core.architecture import Architecture
from understudy.core.figures import FIGURES, Figure, share
from understudy.core.timing import Comparison, Timing
from understudy.report.behaviour import Behaviour, Calibration
from understudy.report.facts import Facts, LayerRow, LayerTime, width_shares
from understudy.runs.curve import Epoch

Chart = dict[str, Any]
BLUE, ORANGE, GREEN, GREY = "#2b83c6", "#e08a00", "#009e73", "#8a8f98"
_COLUMNS = 60  # of a heatmap over time, at most
_ROWS = 60  # of what is listed by layer or unit
_BEST = 0.1  # share of the students that count as the best


def plain(name: str) -> str:
    """Return a name as Plotly shows it: it reads some HTML."""
    return html.escape(name, quote=False)


def figures_of(facts: Facts) -> list[Figure]:
    """Return the figures that every trained student has, those with a budget first."""
    limited = {name for name, _ in facts.reward.budgets.limits()} if facts.reward else set()
    known = [figure for figure in FIGURES if all(figure.of(cost) is not None for _, _, cost in facts.trained)]
    return sorted(known, key=lambda figure: figure.name not in limited)


def front(costs: Sequence[float], accuracies: Sequence[float]) -> list[int]:
    """Return the places of what is more accurate than all that costs no more, by cost."""
    best, found = -math.inf, []
    for place in sorted(range(len(costs)), key=lambda n: (costs[n], -accuracies[n])):
        if accuracies[place] > best:
            best = accuracies[place]
            found.append(place)
    return found


def pareto(facts: Facts, figure: Figure) -> Chart:
    """Return the score over a cost of all trained students, the front among them, the finals and the teacher."""
    trained = facts.trained
    costs = [_cost(figure, cost) for _, _, cost in trained]
    right = [e.score for _, e, _ in trained]
    numbers = [number for number, _, _ in trained]
    best = front(costs, right)
    stopped = [e.status == "stopped" for _, e, _ in trained]
    data: list[Chart] = [
        {
            "type": "scatter", "mode": "markers", "name": "evaluated", "x": costs, "y": right, "customdata": numbers,
            "marker": {
                "color": BLUE, "size": 7 if len(costs) < 1000 else 4, "opacity": 0.7,
                "symbol": ["x" if early else "circle" for early in stopped],
            },
        },
        {
            "type": "scatter", "mode": "lines+markers", "name": "Pareto front", "x": [costs[n] for n in best],
            "y": [right[n] for n in best], "customdata": [numbers[n] for n in best],
            "line": {"color": GREEN, "width": 2, "shape": "hv"}, "marker": {"color": GREEN, "size": 9},
        },
    ]  # fmt: skip
    if finals := [e for e in facts.finals if e.cost is not None and e.status != "failed"]:
        data.append(
            {
                "type": "scatter", "mode": "markers", "name": "after the final training",
                "x": [_cost(figure, e.cost) for e in finals], "y": [e.score for e in finals],
                "marker": {"color": ORANGE, "size": 12, "symbol": "diamond"},
                "hovertemplate": "%{y:.2%}<br>%{x:,.4~g} " + figure.unit,
            }
        )  # fmt: skip
    if facts.reward is not None and figure.of(facts.reward.teacher_cost) is not None:
        data.append(
            {
                "type": "scatter", "mode": "markers", "name": "teacher",
                "x": [_cost(figure, facts.reward.teacher_cost)], "y": [facts.reward.teacher_score],
                "marker": {"color": GREY, "size": 15, "symbol": "star"},
                "hovertemplate": "teacher: %{y:.2%}<br>%{x:,.4~g} " + figure.unit,
            }
        )  # fmt: skip
    limit = dict(facts.reward.budgets.limits()).get(figure.name) if facts.reward else None
    shapes = [] if limit is None else [_line(x=limit)]
    layout = {
        "xaxis": _axis(figure.label, type="log", dtick="D2", tickformat="~s"),
        "yaxis": _axis(f"validation {facts.metric}", tickformat=".0%"),
    }
    return {"data": data, "layout": {**layout, "shapes": shapes, "hovermode": "closest"}}


def rewards(facts: Facts) -> Chart:
    """Return the reward of each student, their moving mean and the best so far, in the order of the store."""
    assert facts.reward is not None, "the teacher was measured before any student"
    numbers = [number + 1 for number, _, _ in facts.trained]
    earned = [facts.reward.plain(e) for _, e, _ in facts.trained]
    window = max(5, len(earned) // 30)
    broken = [bool(facts.reward.budgets.broken_by(cost)) for _, _, cost in facts.trained]
    best: list[float | None] = []
    for reward, over in zip(earned, broken, strict=True):
        last = best[-1] if best else None
        best.append(last if over else reward if last is None else max(last, reward))
    data = [
        {
            "type": "scatter", "mode": "markers", "name": "student", "x": numbers, "y": earned, "customdata": numbers,
            "marker": {"color": GREY, "size": 6, "opacity": 0.8,
                       "symbol": ["circle-open" if over else "circle" for over in broken]},
        },
        {
            "type": "scatter", "mode": "lines", "name": f"mean of {window}", "x": numbers,
            "y": _moving(earned, window), "line": {"color": ORANGE, "width": 2, "dash": "dot"},
        },
        {
            "type": "scatter", "mode": "lines", "name": "best within the budgets", "x": numbers, "y": best,
            "line": {"color": BLUE, "width": 3, "shape": "hv"},
        },
    ]  # fmt: skip
    return {"data": data, "layout": {"xaxis": _axis("evaluation"), "yaxis": _axis("reward")}}


def widths(facts: Facts) -> Chart:
    """Return the mean share of channels that students keep in each group, over the search."""
    assert facts.space is not None, "students are of a Space"
    shares = [width_shares(e.architecture) for e in facts.evaluations]
    step = max(1, -(-len(shares) // _COLUMNS))
    parts = [shares[start : start + step] for start in range(0, len(shares), step)]
    groups = facts.space.groups
    means = [[sum(one[g] for one in part) / len(part) for part in parts] for g in range(len(groups))]
    data = {
        "type": "heatmap", "z": means, "zmin": 0, "zmax": 1, "colorscale": "Cividis",
        "x": [min((n + 1) * step, len(shares)) for n in range(len(parts))],
        "y": [f"{plain(group.name)} ({group.width})" for group in groups],
        "hovertemplate": "%{y}<br>up to evaluation %{x}: %{z:.0%} of the channels<extra></extra>",
        "colorbar": {"tickformat": ".0%", "thickness": 12},
    }  # fmt: skip
    rows = {"autorange": "reversed", "type": "category"}
    return {"data": [data], "layout": {"xaxis": _axis("evaluation"), "yaxis": _axis("", **rows)}, "rows": len(groups)}


def removals(facts: Facts) -> Chart | None:
    """Return how often each unit is removed in all and in the best students; None where none ever is."""
    assert facts.space is not None, "students are of a Space"
    everyone = [e.architecture for e in facts.evaluations]
    best = [e.architecture for e in facts.ordered]
    best = best[: max(1, round(_BEST * len(best)))]
    often: list[tuple[str, float, float]] = []
    for unit in facts.space.units:
        of_all, of_best = (_share_without(unit.name, some) for some in (everyone, best))
        if of_all:
            often.append((plain(unit.name), of_all, of_best))
    if not often:
        return None
    if len(often) > _ROWS:
        least = sorted((rate for _, rate, _ in often), reverse=True)[_ROWS - 1]
        often = [row for row in often if row[1] >= least][:_ROWS]
    names = [name for name, _, _ in often]
    data = [
        _bars("all students", names, [rate for _, rate, _ in often], GREY),
        _bars(f"the best {len(best)}", names, [rate for _, _, rate in often], BLUE),
    ]
    x = _axis("share of students without it", tickformat=".0%", range=[0, 1])
    return {"data": data, "layout": _horizontal(x), "rows": 2 * len(names)}


def _share_without(unit: str, students: Sequence[Architecture]) -> float:
    return sum(unit in student.removed for student in students) / max(len(students), 1)


def agents(facts: Facts) -> Chart:
    """Return how probable it is that each channel is kept, by group, the most probable ones left."""
    count = 20
    kept = {name: sorted(chances, reverse=True) for name, chances in facts.agents.items()}
    data = {
        "type": "heatmap", "zmin": 0, "zmax": 1, "colorscale": "Cividis",
        "z": [[chances[min(n * len(chances) // count, len(chances) - 1)] for n in range(count)]
              for chances in kept.values()],
        "x": [(n + 0.5) / count for n in range(count)], "y": [f"{plain(n)} ({len(c)})" for n, c in kept.items()],
        "hovertemplate": "%{y}<br>channel at %{x:.0%}: kept with p = %{z:.3f}<extra></extra>",
        "colorbar": {"thickness": 12, "title": {"text": "p"}},
    }  # fmt: skip
    layout = {"xaxis": _axis("channels of the group, sorted", tickformat=".0%")}
    rows = {"autorange": "reversed", "type": "category"}
    return {"data": [data], "layout": {**layout, "yaxis": _axis("", **rows)}, "rows": len(kept)}


def loop(facts: Facts) -> Chart:
    """Return what DECORE's agents keep and how right the masked network is, epoch by epoch."""
    epochs = [epoch.epoch for epoch in facts.epochs]
    lines = (
        ("channels kept", [e.kept for e in facts.epochs], BLUE, "solid"),
        ("score with masks", [e.score for e in facts.epochs], ORANGE, "dot"),
    )
    data = [
        {"type": "scatter", "mode": "lines+markers", "name": name, "x": epochs, "y": values,
         "line": {"color": color, "dash": dash}}
        for name, values, color, dash in lines
    ]  # fmt: skip
    return {"data": data, "layout": {"xaxis": _axis("epoch"), "yaxis": _axis("share", tickformat=".0%")}}


def layers(rows: Sequence[LayerRow]) -> Chart | None:
    """Return the parameters of each layer in teacher and student, of the largest where there are many."""
    known = [row for row in rows if row.parameters]
    if not known or any(row.student_parameters is None for row in known):
        return None
    least = sorted((row.parameters for row in known), reverse=True)[: _ROWS // 2][-1]
    shown = [row for row in known if row.parameters >= least][: _ROWS // 2]
    names = [plain(row.name) for row in shown]
    data = [
        _bars("teacher", names, [row.parameters for row in shown], GREY),
        _bars("student", names, [row.student_parameters for row in shown], BLUE),
    ]
    return {"data": data, "layout": _horizontal(_axis("parameters")), "rows": 2 * len(names)}


def latency(pairs: Sequence[Comparison]) -> Chart:
    """Return the measured times of teacher and student with their quartiles."""
    where = [plain(pair.where) for pair in pairs]
    data = [
        _timed("teacher", where, [pair.first for pair in pairs], GREY),
        _timed("student", where, [pair.second for pair in pairs], BLUE),
    ]
    return {
        "data": data,
        "layout": _horizontal(_axis("ms for one example", rangemode="tozero")),
        "rows": 2 * len(where),
    }


def layer_times(times: Sequence[LayerTime]) -> Chart:
    """Return how long each layer takes in teacher and student, with quartiles; of many layers the slowest."""
    least = sorted((one.teacher.median for one in times), reverse=True)[: _ROWS // 2][-1]
    shown = [one for one in times if one.teacher.median >= least][: _ROWS // 2]
    names = [plain(one.name) for one in shown]
    why = [one.reason for one in shown]
    nothing = Timing(median=0.0, low=0.0, high=0.0)
    data = [
        _timed("teacher", names, [one.teacher for one in shown], GREY),
        {**_timed("student", names, [one.student or nothing for one in shown], BLUE), "text": why},
    ]
    return {
        "data": data,
        "layout": _horizontal(_axis("ms for one example", rangemode="tozero")),
        "rows": 2 * len(names),
    }


def curves(found: Mapping[str, Sequence[Epoch]], chosen: str) -> Chart:
    """Return score and loss of the final students, epoch by epoch."""
    data: list[Chart] = []
    for name in sorted(found, key=lambda name: (name != chosen, name)):
        epochs = [each.epoch for each in found[name]]
        color, called = (BLUE, "chosen") if name == chosen else (GREY, name[:8])
        lines = (
            (f"score, {called}", [each.score for each in found[name]], {"color": color}, "circle", "y"),
            (f"loss, {called}", [each.loss for each in found[name]], {"color": color, "dash": "dot"}, "x", "y2"),
        )
        data += [
            {"type": "scatter", "mode": "lines+markers", "name": label, "x": epochs, "y": values, "yaxis": axis,
             "line": line, "marker": {"size": 6, "symbol": symbol}}
            for label, values, line, symbol, axis in lines
        ]  # fmt: skip
    second = {"title": {"text": "loss"}, "automargin": True, "overlaying": "y", "side": "right", "showgrid": False}
    return {
        "data": data,
        "layout": {"xaxis": _axis("epoch"), "yaxis": _axis("validation score", tickformat=".0%"), "yaxis2": second},
    }


def classes(found: Behaviour) -> Chart:
    """Return the accuracy per class, of those that changed most where there are many."""
    scores = sorted(found.classes, key=lambda score: -abs(score.student - score.teacher))[: _ROWS // 2]
    names = [f"{plain(score.name)} ({score.examples})" for score in scores]
    data = [
        _bars("teacher", names, [score.teacher for score in scores], GREY),
        _bars("student", names, [score.student for score in scores], BLUE),
    ]
    x = _axis("accuracy", tickformat=".0%", range=[0, 1.02])
    return {"data": data, "layout": _horizontal(x), "rows": 2 * len(names)}


def calibration(found: Behaviour) -> Chart:
    """Return how often each network is right over how sure it is."""
    data: list[Chart] = [
        {"type": "scatter", "mode": "lines", "name": "as sure as right", "x": [0, 1], "y": [0, 1],
         "line": {"color": GREY, "dash": "dash", "width": 1}, "hoverinfo": "skip"},
        _calibrated("teacher", found.teacher, ORANGE, "diamond"),
        _calibrated("student", found.student, BLUE, "circle"),
    ]  # fmt: skip
    axes = {"xaxis": _axis("confidence", tickformat=".0%", range=[0, 1.02])}
    return {"data": data, "layout": {**axes, "yaxis": _axis("accuracy", tickformat=".0%", range=[0, 1.05])}}


def _calibrated(name: str, found: Calibration, color: str, symbol: str) -> Chart:
    text = [f"{share(right)} of {count:,}" for right, count in zip(found.accuracy, found.examples, strict=True)]
    return {
        "type": "scatter", "mode": "lines+markers", "name": name, "x": list(found.confidence),
        "y": list(found.accuracy), "text": text, "hovertemplate": "%{x:.1%} sure: %{text}",
        "line": {"color": color}, "marker": {"symbol": symbol, "size": 9},
    }  # fmt: skip


def _cost(figure: Figure, cost: Any) -> float:
    number = figure.of(cost)
    return float("nan") if number is None else number


def _axis(title: str, **more: Any) -> Chart:
    return {"title": {"text": title}, "automargin": True, **more}


def _line(*, x: float) -> Chart:
    place = {"x0": x, "x1": x, "y0": 0, "y1": 1, "yref": "paper"}
    return {"type": "line", **place, "line": {"color": ORANGE, "dash": "dash", "width": 1.5}}


def _bars(name: str, names: Sequence[str], values: Sequence[Any], color: str) -> Chart:
    return {
        "type": "bar", "orientation": "h", "name": name, "y": list(names), "x": list(values), "marker": {"color": color}
    }  # fmt: skip


def _timed(name: str, labels: Sequence[str], times: Sequence[Timing], color: str) -> Chart:
    spread = {
        "type": "data", "symmetric": False, "color": ORANGE, "array": [time.high - time.median for time in times],
        "arrayminus": [time.median - time.low for time in times],
    }  # fmt: skip
    return {**_bars(name, labels, [time.median for time in times], color), "error_x": spread}


def _horizontal(x: Chart) -> Chart:
    return {"xaxis": x, "yaxis": _axis("", autorange="reversed", type="category"), "barmode": "group", "bargap": 0.3}


def _moving(numbers: Sequence[float], window: int) -> list[float]:
    total, means = 0.0, []
    for place, number in enumerate(numbers):
        total += number - (numbers[place - window] if place >= window else 0.0)
        means.append(total / min(place + 1, window))
    return means
