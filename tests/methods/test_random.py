from __future__ import annotations

import statistics
from dataclasses import replace

import pytest

from understudy.config.methods import RandomSearch, UniformWidth
from understudy.core.architecture import Architecture
from understudy.core.evaluation import Cost
from understudy.core.goal import Goal
from understudy.methods.base import Searcher
from understudy.methods.baselines.random import RandomSearcher, UniformSearcher
from understudy.testing.landscapes import SearcherContract, ToyKind, run_searcher, toy_cost, toy_reward, toy_space


class TestRandomSearcher(SearcherContract):
    def make(self, seed: int) -> Searcher:
        space = toy_space()
        reward = toy_reward(space, Goal(params="20x"))
        return RandomSearcher(space, reward, RandomSearch(students=23), seed=seed, predict=toy_cost)


class TestUniformSearcher(SearcherContract):
    deterministic = True

    def make(self, seed: int) -> Searcher:
        space = toy_space()
        return UniformSearcher(space, toy_reward(space), UniformWidth(students=16), predict=toy_cost)


@pytest.mark.parametrize(("kind", "params"), [("chain", "127x"), ("chain", "3x"), ("residual", "60x")])
def test_random_students_keep_the_budget_and_use_it(kind: ToyKind, params: str) -> None:
    space = toy_space(kind)
    reward = toy_reward(space, Goal(params=params))
    students = run_searcher(RandomSearcher(space, reward, RandomSearch(students=40), seed=0, predict=toy_cost))
    used = sorted(e.cost.parameters / (reward.budgets.parameters or 0) for e in students if e.cost)
    assert len({e.architecture.digest for e in students}) == len(used) == 40
    assert used[-1] <= 1.0
    assert used[20] > 0.1


def test_random_draws_only_what_the_settings_allow() -> None:
    space = toy_space()
    settings = RandomSearch(students=30, round_to=16, min_width=32)
    students = run_searcher(RandomSearcher(space, toy_reward(space), settings, seed=0, predict=toy_cost))
    widths = [width for e in students for _, width in e.architecture.widths]
    assert min(widths) == 32
    assert {width % 16 for width in widths} == {0}
    assert {kernel for e in students for _, kernel in e.architecture.kernels} == {1}


def test_random_proposes_although_nothing_can_be_built() -> None:
    def never(architecture: Architecture) -> Cost | None:
        return None

    space = toy_space()
    searcher = RandomSearcher(space, toy_reward(space, Goal(params="9x")), RandomSearch(), seed=0, predict=never)
    assert len(searcher.propose()) == 5


def test_uniform_goes_down_in_even_steps() -> None:
    space = replace(toy_space(), units=())
    reward = toy_reward(space)
    students = run_searcher(UniformSearcher(space, reward, UniformWidth(students=5), predict=toy_cost))
    widths = [[e.architecture.width(name) for e in students] for name in ("features.0", "features.13")]
    assert widths == [[64, 48, 32, 16, 8], [512, 384, 256, 128, 8]]
    assert students[0].architecture == space.full


def test_uniform_widths_that_round_to_the_same_are_one_student() -> None:
    space = toy_space()
    searcher = UniformSearcher(space, toy_reward(space), UniformWidth(students=20, min_width=256), predict=toy_cost)
    students = run_searcher(searcher)
    assert len({e.architecture.digest for e in students}) == len(students) < 20
    assert searcher.updates == -(-len(students) // 5)


def test_uniform_starts_at_the_widest_that_keeps_the_budget() -> None:
    space = toy_space()
    reward = toy_reward(space, Goal(params="20x"))
    most = reward.budgets.parameters or 0
    settings = UniformWidth(students=8)
    students = run_searcher(UniformSearcher(space, reward, settings, predict=toy_cost))
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
        searcher = RandomSearcher(space, reward, RandomSearch(students=30, fill=fill), seed=0, predict=toy_cost)
        return [evaluation.architecture for evaluation in run_searcher(searcher)]

    used = {fill: [toy_cost(a).parameters / most for a in students(fill)] for fill in (False, True)}
    assert max(used[True]) <= 1.0
    assert statistics.median(used[True]) > statistics.median(used[False])
    assert sum(share > 0.75 for share in used[True]) >= 15
    searcher = RandomSearcher(space, reward, RandomSearch(fill=True), seed=0, predict=toy_cost)
    for before in students(False):
        after = searcher.filled(before)
        assert (after.removed, after.kernels) == (before.removed, before.kernels)
        assert all(after.width(group.name) >= before.width(group.name) for group in space.groups)
        assert 0.75 < toy_cost(after).parameters / most <= 1.0
    assert searcher.filled(space.full) == space.full  # over the budget
