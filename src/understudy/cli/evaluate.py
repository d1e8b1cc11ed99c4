"""`understudy evaluate`. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from understudy.cli.common import Command, Student, command_line, open_data, opened, out, remark, trust
from understudy.cli.compress import resumable
from understudy.core.errors import ModelError


@dataclass(frozen=True, kw_only=True)
class Evaluate(Command):
    """Measure a student: its score on a split, its parameters and its latency.

    Examples:
      understudy evaluate runs/first/student --data photos/
    """

    student: Student
    """Folder of the student, or of the run that found it."""
    data: str
    """A folder of images, FILE.npz, torchvision:NAME or digits."""
    split: Literal["test", "val"] = "test"
    """Which part of the data."""
    size: int | None = None
    """Resize the images of a folder to this height and width, in pixels. Default: what the student takes."""
    grey: bool | None = None
    """Read the images of a folder as greyscale. Default: what the student takes."""

    trust_code: tyro.conf.FlagCreatePairsOff[bool] = False
    """Run the Python file in the student's folder that makes its teacher; read it first."""
    model: str | None = None
    """FILE.py:FACTORY to run in its place."""

    def run(self, typed: Sequence[str]) -> int:
        """Print the student's figures."""
        from understudy.jobs.evaluate import measure
        from understudy.models.card import StudentCard

        folder = student_folder(self.student)
        data = open_data(opened(self.data, self.size, self.grey, StudentCard.read(folder).input))
        figures = measure(folder, data, self.split, trust_code=self.trust_code, model=self.model)
        out.print(
            f"{folder}: {figures.score} of {figures.score.examples:,} {self.split} images (± standard error), "
            f"{figures.parameters:,} parameters, {figures.latency} ms for one example (1 thread; the middle half of "
            "the times)",
            soft_wrap=True,
        )
        trusted = ", trust_code=True" if trust(folder) else ""
        remark(f"in Python: student = understudy.load_student({str(folder)!r}{trusted})")
        return 0


def student_folder(place: Path) -> Path:
    """Return the student's folder that is meant: itself, or that of a run.

    Raises:
        ModelError: the run has no student yet, or the folder holds several runs.
    """
    from understudy.runs.folder import is_run, runs_in

    if (place / "student" / "model.json").is_file():
        return place / "student"
    if is_run(place):
        how = (
            command_line("resume", str(place), *trust(place)) if resumable(place) else "result.save(folder), in Python"
        )
        raise ModelError(f"a run must be finished and its student saved, but {place} has none yet: {how}")
    if not (place / "model.json").is_file() and (inside := [str(folder) for folder in runs_in(place)]):
        raise ModelError(f"a student must be in one folder, but {place} holds the runs {', '.join(inside)}")
    return place
