from __future__ import annotations

import io
import itertools

import pytest
from rich.console import Console

from understudy.report import progress
from understudy.report.progress import Display, Pace


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


def piped(monkeypatch: pytest.MonkeyPatch) -> Console:
    return Console(file=io.StringIO(), width=120, force_terminal=False)


def test_where_there_is_no_bar_a_line_a_minute_tells_how_far_it_is(
    monkeypatch: pytest.MonkeyPatch, clock: Clock
) -> None:
    console = piped(monkeypatch)
    with Display(shown=True, console=console) as display, display.steps("teaching", 10):
        for epoch in range(1, 6):
            clock.now += 25.0
            display.step(epoch, title=f"epoch {epoch}")
    assert console.file.getvalue().splitlines() == ["epoch 3  3/10  about 2m 55s left"]  # type: ignore[attr-defined]


def test_a_display_that_is_not_shown_is_silent(monkeypatch: pytest.MonkeyPatch, clock: Clock) -> None:
    console = piped(monkeypatch)
    with Display(shown=False, console=console) as display, display.steps("teaching", 3):
        for _ in range(3):
            clock.now += 100.0
            display.step()
        display.say("done")
    assert console.file.getvalue() == ""  # type: ignore[attr-defined]


def test_the_pace_leaves_out_what_was_done_before(clock: Clock) -> None:
    pace = Pace(total=100)
    assert pace.left is None
    pace.moved(60)  # continued: these took no time now
    assert pace.left is None
    clock.now += 10.0
    pace.moved(62)
    assert pace.left == 38 * 5.0


def test_lines_are_due_once_a_minute(clock: Clock) -> None:
    pace, due = Pace(total=100), []
    for step, seconds in enumerate(itertools.repeat(20.0, 9)):
        clock.now += seconds
        due.append(pace.moved(step))
    assert due == [False, False, True] * 3
