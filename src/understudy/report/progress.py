"""What a person sees while something runs. No torch."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from understudy.core.evaluation import Evaluation
from understudy.core.figures import amount, duration, share
from understudy.core.goal import Budgets, Reward
from understudy.methods.base import Update
from understudy.methods.ranking import merit_for

_log = logging.getLogger("understudy")

_LINE_EVERY = 60.0  # seconds between the lines that stand for a bar where there is none


class Display:
    """A bar for what is going on, and a line for all that was finished; lines go to the log as well.

    Where there can be no bar, as in a pipe, a line a minute stands for it. A display that is not `shown`
    still logs. Use it in a `with` statement.
    """

    def __init__(self, *, shown: bool, console: Console | None = None) -> None:
        self._shown = shown
        self._console = console or Console(stderr=True)
        watched = self._console.is_terminal or self._console.is_jupyter
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[left]}"),
            console=self._console,
            transient=True,
            disable=not (shown and watched),
        )
        self._lines = shown and not watched
        self._task: TaskID | None = None
        self._pace = Pace(total=0)

    def __enter__(self) -> Display:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def say(self, line: str) -> None:
        """Print a line and log it."""
        _log.info(line)
        if self._shown:
            self._console.print(line, highlight=False, soft_wrap=True)

    def warn(self, line: str) -> None:
        """Print a line that should be read and log it."""
        _log.warning(line)
        if self._shown:
            self._console.print(f"[yellow]note:[/] {line}", highlight=False, soft_wrap=True)

    @contextmanager
    def steps(self, title: str, total: int) -> Iterator[None]:
        """Show a bar of so many steps inside; `step` moves it."""
        self._task = self._bar.add_task(title, total=total, left="")
        self._pace = Pace(total=total)
        try:
            yield
        finally:
            self._bar.remove_task(self._task)
            self._task = None

    def step(self, done: int | None = None, *, title: str | None = None, left: float | None = None) -> None:
        """Move the bar by one, or to `done`; `left` is the remaining time in seconds, from the pace if None."""
        if self._task is None:
            return
        bar = self._bar.tasks[0]
        completed = int(bar.completed) + 1 if done is None else done
        line_due = self._pace.moved(completed)
        left = self._pace.left if left is None else left
        rest = "" if left is None else f"about {duration(left)} left"
        self._bar.update(self._task, completed=completed, description=title, left=rest)
        if self._lines and line_due:
            self.say(f"{bar.description}  {completed}/{bar.total:.0f}  {rest}")


class Pace:
    """How fast steps go, judged from the first that this process saw: what was done before it was not timed."""

    def __init__(self, *, total: int) -> None:
        self._total = total
        self._first: tuple[float, int] | None = None
        self._now = (time.monotonic(), 0)
        self._line = self._now[0]

    def moved(self, done: int) -> bool:
        """Note how many steps are done now; return whether it is time for another line."""
        self._now = (time.monotonic(), done)
        self._first = self._first or self._now
        due = self._now[0] - self._line >= _LINE_EVERY
        self._line = self._now[0] if due else self._line
        return due

    @property
    def left(self) -> float | None:
        """The remaining time in seconds, None as long as nothing tells."""
        if self._first is None or self._now[1] <= self._first[1]:
            return None
        seconds, steps = self._now[0] - self._first[0], self._now[1] - self._first[1]
        return seconds / steps * (self._total - self._now[1])


class SearchProgress:
    """Follows a search: what was done, the best so far, and how long the rest will take."""

    def __init__(self, display: Display, *, students: int, reward: Reward) -> None:
        self._display, self._students, self._budgets = display, students, reward.budgets
        self._merit, self._plain = merit_for(reward), replace(reward, budgets=Budgets())
        self._done = 0  # up to the last update
        self._since = 0  # trained after it
        self._trained = 0  # in all, by this process
        self._start = time.monotonic()
        self._best: Evaluation | None = None

    def finished(self, evaluation: Evaluation) -> None:
        """Tell of one student that was trained."""
        self._trained += 1
        self._since += 1
        self._display.step(left=self._left())

    def updated(self, update: Update) -> None:
        """Tell of an update of the searcher."""
        self._done, self._since = self._done + len(update.evaluations), 0
        if not self._trained:
            self._start = time.monotonic()  # answers from the store say nothing of how long the rest takes
        known = [e for e in (self._best, *update.evaluations) if e is not None and e.status != "failed"]
        self._best = max(known, key=self._merit, default=None)
        self._display.step(self._done, title=f"{update.stage} {update.number}/{update.of}", left=self._left())
        left = self._left()
        self._display.say(
            f"update {update.number}/{update.of}  {update.stage}  {self._done}/{self._students} students  "
            f"mean reward {sum(update.rewards) / len(update.rewards):+.3f}  {self._best_so_far()}"
            + (f"  {duration(left)} left" if left else "")
        )

    def _best_so_far(self) -> str:
        if self._best is None:
            return "best -"
        assert self._best.cost is not None, "what was trained has a cost"
        broken = self._budgets.broken_by(self._best.cost, self._best.accuracy)
        over = f" (not yet kept: {', '.join(broken)})" if broken else ""
        figures = f"{share(self._best.accuracy)}, {amount(self._best.cost.parameters)} parameters"
        return f"best {self._plain(self._best):+.3f}: {figures}{over}"

    def _left(self) -> float | None:
        if not self._trained:
            return None
        return (time.monotonic() - self._start) / self._trained * (self._students - self._done - self._since)
