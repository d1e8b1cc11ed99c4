from __future__ import annotations

import json
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.tiny import FACTORY, TEACHING, teach_tiny
from understudy.config.training import Device, Training
from understudy.core.errors import ConfigError, DataError, ModelError, RunError
from understudy.data import Data
from understudy.jobs.teach import load_teacher, teach
from understudy.training.loop import Progress


def weights(folder: Path) -> bytes:
    return (folder / "teacher.safetensors").read_bytes()


def test_settings_of_students_are_no_settings_of_a_teacher() -> None:
    message = r"training.loss must be ce where nobody teaches but the labels, but got 'mse'(.|\n)*device.cluster is for"
    with pytest.raises(ConfigError, match=message):
        replace(TEACHING, training=Training(loss="mse"), device=Device(cluster="auto"))


def test_folder_says_what_the_teacher_is(tmp_path: Path) -> None:
    data = Data.digits()
    teacher = teach_tiny(tmp_path / "t")
    card = json.loads((tmp_path / "t" / "teacher.json").read_text())
    assert (card["model"], card["arguments"]) == ("code/tiny.py:make", {"classes": 10, "in_channels": 1})
    assert (card["input"], card["mean"], card["std"]) == ([1, 8, 8], list(data.mean), list(data.std))
    assert card["data"] == {"source": "digits", "digest": data.digest}
    assert card["seconds"] > 0 and card["teaching"]["training"]["epochs"] == 3
    assert sorted(path.name for path in (tmp_path / "t").iterdir() if path.name[0] != ".") == [
        "code", "teacher.json", "teacher.safetensors", "teaching.json",
    ]  # fmt: skip
    with torch.no_grad():
        right = teacher.module(data.normalise(data.test.images)).argmax(1) == data.test.labels
    assert right.double().mean().item() == card["score"]["test"] > 0.5
    assert teacher.fit(data).mean == data.mean


def test_same_seed_same_weights_other_seed_others(tmp_path: Path) -> None:
    for name in ("a", "b"):
        teach_tiny(tmp_path / name)
    teach(FACTORY, Data.digits(), tmp_path / "c", teaching=replace(TEACHING, seed=1))
    assert weights(tmp_path / "a") == weights(tmp_path / "b") != weights(tmp_path / "c")


def test_goes_on_after_an_interruption(tmp_path: Path) -> None:
    def interrupt(progress: Progress) -> None:
        if progress.epoch == 2:
            raise KeyboardInterrupt

    teach_tiny(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        teach(FACTORY, Data.digits(), tmp_path / "parts", teaching=TEACHING, on_epoch=interrupt)
    with pytest.raises(ModelError, match="only an unfinished training"):
        load_teacher(tmp_path / "parts", trust_code=True)
    epochs: list[int] = []
    teach(FACTORY, Data.digits(), tmp_path / "parts", teaching=TEACHING, on_epoch=lambda p: epochs.append(p.epoch))
    assert epochs == [2, 3]  # an epoch counts once its checkpoint is written
    assert weights(tmp_path / "parts") == weights(tmp_path / "whole")


def test_a_finished_teacher_is_loaded(tmp_path: Path, monkeypatch: Any) -> None:
    teach_tiny(tmp_path / "t")
    monkeypatch.setattr(import_module("understudy.jobs.teach"), "train", None)
    (tmp_path / "t" / "checkpoint.pt").touch()  # of a process that was killed as it tidied up
    assert not teach_tiny(tmp_path / "t").module.training
    assert not (tmp_path / "t" / "checkpoint.pt").exists()


def test_another_training_is_refused(tmp_path: Path) -> None:
    teach_tiny(tmp_path / "t")
    other = replace(TEACHING, training=replace(TEACHING.training, epochs=4))
    with pytest.raises(RunError, match=r"training\.epochs was 3, is 4") as caught:
        teach(FACTORY, Data.digits(seed=1), tmp_path / "t", teaching=other)
    assert "data was " in str(caught.value)


def test_a_failed_training_says_why(tmp_path: Path) -> None:
    wild = replace(TEACHING, training=Training(epochs=2, optimizer="sgd", lr=1e30, loss="ce", gradient_clip=0))
    with pytest.raises(ConfigError, match="the training of a teacher must not fail, but it did: diverged"):
        teach(FACTORY, Data.digits(), tmp_path / "t", teaching=wild)


def test_impossible_settings_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"epochs must be at least 1"):
        teach(FACTORY, Data.digits(), tmp_path / "t", teaching=replace(TEACHING, training=Training(epochs=0)))


def test_classes_must_fit(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="one logit for each class"):
        teach(FACTORY, Data.digits(), tmp_path / "t", teaching=TEACHING, arguments={"classes": 3})


def test_a_folder_without_a_teacher(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"must have a teacher\.json, but .* has none"):
        load_teacher(tmp_path, trust_code=True)


@pytest.mark.parametrize(
    ("model", "data", "error", "text"),
    [
        (torch.nn.Linear(1, 1), Data.digits(), ModelError, "must have a name, .* but got a Linear"),
        (FACTORY, "digits", DataError, "data must be a us.Data, .* but got 'digits'"),
    ],
)
def test_other_kinds_are_refused_before_a_folder_is_made(
    model: Any, data: Any, error: type[Exception], text: str, tmp_path: Path
) -> None:
    with pytest.raises(error, match=text):
        teach(model, data, tmp_path / "t")
    assert not (tmp_path / "t").exists()
