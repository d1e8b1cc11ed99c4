"""The comparison of a track as a small SVG: a line for each contender, a dot for each operating point."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")  # as Okabe and Ito chose for all eyes
LABELS, WIDTH, LINE, TOP, BOTTOM, RIGHT = 330, 860, 22, 48, 40, 20  # pixels
_TICKS = 8  # at most


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One figure with a budget, such as parameters."""

    title: str
    points: tuple[str, ...]  # operating points, such as "10x"
    tests: Mapping[str, Mapping[str, Sequence[float]]]  # contender -> operating point -> accuracy (0..1) of each seed
    teacher: float

    @property
    def ordered(self) -> list[str]:
        """The contenders, the best one at the first point that it has first."""

        def merit(name: str) -> tuple[int, float]:
            at = next(place for place, point in enumerate(self.points) if self.tests[name].get(point))
            return at, -statistics.fmean(self.tests[name][self.points[at]])

        return sorted(self.tests, key=merit)

    @property
    def height(self) -> int:
        """Pixels."""
        return TOP + LINE * len(self.tests) + BOTTOM


def svg(panels: Sequence[Panel]) -> str:
    """Return a picture of the panels, one below the other: means, and bars of one standard deviation."""
    height, parts = sum(panel.height for panel in panels), list[str]()
    for number, panel in enumerate(panels):
        above = sum(other.height for other in panels[:number])
        parts += [f'<g transform="translate(0 {above})">', *_drawn(panel), "</g>"]
    head = f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" font-family="sans-serif"'
    return "\n".join(
        [f'{head} font-size="12">', f'<rect width="{WIDTH}" height="{height}" fill="white"/>', *parts, "</svg>\n"]
    )


def _drawn(panel: Panel) -> Iterator[str]:
    spans = [_span(values) for at in panel.tests.values() for values in at.values() if values]
    low, high = min(low for low, _, _ in spans), max(panel.teacher, *(high for _, _, high in spans))
    step = next(s for s in (0.005, 0.01, 0.02, 0.05, 0.1, 0.2) if (high - low) / s <= _TICKS)
    first, last = math.floor(low / step), math.ceil(high / step)
    bottom = panel.height - BOTTOM

    def across(test: float) -> str:
        return f"{LABELS + (test / step - first) / (last - first) * (WIDTH - LABELS - RIGHT):.1f}"

    yield f'<text x="12" y="18" font-size="14">{escape(panel.title)}</text>'
    for tick in range(first, last + 1):
        x = across(tick * step)
        yield f'<path d="M{x},{TOP - 8} V{bottom}" stroke="#e5e5e5"/>'
        yield f'<text x="{x}" y="{bottom + 16}" text-anchor="middle">{100 * tick * step:.4g}%</text>'
    x = across(panel.teacher)
    yield f'<path d="M{x},{TOP - 8} V{bottom}" stroke="#777777" stroke-dasharray="4 3"/>'
    yield f'<text x="{x}" y="{TOP - 12}" text-anchor="middle" fill="#777777">teacher</text>'
    for place, point in enumerate(panel.points):
        x, colour = str(LABELS + 130 * place), COLOURS[place % len(COLOURS)]
        yield f'<circle cx="{x}" cy="{panel.height - 9}" r="4.5" fill="{colour}"/>'
        yield f'<text x="{int(x) + 10}" y="{panel.height - 5}">{escape(point)} fewer</text>'
    for row, name in enumerate(panel.ordered):
        y = TOP + LINE * row + LINE // 2
        yield f'<text x="{LABELS - 14}" y="{y + 4}" text-anchor="end">{escape(name)}</text>'
        for place, point in enumerate(panel.points):
            if values := panel.tests[name].get(point):
                less, mean, more = map(across, _span(values))
                colour = COLOURS[place % len(COLOURS)]
                yield f'<path d="M{less},{y} H{more}" stroke="{colour}" stroke-width="3" stroke-opacity="0.45"/>'
                yield f'<circle cx="{mean}" cy="{y}" r="4.5" fill="{colour}"/>'


def _span(tests: Sequence[float]) -> tuple[float, float, float]:
    """Return the mean less the standard deviation, the mean, and the mean and the standard deviation."""
    mean, spread = statistics.fmean(tests), statistics.stdev(tests) if len(tests) > 1 else 0.0
    return mean - spread, mean, mean + spread
