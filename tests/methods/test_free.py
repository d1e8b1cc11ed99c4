from __future__ import annotations

import pytest

from understudy.config.methods import Free, RandomSearch
from understudy.core.architecture import Architecture
from understudy.core.evaluation import Cost
from understudy.core.goal import Goal
from understudy.methods.base import Searcher
from understudy.methods.baselines.random import RandomSearcher
from understudy.testing.contracts import SearcherContract, run_searcher
from understudy.testing.landscapes import ToyKind, toy_cost, toy_problem, toy_reward, toy_space


class TestFreeSearcher(SearcherContract):
    def make(self, seed: int) -> Searcher:
        return Free().searcher(toy_problem(params="20x", seed=seed))


@pytest.mark.parametrize(("kind", "params"), [("chain", "20x"), ("residual", "10x")])
def test_one_student_with_more_macs_than_any_of_a_random_search(kind: ToyKind, params: str) -> None:
    space = toy_space(kind)
    most = toy_reward(space, Goal(params=params)).budgets.parameters or 0
    (student,) = run_searcher(Free().searcher(toy_problem(space, params)))
    cost = toy_cost(student.architecture)
    assert 0.75 * most < cost.parameters <= most
    drawn = run_searcher(RandomSearcher(toy_problem(space, params), RandomSearch(students=40, fill=True)))
    assert cost.macs >= 0.99 * max(toy_cost(evaluation.architecture).macs for evaluation in drawn)


def test_a_student_is_proposed_although_nothing_can_be_built() -> None:
    def never(architecture: Architecture) -> Cost | None:
        return None

    searcher = Free().searcher(toy_problem(params="9x", predict=never))
    assert len(searcher.propose()) == 1
    assert Free().expected_students == 1
