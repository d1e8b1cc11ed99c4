"""A run remembers what was proved of its teacher; going on does not prove it again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import understudy as us
from tests.support.tiny import Tiny, outcome, squeeze, teach_tiny
from understudy.core.errors import RunError
from understudy.core.files import write_json
from understudy.graph.analysis import analyse
from understudy.jobs import task
from understudy.jobs.task import proved


def test_a_run_that_goes_on_takes_what_it_has_proved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def proves(*_: object, **__: object) -> None:
        raise AssertionError("proved again")

    teacher = teach_tiny(tmp_path / "teacher")
    squeeze(teacher, tmp_path / "run")
    before = outcome(tmp_path / "run")
    (tmp_path / "run" / "summary.json").unlink()
    monkeypatch.setattr(task, "prove", proves)
    squeeze(teacher, tmp_path / "run")
    assert outcome(tmp_path / "run") == before


def test_what_was_refused_stays_refused(tmp_path: Path) -> None:
    squeeze(Tiny(), tmp_path / "run")
    file = tmp_path / "run" / "proof.json"
    said = json.loads(file.read_text())
    analysis = analyse(Tiny(), us.Data.digits().train.images[:2].float())
    assert "first.0" in {group.name for group in analysis.space.groups}
    said["refused"] = [{"kind": "group", "name": "first.0", "reason": "off by 0.5"}]
    write_json(file, said)
    narrowed, proof = proved(analysis, tmp_path / "run")
    assert "first.0" not in {group.name for group in narrowed.space.groups}
    assert [found.reason for found in proof.refused] == ["off by 0.5"]
    write_json(file, {**said, "refused": 3})
    with pytest.raises(RunError, match=r"proof\.json"):
        proved(analysis, tmp_path / "run")
