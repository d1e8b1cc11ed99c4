"""`understudy inspect`. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro

from understudy.cli.common import Command, Model, command_line, new_run, out, parsed, remark


@dataclass(frozen=True, kw_only=True)
class Inspect(Command):
    """Show what a model allows before any hour is spent: what can be removed or narrowed, what cannot and why, costs.

    Examples:
      understudy inspect model.py:make --size 64 --check
      understudy inspect torchvision:resnet18
      understudy inspect teachers/digits
    """

    model: Model
    """FILE.py:FACTORY (a function of your own that returns the network), torchvision:NAME, timm:NAME, zoo:NAME, or a
    folder that `understudy teach` left."""
    weights: Path | None = None
    """Weights of the model: safetensors, or a state dict of tensors. Default: random."""
    arguments: tuple[str, ...] = ()
    """Arguments for the model's factory, as NAME=VALUE."""
    size: int | None = None
    """Height and width of its images, in pixels. Default: the teacher folder's, 32 for the zoo, 224 for others."""
    channels: int | None = None
    """Channels of its images. Default: the teacher folder's, 3 for others."""
    check: tyro.conf.FlagCreatePairsOff[bool] = False
    """Build students and check that they compute what the network with masked channels does, as compress does first."""
    architecture: Path | None = None
    """A student's folder, or an architecture as JSON: show what it costs."""
    forecast_by: Path | None = None
    """Run of archcomp on a teacher of this structure: show the score that it predicts for that architecture."""
    json: tyro.conf.FlagCreatePairsOff[bool] = False
    """Print JSON for machines."""
    trust_code: tyro.conf.FlagCreatePairsOff[bool] = False
    """Run the Python file in a teacher's folder that makes the network; read it first."""

    def run(self, typed: Sequence[str]) -> int:
        """Print the tables, or JSON."""
        from understudy.jobs.inspect import inspect_model, inspection_tables

        found = inspect_model(
            self.model,
            weights=self.weights,
            arguments=parsed(self.arguments),
            size=self.size,
            channels=self.channels,
            check=self.check,
            architecture=self.architecture,
            forecast_by=self.forecast_by,
            progress=True,
            trust_code=self.trust_code,
        )
        if self.json:
            print(found.to_json())
            return 0 if found.holds else 1
        out.print(inspection_tables(found))
        self._advise()
        return 0 if found.holds else 1

    def _advise(self) -> None:
        """Say how to go on; the images are the user's, so the line is a pattern."""
        if Path(self.model).is_dir():
            trusted = ["--trust-code"] if self.trust_code else []
            line = command_line("compress", self.model, *trusted, "--data", "FOLDER", "--run", new_run())
            remark(f"with images in FOLDER/train/CLASS/*: {line}")
            return
        given = [] if not self.arguments else ["--arguments", *self.arguments]
        given += [] if self.size is None else ["--size", str(self.size)]
        if self.weights is not None or self.model.rpartition(":")[0].endswith(".py"):
            given += [] if self.weights is None else ["--weights", str(self.weights)]
            line = command_line("compress", self.model, *given, "--data", "FOLDER", "--run", new_run())
        else:
            line = command_line("teach", self.model, *given, "--data", "FOLDER", "--out", "teachers/NAME")
        remark(f"with images in FOLDER/train/CLASS/*: {line}")
