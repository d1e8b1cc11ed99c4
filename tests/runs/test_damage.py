"""A file of a run or a student that is cut short or overwritten is one clear error, or changes nothing."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import understudy as us
from tests.support.tiny import CANDIDATES, DEVICE, FINAL, METHOD, WIDTHS, Tiny, outcome
from understudy.config.job import Compression
from understudy.core.errors import UnderstudyError
from understudy.core.goal import Goal
from understudy.data import Data, sources
from understudy.jobs.compress import run_task
from understudy.jobs.task import Task
from understudy.models.weights import save_weights
from understudy.report.tables import run_row, runs_table
from understudy.runs.folder import Run, runs_in

Damage = Callable[[bytes], bytes]


def cut(content: bytes) -> bytes:
    return content[: len(content) // 2]


def overwritten(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes(byte ^ 0xA5 for byte in content[middle : middle + 64]) + content[middle + 64 :]


def miscounted(content: bytes) -> bytes:
    """Change the first digit, which leaves a file of text readable."""
    return re.sub(rb"\d", lambda digit: bytes([digit[0][0] ^ 1]), content, count=1)


def emptied(content: bytes) -> bytes:
    return b""


@pytest.fixture(scope="module")
def task() -> Task:
    images, labels = sources.digits()
    data = Data.from_arrays(images[:200], labels[:200], test=(images[200:300], labels[200:300]))
    torch.manual_seed(0)
    settings = Compression(
        method=METHOD, widths=WIDTHS, candidates=CANDIDATES, final=FINAL, device=DEVICE, goal=Goal(params="2x")
    )
    return Task.of(Tiny(), data, settings)


@pytest.fixture(scope="module")
def finished(task: Task, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "finished"
    run_task(task, folder, progress=False, untrained=True).save(folder / "student")
    return folder


@pytest.fixture(scope="module")
def interrupted(task: Task, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was stopped while its second final student was trained."""
    folder = tmp_path_factory.mktemp("runs") / "interrupted"
    saved = 0

    def stop(path: Path, student: torch.nn.Module) -> None:
        nonlocal saved
        saved += 1
        if saved == 2:
            raise KeyboardInterrupt
        save_weights(path, student)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("understudy.jobs.finals.save_weights", stop)
        with pytest.raises(KeyboardInterrupt):
            run_task(task, folder, progress=False, untrained=True)
    return folder


def go_on(task: Task, folder: Path) -> tuple[str, us.Result | None]:
    """Go on with a run; return the error if there is one, or the result."""
    try:
        runs_table([run_row(Run(path)) for path in runs_in(folder)])
        return "", run_task(task, folder, progress=False, untrained=True)
    except UnderstudyError as error:
        return str(error), None


def moved_away(task: Task, folder: Path, name: Path, error: str) -> tuple[str, us.Result | None]:
    """Do what an error says about a damaged file, and go on; return what `go_on` does."""
    result = None
    if "move it away" in error or "delete it" in error:
        (folder / name).unlink()
        error, result = go_on(task, folder)
    if "summary.json away as well" in error:
        (folder / "summary.json").unlink()
        error, result = go_on(task, folder)
    assert result is not None, error
    return error, result


def same(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True))


@pytest.mark.parametrize("damage", [cut, overwritten, emptied, miscounted])
@pytest.mark.parametrize("which", ["finished", pytest.param("interrupted", marks=pytest.mark.slow)])
def test_damage_to_a_run(
    task: Task, finished: Path, interrupted: Path, which: str, damage: Damage, tmp_path: Path
) -> None:
    folder = finished if which == "finished" else interrupted
    _, expected = go_on(task, finished)
    assert expected is not None
    noticed = set()
    for number, name in enumerate(sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())):
        copy = tmp_path / str(number)
        shutil.copytree(folder, copy)
        (copy / name).write_bytes(damage((copy / name).read_bytes()))
        error, result = go_on(task, copy)
        if result is None:
            noticed.add(str(name))
            assert str(copy) in error
            error, result = moved_away(task, copy, name, error)
        if result is not None:
            assert outcome(copy)[0] == outcome(finished)[0], f"{name} was damaged, and nobody noticed"
            assert same(result.student, expected.student), f"{name} was damaged, and nobody noticed"
        shutil.rmtree(copy)
    assert noticed >= {"config.toml", "identity.json"}


@pytest.mark.parametrize("damage", [cut, overwritten, emptied, miscounted])
def test_damage_to_a_student(finished: Path, damage: Damage, tmp_path: Path) -> None:
    folder, images = finished / "student", torch.rand(2, 1, 8, 8)
    expected = us.load_student(folder, Tiny())(images)
    noticed = {}
    for name in sorted(path.name for path in folder.iterdir()):
        copy = tmp_path / name
        shutil.copytree(folder, copy)
        (copy / name).write_bytes(damage((copy / name).read_bytes()))
        try:
            assert torch.equal(us.load_student(copy, Tiny())(images), expected), f"{name}: nobody noticed"
        except UnderstudyError as error:
            noticed[name] = str(error)
    assert all(f"/{name}" in error for name, error in noticed.items())
    assert "understudy resume RUN" in noticed["student.safetensors"]
    assert noticed.keys() == {"architecture.json", "model.json", "student.safetensors"}
