from __future__ import annotations

import statistics

import pytest

from understudy.config.methods import OptunaSearch, RandomSearch
from understudy.core.architecture import Architecture
from understudy.core.evaluation import Cost
from understudy.core.goal import Goal
from understudy.methods.base import Searcher
from understudy.methods.baselines.optuna import SamplerSearcher
from understudy.methods.baselines.random import RandomSearcher
from understudy.testing.contracts import SearcherContract, run_searcher
from understudy.testing.landscapes import toy_problem, toy_reward, toy_space


class TestTpe(SearcherContract):
    def make(self, seed: int) -> Searcher:
        return SamplerSearcher(toy_problem(params="20x", seed=seed), OptunaSearch(students=23), start=10)


class TestNsga2(SearcherContract):
    def make(self, seed: int) -> Searcher:
        settings = OptunaSearch(sampler="nsga2", students=23)
        return SamplerSearcher(toy_problem(params="20x", seed=seed), settings, start=10)


@pytest.mark.parametrize("sampler", ["tpe", "nsga2"])
def test_students_keep_the_budget_and_differ(sampler: str) -> None:
    space = toy_space("residual")
    reward = toy_reward(space, Goal(params="20x"))
    settings = OptunaSearch(sampler=sampler, students=40)  # type: ignore[arg-type]
    students = run_searcher(SamplerSearcher(toy_problem(space, "20x"), settings, start=15))
    assert len({e.architecture.digest for e in students}) == 40
    assert all(not reward.budgets.broken_by(e.cost) for e in students if e.cost)


def test_it_starts_as_random_search_does() -> None:
    problem = toy_problem(params="20x", seed=5)
    start = run_searcher(RandomSearcher(problem, RandomSearch(students=12)))
    students = run_searcher(SamplerSearcher(problem, OptunaSearch(students=20), start=12))
    assert [e.architecture for e in students[:12]] == [e.architecture for e in start]


@pytest.mark.parametrize("sampler", ["tpe", "nsga2"])
def test_filled_draws_use_the_budget_up(sampler: str) -> None:
    space = toy_space("residual")
    reward = toy_reward(space, Goal(params="20x"))
    settings = OptunaSearch(sampler=sampler, students=40, fill=True)  # type: ignore[arg-type]
    students = run_searcher(SamplerSearcher(toy_problem(space, "20x"), settings, start=15))
    used = [e.cost.parameters / (reward.budgets.parameters or 0) for e in students[15:] if e.cost]
    assert len({e.architecture.digest for e in students}) == 40
    assert max(used) <= 1.0 and sum(share > 0.75 for share in used) >= len(used) // 2


def test_tpe_learns() -> None:
    space = toy_space()
    reward, gains = toy_reward(space), []
    for seed in range(3):
        problem = toy_problem(space, seed=seed)
        students = run_searcher(SamplerSearcher(problem, OptunaSearch(students=60), start=15), landscape=seed)
        rewards = [reward(e) for e in students]
        gains.append(statistics.mean(rewards[40:]) - statistics.mean(rewards[:15]))
    assert min(gains) > 0.1


def test_it_proposes_although_nothing_can_be_built() -> None:
    def never(architecture: Architecture) -> Cost | None:
        return None

    searcher = SamplerSearcher(toy_problem(params="9x", predict=never), OptunaSearch(students=10), start=5)
    from understudy.testing.landscapes import toy_evaluation

    searcher.learn([toy_evaluation(a).with_error("no") for a in searcher.propose()])
    assert len(searcher.propose()) == 5
