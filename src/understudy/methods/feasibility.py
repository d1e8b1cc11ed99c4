"""How small a method can make a teacher, and whether that is small enough. No torch."""

from __future__ import annotations

from collections.abc import Sequence

from understudy.config.methods import Method
from understudy.config.widths import Widths
from understudy.core.architecture import Architecture, Layer, Space
from understudy.core.errors import GoalError
from understudy.core.evaluation import Cost
from understudy.core.figures import FIGURE, FIGURES
from understudy.core.goal import Budgets
from understudy.methods.base import Predict

_NOTHING = Cost(parameters=0, macs=0, weight_bytes=0)


def smallest(
    space: Space, method: Method, widths: Widths, predict: Predict, figure: str, *, enough: float = 0.0
) -> tuple[Architecture, Cost]:
    """Return the architecture with the least of one figure of Cost that the method can propose, and its cost.

    Everything at its narrowest, then units removed one after the other, the largest first, as long as
    the figure falls and is above `enough`. The true minimum can be a little lower where removals depend
    on each other.
    """
    narrow = {group.name: method.narrowest(group, widths) for group in space.groups}
    kernels = {layer.name: layer.kernels[0] for layer in space.layers if method.shrinks_kernels and layer.kernels}
    best, cost = _first_that_builds(
        predict,
        (
            space.architecture(widths=narrow, kernels=kernels),
            space.architecture(widths=narrow),
            space.full,
        ),
    )
    layers = {layer.name: layer for layer in space.layers}
    for unit in sorted(method.removable(space), key=lambda unit: -_parameters(unit.layers, layers)):
        if getattr(cost, figure) <= enough:
            break
        smaller = best.without(unit.name)
        predicted = predict(smaller)
        if predicted is not None and getattr(predicted, figure) < getattr(cost, figure):
            best, cost = smaller, predicted
    return best, cost


def refuse_what_is_out_of_reach(
    budgets: Budgets, space: Space, method: Method, widths: Widths, predict: Predict
) -> None:
    """Refuse budgets that not even the smallest architecture keeps; what is neither predicted nor estimated may pass.

    Raises:
        GoalError: with the nearest point for each budget that is out of reach.
    """
    points = []
    for name, most in budgets.limits():
        figure = FIGURE[name]
        least = full = figure.of(predict(space.full) or _NOTHING)
        if full is not None:
            _, cost = smallest(space, method, widths, predict, name, enough=most)
            least = figure.of(cost)
        if full is not None and least is not None and least > most:
            # A small whole number was perhaps meant as a factor; a factor that was given seldom makes one.
            factor = (
                f" (for a factor, write '{most:g}x')"
                if figure.whole and 1 < most < 1000 and most**2 < full and float(most).is_integer()
                else ""
            )
            asked = "less than 1" if figure.whole and most < 1 else figure.text(most)
            points.append(f"{figure.goal}: asked for {asked}{factor}, the least is {said(cost)}")
    if points:
        raise GoalError(
            "a goal must be within reach of the smallest student, but it is not:\n  " + "\n  ".join(points) + "\n"
            f"Ask for no more than that, or allow narrower groups (widths.min_width is {widths.min_width}, widths."
            f"round_to is {widths.round_to}); `understudy compress ... --dry-run` shows what cannot shrink and why."
        )


def said(cost: Cost) -> str:
    """Return the figures of a cost that budgets are about, in words."""
    known = ((figure, figure.of(cost)) for figure in FIGURES)
    return ", ".join(figure.text(number) for figure, number in known if number is not None)


def _parameters(names: Sequence[str], layers: dict[str, Layer]) -> int:
    return sum(layers[name].parameters for name in names if name in layers)


def _first_that_builds(predict: Predict, architectures: Sequence[Architecture]) -> tuple[Architecture, Cost]:
    for architecture in architectures:
        cost = predict(architecture)
        if cost is not None:
            return architecture, cost
    raise AssertionError("the keep-all architecture is the teacher, which can be built")
