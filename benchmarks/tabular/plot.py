"""Curves as a small SVG: mean over seeds and a band around it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import numpy as np

WIDTH, HEIGHT = 380, 300  # of one panel, in pixels
LEFT, TOP, RIGHT, BOTTOM = 52, 30, 10, 36  # its margins
LEGEND = 24
_IN_A_ROW = 8  # names in a row of the legend
COLOURS = ("#777777", "#bbbbbb", "#0072b2", "#56b4e9", "#d55e00", "#e69f00", "#009e73", "#cc79a7")


@dataclass(frozen=True)
class Curve:
    """What one method reached at each place, such as after so many students."""

    name: str
    mean: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]

    @classmethod
    def of(cls, name: str, curves: Sequence[Sequence[float]]) -> Curve:
        """Return the summary of the curves of several seeds; the band is from the 10% to the 90% quantile."""
        values = np.array(curves)
        low, high = np.quantile(values, [0.1, 0.9], axis=0)
        return cls(name, *(tuple(row.tolist()) for row in (values.mean(0), low, high)))


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One table with one budget."""

    title: str
    best: float  # of the whole table
    at: tuple[int, ...]  # numbers of students
    curves: tuple[Curve, ...]

    @property
    def floor(self) -> float:
        """The lowest reward that is drawn: what lies far below the best would flatten all the others."""
        lowest = min(min(curve.mean[1:]) for curve in self.curves)
        return max(lowest, self.best - 2.5 * (self.best - sorted(curve.mean[1] for curve in self.curves)[-1]))

    def place(self, students: float, reward: float) -> str:
        """Return the point of a reward in the panel, in pixels."""
        across = (students - self.at[0]) / (self.at[-1] - self.at[0])
        up = (max(reward, self.floor) - self.floor) / (self.best - self.floor)
        x = LEFT + across * (WIDTH - LEFT - RIGHT)
        return f"{x:.1f},{HEIGHT - BOTTOM - up * (HEIGHT - TOP - BOTTOM):.1f}"


def svg(panels: Sequence[Panel]) -> str:
    """Return a picture of the panels, two in a row, with one legend below."""
    names = list(dict.fromkeys(curve.name for panel in panels for curve in panel.curves))
    colours = {name: COLOURS[number % len(COLOURS)] for number, name in enumerate(names)}
    rows = -(-len(panels) // 2)
    below = -(-len(names) // _IN_A_ROW)
    width, height = 2 * WIDTH, rows * HEIGHT + below * LEGEND
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
        'font-family="sans-serif" font-size="11">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
    ]
    for number, panel in enumerate(panels):
        parts.append(f'<g transform="translate({number % 2 * WIDTH} {number // 2 * HEIGHT})">')
        parts += [*_axes(panel), *(line for curve in panel.curves for line in _drawn(panel, curve, colours)), "</g>"]
    for number, name in enumerate(names):
        across = (width - 12) / min(len(names), _IN_A_ROW)
        x, y = 12 + number % _IN_A_ROW * across, rows * HEIGHT + 12 + number // _IN_A_ROW * LEGEND
        parts.append(f'<path d="M{x:.0f},{y} h16" stroke="{colours[name]}" stroke-width="3"/>')
        parts.append(f'<text x="{x + 20:.0f}" y="{y + 4}">{escape(name)}</text>')
    return "\n".join([*parts, "</svg>\n"])


def _axes(panel: Panel) -> list[str]:
    parts = [f'<text x="{LEFT}" y="18" font-size="13">{escape(panel.title)}</text>']
    for reward in np.linspace(panel.floor, panel.best, 5).tolist():
        start, end = panel.place(panel.at[0], reward), panel.place(panel.at[-1], reward)
        y = start.split(",")[1]
        parts.append(f'<path d="M{start} L{end}" stroke="#e5e5e5"/>')
        parts.append(f'<text x="{LEFT - 4}" y="{float(y) + 4:.1f}" text-anchor="end">{reward:.3f}</text>')
    for students in panel.at[1::2]:
        x = panel.place(students, panel.floor).split(",")[0]
        parts.append(f'<text x="{x}" y="{HEIGHT - BOTTOM + 14}" text-anchor="middle">{students}</text>')
    words, middle = "students trained; top line: the best known", (LEFT + WIDTH - RIGHT) / 2
    return [*parts, f'<text x="{middle}" y="{HEIGHT - 6}" text-anchor="middle">{words}</text>']


def _drawn(panel: Panel, curve: Curve, colours: dict[str, str]) -> list[str]:
    def line(values: Sequence[float], step: int = 1) -> str:
        points = list(zip(panel.at, values, strict=True))[::step]
        return " L".join(panel.place(students, reward) for students, reward in points)

    colour = colours[curve.name]
    return [
        f'<path d="M{line(curve.low)} L{line(curve.high, -1)} Z" fill="{colour}" fill-opacity="0.08"/>',
        f'<path d="M{line(curve.mean)}" fill="none" stroke="{colour}" stroke-width="2"/>',
    ]
