"""What a person sees while something runs: never a silent minute, and the time left of the whole. No torch."""

from __future__ import annotations

import logging
import math
import statistics
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import TracebackType

from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.text import Text

from understudy.config.job import Compression
from understudy.core.console import Console
from understudy.core.evaluation import Evaluation
from understudy.core.figures import FIGURES, amount, duration, share
from understudy.core.goal import Reward
from understudy.methods.base import Update
from understudy.methods.ranking import merit_for
from understudy.report.log import Log

_log = logging.getLogger("understudy")

_TICKS = 60  # looks at the clock between two lines

After = Callable[[], float | None]
"""Seconds that all takes which comes after a step; None as long as nothing tells."""


class Display:
    """A bar for what is going on, and a line for all that was finished; lines go to the log as well.

    Where there can be no bar, as in a pipe or a log, a line is written once nothing was for `every` seconds, however
    long a step takes. A display that is not `shown` still logs. Use it in a `with` statement.
    """

    def __init__(self, *, shown: bool, console: Console | None = None, every: float = 60.0) -> None:
        self._shown = shown
        self._console = console or Console(stderr=True)
        watched = self._console.is_terminal or self._console.is_jupyter
        self._bar = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TextColumn("{task.fields[count]}", markup=False),
            TimeElapsedColumn(),
            TextColumn("{task.fields[rest]}", markup=False),
            console=self._console,
            transient=True,
            disable=not (shown and watched),
        )
        self._lines = shown and not watched
        self.log: Log | None = None  # where numbers go as well; closed with this
        self._task: TaskID | None = None
        self._pace = Pace(total=0)
        self._after: After = _nothing
        self._unit = ""
        self._every, self._last_line = every, time.monotonic()
        self._ended = threading.Event()
        self._watch = threading.Thread(target=self._keep_talking, daemon=True)

    def __enter__(self) -> Display:
        self._bar.start()
        self._watch.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._watch.join()
        self._bar.stop()
        self._logged(lambda log: log.close())

    def say(self, line: str) -> None:
        """Print a line and log it."""
        self._write(line, shown=self._shown)

    def warn(self, line: str) -> None:
        """Print a line that should be read and log it."""
        if not self._shown or _log.hasHandlers():  # without a handler Python would print it a second time
            _log.warning(line)
        if self._shown:
            self._console.print(Text.assemble(("note:", "yellow"), f" {line}"), soft_wrap=True)

    def numbers(self, values: Mapping[str, float], step: int) -> None:
        """Give numbers by name to the log, if there is one. A log that fails ends; what it told of goes on."""
        self._logged(lambda log: log.numbers(values, step))

    def _logged(self, tell: Callable[[Log], None]) -> None:
        if self.log is None:
            return
        try:
            tell(self.log)
        except Exception as error:  # of a service elsewhere, of any kind
            self.log = None
            self.warn(f"nothing more goes to the log: {type(error).__name__}: {error}")

    @contextmanager
    def steps(self, title: str, total: float | None, *, unit: str = "", after: After | None = None) -> Iterator[None]:
        """Show a bar of so many steps inside, or of an unknown number; `step` moves the innermost one.

        Args:
            title: what is going on.
            total: steps, in `unit`; a part of a step may be done.
            unit: such as "epochs".
            after: tells the seconds of what comes after these steps; None if they are the last.
        """
        before = self._task, self._pace, self._after, self._unit
        self._pace, self._after, self._unit = Pace(total=total or 0), after or _nothing, unit
        self._task = inner = self._bar.add_task(title, total=total, count="", rest="")
        try:
            yield
        finally:
            self._task, self._pace, self._after, self._unit = before
            self._bar.remove_task(inner)

    def step(self, done: float | None = None, *, title: str | None = None, left: float | None = None) -> None:
        """Move the bar by one, or to `done`; `left` is the remaining time of these steps, from the pace if None."""
        if self._task is None:
            return
        bar = self._bar.tasks[-1]
        completed = bar.completed + 1 if done is None else done
        self._pace.moved(completed)
        rest = self.rest(self._pace.left if left is None else left)
        count = f"{_whole(completed)}/{_whole(bar.total or 0)}{self._unit and ' '}{self._unit}"
        self._bar.update(self._task, completed=completed, description=title, rest=rest, count=count)
        self._break_silence()

    def rest(self, left: float | None) -> str:
        """Return the remaining time of everything in words, given that of the present steps."""
        after = self._after()
        if left is None:
            return ""
        return f"about {duration(left)} left for this step" if after is None else f"about {duration(left + after)} left"

    def _keep_talking(self) -> None:
        while not self._ended.wait(self._every / _TICKS):
            self._break_silence()

    def _break_silence(self) -> None:
        """Write where things are, if nothing was written for long."""
        tasks = self._bar.tasks
        if not tasks or time.monotonic() - self._last_line < self._every:
            return
        bar = tasks[-1]
        taken = f"{duration(bar.elapsed or 0)} so far"
        parts = (bar.description, bar.fields["count"], taken, bar.fields["rest"])
        self._write("  ".join(part for part in parts if part), shown=self._lines)

    def _write(self, line: str, *, shown: bool) -> None:
        self._last_line = time.monotonic()
        _log.info(line)
        if shown:
            self._console.print(Text(line), soft_wrap=True)


class Pace:
    """How fast steps go, judged from the first that this process saw: what was done before it was not timed."""

    def __init__(self, *, total: float) -> None:
        self._total = total
        self._first: tuple[float, float] | None = None
        self._now = (time.monotonic(), 0.0)

    def moved(self, done: float) -> None:
        """Note how many steps are done now."""
        self._now = (time.monotonic(), done)
        self._first = self._first or self._now

    @property
    def left(self) -> float | None:
        """The remaining time in seconds, None as long as nothing tells."""
        if self._first is None or self._now[1] <= self._first[1]:
            return None
        seconds, steps = self._now[0] - self._first[0], self._now[1] - self._first[1]
        return seconds / steps * (self._total - self._now[1])


class Finals:
    """What the final training will take, judged from the students that the search has trained.

    Args:
        students: trained to convergence.
        passes: what a final training costs, in trainings of a candidate of the same size.
        workers: that train at the same time.
        logits: what the teacher's logits for it cost, in those for the search.
    """

    def __init__(self, *, students: int, passes: float, workers: int, logits: float) -> None:
        self._rounds, self._passes, self._logits = math.ceil(students / max(workers, 1)), passes, logits
        self._seconds: list[float] = []
        self.teacher_seconds = 0.0  # of the teacher's logits for the search

    @classmethod
    def of(cls, settings: Compression, images: int, *, taught: bool) -> Finals:
        """Return what judges a run with so many training images, whose final students see teacher logits or not."""
        candidates, final = settings.candidates, settings.final
        seen = max(candidates.training.epochs, 1) * min(candidates.examples or images, images) / images
        epochs = final.training.epochs
        return cls(
            students=final.students,
            passes=epochs / seen,
            workers=settings.device.workers,
            logits=min(final.views or epochs, epochs) / seen if taught else 0.0,
        )

    def trained(self, evaluation: Evaluation) -> None:
        """Note what a candidate took; what was not trained to its end tells nothing."""
        if evaluation.status == "ok":
            self._seconds.append(evaluation.seconds)

    @property
    def expected(self) -> list[float]:
        """What one final training would take, in seconds, by each candidate."""
        return [self._passes * seconds for seconds in self._seconds]

    def __call__(self) -> float | None:
        """Return the seconds of the final training, None before a candidate was trained."""
        if not self._seconds:
            return None
        return self._rounds * statistics.median(self.expected) + self._logits * self.teacher_seconds


class SearchProgress:
    """Follows a search: what was done, the best so far, and how long the rest will take."""

    def __init__(self, display: Display, *, students: int, reward: Reward, finals: Finals) -> None:
        self._display, self._students, self._budgets = display, students, reward.budgets
        self._merit, self._reward = merit_for(reward), reward.of_candidates
        self._finals = finals
        self._done = 0  # up to the last update
        self._since = 0  # trained after it
        self._trained = 0  # in all, by this process
        self._start = time.monotonic()
        self._best: Evaluation | None = None

    def finished(self, evaluation: Evaluation) -> None:
        """Tell of one student that was trained."""
        self._trained += 1
        self._since += 1
        self._finals.trained(evaluation)
        self._display.step(self._done + self._since, left=self._left())

    def updated(self, update: Update) -> None:
        """Tell of an update of the searcher."""
        self._log_students(update)
        self._done, self._since = self._done + len(update.evaluations), 0
        if not self._trained:
            self._start = time.monotonic()  # answers from the store say nothing of how long the rest takes
            for evaluation in update.evaluations:
                self._finals.trained(evaluation)
        known = [e for e in (self._best, *update.evaluations) if e is not None and e.status != "failed"]
        self._best = max(known, key=self._merit, default=None)
        self._display.step(self._done, title=f"{update.stage} {_out_of(update.number, update.of)}", left=self._left())
        rest = self._display.rest(self._left())
        self._display.say(
            f"update {_out_of(update.number, update.of)}  {update.stage}  "
            f"{_out_of(self._done, self._students)} students  "
            f"mean reward {statistics.fmean(map(self._reward, update.evaluations)):+.3f}  {self._best_so_far()}"
            + (f"  {rest}" if rest else "")
        )

    def _log_students(self, update: Update) -> None:
        display = self._display
        rewards = [self._reward(evaluation) for evaluation in update.evaluations]
        for number, (evaluation, reward) in enumerate(zip(update.evaluations, rewards, strict=True), 1):
            if evaluation.status != "failed" and evaluation.cost is not None:
                costs = {f.name: value for f in FIGURES if (value := f.of(evaluation.cost)) is not None}
                found = {"score": evaluation.score, "reward": reward, **costs}
                display.numbers({f"search/{name}": float(value) for name, value in found.items()}, self._done + number)
        display.numbers({"updates/mean_reward": statistics.fmean(rewards)}, update.number)

    def _best_so_far(self) -> str:
        if self._best is None:
            return "best -"
        assert self._best.cost is not None, "what was trained has a cost"
        broken = self._budgets.broken_by(self._best.cost, self._best.score)
        over = f" (not yet kept: {', '.join(broken)})" if broken else ""
        figures = f"{share(self._best.score)}, {amount(self._best.cost.parameters)} parameters"
        return f"best {self._reward(self._best):+.3f}: {figures}{over}"

    def _left(self) -> float | None:
        if not self._trained or not self._students:
            return None
        return (time.monotonic() - self._start) / self._trained * (self._students - self._done - self._since)


def _nothing() -> float:
    return 0.0


def _whole(number: float) -> str:
    return f"{number:.0f}" if number == round(number) else f"{number:.1f}"


def _out_of(number: int, of: int) -> str:
    return f"{number}/{of}" if of else str(number)
