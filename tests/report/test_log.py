from __future__ import annotations

import json
import sys
from collections import defaultdict
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from torch import nn

import understudy as us
from tests.support.tiny import FACTORY, make, squeeze
from understudy.cli import main
from understudy.core.errors import ConfigError, ExtraError
from understudy.report.log import check_log
from understudy.report.progress import Display
from understudy.runs.curve import read_curve

GOAL = us.Goal(params="2x")
Numbers = dict[str, dict[int, float]]


class FakeMlflow(ModuleType):
    """`mlflow.MlflowClient` with the calls that we make of it, by their names there."""

    def __init__(self) -> None:
        super().__init__("mlflow")
        self.numbers: dict[str, Numbers] = defaultdict(lambda: defaultdict(dict))
        self.params: dict[str, dict[str, Any]] = defaultdict(dict)
        self.ended: list[str] = []
        self.experiments: list[str] = []
        self.MlflowClient = lambda: self

    def get_experiment_by_name(self, name: str) -> Any:
        return SimpleNamespace(experiment_id="7") if name in self.experiments else None

    def create_experiment(self, name: str) -> str:
        self.experiments.append(name)
        return "7"

    def create_run(self, experiment_id: str, *, run_name: str) -> Any:
        assert experiment_id == "7"
        return SimpleNamespace(info=SimpleNamespace(run_id=f"{run_name}-{len(self.params)}"))

    def log_param(self, run_id: str, key: str, value: Any) -> None:
        assert key not in self.params[run_id]
        self.params[run_id][key] = value

    def log_metric(self, run_id: str, key: str, value: float, *, step: int) -> None:
        self.numbers[run_id][key][step] = value

    def set_terminated(self, run_id: str) -> None:
        self.ended.append(run_id)


class FakeWandb(ModuleType):
    """`wandb.init` and what it returns, with the calls that we make of them."""

    def __init__(self) -> None:
        super().__init__("wandb")
        self.started: list[dict[str, Any]] = []
        self.logged: list[dict[str, float]] = []
        self.finished = 0

    def init(self, **how: Any) -> Any:
        assert set(how) == {"project", "name", "id", "resume", "dir", "config"}
        self.started.append(how)
        return SimpleNamespace(log=self.logged.append, finish=self.finish)

    def finish(self) -> None:
        self.finished += 1


@pytest.fixture(scope="module")
def teacher() -> nn.Module:
    return make()


def expected(result: us.Result) -> dict[str, list[float]]:
    """Return what a log must have of a run, by name."""
    curves = {path.stem[:8]: read_curve(path) for path in (result.run / "students").glob("*.curve")}
    found = {f"final/{name}/loss": [epoch.loss for epoch in curve] for name, curve in curves.items()}
    found |= {f"final/{name}/score": [epoch.score for epoch in curve] for name, curve in curves.items()}
    summary = result.summary
    assert summary.student.test is not None
    return {
        **found,
        "result/student/test_score": [summary.student.test.value],
        "result/student/parameters": [float(summary.student.cost.parameters)],
        "result/all_budgets_kept": [float(summary.kept)],
    }


def test_tensorboard(teacher: nn.Module, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = tmp_path / "run"
    result = squeeze(teacher, run, goal=GOAL, log="tensorboard")
    for _ in range(2):
        events = EventAccumulator(str(run / "tensorboard"))
        events.Reload()
        found = {tag: [event.value for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
        for name, values in expected(result).items():
            assert found[name] == pytest.approx(values), name
        students = len(found["search/score"])
        assert [event.step for event in events.Scalars("search/score")] == list(range(1, students + 1))
        assert set(found) >= {"search/reward", "search/parameters", "search/macs", "updates/mean_reward"}
        # Continued, it has each number once.
        (run / "summary.json").unlink()
        result = squeeze(teacher, run, goal=GOAL, log="tensorboard")


def test_mlflow(teacher: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = FakeMlflow()
    monkeypatch.setitem(sys.modules, "mlflow", mlflow)
    result = squeeze(teacher, tmp_path / "run", goal=GOAL, log="mlflow")
    ((name, numbers),) = mlflow.numbers.items()
    for metric, values in expected(result).items():
        assert list(numbers[metric].values()) == values
    assert mlflow.ended == [name] and mlflow.params[name]["goal.params"] == "2x"
    (result.run / "summary.json").unlink()
    squeeze(teacher, result.run, goal=GOAL, log="mlflow")
    assert mlflow.ended == [name, name] and list(mlflow.numbers) == [name]  # the same run goes on
    squeeze(teacher, result.run, goal=GOAL, log="mlflow")
    assert len(mlflow.ended) == 2  # a finished run has nothing to tell


def test_wandb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wandb = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    result = squeeze(make(), tmp_path / "run", goal=GOAL, log="wandb")
    for metric, values in expected(result).items():
        assert [each[metric] for each in wandb.logged if metric in each] == values
    (how,) = wandb.started
    assert how["id"] == json.loads((result.run / "log.json").read_text())["wandb"] and how["resume"] == "allow"
    assert how["config"]["goal.params"] == "2x" and wandb.finished == 1


def test_what_is_missing_is_said_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("tensorboard", "mlflow", "wandb"):
        monkeypatch.setitem(sys.modules, name, None)
        with pytest.raises(
            ExtraError, match=rf"{name} must be installed, but is not: pip install 'understudy\[{name}\]'"
        ):
            squeeze(make(), tmp_path / "run", goal=GOAL, log=name)
    assert main(["compress", FACTORY, "--data", "nowhere", "--run", str(tmp_path / "run"), "--log", "wandb"]) == 2
    assert "pip install 'understudy[wandb]'" in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "run").exists()
    with pytest.raises(ConfigError, match=r"must be one of tensorboard, mlflow, wandb, but got 'tensorbord' \(did you"):
        check_log("tensorbord")
    check_log(None)


def test_a_log_that_fails_does_not_end_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    mlflow, calls = FakeMlflow(), 0

    def refused(run_id: str, key: str, value: float, *, step: int) -> None:
        nonlocal calls
        calls += 1
        raise OSError("no route to host")

    monkeypatch.setattr(mlflow, "log_metric", refused)
    monkeypatch.setitem(sys.modules, "mlflow", mlflow)
    result = squeeze(make(), tmp_path / "run", goal=GOAL, log="mlflow")
    assert calls == 1 and result.kept
    assert "nothing more goes to the log: OSError: no route to host" in caplog.text
    with Display(shown=False) as display:
        display.numbers({"a/b": 1.0}, 1)  # without a log there is nothing to do
