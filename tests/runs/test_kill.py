"""A run that is killed at any moment and continued ends as if it had never been disturbed."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import sys
import time
from collections import Counter
from pathlib import Path

import optuna
import pytest

from tests.support.tiny import METHOD, outcome, squeeze, teach_tiny
from understudy.config.methods import ArchComp
from understudy.core.goal import Goal
from understudy.jobs.teach import load_teacher
from understudy.methods.archcomp import rules

METHODS = {"n2n": METHOD, "archcomp": ArchComp(students=8)}


def drive(method: str, teacher: str, folder: str) -> None:
    """Compress, in a process that may be killed."""
    rules.RULES["tuned"] = rules.Rules(samples=40, fit_steps=10, refit_steps=4, starts=8)
    squeeze(load_teacher(teacher, trust_code=True), Path(folder), goal=Goal(params="4x"), method=METHODS[method])


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="processes are not forked there")
@pytest.mark.parametrize(("method", "most"), [("n2n", 6), ("archcomp", 3)])
def test_kills_change_nothing(method: str, most: int, tmp_path: Path) -> None:
    # A server that has imported everything forks each process, so the time goes into the run.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.support.tiny"])
    teach_tiny(tmp_path / "teacher")
    numbers = random.Random(0)

    def drives(folder: Path, seconds: float | None = None) -> bool:
        """Run, kill it after that time, and say whether it came to its end."""
        process = context.Process(target=drive, args=(method, str(tmp_path / "teacher"), str(folder)))
        process.start()
        process.join(seconds)
        process.kill()
        process.join()
        assert process.exitcode in (0, -9)
        return process.exitcode == 0

    assert drives(tmp_path / "warm")
    start = time.monotonic()
    assert drives(tmp_path / "undisturbed")
    whole = time.monotonic() - start
    kills = rounds = 0
    while kills < most:
        rounds += 1
        folder = tmp_path / f"round {rounds}"
        # Most of a continuation goes into getting where it was; half of the whole time still brings it further.
        while not drives(folder, numbers.uniform(0.0, 0.7) * whole if kills < most else None):
            kills += 1
        assert outcome(folder) == outcome(tmp_path / "undisturbed")
        assert set(Counter(stored(folder)).values()) == {1}
        assert stored(folder) == stored(tmp_path / "undisturbed")


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
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.support.tiny"])
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
