"""Each line that begins with "next:" is a command that works as it is printed."""

from __future__ import annotations

import json
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.cli.test_commands import PINNED, QUICK
from understudy.cli import main
from understudy.core.files import write_json

MODEL = """
import torch

class Net(torch.nn.Module):
    def __init__(self, in_channels, classes, width):
        super().__init__()
        self.first = torch.nn.Conv2d(in_channels, width, 3)
        self.second = torch.nn.Linear(width, classes)

    def forward(self, images):
        return self.second(self.first(images).relu().mean((2, 3)))

def make(in_channels=1, classes=2, width=8):
    return Net(in_channels, classes, width)
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty folder with a space in its name, a network of the user's own and photos without a test split."""
    place = tmp_path / "my project"
    place.mkdir()
    monkeypatch.chdir(place)
    monkeypatch.setattr(sys, "path", [*sys.path])
    (place / "model.py").write_text(MODEL)
    numbers = np.random.default_rng(0)
    for label, level in (("dark", 60), ("light", 190)):
        (place / "my photos" / "train" / label).mkdir(parents=True)
        for number in range(30):
            pixels = numbers.integers(level - 60, level + 60, (9, 9, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(place / "my photos" / "train" / label / f"{number}.png")
    yield place
    sys.modules.pop("model", None)  # each test has a file of that name


def run(*args: str) -> int:
    """Run a command with settings so small that it takes a second."""
    quick = {"compress": QUICK, "teach": ["--training.epochs=8", "--training.lr=0.01", *PINNED]}.get(args[0], [])
    return main([*args, *(flag for flag in quick if not any(flag.partition("=")[0] == arg for arg in args))])


def next_line(capsys: pytest.CaptureFixture[str]) -> list[str]:
    """Return the arguments of the command that was printed as what comes next."""
    (line,) = re.findall(r"^next: understudy (.*)$", capsys.readouterr().out, re.MULTILINE)
    return shlex.split(line)


def test_each_step_leads_to_the_next(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photos = ["--data", "my photos", "--size", "8", "--grey"]
    assert run("teach", "model.py:make", *photos, "--out", "my teacher") == 0
    compress = next_line(capsys)
    assert compress[:3] == ["compress", "my teacher", "--trust-code"] and compress[-2:] == ["--run", "runs/first"]
    assert run(*compress, "--dry-run") == 0
    again = next_line(capsys)
    assert again[: len(compress)] == compress and "--dry-run" not in again
    assert main(again) == 0
    evaluate = next_line(capsys)
    assert main(evaluate) == 0  # there is no test split: it must ask for the validation split
    assert re.search(r"of \d+ val images", capsys.readouterr().out)
    assert main(["runs"]) == 0
    assert next_line(capsys) == evaluate


def test_weights_and_arguments_are_not_lost(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photos = ["--data", "my photos", "--size", "8"]
    assert run("teach", "model.py:make", *photos, "--arguments", "width=16", "--out", "teacher") == 0
    assert next_line(capsys)[:2] == ["compress", "teacher"]
    model = ["model.py:make", "--arguments", "width=16", "--weights", "teacher/teacher.safetensors"]
    mean = ["--mean", "0.5", "0.5", "0.5", "--std", "0.25", "0.25", "0.25"]
    assert run("compress", *model, *photos, *mean, "--params=2x", "--run=runs/own", "--dry-run") == 0
    again = next_line(capsys)
    assert [word for word in (*model, *photos, *mean) if word not in again] == []
    assert main(again) == 0
    assert main(next_line(capsys)) == 0
    shape = ["--size", "8", "--arguments", "width=16", "in_channels=3"]
    assert main(["inspect", "model.py:make", "--weights", "teacher/teacher.safetensors", *shape]) == 0
    pattern = capsys.readouterr().out
    assert "next:" not in pattern  # the folder of the images is not known
    assert (
        "compress model.py:make --arguments width=16 in_channels=3 --size 8 --weights teacher/teacher.safetensors"
        in pattern
    )
    assert main(["runs", "nowhere"]) == 0
    with pytest.raises(SystemExit, match="0"):
        main(next_line(capsys))


def test_resume_is_offered_where_it_can_work(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photos = ["--data", "my photos", "--size", "8"]
    assert run("teach", "model.py:make", *photos, "--out", "teacher") == 0
    assert run("compress", "teacher", "--trust-code", *photos, "--params=2x", "--run=runs/a") == 0
    (place / "runs/a/summary.json").unlink()  # as if it had been stopped before its end
    capsys.readouterr()
    assert main(["runs"]) == 0
    resume = next_line(capsys)
    assert main(resume) == 0 and resume == ["resume", "runs/a", "--trust-code"]
    source = place / "runs/a/source.json"
    write_json(source, {**json.loads(source.read_text()), "data": None})  # as if Python had started it
    (place / "runs/a/summary.json").unlink()
    capsys.readouterr()
    assert main(["runs"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "next:" not in shown and "call compress() as before, with run='runs/a'" in shown


def test_a_run_stands_for_its_student(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photos = ["--data", "my photos", "--size", "8"]
    assert run("teach", "model.py:make", *photos, "--out", "teacher") == 0
    assert run("compress", "teacher", "--trust-code", *photos, "--params=2x", "--run=runs/a") == 0
    assert main(["evaluate", "runs/a", "--data", "my photos", "--split", "val", "--trust-code"]) == 0
    assert main(["resume", "runs"]) == 2
    assert "a run must be one folder, but runs holds runs/a" in capsys.readouterr().err
    assert main(["evaluate", "runs", "--data", "my photos"]) == 2
    assert "a student must be in one folder, but runs holds the runs runs/a" in capsys.readouterr().err
    (place / "runs/a/student/model.json").unlink()
    assert main(["evaluate", "runs/a", "--data", "my photos", "--split", "val"]) == 2
    assert "has none yet: understudy resume runs/a --trust-code" in " ".join(capsys.readouterr().err.split())
