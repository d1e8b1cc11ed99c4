"""The students that searches with budgets begin with: all widths alike, at several depths. No torch."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence

from understudy.config.widths import Widths
from understudy.core.architecture import Architecture, Space, Unit
from understudy.methods.proposals import scaled

_GONE = (0.0, 1 / 6, 1 / 3, 1 / 2, 2 / 3)  # shares of the units


def first_students(
    start: Architecture, units: Iterable[str], widths: Widths, used: Callable[[Architecture], float]
) -> list[Architecture]:
    """Return students of several depths, each with the largest factor for all widths that keeps the budgets.

    From all blocks of the start down to a third of those that may go, which go evenly over the network (layers where
    there are no blocks); what no factor brings within the budgets is left out. How deep a student of few MACs should
    be differs so much from teacher to teacher that draws near one depth do not find out.

    Args:
        start: what is made narrower and shallower.
        units: that may go.
        widths: which widths are legal.
        used: the share of the budgets that an architecture takes.
    """
    found = [_widest(start, gone, widths, used) for gone in _evenly(_blocks(start, units))]
    return [student for student in dict.fromkeys(found) if used(student) <= 1.0]


def _evenly(units: list[str]) -> Iterator[list[str]]:
    for share in _GONE:
        yield [unit for place, unit in enumerate(units) if int((place + 1) * share) > int(place * share)]


def _blocks(start: Architecture, units: Iterable[str]) -> list[str]:
    """Return the units that make out the depth of a network, in its order: blocks, or layers if there are none.

    A stage, which holds blocks of the same kind, is none; what is inside of a block goes and stays with it.
    """
    space = start.space
    left = [space.unit(name) for name in units if name not in start.removed]
    weighty = list({unit.layers: unit for unit in left if _weighs(space, unit.layers)}.values())
    blocks = [unit for unit in weighty if unit.is_block] or weighty
    single = [unit for unit in blocks if not _repeats(space, [x for x in blocks if set(x.layers) < set(unit.layers)])]
    outer = [unit for unit in single if not any(set(unit.layers) < set(other.layers) for other in single)]
    place = {layer.name: index for index, layer in enumerate(space.layers)}
    return [unit.name for unit in sorted(outer, key=lambda unit: place[unit.layers[0]])]


def _repeats(space: Space, inside: Sequence[Unit]) -> bool:
    """Return whether two of the units have the same types of layers."""
    kinds = [tuple(space.layer(layer).type for layer in unit.layers) for unit in inside]
    return len(set(kinds)) < len(kinds)


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
