from __future__ import annotations

from dataclasses import replace

import pytest

from understudy.core.architecture import Architecture
from understudy.core.errors import GoalError, RunError
from understudy.core.evaluation import Evaluation
from understudy.core.goal import Goal
from understudy.methods.ranking import finalists, merit_for, winner
from understudy.testing.landscapes import toy_evaluation, toy_reward, toy_space

SPACE = toy_space()


def narrow(width: int) -> Architecture:
    return SPACE.architecture(widths={group.name: min(width, group.width) for group in SPACE.groups})


def scored(width: int, accuracy: float) -> Evaluation:
    return replace(toy_evaluation(narrow(width)), accuracy=accuracy)


def test_within_the_budgets_reward_decides_and_outside_accuracy() -> None:
    merit = merit_for(toy_reward(SPACE, Goal(params="4x", accuracy=0.8)))
    good, smaller, unsure, hopeless = scored(128, 0.9), scored(64, 0.89), scored(64, 0.79), scored(16, 0.5)
    large = scored(512, 0.94)
    ordered = sorted([large, hopeless, unsure, good, smaller], key=merit, reverse=True)
    assert ordered == [smaller, good, unsure, hopeless, large]


def test_equal_students_are_ranked_by_parameters() -> None:
    merit = merit_for(toy_reward(SPACE, Goal(accuracy=0.99)))
    assert merit(scored(16, 0.5)) > merit(scored(32, 0.5))


def test_finalists_keep_the_budgets_on_cost() -> None:
    reward = toy_reward(SPACE, Goal(params="6x", accuracy=0.99))
    evaluations = [scored(512, 0.99), scored(128, 0.9), scored(64, 0.7), scored(32, 0.8), scored(16, 0.1)]
    assert finalists(evaluations, reward, 2) == [narrow(128), narrow(32)]


def test_finalists_may_have_been_stopped_but_not_failed() -> None:
    reward = toy_reward(SPACE, Goal(params="10x"))
    stopped, failed = replace(scored(32, 0.3), status="stopped"), scored(16, 0.9).with_error("diverged")
    assert finalists([stopped, failed], reward, 5) == [narrow(32)]


def test_the_nearest_are_listed_where_nothing_fits() -> None:
    reward = toy_reward(SPACE, Goal(params="100x"))
    with pytest.raises(
        GoalError, match=r"(?s)keep the budgets \(parameters [\d.e+]+\), but none did\. The nearest:"
    ) as caught:
        finalists([scored(512, 0.95), scored(256, 0.9), scored(128, 0.85), scored(64, 0.8)], reward, 2)
    listed = str(caught.value).splitlines()[1:4]
    assert [line.rpartition(" ")[2] for line in listed] == ["80.00%", "85.00%", "90.00%"]
    with pytest.raises(GoalError, match="every one failed"):
        finalists([scored(16, 0.9).with_error("diverged")], reward, 2)


def test_the_winner_is_one_whose_training_succeeded() -> None:
    reward = toy_reward(SPACE)
    failed = scored(16, 0.99).with_error("diverged: the loss was nan")
    assert winner([failed, scored(64, 0.9), scored(128, 0.9)], reward) == scored(64, 0.9)
    with pytest.raises(RunError, match=r"all failed:\n.*diverged: the loss was nan"):
        winner([failed], reward)


def test_the_order_of_evaluation_decides_nothing() -> None:
    space = toy_space("residual")
    reward = toy_reward(space)
    twins = [toy_evaluation(space.architecture(removed=[f"stage1.{number}"])) for number in (1, 2)]
    twins = [replace(twin, accuracy=0.9) for twin in twins]
    assert twins[0].cost == twins[1].cost
    assert finalists(twins, reward, 1) == finalists(twins[::-1], reward, 1)
