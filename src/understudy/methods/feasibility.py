"""How small a method can make a teacher, and whether that is small enough. No torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from understudy.config.methods import N2N, ArchComp, Decore, Method, RandomSearch, UniformWidth
from understudy.core.architecture import Architecture, Group, Layer, Space, Unit
from understudy.core.errors import GoalError
from understudy.core.evaluation import Cost
from understudy.core.figures import FIGURE, FIGURES
from understudy.core.goal import Budgets

Predict = Callable[[Architecture], Cost | None]
_NOTHING = Cost(parameters=0, macs=0, weight_bytes=0)


def smallest(
    space: Space, method: Method, predict: Predict, figure: str, *, enough: float = 0.0
) -> tuple[Architecture, Cost]:
    """Return the architecture with the least of one figure of Cost that the method can propose, and its cost.

    Everything at its narrowest, then units removed one after the other, the largest first, as long as
    the figure falls and is above `enough`. The true minimum can be a little lower where removals depend
    on each other.
    """
    widths = {g.name: narrowest_width(g, method) for g in space.groups}
    shrinks = not isinstance(method, Decore | UniformWidth) and getattr(method, "shrink_kernels", True)
    kernels = {layer.name: layer.kernels[0] for layer in space.layers if shrinks and layer.kernels}
    best, cost = _first_that_builds(
        predict,
        (
            space.architecture(widths=widths, kernels=kernels),
            space.architecture(widths=widths),
            space.full,
        ),
    )
    for unit in _removable(space, method):
        if getattr(cost, figure) <= enough:
            break
        smaller = best.without(unit.name)
        predicted = predict(smaller)
        if predicted is not None and getattr(predicted, figure) < getattr(cost, figure):
            best, cost = smaller, predicted
    return best, cost


def narrowest_width(group: Group, method: Method) -> int:
    """Return the least width (channels) that the method can propose; N2N and what chooses as it does go by factors."""
    by_factors = isinstance(method, RandomSearch | ArchComp)
    factors = method.factors if isinstance(method, N2N) else N2N().factors if by_factors else (0.0,)
    return group.nearest(min(factors) * group.width, round_to=method.round_to, minimum=method.min_width)


def refuse_what_is_out_of_reach(budgets: Budgets, space: Space, method: Method, predict: Predict) -> None:
    """Refuse budgets that not even the smallest architecture keeps; what is neither predicted nor estimated may pass.

    Raises:
        GoalError: with the nearest point for each budget that is out of reach.
    """
    points = []
    for name, most in budgets.limits():
        figure = FIGURE[name]
        if (least := figure.of(predict(space.full) or _NOTHING)) is not None:
            _, cost = smallest(space, method, predict, name, enough=most)
            least = figure.of(cost)
        if least is not None and least > most:
            factor = f" (for a factor, write '{most:g}x')" if figure.form == ",.0f" and most < 1000 else ""
            points.append(f"{figure.goal}: asked for {figure.text(most)}{factor}, the least is {said(cost)}")
    if points:
        raise GoalError(
            "a goal must be within reach of the smallest student, but it is not:\n  " + "\n  ".join(points) + "\n"
            f"Ask for no more than that, or allow narrower groups (min_width is {method.min_width}, round_to is "
            f"{method.round_to}); `understudy compress ... --dry-run` shows what cannot shrink and why."
        )


def said(cost: Cost) -> str:
    """Return the figures of a cost that budgets are about, in words."""
    known = ((figure, figure.of(cost)) for figure in FIGURES)
    return ", ".join(figure.text(number) for figure, number in known if number is not None)


def _removable(space: Space, method: Method) -> list[Unit]:
    if isinstance(method, Decore | UniformWidth):
        return []
    single = isinstance(method, N2N) and method.granularity == "layers"
    layers = {layer.name: layer for layer in space.layers}
    units = [unit for unit in space.units if (unit.kind == "layer") == single]
    return sorted(units, key=lambda unit: -_parameters(unit.layers, layers))


def _parameters(names: Sequence[str], layers: dict[str, Layer]) -> int:
    return sum(layers[name].parameters for name in names if name in layers)


def _first_that_builds(predict: Predict, architectures: Sequence[Architecture]) -> tuple[Architecture, Cost]:
    for architecture in architectures:
        cost = predict(architecture)
        if cost is not None:
            return architecture, cost
    raise AssertionError("the keep-all architecture is the teacher, which can be built")
