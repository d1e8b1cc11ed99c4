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
    return replace(toy_evaluation(narrow(width)), score=accuracy)


def test_within_the_budgets_accuracy_decides() -> None:
    merit = merit_for(toy_reward(SPACE, Goal(params="4x", score=0.8)))
    good, smaller, unsure, hopeless = scored(128, 0.9), scored(64, 0.89), scored(64, 0.79), scored(16, 0.5)
    large = scored(512, 0.94)
    ordered = sorted([large, hopeless, unsure, smaller, good], key=merit, reverse=True)
    assert ordered == [good, smaller, unsure, hopeless, large]


def test_without_a_budget_on_cost_the_reward_decides() -> None:
    merit = merit_for(toy_reward(SPACE, Goal(score=0.8)))
    good, smaller, unsure = scored(256, 0.9), scored(64, 0.89), scored(16, 0.79)
    assert sorted([good, unsure, smaller], key=merit, reverse=True) == [smaller, good, unsure]


def test_equal_students_are_ranked_by_parameters() -> None:
    merit = merit_for(toy_reward(SPACE, Goal(score=0.99)))
    assert merit(scored(16, 0.5)) > merit(scored(32, 0.5))


def test_finalists_keep_the_budgets_on_cost() -> None:
    reward = toy_reward(SPACE, Goal(params="6x", score=0.99))
    evaluations = [scored(512, 0.99), scored(128, 0.9), scored(64, 0.7), scored(32, 0.8), scored(16, 0.1)]
    assert finalists(evaluations, reward, 2) == [narrow(128), narrow(32)]


def test_finalists_may_have_been_stopped_but_not_failed() -> None:
    reward = toy_reward(SPACE, Goal(params="10x"))
    stopped, failed = replace(scored(32, 0.3), status="stopped"), scored(16, 0.9).with_error("diverged")
    assert finalists([stopped, failed], reward, 5) == [narrow(32)]


def test_the_nearest_are_listed_where_nothing_fits() -> None:
    reward = toy_reward(SPACE, Goal(params="100x"))
    with pytest.raises(
        GoalError, match=r"(?s)keep the budgets \([\d,]+ parameters\), but none did\. The nearest:"
    ) as caught:
        finalists([scored(512, 0.95), scored(256, 0.9), scored(128, 0.85), scored(64, 0.8)], reward, 2)
    listed = str(caught.value).splitlines()[1:4]
    assert [line.rpartition(" ")[2] for line in listed] == ["80.00%", "85.00%", "90.00%"]
    assert "search longer or by another method" in str(caught.value)
    with pytest.raises(GoalError, match="every one failed, as this one: diverged"):
        finalists([scored(16, 0.9).with_error("diverged")], reward, 2)
    with pytest.raises(GoalError, match="but it found none"):
        finalists([], reward, 2)


def test_the_most_accurate_within_the_budgets_wins() -> None:
    reward = toy_reward(SPACE, Goal(params="4x"))
    small, good, large = scored(32, 0.90), scored(128, 0.94), scored(512, 0.99)
    assert winner([small, good, large], reward, examples=10_000) == good
    # A standard error of 1.2 points at 400 images is not enough to tell 0.94 and 0.93 apart.
    equal = scored(64, 0.93)
    assert winner([small, good, equal], reward, examples=400) == equal
    assert winner([good, equal], reward, examples=10_000) == good


def test_a_tie_goes_to_what_is_cheaper_in_the_figure_asked_for() -> None:
    reward = toy_reward(SPACE, Goal(macs="2x"))
    few, light = scored(128, 0.9), scored(64, 0.9)
    few = replace(few, cost=replace(few.cost, parameters=1000))
    assert few.cost.macs > light.cost.macs and few.cost.parameters < light.cost.parameters
    assert winner([few, light], reward, examples=100) == light


def test_the_winner_keeps_the_accuracy_asked_for_even_within_the_error() -> None:
    reward = toy_reward(SPACE, Goal(params="4x", score=0.9))
    assert winner([scored(128, 0.901), scored(64, 0.899)], reward, examples=100) == scored(128, 0.901)
    assert winner([scored(128, 0.85), scored(64, 0.84)], reward, examples=100) == scored(128, 0.85)


def test_without_a_budget_on_cost_the_winner_is_the_best_rewarded() -> None:
    assert winner([scored(256, 0.92), scored(64, 0.90)], toy_reward(SPACE), examples=10_000) == scored(64, 0.90)


def test_the_winner_is_one_whose_training_succeeded() -> None:
    reward = toy_reward(SPACE)
    failed = scored(16, 0.99).with_error("diverged: the loss was nan")
    assert winner([failed, scored(64, 0.9), scored(128, 0.9)], reward, examples=100) == scored(64, 0.9)
    with pytest.raises(RunError, match=r"all failed:\n.*diverged: the loss was nan"):
        winner([failed], reward, examples=100)


def test_the_order_of_evaluation_decides_nothing() -> None:
    space = toy_space("residual")
    reward = toy_reward(space)
    twins = [toy_evaluation(space.architecture(removed=[f"stage1.{number}"])) for number in (1, 2)]
    twins = [replace(twin, score=0.9) for twin in twins]
    assert twins[0].cost == twins[1].cost
    assert finalists(twins, reward, 1) == finalists(twins[::-1], reward, 1)
