"""The students that searches with budgets begin with: all widths alike, or tapered, at several depths. No torch."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence

from understudy.config.widths import Widths
from understudy.core.architecture import Architecture, Space, Unit
from understudy.methods.proposals import scaled

_GONE = (0.0, 1 / 6, 1 / 3, 1 / 2, 2 / 3)  # shares of the units
_TAPER = 0.5
Figure = Callable[[Architecture], float]


def first_students(
    start: Architecture, units: Iterable[str], widths: Widths, *, used: Figure, macs: Figure
) -> list[Architecture]:
    """Return students of several depths, each with the largest factor for all widths that keeps the budgets.

    From all blocks of the start down to a third of those that may go, which go evenly over the network (layers where
    there are no blocks); what no factor brings within the budgets is left out. How deep a student of few MACs should
    be differs so much from teacher to teacher that draws near one depth do not find out. Then, where budgets leave MACs
    free, the same with tapered widths.

    Args:
        start: what is made narrower and shallower.
        units: that may go.
        widths: which widths are legal.
        used: the share of the budgets that an architecture takes.
        macs: of an architecture.
    """
    depths = list(_evenly(_blocks(start, units)))
    alike = dict.fromkeys((group.name for group in start.space.groups), 1.0)
    shapes = (alike, tapered(start, widths, used=used, macs=macs, power=_TAPER))
    found = [_widest(start, gone, shape, widths, used) for shape in shapes for gone in depths]
    return [student for student in dict.fromkeys(found) if used(student) <= 1.0]


def tapered(start: Architecture, widths: Widths, *, used: Figure, macs: Figure, power: float) -> dict[str, float]:
    """Return what the factor of each group's width is multiplied by, 1 for the narrowest.

    This power of its share of the MACs over its share of the budgets, of what halving it alone saves. So where budgets
    leave MACs free, groups that take much of a budget for each of their MACs are narrower. Under a budget on MACs all
    are 1.

    Args:
        start: whose widths they are about.
        widths: which widths are legal.
        used: the share of the budgets that an architecture takes.
        macs: of an architecture.
        power: 0 is uniform width.
    """

    def saved(figure: Figure, narrower: Architecture) -> float:
        whole = figure(start)
        return 1.0 - figure(narrower) / whole if whole else 0.0

    powers = {}
    for group in start.space.groups:
        narrower = start.with_widths({group.name: widths.nearest(group, start.width(group.name) / 2)})
        own, taken = saved(macs, narrower), saved(used, narrower)
        powers[group.name] = (own / taken) ** power if min(own, taken) > 0.0 else 1.0
    least = min(powers.values(), default=1.0)
    return {name: value / least for name, value in powers.items()}


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
    start: Architecture, gone: list[str], shape: Mapping[str, float], widths: Widths, used: Figure
) -> Architecture:
    shallow, groups = start.without(*gone), start.space.groups

    def at(factor: float) -> Architecture:
        shares = {group: min(factor * shape[group.name], 1.0) * start.width(group.name) for group in groups}
        return shallow.with_widths({group.name: widths.nearest(group, share) for group, share in shares.items()})

    return scaled(at, 1.0, used)
