from __future__ import annotations

import math
from dataclasses import replace
from itertools import product

import pytest

from understudy.config.methods import Allocate, RandomSearch
from understudy.core.architecture import Architecture, Group, Layer, Space
from understudy.core.errors import ConfigError
from understudy.core.evaluation import Cost
from understudy.core.goal import Budgets, Goal
from understudy.methods.base import Searcher
from understudy.methods.baselines.allocate import STUDENTS
from understudy.methods.baselines.budgeted import Options, solved
from understudy.methods.proposals import usage
from understudy.testing.contracts import SearcherContract, run_searcher
from understudy.testing.landscapes import ToyKind, toy_cost, toy_problem, toy_reward, toy_score, toy_space

GROUPS = ("a", "b", "c", "d")
OPTIONS = [
    Options(group="a", widths=(2, 5, 9), errors=(0.9, 0.2, 0.0)),
    Options(group="b", widths=(1, 4, 8, 12), errors=(0.8, 0.5, 0.1, 0.0)),
    Options(group="c", widths=(3, 6), errors=(0.35, 0.0)),
    Options(group="d", widths=(2, 4, 10), errors=(0.6, 0.15, 0.0)),
]
SPACE = Space(
    layers=tuple(Layer(name=o.group, type="conv", outputs=o.widths[-1], group=o.group) for o in OPTIONS),
    groups=tuple(Group(name=o.group, width=o.widths[-1], layers=(o.group,)) for o in OPTIONS),
    units=(),
)


def cost(architecture: Architecture) -> Cost:
    """Sums of products of any two widths, one of them of a width with itself."""
    a, b, c, d = (architecture.width(name) for name in GROUPS)
    parameters = 27 * a + 9 * a * b + 9 * b * c + c * d + 3 * b * b + 10 * d + 7
    return Cost(
        parameters=parameters, macs=64 * a * b + 16 * a * c + 4 * d * (a + b) + 5, weight_bytes=4 * parameters,
        peak_activation_bytes=1000 * max(a + b, c + d),
    )  # fmt: skip


def error(architecture: Architecture) -> float:
    return sum(o.errors[o.widths.index(architecture.width(o.group))] for o in OPTIONS)


def every() -> list[Architecture]:
    choices = product(*(o.widths for o in OPTIONS))
    return [SPACE.architecture(widths=dict(zip(GROUPS, widths, strict=True))) for widths in choices]


@pytest.mark.parametrize(
    "goal",
    [
        *(Goal(params=f"{factor}x") for factor in (1, 1.3, 2, 3, 5, 9)),
        *(Goal(macs=f"{factor}x") for factor in (1.2, 2, 4, 8)),
        Goal(params="2x", macs="3x"),
        Goal(params="1.5x", size_mb="3x"),
    ],
)
def test_no_other_architecture_within_the_budgets_has_a_smaller_sum_of_errors(goal: Goal) -> None:
    budgets = goal.budgets(cost(SPACE.full), 1.0)
    found = solved(SPACE.full, OPTIONS, budgets, cost)
    fitting = [architecture for architecture in every() if usage(cost(architecture), budgets) <= 1.0]
    assert found is not None
    assert found in fitting
    assert error(found) == pytest.approx(min(map(error, fitting)))


@pytest.mark.parametrize("goal", [Goal(memory_mb="1.6x"), Goal(params="2x", memory_mb="1.3x")])
def test_other_budgets_are_kept_by_fewer_macs(goal: Goal) -> None:
    budgets = goal.budgets(cost(SPACE.full), 1.0)
    found = solved(SPACE.full, OPTIONS, budgets, cost)
    assert found is not None
    assert usage(cost(found), budgets) <= 1.0
    assert error(found) < error(SPACE.architecture(widths={o.group: o.widths[0] for o in OPTIONS}))


def test_budgets_that_nothing_keeps_have_no_answer() -> None:
    assert solved(SPACE.full, OPTIONS, Budgets(parameters=50.0), cost) is None
    assert solved(SPACE.full, OPTIONS, Budgets(memory_mb=1e-4), cost) is None
    assert solved(SPACE.full, OPTIONS, Budgets(parameters=500.0), lambda architecture: None) is None


def test_costs_of_three_widths_are_kept_by_tightening() -> None:
    def cubed(architecture: Architecture) -> Cost:
        a, b, c, d = (architecture.width(name) for name in GROUPS)
        return Cost(parameters=a * b * c + 20 * a * d + 50, macs=a * b, weight_bytes=4)

    for factor in ("1.5x", "3x", "6x"):
        budgets = Goal(params=factor).budgets(cubed(SPACE.full), 1.0)
        found = solved(SPACE.full, OPTIONS, budgets, cubed)
        assert found is not None
        assert usage(cubed(found), budgets) <= 1.0


def glance(architecture: Architecture) -> float:
    return -math.log(toy_score(architecture, noise=0.0))


class TestAllocateSearcher(SearcherContract):
    deterministic = True

    def make(self, seed: int) -> Searcher:
        return Allocate().searcher(toy_problem(params="20x", seed=seed, glance=glance))


@pytest.mark.parametrize(("kind", "params"), [("chain", "20x"), ("residual", "10x")])
def test_students_keep_the_budget_and_are_better_than_nearly_all_draws(kind: ToyKind, params: str) -> None:
    whole, looks = toy_space(kind), dict[str, int]()
    space = replace(whole, layers=tuple(replace(layer, kernels=()) for layer in whole.layers))  # it shrinks none

    def counted(architecture: Architecture) -> float:
        looks[architecture.digest] = looks.get(architecture.digest, 0) + 1
        return glance(architecture)

    budgets = toy_reward(space, Goal(params=params)).budgets
    problem = toy_problem(space, params, glance=counted)
    found = [evaluation.architecture for evaluation in run_searcher(Allocate().searcher(problem))]
    assert len(found) == STUDENTS == Allocate().expected_students
    assert all(0.9 < usage(toy_cost(architecture), budgets) <= 1.0 for architecture in found)
    drawn = run_searcher(RandomSearch(students=60, fill=True).searcher(toy_problem(space, params)))
    assert glance(found[0]) < sorted(glance(e.architecture) for e in drawn)[len(drawn) // 20]
    assert len(looks) < 300


def test_what_it_needs_is_said() -> None:
    with pytest.raises(ConfigError, match="must have a budget on cost to allocate"):
        Allocate().searcher(toy_problem(glance=glance))
    with pytest.raises(ConfigError, match="must look at untrained students"):
        Allocate().searcher(toy_problem(params="4x"))


def test_a_student_is_proposed_although_no_budget_can_be_kept() -> None:
    searcher = Allocate().searcher(toy_problem(params="4000x", glance=glance))
    assert len(searcher.propose()) == 1
