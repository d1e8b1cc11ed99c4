"""From what was typed to a command, and from its errors to one message and an exit code. No torch."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

import tyro
from rich.text import Text

from understudy.cli.common import Command, err, out
from understudy.cli.compress import Compress, Resume
from understudy.cli.dashboard import Dashboard
from understudy.cli.evaluate import Evaluate
from understudy.cli.export import Export, Verify
from understudy.cli.help import help_text
from understudy.cli.inspect import Inspect
from understudy.cli.latency import Latency
from understudy.cli.report import Report
from understudy.cli.runs import Runs
from understudy.cli.teach import Teach
from understudy.config.checked import together
from understudy.config.presets import paper
from understudy.config.text import build, merged, read_toml, settings_of
from understudy.core.errors import ConfigError, UnderstudyError, did_you_mean

COMMANDS: dict[str, type[Command]] = {
    "inspect": Inspect,
    "teach": Teach,
    "compress": Compress,
    "resume": Resume,
    "runs": Runs,
    "report": Report,
    "dashboard": Dashboard,
    "evaluate": Evaluate,
    "latency": Latency,
    "export": Export,
    "verify": Verify,
}
_ABOUT = """Understudy takes a trained PyTorch network and learns a much smaller one that does the same. These commands
work on image classifiers. From Python any module and its inputs will do, with labels, targets or none:

  us.compress(model.backbone, us.Data.from_inputs(loader), goal=us.Goal(macs="2x"), run="runs/first")

You have a network of your own, its weights and a folder of images (FOLDER/train/CLASS/*, val/ and test/ likewise;
images that the network was not trained on belong in val/). Give the mean and the standard deviation that it was
trained with, for images in 0..1:

  understudy inspect model.py:make --size 64
  understudy compress model.py:make --weights w.safetensors --data photos/ --size 64
      --mean 0.485 0.456 0.406 --std 0.229 0.224 0.225 --params 10x --run runs/first

You have weights of a network of torchvision or timm: the same, with torchvision:resnet18 or timm:NAME for
model.py:make.

You have no trained network: train one of yours, or of the zoo, first; digits are bundled.

  understudy teach zoo:resnet20 --data digits --out teachers/digits
  understudy compress teachers/digits --data digits --params 10x --run runs/digits
"""
_HELP = ("-h", "--help", "--help-all")


def main(args: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code: 0, 1 if a budget is not kept, 2 after an error, 130 after Ctrl-C."""
    typed = list(sys.argv[1:] if args is None else args)
    command: Command | None = None
    try:
        command = parse(typed)
        code = command.run(typed)
        sys.stdout.flush()
        return code
    except UnderstudyError as error:
        err.print(Text.assemble(("error: ", "bold red"), str(error)), soft_wrap=True)
        return 2
    except KeyboardInterrupt:
        again = "the same command" if command is None else command.again(typed)
        err.print(f"\nstopped; nothing that was finished is lost. Continue with: {again}", soft_wrap=True, markup=False)
        return 130
    except BrokenPipeError:  # the reader, such as head, has all that it wants
        with suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def parse(args: list[str]) -> Command:
    """Return the command that the arguments spell; help and misspelt flags end the process.

    Raises:
        ConfigError: there is no such command, or the job file cannot be used.
    """
    name = args[0] if args else "--help"
    if name in _HELP:
        _say_and_end(_overview())
    if name == "--version":
        from understudy import __version__

        _say_and_end(Text(f"understudy {__version__}\n"))
    if name not in COMMANDS:
        raise ConfigError(
            f"a command must be one of {', '.join(COMMANDS)}, but got {name!r}{did_you_mean(name, COMMANDS)}"
        )
    kind = COMMANDS[name]
    if asked := [arg for arg in args[1:] if arg in _HELP]:
        _say_and_end(help_text(name, kind, everything="--help-all" in asked, width=out.width))
    job = _value("--config", args[1:]) if kind is Compress else None
    values = {} if job is None else _from_file(Path(job))
    preset = _value("--preset", args[1:]) or values.get("preset") if kind is Compress else None
    if preset == "paper":
        method = _value("--method", args[1:]) or values.get("method", "n2n")
        values = merged(settings_of(paper(method)), values)
    if not values:
        return _parsed(kind, name, args[1:])
    default = build(Compress, values, source=job or f"the preset {preset}", missing="")
    command = _parsed(kind, name, args[1:], default=default)
    for needed in ("model", "data"):
        if not getattr(command, needed):
            raise ConfigError(f"{needed} must be given, on the command line or in a file, but there is none")
    return command


def _overview() -> Text:
    shown = Text("usage: understudy COMMAND [options]\n\n").append(_ABOUT).append("\nCommands\n", style="bold")
    for name, kind in COMMANDS.items():
        summary = " ".join((kind.__doc__ or "").partition("\n\n")[0].split())
        shown.append(f"  {name:<10} {summary}\n")
    return shown.append("\nunderstudy COMMAND --help shows a command's flags; --version shows the version.\n")


def _say_and_end(text: Text) -> None:
    out.print(text, end="", soft_wrap=True)
    raise SystemExit(0)


def _parsed(kind: type[Command], name: str, args: list[str], **more: Any) -> Command:
    config = (tyro.conf.DisallowNone,)
    command: Command = together(
        lambda: tyro.cli(kind, prog=f"understudy {name}", args=args, config=config, **more), "the arguments"
    )
    return command


def _value(flag: str, args: Sequence[str]) -> str | None:
    """Return what follows a flag, None if it is not there."""
    for arg, after in pairwise([*args, ""]):
        if arg == flag:
            return after
        if arg.startswith(f"{flag}="):
            return arg.removeprefix(f"{flag}=")
    return None


def _from_file(job: Path) -> dict[str, Any]:
    values = read_toml(job)
    if "run" in values:  # the field has another name, because `run` is what commands do
        values["run_folder"] = values.pop("run")
    return values
