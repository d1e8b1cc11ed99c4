"""Folders that cannot be used are refused before anything is done."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from understudy.core.errors import RunError
from understudy.runs.claim import claimed, refuse_unusable


def refusal(folder: Path) -> str:
    with pytest.raises(RunError) as caught:
        refuse_unusable(folder, markers=("mark",))
    return str(caught.value)


def test_a_folder_that_can_be_used_stays_as_it_is(tmp_path: Path) -> None:
    refuse_unusable(tmp_path / "a" / "b", markers=("mark",))
    assert not list(tmp_path.iterdir())
    (tmp_path / "mark").write_text("ours")
    refuse_unusable(tmp_path, markers=("mark",))
    assert {path.name for path in tmp_path.iterdir()} == {"mark", ".lock"}


def test_folders_of_others_in_use_or_closed_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "photo.png").write_text("")
    assert f"must be new, empty or hold a mark, but {tmp_path / 'other'} holds photo.png" in refusal(tmp_path / "other")
    assert "must be one, but" in refusal(tmp_path / "other" / "photo.png")
    (tmp_path / "link").symlink_to("nowhere")
    assert f"{tmp_path / 'link'} is a link to nowhere, which is not there" in refusal(tmp_path / "link")
    assert "cannot be made in" in refusal(tmp_path / "other" / "photo.png" / "run")
    (tmp_path / "odd" / ".lock").mkdir(parents=True)
    assert f"must be writable, but {tmp_path / 'odd'} is not: Is a directory" in refusal(tmp_path / "odd")
    with claimed(tmp_path / "busy", markers=("mark",), again=lambda: ""):
        assert "is in use by another" in refusal(tmp_path / "busy")
    monkeypatch.setattr(os, "access", lambda place, how: Path(place) != tmp_path)
    assert f"{tmp_path / 'a' / 'b'} cannot be made in {tmp_path}" in refusal(tmp_path / "a" / "b")


def test_a_file_system_without_locks_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fcntl = pytest.importorskip("fcntl")

    def flock(file: object, how: int) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", flock)
    assert refusal(tmp_path) == (
        f"a folder must lie on a file system that has locks, but that of {tmp_path} has none (Function not "
        "implemented): give a folder on another disk, such as a local one"
    )
