"""A run that is killed at any moment and continued ends as if it had never been disturbed."""

from __future__ import annotations

import os
import signal
import sys
from collections import Counter
from pathlib import Path

import optuna
import pytest

from tests.support.kills import forking, kill_and_go_on
from tests.support.tiny import METHOD, outcome, squeeze, teach_tiny
from understudy.config.methods import ArchComp
from understudy.core.goal import Goal
from understudy.cost import measure
from understudy.jobs.teach import load_teacher
from understudy.methods.archcomp import rules

METHODS = {"n2n": METHOD, "archcomp": ArchComp(students=8)}


def drive(method: str, teacher: str, folder: str) -> None:
    """Compress, in a process that may be killed."""
    measure.PAIRS = (3, 3)
    rules.RULES["tuned"] = rules.Rules(samples=40, fit_steps=10, refit_steps=4, starts=8)
    squeeze(load_teacher(teacher, trust_code=True), Path(folder), goal=Goal(params="4x"), method=METHODS[method])


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="processes are not forked there")
@pytest.mark.parametrize(("method", "most"), [("n2n", 6), ("archcomp", 3)])
def test_kills_change_nothing(method: str, most: int, tmp_path: Path) -> None:
    teach_tiny(tmp_path / "teacher")

    def check(folder: Path, undisturbed: Path) -> None:
        assert outcome(folder) == outcome(undisturbed)
        assert set(Counter(stored(folder)).values()) == {1}
        assert stored(folder) == stored(undisturbed)

    # Most of a continuation goes into getting where it was; half of the whole time still brings it further.
    given = (method, str(tmp_path / "teacher"))
    kill_and_go_on(drive, given, tmp_path, kills=most, between=(0.0, 0.7), check=check)


def stored(folder: Path) -> list[str]:
    """Return the digests of the students in the store, in order."""
    study = optuna.load_study(study_name="candidates", storage=f"sqlite:///{folder / 'study.db'}")
    return [trial.user_attrs["digest"] for trial in study.trials]


def drive_to_write(number: int, teacher: str, folder: str, counted: str = "") -> None:
    """Compress, and die before file number so-and-so is in its place; leave the names of all that were written."""
    replace, names = Path.replace, list[str]()

    def counting(self: Path, target: str | Path) -> Path:
        names.append(Path(target).name)
        if len(names) == number:
            os.kill(os.getpid(), signal.SIGKILL)
        return replace(self, target)

    Path.replace = counting  # type: ignore[method-assign]
    drive("n2n", teacher, folder)
    if counted:
        Path(counted).write_text("\n".join(names))


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="processes are not forked there")
def test_a_kill_before_a_file_is_there_changes_nothing(tmp_path: Path) -> None:
    context = forking()
    teach_tiny(tmp_path / "teacher")

    def drives(folder: str, number: int = 0) -> int | None:
        arguments = (number, str(tmp_path / "teacher"), str(tmp_path / folder), str(tmp_path / "names"))
        process = context.Process(target=drive_to_write, args=arguments)
        process.start()
        process.join()
        return process.exitcode

    assert drives("undisturbed") == 0
    names = (tmp_path / "names").read_text().splitlines()
    # One moment of each kind: settings, proof, teacher logits, policy, a checkpoint, a student, the summary.
    kinds = ("proof.json", ".npy", "policy.safetensors", ".checkpoint.pt", ".safetensors", "summary.json")
    moments = {next(n for n, name in enumerate(names, 1) if name.endswith(kind)) for kind in kinds}
    assert len(moments) >= 5
    for moment in sorted(moments):
        folder = f"before {moment}"
        assert drives(folder, moment) == -signal.SIGKILL
        assert drives(folder) == 0
        assert outcome(tmp_path / folder) == outcome(tmp_path / "undisturbed"), names[moment - 1]
