"""A run that is killed at any moment and continued ends as if it had never been disturbed."""

from __future__ import annotations

import multiprocessing
import random
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

METHODS = {"n2n": METHOD, "archcomp": ArchComp(students=8, start=3)}


def drive(method: str, teacher: str, folder: str) -> None:
    """Compress, in a process that may be killed."""
    rules.RULES["tuned"] = rules.Rules(samples=40, fit_steps=10, refit_steps=4, starts=8)
    squeeze(load_teacher(teacher, trust_code=True), Path(folder), goal=Goal(params="4x"), method=METHODS[method])


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="processes are not forked there")
@pytest.mark.parametrize(("method", "most"), [("n2n", 10), ("archcomp", 4)])
def test_kills_change_nothing(method: str, most: int, tmp_path: Path) -> None:
    # A server that has imported everything forks each process, so the time goes into the run.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.tiny"])
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
