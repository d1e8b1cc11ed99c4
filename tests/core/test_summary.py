from __future__ import annotations

from dataclasses import replace

import pytest

from understudy.core.evaluation import Cost
from understudy.core.goal import Goal, Reward
from understudy.core.summary import FinalStudent, Network, Score, SearchTotals, Summary, asked_and_obtained
from understudy.core.timing import Comparison, Timing
from understudy.report.tables import result_table

TEACHER = Network(
    cost=Cost(parameters=1_000_000, macs=50_000_000, weight_bytes=4_000_000, latency_ms=8.0),
    val=Score(value=0.9, examples=400),
    test=Score(value=0.89, examples=400),
)
STUDENT = Network(
    cost=Cost(parameters=90_000, macs=20_000_000, weight_bytes=360_000, latency_ms=5.0),
    val=Score(value=0.88, examples=400),
    test=Score(value=0.87, examples=400),
)


def test_large_times_are_told_in_full() -> None:
    assert str(Timing(median=1987.2, low=999.4, high=2012.0)) == "1,987 (999-2,012)"


def timing(median: float, by: float = 0.1) -> Timing:
    return Timing(median=median, low=median - by, high=median + by)


def compared(ratio: Timing) -> Comparison:
    return Comparison(where="1 thread", first=timing(8.0), second=timing(5.0), ratio=ratio)


def summary(goal: Goal | None = None) -> Summary:
    asked = goal or Goal(params="10x", latency_ms="2x", score_drop=0.05)
    budgets = asked.budgets(TEACHER.cost, TEACHER.val.value)
    reward = Reward(teacher_cost=TEACHER.cost, teacher_score=TEACHER.val.value, budgets=budgets)
    return Summary(
        name="abc",
        teacher=TEACHER,
        student=STUDENT,
        latency=(compared(timing(1.6)),),
        goal=asked_and_obtained(asked, reward, STUDENT),
        search=SearchTotals(students=4, stopped=1, failed=0, seconds=1.5),
        finals=(FinalStudent(name="abc", val=0.88, status="ok", seconds=2.0),),
        compute="cpu-fp32-contiguous",
        versions={"torch": "2.8"},
    )


def test_a_summary_comes_back_from_json() -> None:
    found = summary()
    assert Summary.from_json(found.to_json()) == found
    assert [budget["kept"] for budget in found.to_json()["goal"]] == [True, False, True]
    assert [(b.name, b.asked) for b in found.goal] == [
        ("params", "10x"),
        ("latency_ms", "2x"),
        ("score_drop", "0.05"),
    ]
    assert not found.kept and summary(Goal(params="10x")).kept


def test_values_check_themselves() -> None:
    with pytest.raises(ValueError, match=r"must be in 0\.\.1, of at least one example"):
        Score(value=1.1, examples=3)
    with pytest.raises(ValueError, match="quartiles must be ordered"):
        Timing(median=1.0, low=2.0, high=3.0)
    with pytest.raises(ValueError, match="one of the final students, but 'x' is not"):
        replace(summary(), name="x")


@pytest.mark.parametrize(
    ("ratio", "text"),
    [
        (timing(1.6), "1.6x faster"),
        (timing(0.8), "1.25x slower"),
        (Timing(median=1.05, low=0.9, high=1.2), "no measurable difference"),
        (Timing(median=0.1, low=0.02, high=3.0), "no measurable difference"),
    ],
)
def test_no_ratio_is_said_within_the_noise(ratio: Timing, text: str) -> None:
    assert str(compared(ratio)) == text


def test_the_table_shows_standard_errors_and_quartiles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")  # a table fits the terminal
    lines = [" ".join(line.replace("│", " ").split()) for line in str(result_table(summary())).splitlines()]
    assert "ms for 1 example, 1 thread 8 (7.9-8.1) 5 (4.9-5.1) 1.6x faster" in lines
    assert "validation accuracy ± s.e. 90.00% ± 1.5 88.00% ± 1.6 -2.00 points" in lines
    assert "parameters 1,000,000 90,000 11.1x smaller" in lines
    assert "latency_ms 2x 5 (≤ 4) ✗" in lines
    assert not any("trained on the validation images" in line for line in lines)
    other = [
        " ".join(line.replace("│", " ").split())
        for line in str(result_table(replace(summary(), metric="R2"))).splitlines()
    ]
    assert "validation R2 90.00% 88.00% -2.00 points" in other  # no share of examples, so no error is known


def test_a_teacher_that_has_seen_its_validation_images_is_said() -> None:
    seen = replace(TEACHER, val=Score(value=0.683, examples=1000), test=Score(value=0.579, examples=1000))
    (note,) = replace(summary(), teacher=seen).notes
    assert "accuracy is 68.30% ± 1.5 on the validation split and 57.90% ± 1.6 on the test split" in note
    assert "judged too hard" in note and "FOLDER/val" in note
    assert replace(summary(), teacher=seen, metric="R2").notes == ()  # whose error is unknown
    within = replace(seen, test=Score(value=0.66, examples=1000))
    assert replace(summary(), teacher=within).notes == ()
    assert "FOLDER/val" in " ".join(str(result_table(replace(summary(), teacher=seen))).split())
