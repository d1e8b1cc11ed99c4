from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from understudy.config.methods import N2N, ArchComp, Decore, Method, OptunaSearch, RandomSearch, UniformWidth
from understudy.config.widths import Widths
from understudy.core.errors import GoalError
from understudy.core.goal import Goal
from understudy.methods.baselines.random import RandomSearcher
from understudy.methods.feasibility import refuse_what_is_out_of_reach, smallest
from understudy.methods.surrogate.columns import Columns
from understudy.testing.contracts import run_searcher
from understudy.testing.landscapes import toy_cost, toy_problem, toy_space


@pytest.mark.parametrize("kind", ["chain", "residual"])
def test_nothing_that_is_drawn_is_smaller(kind: str) -> None:
    space, method = toy_space(kind), RandomSearch(students=60)  # type: ignore[arg-type]
    least = smallest(space, method, Widths(), toy_cost, "parameters")[1].parameters
    drawn = run_searcher(RandomSearcher(toy_problem(space), method))
    assert least <= min(e.cost.parameters for e in drawn)


@pytest.mark.parametrize("method", [N2N(), N2N(rules="paper"), RandomSearch(), UniformWidth()])
def test_the_smallest_is_what_the_method_can_propose(method: Method) -> None:
    space = toy_space()
    architecture, cost = smallest(space, method, Widths(), toy_cost, "macs")
    assert cost == toy_cost(architecture)
    kinds = {space.unit(name).kind for name in architecture.removed}
    assert kinds <= ({"layer"} if method == N2N(rules="paper") else {"conv", "pool", "block"})
    assert bool(architecture.removed) is not isinstance(method, UniformWidth)
    assert all(width % 8 == 0 for _, width in architecture.widths)
    assert bool(architecture.kernels) is not isinstance(method, UniformWidth)


def test_only_budgets_out_of_reach_are_named() -> None:
    space, method = toy_space(), UniformWidth()
    cost = toy_cost(space.full)
    refuse_what_is_out_of_reach(Goal(params="100x").budgets(cost, 0.9), space, method, Widths(), toy_cost)
    with pytest.raises(GoalError, match="params: asked for 1,000 parameters, the least is") as caught:
        refuse_what_is_out_of_reach(
            Goal(params="1000", macs="2x").budgets(cost, 0.9), space, method, Widths(), toy_cost
        )
    assert "macs: " not in str(caught.value)
    with pytest.raises(GoalError, match=r"macs: asked for 5 MACs \(for a factor, write '5x'\), the least is"):
        refuse_what_is_out_of_reach(Goal(macs="5").budgets(cost, 0.9), space, method, Widths(), toy_cost)
    with pytest.raises(GoalError, match="asked for 1 parameter, the least is"):  # as a factor it would ask for nothing
        refuse_what_is_out_of_reach(Goal(params="1").budgets(cost, 0.9), space, method, Widths(), toy_cost)
    factor = f"{cost.macs / 7.6:.6f}x"  # whoever gave a factor need not be told of them
    with pytest.raises(GoalError, match=r"macs: asked for 8 MACs, the least is"):
        refuse_what_is_out_of_reach(Goal(macs=factor).budgets(cost, 0.9), space, method, Widths(), toy_cost)
    small = replace(cost, macs=650)  # half of which nobody takes for a factor
    with pytest.raises(GoalError, match=r"macs: asked for 325 MACs, the least is"):
        refuse_what_is_out_of_reach(Goal(macs="2x").budgets(small, 0.9), space, method, Widths(), lambda plan: small)
    with pytest.raises(GoalError, match="params: asked for less than 1, the least is"):
        refuse_what_is_out_of_reach(Goal(params="1e9x").budgets(cost, 0.9), space, method, Widths(), toy_cost)


def test_methods_that_choose_by_factors_get_no_narrower_than_the_smallest() -> None:
    group = toy_space().group("features.13")
    wide, narrow = (Widths(factors=factors) for factors in ((0.25, 1.0), (0.01, 1.0)))
    for method in (N2N(), ArchComp(), RandomSearch()):
        assert (method.narrowest(group, wide), method.narrowest(group, narrow)) == (128, 8)
    for other in (UniformWidth(), OptunaSearch(), Decore()):
        assert other.narrowest(group, wide) == 8


def test_archcomp_gets_no_narrower_than_its_smallest_class() -> None:
    space, method = toy_space(), ArchComp()
    assert method.narrowest(space.group("features.13"), Widths()) == 24
    least = smallest(space, method, Widths(), toy_cost, "parameters")[1]
    columns = Columns(space, Widths())
    narrowest = columns.architecture(torch.zeros(len(columns.names), dtype=torch.int64))
    assert toy_cost(narrowest).parameters >= least.parameters
