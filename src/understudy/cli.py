"""The command line: `understudy inspect | teach | compress | resume | runs | evaluate`.

Flags are the fields of the settings, their help is the fields' docstrings. torch is imported when a command starts.
"""

from __future__ import annotations

import json
import operator
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from functools import reduce
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro
from rich.console import Console
from rich.text import Text

from understudy.config.job import Compression
from understudy.config.methods import N2N, ArchComp
from understudy.config.text import Settings, build, read_toml
from understudy.config.training import Teaching
from understudy.core.errors import ConfigError, UnderstudyError
from understudy.core.goal import Goal

if TYPE_CHECKING:
    from understudy.data import Data
    from understudy.jobs.compress import Result
    from understudy.models.spec import Teacher

_out, _err = Console(), Console(stderr=True)


@dataclass(frozen=True, kw_only=True)
class _Subject:
    model: tyro.conf.Positional[str]
    """zoo:NAME, torchvision:NAME, timm:NAME, FILE.py:FACTORY, or a teacher folder (compress)."""
    data: str
    """digits, a folder of images, FILE.npz or torchvision:NAME."""
    arguments: tuple[str, ...] = ()
    """More arguments of the model, such as width=16."""
    size: int | None = None
    """Height and width that images of a folder are brought to, pixels."""
    grey: bool | None = None
    """Read images of a folder as grey ones; by default if the files are."""


@dataclass(frozen=True, kw_only=True)
class Teach(Teaching, _Subject):
    """Train a teacher and leave it in a folder. Run it again to continue after an interruption.

    Example: understudy teach zoo:resnet20 --data digits --out teachers/digits
    """

    out: Path
    """Folder for its weights and a JSON of what it is."""
    weights: Path | None = None
    """Weights to start from, safetensors or a state dict of tensors; default: fresh ones."""

    def run(self) -> int:
        """Train and print what came of it."""
        from understudy.core.figures import share
        from understudy.jobs.teach import read_card, teach
        from understudy.report.progress import Display

        opened = {"spec": self.data, "size": self.size, "grey": self.grey}
        data, epochs = _open(opened), self.training.epochs
        teaching = Teaching(**{f.name: getattr(self, f.name) for f in fields(Teaching)})
        with Display(shown=True) as display, display.steps(f"teaching {self.model}", epochs):
            teach(
                self.model,
                data,
                self.out,
                teaching=teaching,
                arguments=_arguments(self.arguments),
                weights=self.weights,
                on_epoch=lambda p: display.step(
                    p.epoch, title=f"loss {p.loss:.3f}", left=p.seconds / p.epoch * (p.epochs - p.epoch)
                ),
            )
        card = read_card(self.out)
        accuracy = card["accuracy"]
        _out.print(
            f"{self.out}: {share(accuracy['val'])} on validation, {share(accuracy['test'])} on test, "
            f"{card['seconds']} s of training",
            soft_wrap=True,
        )
        _next(f"understudy compress {self.out} --data {self.data} --params 10x --run runs/first")
        return 0

    def again(self) -> str:
        """Return how to go on after an interruption."""
        return "the same command"


@dataclass(frozen=True, kw_only=True)
class Compress(Settings, _Subject):
    """Learn a small student of a trained teacher, within budgets.

    Example: understudy compress teachers/digits --data digits --params 10x --accuracy-drop 0.01

    With --config job.toml the same settings come from a file; flags override it.
    With --policy-from runs/other the search starts from what that one's policies have learned.
    """

    run_folder: Annotated[Path, tyro.conf.arg(name="run")] = Path("runs/first")
    """Folder of the run, new or one to continue."""
    config: Path | None = None
    """TOML file with any of these settings; runs/NAME/config.toml is one."""
    dry_run: tyro.conf.FlagCreatePairsOff[bool] = False
    """Only say what would be done: what can go, how far it reaches, how long it takes."""
    weights: Path | None = None
    """Weights of a model given by name: safetensors, or a state dict of tensors."""
    mean: tuple[float, ...] | None = None
    """Mean per channel (0..1) that the model was trained with; default: the data's, or the teacher folder's."""
    std: tuple[float, ...] | None = None
    """Likewise the standard deviation."""
    policy_from: str | None = None
    """Run of the same method whose policies (n2n) or embedding (archcomp) this search starts from; the same as
    n2n.policy_from and archcomp.policy_from."""
    start: Path | None = None
    """Finished run, or folder of a student, whose student is made smaller still; the model given is the teacher that
    goes on teaching, counts for the goal and is compared with."""
    goal: Annotated[Goal, tyro.conf.arg(name="")] = field(default_factory=Goal)

    def run(self) -> int:
        """Compress, or plan to."""
        from understudy.jobs.compress import run_task
        from understudy.jobs.dry_run import plan, plan_table
        from understudy.jobs.task import Task

        opened = self._opened()
        data = _open(opened)
        task = Task.of(self._teacher(data), data, self.compression(), opened=opened, start=self.start)
        if self.dry_run:
            _out.print(plan_table(plan(task)))
            _next("the same command without --dry-run")
            return 0
        return _finish(run_task(task, self.run_folder), self.data)

    def compression(self) -> Compression:
        """Return these settings as the main job takes them.

        Raises:
            ConfigError: only the chosen method can have settings, and only some have what another can start from.
        """
        if self.policy_from is None:
            return super().compression()
        if self.method not in ("n2n", "archcomp"):
            raise ConfigError(f"policy_from is a setting of n2n and archcomp, but the method is {self.method!r}")
        method: N2N | ArchComp = self.n2n if self.method == "n2n" else self.archcomp
        return replace(super().compression(), method=replace(method, policy_from=self.policy_from))

    def again(self) -> str:
        """Return how to go on after an interruption."""
        started = (self.run_folder / "config.toml").is_file()
        return f"understudy resume {self.run_folder}" if started else "the same command"

    def _opened(self) -> dict[str, Any]:
        card = Path(self.model) / "teacher.json"
        expected = json.loads(card.read_text(encoding="utf-8")).get("input") if card.is_file() else None
        return _reading(self.data, self.size, self.grey, expected)

    def _teacher(self, data: Data) -> Teacher:
        from understudy.jobs.teach import load_teacher
        from understudy.models.spec import load_model

        if Path(self.model).is_dir():
            said = [name for name in ("weights", "arguments", "mean", "std") if getattr(self, name)]
            if said:
                raise ConfigError(f"a teacher folder says all that itself, but {', '.join(said)} was given as well")
            return load_teacher(self.model)
        return load_model(
            self.model,
            data,
            weights=self.weights,
            arguments=_arguments(self.arguments),
            mean=self.mean,
            std=self.std,
        )


@dataclass(frozen=True, kw_only=True)
class Inspect:
    """Show what a model allows before any hour is spent: what can go, what cannot and why, what it costs.

    Example: understudy inspect torchvision:resnet18 --check
    """

    model: tyro.conf.Positional[str]
    """zoo:NAME, torchvision:NAME, timm:NAME, or FILE.py:FACTORY."""
    weights: Path | None = None
    """Weights of the model: safetensors, or a state dict of tensors; default: at random."""
    arguments: tuple[str, ...] = ()
    """More arguments of the model, such as width=16."""
    size: int | None = None
    """Height and width of its images, pixels; default: 32 for the zoo, 224 for others."""
    channels: int = 3
    """Channels of its images."""
    check: tyro.conf.FlagCreatePairsOff[bool] = False
    """Prove group by group that slicing channels is multiplying them by zero."""
    architecture: Path | None = None
    """Folder of a student, or an architecture as JSON: what it costs."""
    forecast_by: Path | None = None
    """Finished or stopped run of archcomp on such a teacher: what accuracy it expects of that architecture."""
    json: tyro.conf.FlagCreatePairsOff[bool] = False
    """Print JSON for machines."""

    def run(self) -> int:
        """Print the tables, or JSON."""
        from understudy.jobs.inspect import inspect_model, inspection_tables

        found = inspect_model(
            self.model,
            weights=self.weights,
            arguments=_arguments(self.arguments),
            size=self.size,
            channels=self.channels,
            check=self.check,
            architecture=self.architecture,
            forecast_by=self.forecast_by,
            progress=True,
        )
        if self.json:
            print(found.to_json())
        else:
            _out.print(inspection_tables(found))
            _next(f"understudy compress {self.model} --data SPEC --params 10x --run runs/first")
        return 0 if found.holds else 1

    def again(self) -> str:
        """Return how to go on after an interruption."""
        return "the same command"


@dataclass(frozen=True, kw_only=True)
class Resume:
    """Continue a run that was interrupted, or show the result of one that is finished.

    Example: understudy resume runs/first
    """

    folder: tyro.conf.Positional[Path]
    """Folder of the run."""

    def run(self) -> int:
        """Continue with the teacher, data and settings that the run was started with."""
        from understudy.jobs.compress import run_task
        from understudy.jobs.task import Task
        from understudy.runs.folder import Run

        task = Task.of_run(Run(self.folder))
        assert task.opened is not None
        return _finish(run_task(task, self.folder), task.opened["spec"])

    def again(self) -> str:
        """Return how to go on after an interruption."""
        return f"understudy resume {self.folder}"


@dataclass(frozen=True, kw_only=True)
class Runs:
    """List the runs in a folder: how far each is, its best student and its goal.

    Example: understudy runs
    """

    folder: tyro.conf.Positional[Path] = Path("runs")
    """Folder that holds run folders."""

    def run(self) -> int:
        """Print the table of runs."""
        from understudy.report.tables import runs_table
        from understudy.runs.folder import runs_in

        runs = runs_in(self.folder)
        if not runs:
            _out.print(f"no runs in {self.folder}")
            _next("understudy compress teachers/NAME --data SPEC --params 10x --run runs/first")
            return 0
        _out.print(runs_table(runs))
        stopped = [run.folder for run in runs if run.state == "stopped"]
        _next(
            f"understudy resume {stopped[0]}"
            if stopped
            else f"understudy evaluate {runs[0].folder}/student --data SPEC"
        )
        return 0

    def again(self) -> str:
        """Return how to go on after an interruption."""
        return "the same command"


@dataclass(frozen=True, kw_only=True)
class Evaluate:
    """Measure a student: its accuracy on a split, what it costs, how long it takes.

    Example: understudy evaluate runs/first/student --data digits
    """

    student: tyro.conf.Positional[Path]
    """Folder of the student."""
    data: str
    """digits, a folder of images, FILE.npz or torchvision:NAME."""
    split: Literal["test", "val"] = "test"
    """Which part of the data."""
    size: int | None = None
    """Height and width that images of a folder are brought to, pixels; default: what the student takes."""
    grey: bool | None = None
    """Read images of a folder as grey ones; default: what the student takes."""

    def run(self) -> int:
        """Print the student's figures."""
        from understudy.core.figures import share
        from understudy.jobs.evaluate import score
        from understudy.models.student import read_card

        card = read_card(self.student)
        data = _open(_reading(self.data, self.size, self.grey, card["input"]))
        figures = score(self.student, data, self.split)
        _out.print(
            f"{self.student}: {share(figures.accuracy)} of {figures.examples:,} {self.split} images, "
            f"{figures.parameters:,} parameters, {figures.latency_ms:.2f} ms for one image "
            f"(interquartile range {figures.latency_spread_ms:.2f} ms, 1 thread)",
            soft_wrap=True,
        )
        _next(f'in Python: student = understudy.load_student("{self.student}")')
        return 0

    def again(self) -> str:
        """Return how to go on after an interruption."""
        return "the same command"


Command = Inspect | Teach | Compress | Resume | Runs | Evaluate
COMMANDS: dict[str, Any] = {
    "inspect": Inspect,
    "teach": Teach,
    "compress": Compress,
    "resume": Resume,
    "runs": Runs,
    "evaluate": Evaluate,
}
_ABOUT = """Learn a small network that plays the same part as a large one.

First: understudy teach zoo:resnet20 --data digits --out teachers/digits

Then: understudy compress teachers/digits --data digits --params 10x --run runs/first"""


def main(args: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code: 0, 1 if a budget is not kept, 2 after an error, 130 after Ctrl-C."""
    command: Command | None = None
    try:
        command = parse(list(sys.argv[1:] if args is None else args))
        return command.run()
    except UnderstudyError as error:
        _err.print(Text.assemble(("error: ", "bold red"), str(error)), soft_wrap=True)
        return 2
    except KeyboardInterrupt:
        again = "the same command" if command is None else command.again()
        _err.print(f"\nstopped; nothing that was finished is lost. Continue with: {again}", soft_wrap=True)
        return 130


def parse(args: list[str]) -> Command:
    """Return the command that the arguments spell; help and mistakes of spelling end the process.

    Raises:
        ConfigError: the job file cannot be used.
    """
    if not args or args[0] not in COMMANDS:
        kinds = (Annotated[kind, tyro.conf.subcommand(name)] for name, kind in COMMANDS.items())
        union = reduce(operator.or_, kinds)
        return _parsed(union, "understudy", args or ["--help"], description=_ABOUT)
    kind, prog = COMMANDS[args[0]], f"understudy {args[0]}"
    job = _job_file(args[1:]) if kind is Compress else None
    if job is None:
        return _parsed(kind, prog, args[1:])
    default = build(Compress, _from_file(job), source=str(job), missing="")
    command = _parsed(kind, prog, args[1:], default=default)
    for name in ("model", "data"):
        if not getattr(command, name):
            raise ConfigError(f"{name} must be given, on the command line or in the file, but {job} has none")
    return command


def _parsed(kind: Any, prog: str, args: list[str], **more: Any) -> Command:
    command: Command = tyro.cli(kind, prog=prog, args=args, **more)
    return command


def _job_file(args: Sequence[str]) -> Path | None:
    for flag, value in zip(args, [*args[1:], ""], strict=True):
        if flag == "--config":
            return Path(value)
        if flag.startswith("--config="):
            return Path(flag.removeprefix("--config="))
    return None


def _from_file(job: Path) -> dict[str, Any]:
    values = read_toml(job)
    if "run" in values:  # the field has another name, because `run` is what commands do
        values["run_folder"] = values.pop("run")
    return values


def _finish(result: Result, data: str) -> int:
    student = result.run / "student"
    result.save(student)
    _out.print(result.table)
    if not result.kept:
        _out.print("[yellow]not every budget is kept[/]: ask for less, or search and train longer in a new run")
    _next(f"understudy evaluate {student} --data {data}")
    return 0 if result.kept else 1


def _open(opened: dict[str, Any]) -> Data:
    from understudy.data import Data

    return Data.open(**opened)


def _reading(spec: str, size: int | None, grey: bool | None, expected: Sequence[int] | None) -> dict[str, Any]:
    """Return how files are read: as the flags say, else as a network expects them (channels, height, width)."""
    if expected is not None and (Path(spec).is_dir() or spec.startswith("torchvision:")):
        size = expected[1] if size is None and expected[1] == expected[2] else size
        grey = expected[0] == 1 if grey is None else grey
    return {"spec": spec, "size": size, "grey": grey}


def _arguments(texts: Sequence[str]) -> dict[str, Any]:
    found: dict[str, Any] = {}  # "width=16" is {"width": 16}; what is not JSON is text
    for text in texts:
        name, sign, value = text.partition("=")
        if not sign:
            raise ConfigError(f"arguments of a model must be NAME=VALUE, but got {text!r}")
        try:
            found[name] = json.loads(value)
        except json.JSONDecodeError:
            found[name] = value
    return found


def _next(step: str) -> None:
    _out.print(Text(f"next: {step}", style="dim"), soft_wrap=True)
