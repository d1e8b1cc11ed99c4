from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support.tiny import FACTORY, teach_tiny
from understudy.cli import main
from understudy.cli.compress import Compress
from understudy.cli.entry import parse
from understudy.core.errors import ConfigError
from understudy.core.files import write_json
from understudy.core.summary import Score
from understudy.runs.folder import Run

PINNED = ["--device.device=cpu", "--device.precision=fp32", "--device.memory-format=contiguous", "--device.threads=1"]
HERE = ["--device.workers=0"]  # starts no process
QUICK = [
    *("--n2n.removal-updates=1", "--n2n.shrinkage-updates=1", "--n2n.rollouts=2", "--widths.round-to=1"),
    *("--widths.min-width=2", "--candidates.training.epochs=1", "--candidates.examples=128"),
    *("--final.students=1", "--final.training.epochs=1", *PINNED, *HERE),
]


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("teachers") / "tiny"
    teach_tiny(folder)
    return str(folder)


@pytest.fixture(scope="module")
def run(teacher: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A finished run, not to be changed."""
    folder = str(tmp_path_factory.mktemp("runs") / "done")
    assert (
        main(["compress", teacher, "--trust-code", "--data", "digits", "--params", "3x", "--run", folder, *QUICK]) == 0
    )
    return folder


def test_the_package_runs_as_a_module(tmp_path: Path) -> None:
    args = [sys.executable, "-m", "understudy", "runs", str(tmp_path / "none")]
    done = subprocess.run(args, capture_output=True, text=True, check=False)
    assert done.returncode == main(args[3:]) and "none" in done.stdout + done.stderr


def test_teach_says_what_came_of_it_and_what_is_next(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    args = ["teach", FACTORY, "--data", "digits", "--out", str(tmp_path / "t"), "--training.epochs", "1"]
    assert main([*args, "--arguments", "width=4", "--training.lr", "0.01", *PINNED]) == 0
    out = capsys.readouterr().out
    assert re.search(r"[\d.]+% on validation, [\d.]+% on test, [\d.]+ s of training", out)
    assert f"next: understudy compress {tmp_path / 't'} --trust-code --data digits --params 4x" in out
    assert json.loads((tmp_path / "t" / "teacher.json").read_text())["arguments"]["width"] == 4


def test_compress_prints_the_table_and_leaves_a_student(
    run: str, teacher: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["compress", teacher, "--trust-code", "--data", "digits", "--params", "3x", "--run", run, *QUICK]) == 0
    out = capsys.readouterr().out
    assert "Teacher and understudy" in out and re.search(r"params .* 3x .* ✓", out)
    assert f"next: understudy evaluate {run}/student --data digits" in out
    assert (Path(run) / "student" / "student.safetensors").is_file()


def test_resume_needs_the_folder_only(run: str, capsys: pytest.CaptureFixture[str]) -> None:
    weights = (Path(run) / "student" / "student.safetensors").read_bytes()
    (Path(run) / "summary.json").unlink()
    assert main(["resume", run, "--trust-code"]) == 0
    assert "Teacher and understudy" in capsys.readouterr().out
    assert (Path(run) / "student" / "student.safetensors").read_bytes() == weights


def test_resume_of_a_run_that_python_started(run: str, capsys: pytest.CaptureFixture[str]) -> None:
    source = (Path(run) / "source.json").read_text()
    try:
        write_json(Path(run) / "source.json", {**json.loads(source), "data": None})
        assert main(["resume", run]) == 2
    finally:
        (Path(run) / "source.json").write_text(source)
    assert "started in Python: call compress(teacher, data" in capsys.readouterr().err


def test_runs_are_listed(run: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["runs", str(Path(run).parent)]) == 0
    row = " ".join(capsys.readouterr().out.split())
    assert "finished" in row and "n2n" in row and "4/4" in row and "params 3x" in row
    shutil.copytree(run, tmp_path / "sound")
    shutil.copytree(run, tmp_path / "damaged")
    (tmp_path / "damaged" / "identity.json").write_text("{")
    assert main(["runs", str(tmp_path)]) == 2
    shown = capsys.readouterr()
    assert "4/4" in shown.out and f"next: understudy evaluate {tmp_path / 'sound'}" in shown.out
    assert f"{tmp_path / 'damaged'} cannot be read: " in shown.err and "identity.json" in shown.err
    assert main(["runs", str(tmp_path / "none")]) == 0
    assert "next: understudy --help" in capsys.readouterr().out


def test_a_current_folder_that_was_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    assert main(["inspect", "zoo:resnet20"]) == 2
    assert "error: understudy must be called from a folder that exists" in capsys.readouterr().err


def test_evaluate_gives_the_reported_accuracy(run: str, capsys: pytest.CaptureFixture[str]) -> None:
    summary = json.loads((Path(run) / "summary.json").read_text())["student"]
    for split in ("test", "val"):
        assert main(["evaluate", f"{run}/student", "--data", "digits", "--trust-code", "--split", split]) == 0
        assert f"{Score(**summary[split])} of" in capsys.readouterr().out


@pytest.mark.slow
def test_a_policy_goes_to_another_teacher_and_other_data(tmp_path: Path) -> None:
    numbers, arrays = np.random.default_rng(0), {}
    for split, count in (("train", 200), ("test", 40)):
        arrays[f"{split}_images"] = numbers.integers(0, 256, (count, 16, 16, 3), dtype=np.uint8)
        arrays[f"{split}_labels"] = np.arange(count) % 4
    np.savez(tmp_path / "noise.npz", **arrays)
    noise, small, large = f"{tmp_path}/noise.npz", f"{tmp_path}/small", f"{tmp_path}/large"
    for model, data, width in (("vgg11", "digits", 4), ("vgg13", noise, 8)):
        args = ["teach", f"zoo:{model}", "--data", data, "--out", f"{tmp_path}/{model}", f"--arguments=width={width}"]
        assert main([*args, "--training.epochs=1", "--training.lr=0.01", *PINNED]) == 0
    assert (
        main(["compress", f"{tmp_path}/vgg11", "--data=digits", "--params=3x", "--run", small, "--untrained", *QUICK])
        == 0
    )
    other = ["compress", f"{tmp_path}/vgg13", "--data", noise, "--params=5x", "--run", large, "--untrained", *QUICK]
    assert main([*other, "--policy-from", small]) == 0
    assert (Path(large) / "policy_from.safetensors").read_bytes() == (Path(small) / "policy.safetensors").read_bytes()
    assert Run(large).settings.policy_from == small
    assert main(["resume", large, "--trust-code"]) == 0


def test_a_policy_that_cannot_be_started_from_is_one_error(
    teacher: str, run: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    start = ["compress", teacher, "--trust-code", "--data", "digits", "--run"]
    chance = ["--method=random", "--random.students=2", *(flag for flag in QUICK if "n2n" not in flag)]
    assert main([*start, f"{tmp_path}/chance", *chance]) == 0
    anew = [*start, f"{tmp_path}/anew", "--policy-from"]
    for args, text in (
        ([f"{tmp_path}/none", *QUICK], r"must name a run with a policy, but there is no .*none"),
        ([teacher, *QUICK], r"must name a run with a policy, but there is no .*policy.safetensors"),
        ([f"{tmp_path}/chance", *QUICK], r"must name a run of the method 'n2n', but .*chance is one of 'random'"),
        ([run, *chance], r"needs a method that can start from a policy, .* but the method is 'random'"),
        ([run, *QUICK, "--widths.factors", "0.5", "1.0"], r"must name a policy of as many widths.factors"),
    ):
        capsys.readouterr()
        assert main([*anew, *args]) == 2
        assert re.search(f"(?m)^error: .*policy_from {text}", capsys.readouterr().err)
    assert not (tmp_path / "anew").exists()


def test_dry_run_leaves_nothing(teacher: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "run"
    assert (
        main(["compress", teacher, "--trust-code", "--data", "digits", "--run", str(folder), "--dry-run", *QUICK]) == 0
    )
    out = capsys.readouterr().out
    for text in ("can be removed", "least parameters", "x fewer", "students to train │ 4", "about", "it is an output"):
        assert text in out
    assert not folder.exists()


def test_job_file_and_flags_that_override_it(teacher: str, tmp_path: Path) -> None:
    job = tmp_path / "job.toml"
    job.write_text(
        f'model = "{teacher}"\ndata = "digits"\nrun = "runs/x"\nmethod = "random"\nmean = [0.5]\n'
        '[random]\nstudents = 7\n[goal]\nparams = "5x"\n[final.training]\nlr = 1\n'
    )
    command = parse(["compress", "--config", str(job), "--random.students", "9"])
    assert isinstance(command, Compress)
    assert (command.model, command.data, command.run_folder) == (teacher, "digits", Path("runs/x"))
    assert (command.method, command.random.students, command.goal.params) == ("random", 9, "5x")
    assert (command.mean, command.final.training.lr) == ((0.5,), 1.0)


def test_configuration_of_a_run_is_a_job_file(run: str, teacher: str) -> None:
    command = parse(["compress", teacher, "--trust-code", "--data", "digits", f"--config={run}/config.toml"])
    assert isinstance(command, Compress)
    assert command.compression() == Run(run).settings


def test_mistakes_of_a_job_file_are_listed_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "job.toml").write_text('modl = "zoo:resnet20"\n[goal]\nparms = "10x"\n')
    assert main(["compress", "--config", str(tmp_path / "job.toml")]) == 2
    error = capsys.readouterr().err
    assert "'modl' (did you mean 'model'?)" in error and "'goal.parms' (did you mean 'params'?)" in error
    (tmp_path / "job.toml").write_text("seed = 1")
    assert main(["compress", "--config", str(tmp_path / "job.toml"), "--data", "digits"]) == 2
    assert "model must be given" in capsys.readouterr().err
    (tmp_path / "job.toml").write_text('run = 5\nlog = "papyrus"')
    assert main(["compress", "--config", str(tmp_path / "job.toml")]) == 2
    assert "run_folder must be a path, but got 5" in capsys.readouterr().err
    (tmp_path / "job.toml").write_text('config = "other.toml"')
    assert main(["compress", "--config", str(tmp_path / "job.toml")]) == 2
    assert "a settings file cannot name another one" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="must be readable"):
        parse(["compress", "--config", str(tmp_path / "none.toml")])


@pytest.mark.parametrize(
    ("args", "text"),
    [
        (["compress", "TEACHER", "--data", "digts"], "did you mean 'digits'"),
        (["compress", "zoo:resnet20", "--data", "digits"], "must be trained"),
        (["compress", "TEACHER", "--data", "digits", "--params", "ten"], "goal 'params' must be a positive amount"),
        (["compress", "TEACHER", "--data", "digits", "--params", "9999x"], "within reach of the smallest student"),
        (["compress", "TEACHER", "--data", "digits", "--random.students", "3"], "the method is 'n2n', but"),
        (["compress", FACTORY, "--data", "digits", "--weights", __file__], "refusing to unpickle weights"),
        (["compress", FACTORY, "--data", "digits", "--arguments", "width"], "must be NAME=VALUE"),
        (["compress", "TEACHER", "--data", "digits", "--mean", "0.5"], "says all that itself, but mean was given"),
        (["compress", FACTORY, "--data", "digits", "--mean", "0.5"], "must be a mean and a std"),
        (["compress", __file__.replace(".py", ".nothing"), "--data", "digits"], "there is no folder"),
        (["compress", str(Path(__file__).parents[2] / "LICENSE"), "--data", "digits"], r"model\.py:make --weights"),
        (["resume", "nowhere"], "must be a folder|a run is a folder with a config.toml"),
        (["evaluate", "nowhere", "--data", "digits"], "there is no folder nowhere"),
        (["teach", "zoo:resnet2O", "--data", "digits", "--out", "x"], "did you mean 'resnet20'"),
    ],
)
def test_errors_are_one_message_without_a_traceback(
    teacher: str, tmp_path: Path, monkeypatch: Any, capsys: pytest.CaptureFixture[str], args: list[str], text: str
) -> None:
    monkeypatch.chdir(tmp_path)
    trusted = ["--trust-code"] if args[0] == "compress" else []
    assert main([*(teacher if arg == "TEACHER" else arg for arg in args), *trusted]) == 2
    error = capsys.readouterr().err
    assert re.search(rf"(?ms)^error: .*(?:{text})", error) and "Traceback" not in error


def test_a_budget_that_is_not_kept_is_an_exit_code(
    teacher: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    args = ["compress", teacher, "--trust-code", "--data", "digits", "--score", "1.0", *QUICK]
    assert main([*args, "--run", str(tmp_path / "run")]) == 1
    out = capsys.readouterr().out
    assert "✗" in out and "not every budget is kept" in out


def test_ctrl_c_says_how_to_go_on(
    teacher: str, tmp_path: Path, monkeypatch: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("understudy.training.evaluator.train", interrupt)
    folder = tmp_path / "run"
    assert main(["compress", teacher, "--trust-code", "--data", "digits", "--run", str(folder), *QUICK]) == 130
    assert f"Continue with: understudy resume {folder}" in capsys.readouterr().err.replace("\n", " ")
    monkeypatch.undo()
    assert main(["runs", str(folder)]) == 0
    assert f"next: understudy resume {folder}" in capsys.readouterr().out
    assert main(["resume", str(folder), "--trust-code"]) == 0


def test_a_student_is_made_smaller_still(
    teacher: str, run: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    compress = ["compress", teacher, "--trust-code", "--data", "digits", *QUICK]
    second, third = str(tmp_path / "second"), str(tmp_path / "third")
    with monkeypatch.context() as m:
        m.setattr(import_module("understudy.jobs.compress").Job, "summarised", _interrupted)
        assert main([*compress, "--start", run, "--params", "4x", "--run", second]) == 130
    # What it goes on with is in its own folder, and the teacher is still the first one.
    assert main(["resume", second, "--trust-code"]) == 0
    found = json.loads((Path(second) / "summary.json").read_text())
    assert found["teacher"]["cost"]["parameters"] == 3818 and found["student"]["cost"]["parameters"] <= 3818 / 4
    # By the folder of a student, two cuts deep; a student comes back through all of them.
    assert main([*compress, "--start", f"{second}/student", "--params", "4.5x", "--run", third]) == 0
    assert main(["evaluate", f"{third}/student", "--data", "digits", "--trust-code"]) == 0
    parameters = json.loads((Path(third) / "summary.json").read_text())["student"]["cost"]["parameters"]
    assert f"{parameters:,} parameters" in capsys.readouterr().out
    assert len(json.loads((Path(third) / "student" / "model.json").read_text())["starts"]) == 2
    assert main([*compress, "--start", teacher, "--run", str(tmp_path / "fourth")]) == 2
    assert "a start must be the folder of a student" in " ".join(capsys.readouterr().err.split())


def _interrupted(*args: object) -> None:
    raise KeyboardInterrupt
