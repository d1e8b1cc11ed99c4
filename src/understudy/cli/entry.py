"""From what was typed to a command, and from its errors to one message and an exit code. No torch."""

from __future__ import annotations

import atexit
import gc
import io
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

import tyro
from rich.text import Text

from understudy.cli.common import Command, command_line, err, out
from understudy.cli.compress import Compress, Resume
from understudy.cli.dashboard import Dashboard
from understudy.cli.evaluate import Evaluate
from understudy.cli.export import Export, Verify
from understudy.cli.help import example, flags_of, help_text
from understudy.cli.inspect import Inspect
from understudy.cli.latency import Latency
from understudy.cli.report import Report
from understudy.cli.runs import Runs
from understudy.cli.teach import Teach
from understudy.config.checked import together
from understudy.config.presets import paper
from understudy.config.text import build, merged, read_toml, settings_of
from understudy.core.console import UNREAD
from understudy.core.errors import ConfigError, UnderstudyError, did_you_mean
from understudy.core.files import refuse_removed_folder, trouble_of

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
_ENDS = ("SIGINT", "SIGTERM", "SIGHUP")  # Ctrl-C, a system or scheduler, a terminal that closes (not on Windows)
_AGAIN = 0.05  # seconds until a signal that was lost is sent again
_TIDYING = 10.0  # seconds in which a command ends in order; one that goes on longer has not heard the signal
_FLAG = re.compile(r"--?[A-Za-z][\w.-]*")


class _Stopped(KeyboardInterrupt):
    """A signal that ends a command as Ctrl-C does."""

    def __init__(self, number: int) -> None:
        self.number = number


def main(args: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code.

    0; 1 if a budget is not kept; 2 after an error; 130 after Ctrl-C, 143 after SIGTERM, 129 after SIGHUP, and 141 if
    nobody reads any more what it prints, as `head` when it has enough.
    """
    typed = list(sys.argv[1:] if args is None else args)
    begun: list[Command] = []
    atexit.register(gc.freeze)  # else all that torch holds is looked through once more at the end, for a second
    _say_what_can_be_said()
    with _stopped_by_signals():
        try:
            return _carried_out(typed, begun)
        except KeyboardInterrupt as stop:  # also where that came as an error was told
            again = _again(typed, begun)
            _complain(Text(f"\nstopped; nothing that was finished is lost. Continue with: {again}"))
            return 128 + (stop.number if isinstance(stop, _Stopped) else signal.SIGINT)


def _carried_out(typed: list[str], begun: list[Command]) -> int:
    """Run a command, which is put into `begun` once it is read, and return its exit code; tell what went wrong."""
    try:
        begun.append(parse(typed))
        import numpy  # noqa: F401  # torch would import it, and forget a Ctrl-C that comes meanwhile

        refuse_removed_folder()
        code = begun[0].run(typed)
        if sys.stdout is not None:  # as it is where it was closed: `>&-`
            sys.stdout.flush()
        return code
    except UnderstudyError as error:
        _complain(Text.assemble(("error: ", "bold red"), str(error)))
        return 2
    except BrokenPipeError:
        with suppress(OSError, ValueError):  # what it still holds must not fail again as the process ends
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return UNREAD
    except OSError as error:
        if (said := trouble_of(error)) is None:
            raise
        _complain(Text.assemble(("error: ", "bold red"), said))
        return 2


def _again(typed: list[str], begun: list[Command]) -> str:
    """Return the command that goes on after an interruption: the same one where a better one cannot be found out."""
    with suppress(Exception):  # of a module, perhaps, whose import the signal has cut short
        return begun[0].again(typed)
    return command_line(*typed)


def _complain(text: Text) -> None:
    """Print it on stderr; where that cannot be written, as on a full disk, the exit code alone has to say it."""
    with suppress(OSError):
        err.print(text, soft_wrap=True)


def _say_what_can_be_said() -> None:
    """Let a character that the terminal's encoding does not have become a question mark, as under some locales "±"."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


@contextmanager
def _stopped_by_signals() -> Iterator[None]:
    """Let what would end the process at once end it in order, and with a word on how to go on, as Ctrl-C does.

    Only the first signal counts, and the process ends with it: an impatient second one must not cut short what is said
    and done about it. One much later counts: a network's or a package's own `except:` may have kept the first.
    What is ignored, as SIGHUP is under nohup, stays ignored; a thread cannot handle signals at all.
    """
    here = threading.current_thread() is threading.main_thread()
    numbers = [getattr(signal, name) for name in _ENDS if here and hasattr(signal, name)]
    before = {number: signal.getsignal(number) for number in numbers}
    stopped: list[float] = []  # when a signal that counted came

    def stop(number: int, frame: object) -> None:
        if not stopped or time.monotonic() - stopped[-1] > _TIDYING:
            stopped.append(time.monotonic())
            raise _Stopped(number)

    def lost(unraisable: sys.UnraisableHookArgs) -> None:
        """Send a signal again that came in a destructor or a callback, out of which nothing can be raised."""
        if isinstance(unraisable.exc_value, _Stopped):
            stopped.clear()
            threading.Timer(_AGAIN, os.kill, (os.getpid(), unraisable.exc_value.number)).start()
        else:
            hook(unraisable)

    for number, handler in before.items():
        if handler in (signal.SIG_DFL, signal.default_int_handler):
            signal.signal(number, stop)
    hook, sys.unraisablehook = sys.unraisablehook, lost
    try:
        yield
    finally:
        sys.unraisablehook = hook
        for number, handler in before.items() if not stopped else ():
            signal.signal(number, handler)


def parse(args: list[str]) -> Command:
    """Return the command that the arguments spell; help and missing arguments end the process.

    Raises:
        ConfigError: there is no such command or flag, or the job file cannot be used.
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
    def parsed(*, aloud: bool) -> Command:
        how: dict[str, Any] = {"prog": f"understudy {name}", "config": (tyro.conf.DisallowNone,), **more}
        found: Command = together(lambda: tyro.cli(kind, args=args, console_outputs=aloud, **how), "the arguments")
        return found

    try:
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):  # which tyro's own switch does not silence
            return parsed(aloud=False)
    except SystemExit:  # tyro may say that the model is missing where a flag before it is misspelt
        _refuse_unknown_flags(name, kind, args)
        try:
            return parsed(aloud=True)
        finally:
            err.print(Text(f"for example:\n{example(kind)}"), soft_wrap=True)


def _refuse_unknown_flags(name: str, kind: type[Command], args: Sequence[str]) -> None:
    """Refuse flags that a command does not have, all at once.

    Raises:
        ConfigError: there are some; each with the nearest spelling.
    """
    known = [flag for found in flags_of(kind) for flag in re.findall(r"--[\w.-]+", found.spelled)]
    typed = [arg.partition("=")[0] for arg in args]
    unknown = [arg for arg in typed if _FLAG.fullmatch(arg) and arg.replace("_", "-") not in known]
    if unknown:
        meant = ", ".join(f"{flag!r}{_did_you_mean(flag, known)}" for flag in unknown)
        all_of_them = command_line(name, "--help-all")
        raise ConfigError(f"flags of {name} must be among those that {all_of_them} lists, but got {meant}")


def _did_you_mean(flag: str, known: Sequence[str]) -> str:
    """Return the flags that end in that name, such as --final.training.epochs for --epochs, else the nearest one."""
    ends = [option for option in known if option.endswith(f".{flag.lstrip('-')}")]
    if ends or not flag.startswith("--"):
        return f" (did you mean {' or '.join(map(repr, ends))}?)" if ends else ""
    return did_you_mean(flag, known)


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
    if "config" in values:  # flags alone know one, and it would go unread
        raise ConfigError(f"a settings file cannot name another one, but {job} has config = {values['config']!r}")
    if "run" in values:  # the field has another name, because `run` is what commands do
        values["run_folder"] = values.pop("run")
    return values
