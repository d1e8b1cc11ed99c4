"""`understudy runs`. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import tyro

from understudy.cli.common import Command, next_step, out, reading_of, remark, trust
from understudy.cli.compress import resumable
from understudy.core.errors import DataError
from understudy.runs.places import place_of

if TYPE_CHECKING:
    from understudy.runs.folder import Run


@dataclass(frozen=True, kw_only=True)
class Runs(Command):
    """List the runs in a folder: how far each is, its best student and its goal.

    Examples:
      understudy runs
    """

    folder: tyro.conf.Positional[Path] = Path("runs")
    """Folder that holds run folders."""

    def run(self, typed: Sequence[str]) -> int:
        """Print the table of runs."""
        from understudy.report.tables import runs_table
        from understudy.runs.folder import runs_in

        runs = runs_in(self.folder)
        if not runs:
            out.print(f"no runs in {self.folder}", markup=False)
            next_step("--help")
            return 0
        out.print(runs_table(runs))
        stopped = [run for run in runs if run.state == "stopped"]
        finished = [run for run in runs if run.state == "finished"]
        for run in (*stopped, *finished):
            if _advised(run):
                break
        return 0


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
