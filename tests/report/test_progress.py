from __future__ import annotations

import io
import logging
import re
import time
from dataclasses import replace

import pytest
from rich.console import Console

from understudy.core.goal import Budgets, Reward
from understudy.methods.base import Update
from understudy.report import progress
from understudy.report.progress import Display, Finals, Pace, SearchProgress
from understudy.testing.landscapes import toy_evaluation, toy_space

FULL = toy_evaluation(toy_space().full)


class Clock:
    """Stands for the time module in `progress`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        monkeypatch.setattr(progress, "time", self)

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def piped() -> Console:
    return Console(file=io.StringIO(), width=120, force_terminal=False)


def lines(console: Console) -> list[str]:
    """What was written, without the seconds that a step has taken, which are those of the real clock."""
    text = console.file.getvalue()  # type: ignore[attr-defined]
    return re.sub(r"  \d+s so far", "", text).splitlines()


def test_where_there_is_no_bar_a_line_a_minute_tells_how_far_it_is(clock: Clock) -> None:
    console = piped()
    with Display(shown=True, console=console) as display, display.steps("teaching", 10, unit="epochs"):
        for epoch in range(1, 6):
            clock.now += 25.0
            display.step(epoch, title=f"loss {epoch}")
    assert lines(console) == ["loss 3  3/10 epochs  about 2m 55s left"]


def test_a_line_that_was_said_is_no_silence(clock: Clock) -> None:
    console = piped()
    with Display(shown=True, console=console) as display, display.steps("teaching", 10):
        for epoch in range(1, 4):
            clock.now += 50.0
            display.say(f"epoch {epoch}")
            display.step(epoch)
    assert lines(console) == ["epoch 1", "epoch 2", "epoch 3"]


def test_a_long_step_is_not_silent(caplog: pytest.LogCaptureFixture) -> None:
    console = piped()
    with (
        caplog.at_level(logging.INFO, "understudy"),
        Display(shown=True, console=console, every=0.06) as display,
        display.steps("tracing [the] teacher", None),  # brackets are no markup
    ):
        deadline = time.monotonic() + 300
        while len(lines(console)) < 3 and time.monotonic() < deadline:
            time.sleep(0.01)
    assert lines(console)[:3] == ["tracing [the] teacher"] * 3
    assert caplog.messages[0].startswith("tracing [the] teacher")


def test_parts_of_an_epoch_count(clock: Clock) -> None:
    console = piped()
    with Display(shown=True, console=console) as display, display.steps("teaching", 3, unit="epochs"):
        display.step(0.25)
        clock.now += 60.0
        display.step(0.5)
    assert lines(console) == ["teaching  0.5/3 epochs  about 10m 00s left"]


def test_a_step_may_have_steps_of_its_own(clock: Clock) -> None:
    console = piped()
    with Display(shown=True, console=console) as display, display.steps("searching", 2):
        display.step(1)
        with display.steps("choosing precision", None):
            clock.now += 60.0
            display.step(5)
        clock.now += 60.0
        display.step(1)
    assert [line.split("  ")[0] for line in lines(console)] == ["choosing precision", "searching"]


def test_a_display_that_is_not_shown_is_silent(clock: Clock) -> None:
    console = piped()
    with Display(shown=False, console=console) as display, display.steps("teaching", 3):
        for _ in range(3):
            clock.now += 100.0
            display.step()
        display.say("done")
    assert lines(console) == []


def test_the_pace_leaves_out_what_was_done_before(clock: Clock) -> None:
    pace = Pace(total=100)
    assert pace.left is None
    pace.moved(60)  # continued: these took no time now
    assert pace.left is None
    clock.now += 10.0
    pace.moved(62)
    assert pace.left == 38 * 5.0


def test_time_left_is_that_of_all_that_comes() -> None:
    display = Display(shown=False)
    for after, text in ((None, "about 1m 00s left"), (30.0, "about 1m 30s left")):
        with display.steps("searching", 10, after=None if after is None else lambda after=after: after):
            assert (display.rest(60.0), display.rest(None)) == (text, "")
    with display.steps("teacher logits", 10, after=lambda: None):
        assert display.rest(60.0) == "about 1m 00s left for this step"


def test_the_final_training_is_judged_from_candidates() -> None:
    # Three students in two rounds of two workers; one of them costs what four candidates cost.
    finals = Finals(students=3, passes=4.0, workers=2, logits=5.0)
    finals.trained(replace(FULL, status="stopped", seconds=1.0))
    assert finals() is None
    for seconds in (10.0, 30.0, 20.0):
        finals.trained(replace(FULL, seconds=seconds))
    assert finals() == 2 * 4 * 20
    finals.teacher_seconds = 3.0
    assert finals() == 2 * 4 * 20 + 15


def test_a_search_says_how_long_the_whole_run_takes(clock: Clock) -> None:
    console = piped()
    assert FULL.cost is not None
    reward = Reward(teacher_cost=FULL.cost, teacher_score=FULL.score)
    finals = Finals(students=1, passes=2.0, workers=1, logits=0.0)
    with Display(shown=True, console=console) as display, display.steps("search", 4, after=finals):
        follow = SearchProgress(display, students=4, reward=reward, finals=finals)
        student = replace(FULL, seconds=100.0)
        clock.now += 100.0
        follow.finished(student)
        follow.updated(Update(stage="search", number=1, of=4, evaluations=(student,), trained=1))
    # Three more at 100 seconds each, and a final training that costs two of them.
    assert [line.partition("about ")[2] for line in lines(console)] == ["8m 20s left"] * 2


@pytest.mark.parametrize("budgets", [Budgets(parameters=100), Budgets(parameters=100, score=0.95), Budgets(score=0.8)])
def test_mean_and_best_are_of_one_reward(budgets: Budgets) -> None:
    assert FULL.cost is not None
    reward = Reward(teacher_cost=replace(FULL.cost, parameters=1000), teacher_score=0.9, budgets=budgets)
    console = piped()
    with Display(shown=True, console=console) as display:
        follow = SearchProgress(
            display, students=6, reward=reward, finals=Finals(students=1, passes=1, workers=1, logits=0)
        )
        shrunk = [(0.5, 50), (0.7, 90), (0.99, 500)]  # the last one is over the budget on parameters
        students = [replace(FULL, score=s, cost=replace(FULL.cost, parameters=p)) for s, p in shrunk]
        for number, some in enumerate((students, students[:2]), start=1):
            follow.updated(Update(stage="search", number=number, of=2, evaluations=tuple(some), trained=len(some)))
    said = [
        re.search(r"mean reward (\S+)  best (\S+): (\S+),", line) for line in lines(console) if "mean reward" in line
    ]
    assert len(said) == 2 and all(found is not None and float(found[1]) <= float(found[2]) for found in said)
    best = {found[3] for found in said if found}
    assert best == ({"70.00%"} if budgets.parameters else {"99.00%"})


def test_a_warning_is_said_once(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    console = piped()
    monkeypatch.setattr(logging.getLogger("understudy"), "propagate", False)  # as where nobody set logging up
    with Display(shown=True, console=console) as display:
        display.warn("a group stays")
    assert console.file.getvalue() == "note: a group stays\n" and capsys.readouterr().err == ""
    with Display(shown=False, console=console) as display:
        display.warn("a group stays")
    assert capsys.readouterr().err == "a group stays\n"
