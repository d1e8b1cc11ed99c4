"""What a run finds, as numbers over time, in TensorBoard, MLflow or Weights & Biases. No torch.

Names of numbers are search/..., agents/..., final/STUDENT/... and result/...; steps are evaluations, updates or epochs.
"""

from __future__ import annotations

import shutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal

from understudy.config.text import settings_of
from understudy.core.errors import ConfigError, did_you_mean
from understudy.core.extras import optional
from understudy.runs.folder import Run

LogName = Literal["tensorboard", "mlflow", "wandb"]
_PROJECT = "understudy"  # the experiment of MLflow, the project of Weights & Biases


class Log(ABC):
    """Where numbers go."""

    @abstractmethod
    def numbers(self, values: Mapping[str, float], step: int) -> None:
        """Write numbers by name, at a step that counts from 1."""

    @abstractmethod
    def close(self) -> None:
        """Write what is held back; the run has ended."""


def check_log(name: str | None) -> None:
    """Refuse to log where that is not possible, before any work.

    Raises:
        ConfigError: there is no such log.
        ExtraError: its package is missing.
    """
    if name is None:
        return
    if name not in _LOGS:
        raise ConfigError(f"log must be one of {', '.join(_LOGS)}, but got {name!r}{did_you_mean(name, _LOGS)}")
    optional(name, extra=name)


def open_log(name: str, run: Run) -> Log:
    """Return a log for a run; one that goes on continues its own, and tells again what it told before.

    Raises:
        ExtraError: its package is missing.
    """
    return _LOGS[name](run)


class TensorBoard(Log):
    """Event files in the folder `tensorboard` of the run: `tensorboard --logdir runs`."""

    def __init__(self, run: Run) -> None:
        optional("tensorboard", extra="tensorboard")
        folder = run.folder / "tensorboard"
        shutil.rmtree(folder, ignore_errors=True)  # a run that goes on tells all of it again
        self._writer = optional("torch.utils.tensorboard", extra="tensorboard").SummaryWriter(str(folder))
        settings = "\n".join(f"    {name} = {value}" for name, value in _flat(run))
        self._writer.add_text("settings", settings)

    def numbers(self, values: Mapping[str, float], step: int) -> None:
        """As of a log."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def close(self) -> None:
        """As of a log."""
        self._writer.close()


class Mlflow(Log):
    """A run of the experiment `understudy`, where MLFLOW_TRACKING_URI says."""

    def __init__(self, run: Run) -> None:
        self._client = optional("mlflow", extra="mlflow").MlflowClient()
        known = run.recall("log") or {}
        if "mlflow" not in known:
            found = self._client.get_experiment_by_name(_PROJECT)
            experiment = self._client.create_experiment(_PROJECT) if found is None else found.experiment_id
            made = self._client.create_run(experiment, run_name=run.folder.name)
            known = {**known, "mlflow": made.info.run_id}
            run.remember("log", known)
            for name, value in _flat(run):
                self._client.log_param(known["mlflow"], name, value)
        self._run = known["mlflow"]

    def numbers(self, values: Mapping[str, float], step: int) -> None:
        """As of a log."""
        for name, value in values.items():
            self._client.log_metric(self._run, name, value, step=step)

    def close(self) -> None:
        """As of a log."""
        self._client.set_terminated(self._run)


class Wandb(Log):
    """A run of the project `understudy`, as WANDB_MODE and the others of its variables say."""

    def __init__(self, run: Run) -> None:
        known = run.recall("log") or {}
        if "wandb" not in known:
            known = {**known, "wandb": run.study_name}
            run.remember("log", known)
        self._run = optional("wandb", extra="wandb").init(
            project=_PROJECT,
            name=run.folder.name,
            id=known["wandb"],
            resume="allow",
            dir=str(run.folder),
            config=dict(_flat(run)),
        )

    def numbers(self, values: Mapping[str, float], step: int) -> None:
        """As of a log. Its own steps may not go back, so each group of numbers has a step of its own."""
        groups = {f"{name.partition('/')[0]}/step": step for name in values}
        self._run.log({**values, **groups})

    def close(self) -> None:
        """As of a log."""
        self._run.finish()


_LOGS: dict[str, Callable[[Run], Log]] = {"tensorboard": TensorBoard, "mlflow": Mlflow, "wandb": Wandb}


def _flat(run: Run) -> Iterator[tuple[str, Any]]:
    def leaves(values: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
        for name, value in values.items():
            if isinstance(value, Mapping):
                yield from leaves(value, f"{prefix}{name}.")
            else:
                yield f"{prefix}{name}", value

    yield from leaves(settings_of(run.settings), "")
