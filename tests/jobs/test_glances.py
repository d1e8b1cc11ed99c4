from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import understudy as us
from tests.support.tiny import make, outcome, squeeze
from understudy.core.architecture import Architecture
from understudy.core.errors import RunError
from understudy.core.files import read_json
from understudy.jobs.glances import Glances
from understudy.runs.folder import Run
from understudy.testing.landscapes import toy_space
from understudy.training.evaluator import Evaluator


def test_a_run_that_looked_at_untrained_students_goes_on_without_looking_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher, settings = make(), {"method": us.Allocate(), "goal": us.Goal(params="3x", macs="2x")}
    settings |= {
        "widths": us.Widths(factors=(0.25, 0.5, 1.0), round_to=1, min_width=2),
        "final": us.Final(students=1, training=us.Training(epochs=1)),
    }
    result = squeeze(teacher, tmp_path, **settings)
    student, whole = result.summary.student.cost, result.summary.teacher.cost
    assert student.parameters <= whole.parameters / 3
    assert student.macs <= whole.macs / 2
    looks = read_json(tmp_path / "glances.json", RunError)
    assert len(looks) >= 5
    assert all(error >= 0.0 for error in looks.values())

    def again(*arguments: Any) -> float:
        raise AssertionError("it was looked at before")

    before = outcome(tmp_path)
    (tmp_path / "summary.json").unlink()
    monkeypatch.setattr(Evaluator, "glance", again)
    squeeze(teacher, tmp_path, **settings)
    assert outcome(tmp_path) == before


def test_a_look_is_taken_once_and_a_damaged_file_is_one_clear_error(tmp_path: Path) -> None:
    space, taken, told = toy_space(), list[str](), list[str]()

    def look(architecture: Architecture) -> float:
        taken.append(architecture.digest)
        return 0.1 + 0.2 if len(taken) > 1 else float("inf")

    (tmp_path / "config.toml").touch()
    run = Run(tmp_path)
    architectures = [space.full.with_width(space.groups[0].name, width) for width in (8, 16, 8)]
    glances = Glances(run, look, told.append)
    assert [glances(architecture) for architecture in architectures] == [float("inf"), 0.1 + 0.2, float("inf")]
    assert [Glances(run, look, told.append)(a) for a in architectures] == [float("inf"), 0.1 + 0.2, float("inf")]
    assert taken == [architecture.digest for architecture in architectures[:2]]
    (tmp_path / "glances.json").write_text('{"a": "far"}')
    with pytest.raises(RunError, match=r"glances\.json"):
        Glances(run, look, told.append)
