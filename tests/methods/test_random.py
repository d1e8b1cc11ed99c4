from __future__ import annotations

import statistics
from dataclasses import replace

import pytest

from understudy.config.methods import RandomSearch, UniformWidth
from understudy.config.widths import Widths
from understudy.core.architecture import Architecture
from understudy.core.evaluation import Cost
from understudy.core.goal import Goal
from understudy.methods.base import Searcher
from understudy.methods.baselines.random import RandomSearcher
from understudy.methods.baselines.uniform import UniformSearcher
from understudy.testing.contracts import SearcherContract, run_searcher
from understudy.testing.landscapes import ToyKind, toy_cost, toy_problem, toy_reward, toy_space


class TestRandomSearcher(SearcherContract):
    def make(self, seed: int) -> Searcher:
        return RandomSearcher(toy_problem(params="20x", seed=seed), RandomSearch(students=23))


class TestUniformSearcher(SearcherContract):
    deterministic = True

    def make(self, seed: int) -> Searcher:
        return UniformSearcher(toy_problem(), UniformWidth(students=16))


@pytest.mark.parametrize(("kind", "params"), [("chain", "127x"), ("chain", "3x"), ("residual", "60x")])
def test_random_students_keep_the_budget_and_use_it(kind: ToyKind, params: str) -> None:
    space = toy_space(kind)
    reward = toy_reward(space, Goal(params=params))
    students = run_searcher(RandomSearcher(toy_problem(space, params), RandomSearch(students=40)))
    used = sorted(e.cost.parameters / (reward.budgets.parameters or 0) for e in students if e.cost)
    assert len({e.architecture.digest for e in students}) == len(used) == 40
    assert used[-1] <= 1.0
    assert used[20] > 0.1


def test_random_draws_only_what_the_settings_allow() -> None:
    space = toy_space()
    problem = toy_problem(space, widths=Widths(round_to=16, min_width=32))
    students = run_searcher(RandomSearcher(problem, RandomSearch(students=30)))
    widths = [width for e in students for _, width in e.architecture.widths]
    assert min(widths) == 32
    assert {width % 16 for width in widths} == {0}
    assert {kernel for e in students for _, kernel in e.architecture.kernels} == {1}


def test_random_proposes_although_nothing_can_be_built() -> None:
    def never(architecture: Architecture) -> Cost | None:
        return None

    searcher = RandomSearcher(toy_problem(params="9x", predict=never), RandomSearch())
    assert len(searcher.propose()) == 5


def test_uniform_goes_down_in_even_steps() -> None:
    space = replace(toy_space(), units=())
    students = run_searcher(UniformSearcher(toy_problem(space), UniformWidth(students=5)))
    widths = [[e.architecture.width(name) for e in students] for name in ("features.0", "features.13")]
    assert widths == [[64, 48, 32, 16, 8], [512, 384, 256, 128, 8]]
    assert students[0].architecture == space.full


def tapered(taper: float, goal: Goal) -> tuple[Architecture, Cost | None]:
    """Return the student, and its cost, of a teacher whose groups' MACs halve from one to the next."""
    space = toy_space("residual")

    def predict(architecture: Architecture) -> Cost | None:
        macs = sum(1e6 * architecture.width(group.name) / 2.0**place for place, group in enumerate(space.groups))
        cost = toy_cost(architecture)
        return None if cost is None else replace(cost, macs=round(macs))

    whole = predict(space.full)
    assert whole is not None
    reward = replace(toy_reward(space, goal), teacher_cost=whole, budgets=goal.budgets(whole, 0.9))
    problem = toy_problem(space, predict=predict, reward=reward, widths=Widths(round_to=1, min_width=1))
    (student,) = UniformSearcher(problem, UniformWidth(students=1, taper=taper)).propose()
    assert not reward.budgets.broken_by(predict(student) or whole)
    return student, predict(student)


def test_tapered_groups_that_take_much_of_the_budget_for_each_of_their_macs_are_narrower() -> None:
    (_, one), (student, other) = tapered(0.0, Goal(params="20x")), tapered(0.5, Goal(params="20x"))
    assert one and other and other.macs > 1.5 * one.macs
    assert other.parameters > 0.85 * one.parameters  # it uses the budget up as well
    factors = [student.width(group.name) / group.width for group in student.space.groups]
    assert factors[0] > 3.0 * factors[-1]


def test_of_a_budget_on_macs_tapered_widths_are_uniform_ones() -> None:
    assert tapered(0.5, Goal(macs="20x"))[0] == tapered(0.0, Goal(macs="20x"))[0]


def test_uniform_widths_that_round_to_the_same_are_one_student() -> None:
    searcher = UniformSearcher(toy_problem(widths=Widths(min_width=256)), UniformWidth(students=20))
    students = run_searcher(searcher)
    assert len({e.architecture.digest for e in students}) == len(students) < 20
    assert searcher.updates == -(-len(students) // 5)


def test_uniform_starts_at_the_widest_that_keeps_the_budget() -> None:
    space = toy_space()
    reward = toy_reward(space, Goal(params="20x"))
    most = reward.budgets.parameters or 0
    students = run_searcher(UniformSearcher(toy_problem(space, "20x"), UniformWidth(students=8)))
    used = [e.cost.parameters / most for e in students if e.cost]
    assert 0.9 < used[0] <= 1.0
    assert used == sorted(used, reverse=True)
    assert len(used) > 4


@pytest.mark.parametrize("kind", ["chain", "residual"])
def test_filled_draws_use_the_budget_up_and_leave_units_and_kernels(kind: ToyKind) -> None:
    space = toy_space(kind)
    reward = toy_reward(space, Goal(params="20x"))
    most = reward.budgets.parameters or 0

    def students(fill: bool) -> list[Architecture]:
        searcher = RandomSearcher(toy_problem(space, "20x"), RandomSearch(students=30, fill=fill))
        return [evaluation.architecture for evaluation in run_searcher(searcher)]

    used = {fill: [toy_cost(a).parameters / most for a in students(fill)] for fill in (False, True)}
    assert max(used[True]) <= 1.0
    assert statistics.median(used[True]) > statistics.median(used[False])
    assert sum(share > 0.75 for share in used[True]) >= 15
    searcher = RandomSearcher(toy_problem(space, "20x"), RandomSearch(fill=True))
    for before in students(False):
        after = searcher.filled(before)
        assert (after.removed, after.kernels) == (before.removed, before.kernels)
        assert all(after.width(group.name) >= before.width(group.name) for group in space.groups)
        assert 0.75 < toy_cost(after).parameters / most <= 1.0
    over = searcher.filled(space.full)  # what breaks the budget becomes narrower, all widths by one factor
    assert 0.75 < toy_cost(over).parameters / most <= 1.0
