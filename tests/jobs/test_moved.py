"""Folders can be moved and mailed, and nothing in them runs unless that is allowed."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import understudy as us
from tests.support.tiny import CANDIDATES, DEVICE, FINAL, METHOD, TEACHING, outcome
from understudy.cli import main
from understudy.config.job import Compression
from understudy.config.text import to_toml
from understudy.core.errors import ModelError
from understudy.core.files import write_json
from understudy.core.goal import Goal
from understudy.data import sources
from understudy.jobs.task import Task
from understudy.runs.folder import Run

PARTS = """
from torch import nn

def block(inputs, outputs):
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU())
"""
NET = """
import sys
from pathlib import Path
from torch import nn
from moved_parts import block

(Path(__file__).parent / "was_run").touch()

class Net(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.body = nn.Sequential(block(1, 8), block(8, 8))
        self.head = nn.Linear(8, classes)

    def forward(self, images):
        return self.head(self.body(images).mean((2, 3)))

def make(classes=10):
    return Net(classes)
"""
GO_ON = """
import sys, torch, understudy as us
from understudy.cli import main
from understudy.core.errors import ModelError

def refused(call):
    try:
        call()
    except ModelError as error:
        return "--trust-code" in str(error) and "moved_net.py" in str(error)

if __name__ == "__main__":
    assert refused(lambda: us.load_teacher("teacher")) and refused(lambda: us.load_student("runs/done/student"))
    for command in (["resume", "runs/stopped"], ["evaluate", "runs/done/student", "--data", "data.npz"],
                    ["compress", "teacher", "--data", "data.npz", "--dry-run"]):
        assert main(command) == 2, command
    assert "moved_net" not in sys.modules
    teacher = us.load_teacher("teacher", trust_code=True).module
    student = us.load_student("runs/done/student", trust_code=True)
    assert type(teacher) is type(student)
    assert main(["resume", "runs/stopped", "--trust-code"]) == 0
    assert main(["evaluate", "runs/stopped/student", "--trust-code", "--data", "data.npz"]) == 0
"""


def job(folder: Path) -> list[str]:
    """Write a job file, and return the command that does it."""
    settings = Compression(method=METHOD, candidates=CANDIDATES, final=FINAL, device=DEVICE, goal=Goal(params="2x"))
    (folder / "job.toml").write_text(to_toml(settings))
    return ["compress", "teacher", "--data", "data.npz", "--config", "job.toml", "--trust-code"]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an own model, data, its teacher, a finished run and one that was stopped."""
    folder = tmp_path_factory.mktemp("made")
    (folder / "models").mkdir(parents=True)
    (folder / "models" / "moved_net.py").write_text(NET)
    (folder / "models" / "moved_parts.py").write_text(PARTS)
    images, labels = sources.digits()
    np.savez(
        folder / "data.npz",
        x_train=images[:900],
        y_train=labels[:900],
        x_test=images[900:1200],
        y_test=labels[900:1200],
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        us.teach("models/moved_net.py:make", us.Data.open("data.npz"), "teacher", teaching=TEACHING)
        assert main([*job(folder), "--run", "runs/done"]) in (0, 1)
        patch.setattr("understudy.jobs.finals.save_weights", stop)
        assert main([*job(folder), "--run", "runs/stopped"]) == 130
    return folder


@pytest.fixture
def here(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of that folder, and the current one."""
    shutil.copytree(made, tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


def stop(*_: object) -> None:
    raise KeyboardInterrupt


def test_folders_are_moved_and_go_on(made: Path, here: Path, tmp_path: Path) -> None:
    for text in (path for path in here.rglob("*") if path.suffix in (".json", ".toml")):
        assert str(made) not in text.read_text(), f"{text} holds a path of this machine"
    assert (here / "runs" / "done" / "student" / "code" / "moved_parts.py").read_text() == PARTS
    shutil.rmtree(here / "models")
    there = tmp_path / "there"
    here.rename(there)
    (there / "go_on.py").write_text(GO_ON)
    done = subprocess.run([sys.executable, "go_on.py"], cwd=there, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert outcome(there / "runs" / "stopped") == outcome(there / "runs" / "done")


def test_code_runs_only_where_it_is_allowed(here: Path) -> None:
    folder = here / "runs" / "done" / "student"
    with pytest.raises(ModelError, match=r"needs .*student/code/moved_net\.py, which is Python code.*--trust"):
        us.load_student(folder)
    assert us.load_student(folder, model="models/moved_net.py:make") is not None
    assert us.load_student(folder, us.load_teacher("teacher", model="models/moved_net.py:make").module) is not None
    card = json.loads((folder / "model.json").read_text())
    for bad in (
        "../../../models/moved_net.py:make",
        str(here / "models" / "moved_net.py") + ":make",
        "code/../x.py:make",
    ):
        write_json(folder / "model.json", {**card, "model": bad})
        with pytest.raises(ModelError, match="must lie in its code/"):
            us.load_student(folder, trust_code=True)


def test_weights_that_are_damaged_are_written_anew_by_the_command(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = here / "runs" / "done" / "teacher.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:500])
    assert main(["resume", "runs/done", "--trust-code"]) == 2
    assert "move it away and give the command that began the run again" in " ".join(capsys.readouterr().err.split())
    weights.unlink()
    assert main([*job(here), "--run", "runs/done"]) in (0, 1)
    assert weights.read_bytes() == whole


def test_data_that_are_gone_are_asked_for(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "data.npz").rename(here / "other.npz")
    assert main(["resume", "runs/stopped", "--trust-code"]) == 2
    assert "give --data" in capsys.readouterr().err
    task = Task.of_run(Run("runs/stopped"), trust_code=True, data="other.npz")
    assert task.opened is not None and task.opened["spec"] == "other.npz"
