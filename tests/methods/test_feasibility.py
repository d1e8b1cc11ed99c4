from __future__ import annotations

import pytest
import torch

from understudy.config.methods import N2N, ArchComp, Method, RandomSearch, UniformWidth
from understudy.core.errors import GoalError
from understudy.core.goal import Goal
from understudy.methods.baselines.random import RandomSearcher
from understudy.methods.feasibility import narrowest_width, refuse_what_is_out_of_reach, smallest
from understudy.methods.surrogate.columns import Columns
from understudy.testing.landscapes import run_searcher, toy_cost, toy_reward, toy_space


@pytest.mark.parametrize("kind", ["chain", "residual"])
def test_nothing_that_is_drawn_is_smaller(kind: str) -> None:
    space, method = toy_space(kind), RandomSearch(students=60)  # type: ignore[arg-type]
    least = smallest(space, method, toy_cost, "parameters")[1].parameters
    drawn = run_searcher(RandomSearcher(space, toy_reward(space), method, seed=0, predict=toy_cost))
    assert least <= min(e.cost.parameters for e in drawn)


@pytest.mark.parametrize("method", [N2N(), N2N(granularity="layers"), RandomSearch(), UniformWidth()])
def test_the_smallest_is_what_the_method_can_propose(method: Method) -> None:
    space = toy_space()
    architecture, cost = smallest(space, method, toy_cost, "macs")
    assert cost == toy_cost(architecture)
    kinds = {space.unit(name).kind for name in architecture.removed}
    assert kinds <= ({"layer"} if method == N2N(granularity="layers") else {"conv", "pool", "block"})
    assert bool(architecture.removed) is not isinstance(method, UniformWidth)
    assert all(width % method.round_to == 0 for _, width in architecture.widths)
    assert bool(architecture.kernels) is not isinstance(method, UniformWidth)


def test_kernels_stay_where_the_method_keeps_them() -> None:
    assert smallest(toy_space(), N2N(shrink_kernels=False), toy_cost, "parameters")[0].kernels == ()


def test_only_budgets_out_of_reach_are_named() -> None:
    space, method = toy_space(), UniformWidth()
    cost = toy_cost(space.full)
    refuse_what_is_out_of_reach(Goal(params="100x").budgets(cost, 0.9), space, method, toy_cost)
    with pytest.raises(GoalError, match="params: asked for 1,000 parameters, the least is") as caught:
        refuse_what_is_out_of_reach(Goal(params="1000", macs="2x").budgets(cost, 0.9), space, method, toy_cost)
    assert "macs: " not in str(caught.value)
    with pytest.raises(GoalError, match=r"macs: asked for 5 MACs \(for a factor, write '5x'\), the least is"):
        refuse_what_is_out_of_reach(Goal(macs="5").budgets(cost, 0.9), space, method, toy_cost)


def test_n2n_gets_no_narrower_than_its_smallest_factor() -> None:
    space = toy_space()
    wide, narrow = (narrowest_width(space.group("features.13"), N2N(factors=f)) for f in ((0.25, 1.0), (0.01, 1.0)))
    assert (wide, narrow) == (128, 8)
    assert narrowest_width(space.group("features.13"), UniformWidth()) == 8


def test_archcomp_gets_no_narrower_than_its_smallest_class() -> None:
    space, method = toy_space(), ArchComp(min_width=8)
    assert narrowest_width(space.group("features.13"), method) == 24
    least = smallest(space, method, toy_cost, "parameters")[1]
    columns = Columns(space, method)
    narrowest = columns.architecture(torch.zeros(len(columns.names), dtype=torch.int64))
    assert toy_cost(narrowest).parameters >= least.parameters
