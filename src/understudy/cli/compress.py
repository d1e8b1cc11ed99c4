"""`understudy compress` and `understudy resume`. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import tyro

from understudy.cli.common import (
    Command,
    Folder,
    Sections,
    Subject,
    command_line,
    next_step,
    open_data,
    opened,
    out,
    parsed,
    reading_of,
    trust,
)
from understudy.config.text import Settings
from understudy.core.errors import ConfigError, ModelError, RunError
from understudy.core.goal import Goal
from understudy.report.log import LogName, check_log

if TYPE_CHECKING:
    from understudy.data import Data
    from understudy.jobs.compress import Result
    from understudy.models.spec import Teacher


@dataclass(frozen=True, kw_only=True)
class Compress(Settings, Subject, Command):
    """Learn a small student of a trained image classifier, within budgets.

    Examples:
      understudy compress model.py:make --weights w.safetensors --data photos/ --mean 0.485 0.456 0.406
          --std 0.229 0.224 0.225 --params 10x --score-drop 0.01 --run runs/first
      understudy compress teachers/digits --data digits --params 10x --run runs/digits
      understudy compress --config job.toml --macs 4x     (flags override the file)
    """

    run_folder: Annotated[Path, tyro.conf.arg(name="run")] = Path("runs/first")
    """Folder of the run: a new one, or one to continue."""
    config: Path | None = None
    """TOML file with any of these settings, such as the config.toml of a run."""
    dry_run: tyro.conf.FlagCreatePairsOff[bool] = False
    """Only show what would be done: what can shrink, the smallest student, the time it takes."""
    weights: Path | None = None
    """Trained weights of the model: safetensors, or a state dict of tensors."""
    mean: tuple[float, ...] | None = None
    """Mean per channel (0..1) that the model was trained with. Default: the data's, or the teacher folder's."""
    std: tuple[float, ...] | None = None
    """Standard deviation per channel, likewise."""
    preset: Literal["paper"] | None = None
    """Defaults of the method's own paper: paper (n2n, decore, archcomp). Files and flags override them."""
    log: LogName | None = None
    """Also write what is found, as it goes on, to tensorboard (into the run folder), mlflow or wandb."""
    untrained: tyro.conf.FlagCreatePairsOff[bool] = False
    """Accept a teacher that is no better than a guess, or clearly better with another normalisation."""
    start: Path | None = None
    """Finished run, or student's folder, whose student is compressed further; the model given stays the teacher."""
    trust_code: tyro.conf.FlagCreatePairsOff[bool] = False
    """Run the Python file in a teacher's or student's folder that makes the network; read it first."""
    goal: Annotated[Goal, tyro.conf.arg(name="")] = field(default_factory=Goal)

    sections: ClassVar[Sections] = (
        ("Model and data", ("model", "data", "weights", "arguments", "mean", "std", "size", "grey")),
        (
            "Goal",
            tuple(
                f"goal.{name}"
                for name in (
                    "params",
                    "macs",
                    "size_mb",
                    "memory_mb",
                    "latency_ms",
                    "runtime",
                    "int8",
                    "score",
                    "score_drop",
                )
            ),
        ),
        ("Run", ("run_folder", "dry_run", "config", "seed", "log", "trust_code")),
        (
            "Search",
            ("method", "preset", "start", "policy_from", "candidates.training.epochs", "candidates.examples"),
        ),
        (
            "Training of the final students",
            ("final.students", "final.training.epochs", "final.training.lr", "augmentation.crop", "augmentation.flip"),
        ),
        ("Where it runs", ("device.device", "device.precision", "device.workers", "device.threads")),
    )

    def run(self, typed: Sequence[str]) -> int:
        """Compress, or plan to."""
        from understudy.jobs.compress import run_task
        from understudy.jobs.dry_run import plan, plan_table
        from understudy.jobs.task import Task
        from understudy.runs.folder import Run

        check_log(self.log)
        if not self.dry_run:
            Run.refuse(self.run_folder)
        how = self._opened()
        data = open_data(how)
        task = Task.of(
            self._teacher(data),
            data,
            self.compression(),
            opened=how,
            start=self.start,
            trust_code=self.trust_code,
            run=self.run_folder,
            progress=True,
        )
        if self.dry_run:
            out.print(plan_table(plan(task, untrained=self.untrained, run=self.run_folder)))
            if "--dry-run" in typed:
                next_step(*(word for word in typed if word != "--dry-run"))
            return 0
        return finish(run_task(task, self.run_folder, untrained=self.untrained, log=self.log), data, self.reading())

    def again(self, typed: Sequence[str]) -> str:
        """Return the command that goes on after an interruption."""
        if not resumable(self.run_folder):
            return command_line(*typed)
        logged = () if self.log is None else ("--log", self.log)
        return command_line("resume", str(self.run_folder), *trust(self.run_folder), *logged)

    def _opened(self) -> dict[str, Any]:
        from understudy.models.card import TeacherCard

        folder = Path(self.model)
        expected = TeacherCard.read(folder).input if folder.is_dir() else None
        return opened(self.data, self.size, self.grey, expected)

    def _teacher(self, data: Data) -> Teacher:
        from understudy.jobs.teach import load_teacher
        from understudy.models.spec import load_model

        if Path(self.model).is_dir():
            said = [name for name in ("weights", "arguments", "mean", "std") if getattr(self, name)]
            if said:
                raise ConfigError(f"a teacher folder says all that itself, but {', '.join(said)} was given as well")
            return load_teacher(self.model, trust_code=self.trust_code)
        if ":" not in self.model and not self.model.endswith(".py") and not Path(self.model).exists():
            raise ModelError(
                f"a model must be FILE.py:FACTORY, torchvision:NAME, timm:NAME, zoo:NAME or a teacher folder, but "
                f"there is no folder {self.model!r}"
            )
        return load_model(
            self.model,
            data,
            weights=self.weights,
            arguments=parsed(self.arguments),
            mean=self.mean,
            std=self.std,
        )


@dataclass(frozen=True, kw_only=True)
class Resume(Command):
    """Continue a run that was interrupted, or show the result of one that is finished.

    Examples:
      understudy resume runs/first
    """

    folder: Folder
    """Folder of the run."""
    data: str | None = None
    """Where the data are now. Default: where they were, seen from the run's folder."""
    trust_code: tyro.conf.FlagCreatePairsOff[bool] = False
    """Run the Python file in the run's folder that makes the teacher; read it first."""
    model: str | None = None
    """FILE.py:FACTORY to run in its place."""
    log: LogName | None = None
    """Also write what is found to tensorboard, mlflow or wandb, as `compress` does."""

    def run(self, typed: Sequence[str]) -> int:
        """Continue with the teacher, data and settings that the run was started with."""
        from understudy.jobs.compress import run_task
        from understudy.jobs.task import Task
        from understudy.runs.folder import Run, is_run, runs_in

        check_log(self.log)
        if not is_run(self.folder) and (inside := [str(folder) for folder in runs_in(self.folder)]):
            raise RunError(f"a run must be one folder, but {self.folder} holds {', '.join(inside)}")
        run = Run(self.folder)
        Run.refuse(self.folder)
        task = Task.of_run(run, trust_code=self.trust_code, model=self.model, data=self.data, progress=True)
        assert task.opened is not None
        return finish(run_task(task, self.folder, log=self.log), task.data, reading_of(task.opened))


def resumable(folder: Path) -> bool:
    """Return whether `understudy resume` can continue a run: its folder says where teacher and data came from."""
    from understudy.runs.folder import Run, is_run

    if not is_run(folder):
        return False
    source = Run(folder).recall("source")
    return source is not None and source["model"] is not None and source["data"] is not None


def finish(result: Result, data: Data, reading: Sequence[str]) -> int:
    """Save the student, print the table and what can be done next; return 1 if a budget is not kept."""
    student = result.run / "student"
    result.save(student)
    out.print(result.table)
    if not result.kept:
        out.print("[yellow]not every budget is kept[/]: ask for less, or search and train longer in a new run")
    split = () if data.test is not None else ("--split", "val")
    next_step("evaluate", str(student), *reading, *split, *trust(student))
    return 0 if result.kept else 1
