from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from understudy.core.architecture import Space
from understudy.core.errors import GoalError
from understudy.core.evaluation import Cost, Evaluation
from understudy.core.goal import Budgets, Goal, Reward, parse_amount

TEACHER = Cost(
    parameters=1_000_000, macs=50_000_000, weight_bytes=4_000_000, peak_activation_bytes=800_000, latency_ms=8.0
)
SPACE = Space(layers=(), groups=(), units=())


def evaluation(parameters: int, accuracy: float, **changes: object) -> Evaluation:
    cost = Cost(parameters=parameters, macs=0, weight_bytes=4 * parameters)
    fixed = {"architecture": SPACE.full, "teacher": "t", "data": "d", "recipe": "r", "seconds": 1.0, "seed": 0}
    return replace(Evaluation(cost=cost, score=accuracy, **fixed), **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "number"),
    [("74000", 74000), ("1.7M", 1.7e6), ("500K", 5e5), ("5k", 5e3), ("2G", 2e9), (".5M", 5e5), ("1.", 1), ("1e5", 1e5),
     ("10x", 10.0), ("10X", 10.0)],
)  # fmt: skip
def test_reads_amounts(text: str, number: float) -> None:
    assert parse_amount(text, of=100.0, name="params") == pytest.approx(number)


@pytest.mark.parametrize(
    ("name", "text", "number"),
    [("latency_ms", "3 ms", 3.0), ("latency_ms", "0.5", 0.5), ("size_mb", "2.5MB", 2.5), ("memory_mb", "4x", 25.0)],
)
def test_what_has_a_unit_is_read_in_it(name: str, text: str, number: float) -> None:
    assert parse_amount(text, of=100.0, name=name) == pytest.approx(number)


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("size_mb", "500K", r"such as '2\.5' \(in MB\) or '10x'.*, but got '500K'"),
        ("size_mb", "500 KB", r"\(in MB\)"),
        ("latency_ms", "3 s", r"\(in ms\)"),
        ("latency_ms", "1M", r"\(in ms\)"),
        ("params", "50%", "got '50%': write a percentage as a factor, '2x' for half"),
        ("params", "1,5M", "a point before decimals"),
        ("params", "1_000", "digits without separators"),
        ("params", "1e999", "must be a positive amount"),
        ("params", "nan", "must be a positive amount"),
        ("params", "0.1", r"1 or more, but got '0\.1': .* as a factor, '10x'"),
        ("params", "0.0001", r"as a factor, '10000x'"),
        ("params", "0.0001x", r"would be 10,000 times as much"),
        ("macs", "0.5x", r"a factor of 1 or more, but got '0\.5x': '2x' is half of the teacher's"),
    ],
)
def test_an_amount_that_may_be_meant_otherwise_is_refused(name: str, text: str, said: str) -> None:
    with pytest.raises(GoalError, match=f"goal '{name}' .*{said}"):
        Goal(**{name: text})


@pytest.mark.parametrize("text", ["", "ten", "-3", "0", "0x", "5 MB", "1.7.1M"])
def test_refuses_what_is_no_amount(text: str) -> None:
    with pytest.raises(GoalError, match="goal 'params' must be a positive amount"):
        Goal(params=text)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        *((2.0, r"2\.0 \(2% is 0\.02\)"), ("0.9", "'0.9'"), (True, "True"), (float("nan"), "nan"), ([1], r"\[1\]")),
        *((10**400, "1000"), (torch.tensor([0.1, 0.2]), r"tensor\(\[")),
    ],
)
def test_refuses_accuracies_that_are_no_share(given: Any, said: str) -> None:
    with pytest.raises(GoalError, match=rf"'score_drop' must be a number in 0\.\.1, but got {said}"):
        Goal(score_drop=given)


def test_refuses_what_is_no_choice() -> None:
    with pytest.raises(GoalError, match="'runtime' must be one of torch, onnxruntime, but got None"):
        Goal(runtime=None)  # type: ignore[arg-type]
    with pytest.raises(GoalError, match="'int8' must be true or false, but got 'yes'"):
        Goal(runtime="onnxruntime", int8="yes")  # type: ignore[arg-type]


def test_a_drop_of_exactly_as_much_keeps_the_score() -> None:
    budgets = Goal(score_drop=0.1).budgets(TEACHER, 0.8)
    assert 0.8 - 0.1 > 0.7  # in floats
    assert budgets.broken_by(TEACHER, 0.7) == () and budgets.broken_by(TEACHER, 0.699) == ("score",)


def test_budgets_are_absolute() -> None:
    goal = Goal(params="10x", macs="5M", size_mb="0.5", memory_mb="2x", latency_ms="4x", score_drop=0.01)
    budgets = goal.budgets(TEACHER, 0.95)
    assert budgets == Budgets(parameters=1e5, macs=5e6, size_mb=0.5, memory_mb=0.4, latency_ms=2.0, score=budgets.score)
    assert budgets.score == pytest.approx(0.94)
    cost = Cost(parameters=100_001, macs=5_000_000, weight_bytes=500_000, latency_ms=3.0)
    assert budgets.broken_by(cost, 0.9) == ("parameters", "latency_ms", "score")
    assert budgets.broken_by(cost) == ("parameters", "latency_ms")


def test_a_ratio_of_something_unknown_is_refused() -> None:
    with pytest.raises(GoalError, match="'latency_ms' = '2x' needs the teacher's own figure"):
        Goal(latency_ms="2x").budgets(replace(TEACHER, latency_ms=None), 0.9)


def test_a_ratio_of_nothing_is_refused() -> None:
    none = replace(TEACHER, macs=0)  # a network of embeddings and norms
    with pytest.raises(GoalError, match="goal 'macs' = '2x' is a share of what the teacher has, but it has none"):
        Goal(params="2x", macs="2x").budgets(none, 0.9)
    assert Goal(params="2x", macs="5").budgets(none, 0.9).used(none) == (("parameters", 2.0), ("macs", 0.0))


def test_reward_is_the_papers() -> None:
    reward = Reward(teacher_cost=TEACHER, teacher_score=0.9)
    # C = 0.8, R_c = 0.8 * 1.2 = 0.96, R_a = 0.81 / 0.9 = 0.9
    assert reward(evaluation(200_000, 0.81)) == pytest.approx(0.96 * 0.9)


def test_degenerate_students_get_minus_one() -> None:
    reward = Reward(teacher_cost=TEACHER, teacher_score=0.9)
    assert reward(evaluation(1_000_000, 0.9)) == -1.0
    assert reward(evaluation(10, 0.9, status="failed")) == -1.0
    assert reward(evaluation(10, 0.9, cost=None)) == -1.0


def test_the_penalty_is_phased_in_and_stays() -> None:
    reward = Reward(teacher_cost=TEACHER, teacher_score=0.9, budgets=Budgets(parameters=1e5), phase_updates=15)
    over, plain = evaluation(200_000, 0.81), 0.96 * 0.9
    assert reward(over, update=0) == pytest.approx(plain)
    e = (1 - 5 / 15) ** 4
    assert reward(over, update=5) == pytest.approx((e - 1) + e * plain)
    # The authors' code lets the penalty fade again after update 15.
    for update in (15, 16, 30, 100, None):
        assert reward(over, update=update) == -1.0
    within = evaluation(100_000, 0.81)
    assert reward(within, update=40) == pytest.approx(0.9 * 1.1 * 0.9)
    assert replace(reward, phase_updates=0)(over, update=0) == -1.0


def test_a_latency_that_is_not_known_is_never_taken_for_kept() -> None:
    unmeasured = Cost(parameters=1, macs=1, weight_bytes=1)
    with pytest.raises(GoalError, match="a budget on latency_ms is judged by costs that have it"):
        Budgets(latency_ms=1.0).broken_by(unmeasured)


def costing(parameters: int, macs: int, accuracy: float) -> Evaluation:
    return evaluation(parameters, accuracy, cost=Cost(parameters=parameters, macs=macs, weight_bytes=4 * parameters))


def test_a_goal_in_macs_is_pursued_in_macs() -> None:
    teacher = replace(TEACHER, macs=100_000_000)
    reward = Reward(teacher_cost=teacher, teacher_score=0.95, budgets=Goal(macs="4x").budgets(teacher, 0.95))
    accurate, few = costing(500_000, 25_000_000, 0.92), costing(50_000, 24_000_000, 0.80)
    assert reward(accurate) == pytest.approx(0.75 * 1.25 * 0.92 / 0.95)
    assert reward(accurate) > reward(few)
    assert reward(costing(1_000_000, 25_000_000, 0.92)) == reward(accurate)  # parameters were not asked about


def test_what_is_saved_beyond_a_budget_earns_nothing() -> None:
    reward = Reward(teacher_cost=TEACHER, teacher_score=0.9, budgets=Budgets(parameters=5e5))
    assert reward(evaluation(100_000, 0.8)) == reward(evaluation(500_000, 0.8)) == pytest.approx(0.75 * 0.8 / 0.9)
    # A budget that asks for nothing leaves the paper's reward.
    loose = Reward(teacher_cost=TEACHER, teacher_score=0.9, budgets=Budgets(parameters=2e6))
    assert loose(evaluation(100_000, 0.81)) == pytest.approx(0.9 * 1.1 * 0.9)


@pytest.mark.parametrize(
    ("goal", "doubts"),
    [
        (Goal(), []),
        (Goal(score_drop=0.1), []),
        (Goal(params="1x"), ["keeps every budget"]),
        (Goal(params="2M", macs="1G"), ["keeps every budget"]),
        (Goal(params="2M", macs="2x"), []),
        (Goal(params="999999", score=0.9), []),
        (Goal(params="999999", score=0.91), ["itself has a score of 90.00% on validation, but 91.00% is asked for"]),
        (Goal(params="1x", score=1.0, score_drop=0.0), ["keeps every budget", "but 100.00% is asked for"]),
    ],
)
def test_budgets_that_can_hardly_be_meant_are_said(goal: Goal, doubts: list[str]) -> None:
    reward = Reward(teacher_cost=TEACHER, teacher_score=0.9, budgets=goal.budgets(TEACHER, 0.9))
    assert len(reward.doubts) == len(doubts) and all(
        part in said for part, said in zip(doubts, reward.doubts, strict=True)
    )


def test_several_budgets_count_by_their_factors() -> None:
    reward = Reward(teacher_cost=TEACHER, teacher_score=1.0, budgets=Budgets(parameters=1e4, macs=1e6))
    # A fourth of the parameters and a 16th of the MACs: an eighth in the geometric mean.
    student = costing(250_000, 50_000_000 // 16, 1.0)
    assert reward.left(student.cost) == pytest.approx(1 / 8)
    assert reward.plain(student) == pytest.approx(7 / 8 * 9 / 8)


def test_a_teacher_that_is_never_right_divides_by_nothing() -> None:
    reward = Reward(teacher_cost=TEACHER, teacher_score=0.0)
    assert reward(evaluation(200_000, 0.5)) == pytest.approx(0.96 * 0.5)


number = st.integers(1, 10**9)
accuracies = st.floats(0.0, 1.0)


@given(number, number, accuracies, accuracies, st.sets(st.sampled_from(["params", "macs", "size_mb"])), number)
def test_rewards_stay_in_their_range(
    parameters: int, macs: int, accuracy: float, teachers: float, limited: set[str], update: int
) -> None:
    goal = Goal(**dict.fromkeys(limited, "3x"), score=0.5 if "macs" in limited else None)  # type: ignore[arg-type]
    reward = Reward(teacher_cost=TEACHER, teacher_score=teachers, budgets=goal.budgets(TEACHER, teachers))
    earned = reward(costing(parameters, macs, accuracy), update=update % 20)
    assert -1.0 <= earned <= reward.most
    assert reward.most == 1.0 / (teachers or 1.0)


def test_a_runtime_is_one_that_is_known() -> None:
    assert Goal(runtime="onnxruntime").runtime == "onnxruntime"
    with pytest.raises(GoalError, match=r"'runtime' must be one of torch, onnxruntime, but got 'onnx_runtime' \(did"):
        Goal(runtime="onnx_runtime")  # type: ignore[arg-type]


def test_the_papers_reward_pays_for_what_is_saved_beyond_a_budget() -> None:
    ours = Reward(teacher_cost=TEACHER, teacher_score=0.9, budgets=Goal(params="2x").budgets(TEACHER, 0.9))
    papers = replace(ours, capped=False)
    small, smaller = evaluation(400_000, 0.8), evaluation(100_000, 0.8)
    assert ours(small) == ours(smaller) == pytest.approx(0.5 * 1.5 * 0.8 / 0.9)
    assert papers(small) == pytest.approx(0.6 * 1.4 * 0.8 / 0.9)  # C (2 - C) A / A_teacher with C = 1 - P / P_teacher
    assert papers(smaller) == pytest.approx(0.9 * 1.1 * 0.8 / 0.9)
    assert papers(evaluation(600_000, 0.8)) == ours(evaluation(600_000, 0.8)) == -1.0
