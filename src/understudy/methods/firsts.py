"""The students that searches with budgets begin with: all widths alike, at several depths. No torch."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator

from understudy.config.widths import Widths
from understudy.core.architecture import Architecture, Space
from understudy.methods.proposals import scaled

_GONE = (0.0, 1 / 6, 1 / 3, 1 / 2, 2 / 3)  # shares of the units


def first_students(
    start: Architecture, units: Iterable[str], widths: Widths, used: Callable[[Architecture], float]
) -> list[Architecture]:
    """Return students of several depths, each with the largest factor for all widths that keeps the budgets.

    From all units of the start down to a third of those that could go, which go evenly over the network; what no
    factor brings within the budgets is left out. How deep a student of few MACs should be differs so much from
    teacher to teacher that draws near one depth do not find out.

    Args:
        start: what is made narrower and shallower.
        units: that may go.
        widths: which widths are legal.
        used: the share of the budgets that an architecture takes.
    """
    outer = _outer_units(start, units)
    found = [_widest(start, gone, widths, used) for gone in _evenly(outer)]
    return [student for student in dict.fromkeys(found) if used(student) <= 1.0]


def _evenly(units: list[str]) -> Iterator[list[str]]:
    for share in _GONE:
        yield [unit for place, unit in enumerate(units) if int((place + 1) * share) > int(place * share)]


def _outer_units(start: Architecture, units: Iterable[str]) -> list[str]:
    """Return those units that are there, have weights, and are in no other such unit, in the order of the network."""
    space = start.space
    left = [space.unit(name) for name in units if name not in start.removed]
    there = [unit for unit in left if _weighs(space, unit.layers)]
    outer = [unit for unit in there if not any(set(unit.layers) < set(other.layers) for other in there)]
    place = {layer.name: index for index, layer in enumerate(space.layers)}
    return [unit.name for unit in sorted(outer, key=lambda unit: place[unit.layers[0]])]


def _weighs(space: Space, layers: Collection[str]) -> bool:
    return any(space.layer(layer).parameters for layer in layers)


def _widest(
    start: Architecture, gone: list[str], widths: Widths, used: Callable[[Architecture], float]
) -> Architecture:
    shallow = start.without(*gone)

    def at(factor: float) -> Architecture:
        return shallow.with_widths(
            {g.name: widths.nearest(g, factor * start.width(g.name)) for g in start.space.groups}
        )

    return scaled(at, 1.0, used)
