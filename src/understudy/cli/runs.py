"""`understudy runs`. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rich.text import Text

from understudy.cli.common import Command, Folder, err, next_step, out, reading_of, remark, trust
from understudy.cli.compress import resumable
from understudy.core.errors import DataError, UnderstudyError
from understudy.runs.places import place_of

if TYPE_CHECKING:
    from understudy.runs.folder import Run


@dataclass(frozen=True, kw_only=True)
class Runs(Command):
    """List the runs in a folder: how far each is, its best student and its goal.

    Examples:
      understudy runs
    """

    folder: Folder = Path("runs")
    """Folder that holds run folders."""

    def run(self, typed: Sequence[str]) -> int:
        """Print the table of runs; one that cannot be read is told below it, and does not hide the others."""
        from understudy.report.tables import run_row, runs_table
        from understudy.runs.folder import Run, runs_in

        folders = runs_in(self.folder)
        if not folders:
            out.print(f"no runs in {self.folder}", markup=False)
            next_step("--help")
            return 0
        runs, rows, unread = list[Run](), list[tuple[str, ...]](), list[str]()
        for folder in folders:
            try:
                rows.append(run_row(run := Run(folder)))
            except UnderstudyError as error:
                unread.append(f"{folder} cannot be read: {error}")
            else:
                runs.append(run)
        if rows:
            out.print(runs_table(rows))
        for line in unread:
            err.print(Text(line, style="red"), soft_wrap=True)
        stopped = [run for run in runs if run.state == "stopped"]
        finished = [run for run in runs if run.state == "finished"]
        for run in (*stopped, *finished):
            if _advised(run):
                break
        return 2 if unread else 0


def _advised(run: Run) -> bool:
    """Print how to go on with a run, if a command can."""
    if run.state == "stopped":
        if resumable(run.folder):
            next_step("resume", str(run.folder), *trust(run.folder))
        else:
            remark(f"{run.folder} is continued in Python: call compress() as before, with run={str(run.folder)!r}")
        return True
    summary, source, student = run.recall("summary"), run.recall("source"), run.folder / "student"
    if summary is None or not resumable(run.folder) or source is None or not (student / "model.json").is_file():
        return False
    split = () if summary["student"].get("test") is not None else ("--split", "val")
    try:
        how = {**source["data"], "spec": place_of(source["data"]["spec"], run.folder)}
    except DataError:  # they were moved
        return False
    next_step("evaluate", str(student), *reading_of(how), *split, *trust(student))
    return True
