"""What commands share: the model and the data as flags, the console, the line that says what comes next. No torch."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import tyro
from rich.text import Text

from understudy.core.console import Console
from understudy.core.errors import ConfigError

if TYPE_CHECKING:
    from understudy.data import Data

Sections = tuple[tuple[str, tuple[str, ...]], ...]
"""Headings of a command's short help, each with the dotted names of its fields; none: all fields are in it."""

# What stands without a flag, called by its name where it is missing.
Model = Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]
Folder = Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="FOLDER")]
Student = Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="STUDENT")]

out, err = Console(), Console(stderr=True)


@dataclass(frozen=True, kw_only=True)
class Command:
    """What every command offers."""

    sections: ClassVar[Sections] = ()

    def run(self, typed: Sequence[str]) -> int:
        """Do it and return the exit code; `typed` is what was typed, the name of the command included."""
        raise NotImplementedError

    def again(self, typed: Sequence[str]) -> str:
        """Return the command that goes on after an interruption."""
        return command_line(*typed)


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A model by name, and its data."""

    model: Model
    """FILE.py:FACTORY (a function of your own that returns the network), torchvision:NAME, timm:NAME, zoo:NAME, or,
    for compress, a folder that `understudy teach` left."""
    data: str
    """A folder of images (FOLDER/train/CLASS/*, likewise val/, images that the teacher has not seen, and test/),
    FILE.npz, torchvision:NAME or digits. Without val/ a tenth of train/ is held out."""
    arguments: tuple[str, ...] = ()
    """Arguments for the model's factory, as NAME=VALUE."""
    size: int | None = None
    """Resize the images of a folder to this height and width, in pixels."""
    grey: bool | None = None
    """Read the images of a folder as greyscale. Default: if all files are."""

    def reading(self) -> list[str]:
        """Return the flags that say how the data are read, as they were given."""
        return reading_of({"spec": self.data, "size": self.size, "grey": self.grey})


def reading_of(how: Mapping[str, Any]) -> list[str]:
    """Return the flags that open data as `Data.open` was called."""
    flags = ["--data", str(how["spec"])]
    flags += [] if how.get("size") is None else ["--size", str(how["size"])]
    return flags if how.get("grey") is None else [*flags, "--grey" if how["grey"] else "--no-grey"]


def trust(folder: Path) -> list[str]:
    """Return the flag that a folder needs whose model is made by Python code in it."""
    from understudy.models.code import read_code

    return ["--trust-code"] if read_code(folder) else []


def command_line(*args: str) -> str:
    """Return a command of ours as it is typed in a shell."""
    return shlex.join(["understudy", *args])


def next_step(*args: str) -> None:
    """Print the command that comes next. It must work as it stands."""
    out.print(Text(f"next: {command_line(*args)}", style="dim"), soft_wrap=True)


def remark(text: str) -> None:
    """Print a line of advice."""
    out.print(Text(text, style="dim"), soft_wrap=True)


def new_run() -> str:
    """Return a run folder under runs/ that does not exist yet."""
    names = ("runs/first", *(f"runs/run{number}" for number in range(2, 1000)))
    return next(name for name in names if not Path(name).exists())


def opened(spec: str, size: int | None, grey: bool | None, expected: Sequence[int] | None = None) -> dict[str, Any]:
    """Return how files are read: as the flags say, else as a network expects them (channels, height, width)."""
    if expected is not None and (Path(spec).is_dir() or spec.startswith("torchvision:")):
        size = expected[1] if size is None and expected[1] == expected[2] else size
        grey = expected[0] == 1 if grey is None else grey
    return {"spec": spec, "size": size, "grey": grey}


def open_data(how: dict[str, Any]) -> Data:
    """Return the data that were named."""
    from understudy.data import Data

    return Data.open(**how)


def parsed(arguments: Sequence[str]) -> dict[str, Any]:
    """Return arguments of a model: "width=16" is {"width": 16}; what is not JSON is text.

    Raises:
        ConfigError: one has no name or no value.
    """
    found: dict[str, Any] = {}
    for text in arguments:
        name, sign, value = text.partition("=")
        if not sign:
            raise ConfigError(f"arguments of a model must be NAME=VALUE, but got {text!r}")
        try:
            found[name] = json.loads(value)
        except json.JSONDecodeError:
            found[name] = value
    return found
