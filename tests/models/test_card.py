from __future__ import annotations

import json
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest

from tests.support.cards import card
from understudy.core.errors import ModelError
from understudy.core.summary import Asked, Score
from understudy.core.timing import Comparison, Timing
from understudy.models.card import NetworkCard, StudentCard, TeacherCard

ASKED = Asked(name="params", asked="10x", limit=5.0, obtained=4.0)
TIME = Timing(median=2.0, low=1.0, high=3.0)
FULL = replace(
    card(model="zoo:resnet20", width=16),
    starts=('{"space": "a"}',),
    teacher=replace(card().teacher, test=Score(value=0.25, examples=4)),
    latency=(Comparison(where="1 thread", first=TIME, second=TIME, ratio=TIME),),
    goal=(ASKED,),
    versions={"torch": "2"},
)


@pytest.mark.parametrize("there", [card(), FULL])
def test_what_is_written_is_read(there: StudentCard, tmp_path: Path) -> None:
    there.write(tmp_path)
    assert StudentCard.read(tmp_path) == there
    assert StudentCard.from_json(there.to_json()) == there


def test_the_file_says_its_format_and_which_budgets_are_kept(tmp_path: Path) -> None:
    FULL.write(tmp_path)
    found = json.loads((tmp_path / "model.json").read_text())
    assert found["format"] == 2 and found["goal"][0]["kept"] is True
    assert found["data"] == {"source": "digits", "digest": "1" * 16}


@pytest.mark.parametrize(
    ("changed", "text"),
    [
        ({"input": [1, 8]}, "input must be channels, height and width, but got"),
        ({"input": 3}, "is damaged: TypeError"),
        ({"mean": [0.5, 0.5]}, "mean and std must be of 1 channels"),
        ({"std": [0.0]}, "std above 0"),
        ({"mean": ["a"]}, "is damaged: ValueError: could not convert string to float"),
        ({"classes": []}, "classes must be at least one"),
        ({"model": 5}, "model must be a name or null"),
        ({"arguments": [1]}, "model must be a name or null, with arguments by name"),
        ({"data": "digits"}, "is damaged: TypeError"),
        ({"teacher": {"val": None}}, "is damaged: KeyError"),
        ({"student": {"cost": {"parameters": 1}, "val": None, "test": None}}, "is damaged: TypeError"),
        ({"goal": [{"asked": "10x"}]}, "is damaged: TypeError"),
        ({"classes": [0, 1]}, "classes must be at least one, and texts"),
        ({"starts": [0]}, "starts must be texts"),
        ({"latency": [{"where": "here"}]}, "is damaged: KeyError"),
        ({"format": 3}, "has format 3, but this version of understudy reads format 2: pip install --upgrade"),
        (
            {"format": 1},
            "has format 1, but this version of understudy reads format 2: make it anew, or use the version",
        ),
    ],
)
def test_a_damaged_card_is_one_error(changed: dict[str, Any], text: str, tmp_path: Path) -> None:
    (tmp_path / "model.json").write_text(json.dumps({**card().to_json(), **changed}))
    with pytest.raises(ModelError, match=text) as caught:
        StudentCard.read(tmp_path)
    assert str(tmp_path) in str(caught.value)


def test_a_run_is_not_its_student(tmp_path: Path) -> None:
    (tmp_path / "student").mkdir()
    (tmp_path / "student" / "model.json").write_text(json.dumps(card().to_json()))
    with pytest.raises(ModelError, match=rf"must have a model\.json, but {tmp_path} has none; {tmp_path}/student has"):
        StudentCard.read(tmp_path)


def test_what_a_card_lacks_is_listed(tmp_path: Path) -> None:
    values = card().to_json()
    (tmp_path / "model.json").write_text(json.dumps({k: v for k, v in values.items() if k not in ("mean", "std")}))
    with pytest.raises(ModelError, match=r"model\.json must say what the network is, but lacks mean, std"):
        StudentCard.read(tmp_path)


TEACHER = TeacherCard(
    **{field.name: getattr(card(model="zoo:resnet20", width=16), field.name) for field in fields(NetworkCard)},
    teaching={"seed": 0},
    compute="cpu fp32",
    start=None,
    val=0.75,
    test=None,
    seconds=1.5,
)


def test_a_teachers_card_is_read_as_it_was_written(tmp_path: Path) -> None:
    TEACHER.write(tmp_path)
    assert TeacherCard.read(tmp_path) == TEACHER
    assert json.loads((tmp_path / "teacher.json").read_text())["score"] == {"val": 0.75, "test": None}


@pytest.mark.parametrize(
    ("changed", "text"),
    [
        ({"model": None}, "model must be a name, but got None"),
        ({"score": {"val": 75.0, "test": None}}, r"score of val must be in 0\.\.1 or null, but got 75"),
        ({"score": 3}, "is damaged: TypeError"),
        ({"data": {}}, "is damaged: KeyError"),
        ({"std": [0.0]}, "std above 0"),
        ({"cost": 1}, "must be one that `understudy teach` made, but"),
    ],
)
def test_a_damaged_card_of_a_teacher_is_one_error(changed: dict[str, Any], text: str, tmp_path: Path) -> None:
    (tmp_path / "teacher.json").write_text(json.dumps({**TEACHER.to_json(), **changed}))
    with pytest.raises(ModelError, match=text) as caught:
        TeacherCard.read(tmp_path)
    assert str(tmp_path) in str(caught.value)
