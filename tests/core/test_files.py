from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from understudy.core.architecture import Space
from understudy.core.errors import DamageError, DataError, RunError
from understudy.core.files import path_of, read_json, sweep, trouble_of, understood, write_json, write_whole
from understudy.runs.folder import Run


def test_writes_text_and_bytes_into_new_folders(tmp_path: Path) -> None:
    write_whole(tmp_path / "a" / "b.txt", "grün")
    write_whole(tmp_path / "a" / "b.bin", memoryview(b"\x00\x01"))
    assert (tmp_path / "a" / "b.txt").read_text(encoding="utf-8") == "grün"
    assert (tmp_path / "a" / "b.bin").read_bytes() == b"\x00\x01"
    assert len(list((tmp_path / "a").iterdir())) == 2


def test_a_changed_field_is_noticed_and_the_layout_does_not_matter(tmp_path: Path) -> None:
    path, values = tmp_path / "teacher.json", {"score": 0.1 + 0.2, "splits": (1, None), "name": "grün"}
    write_json(path, values)
    read = {**values, "splits": [1, None]}
    assert read_json(path, RunError) == read
    found = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(dict(reversed(found.items())), ensure_ascii=False), encoding="utf-8")
    assert read_json(path, RunError) == read
    path.write_text(json.dumps({**found, "score": 0.4}), encoding="utf-8")
    with pytest.raises(RunError, match=r'teacher\.json must be as it was written, but is damaged: .* its "sum"; take'):
        read_json(path, RunError)
    del found["sum"]  # as in what earlier versions wrote, or a user who knows better
    path.write_text(json.dumps({**found, "score": 0.4}), encoding="utf-8")
    assert read_json(path, RunError)["score"] == 0.4


class Where(os.PathLike[str]):
    """A path of somebody else's class."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __fspath__(self) -> str:
        return str(self.path)


def test_a_path_may_begin_at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    assert path_of("~/runs", "data", DataError) == tmp_path / "runs"
    assert path_of("~nobody here/runs", "data", DataError) == Path("~nobody here/runs")


def test_what_is_no_path_is_said_so(tmp_path: Path) -> None:
    assert path_of(str(tmp_path), "data", DataError) == path_of(tmp_path, "data", DataError) == tmp_path
    assert path_of(Where(tmp_path), "data", DataError) == tmp_path
    with pytest.raises(DataError, match=r"^data must be a path, but got a NoneType$"):
        path_of(None, "data", DataError)


@pytest.mark.skipif(sys.platform == "win32", reason="limits of a process")
def test_a_file_that_may_not_be_as_large_is_named(tmp_path: Path) -> None:
    code = (
        "import resource, sys\nfrom pathlib import Path\nfrom understudy.core.files import trouble_of, write_whole\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "try:\n    write_whole(Path(sys.argv[1]), bytes(5000))\nexcept OSError as error:\n    print(trouble_of(error))"
    )
    done = subprocess.run([sys.executable, "-c", code, tmp_path / "large"], capture_output=True, text=True)
    assert done.stdout == (
        f"a file may have only so many bytes here, but {tmp_path / 'large'} needs more: raise that limit (ulimit -f)\n"
    )
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["x" * 300, "a\0b", "circle"])
def test_what_the_system_does_not_take_is_said_so(name: str, tmp_path: Path) -> None:
    (tmp_path / "circle").symlink_to(tmp_path / "circle")
    with pytest.raises(DataError, match=r"^data must be a path that can be reached, but '.*' is not: "):
        path_of(tmp_path / name, "data", DataError)
    with pytest.raises(RunError, match="the folder must be a path that can be reached"):
        Run.refuse(tmp_path / name)


def test_what_was_read_back_is_told_with_its_file() -> None:
    with (
        pytest.raises(DamageError, match=r"space.json must be as it was written, but is damaged: a Space must be what"),
        understood(Path("space.json"), DamageError),
    ):
        Space.from_json("{}")


def test_a_writer_that_dies_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def die(file: int) -> None:
        raise KeyboardInterrupt

    write_whole(tmp_path / "x", "old")
    monkeypatch.setattr("os.fsync", die)
    with pytest.raises(KeyboardInterrupt):
        write_whole(tmp_path / "x", "new")
    assert (tmp_path / "x").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["x"]
    (tmp_path / "x.machine-1-0.partial").write_text("ne")  # of a process that could not tidy up
    sweep(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(errno.ENOSPC, "full", "a/b"), "there must be space on the disk, but there is none left for a/b"),
        (OSError(errno.ENOSPC, "full"), "there must be space on the disk, but there is none left for what is written"),
        (OSError(errno.EROFS, "Read-only", "a/b"), "files and folders must be accessible, but a/b is not: Read-only"),
        (OSError(errno.EISDIR, "No", "a.partial", None, "a"), "files and folders must be accessible, but a is not: No"),
        (OSError(errno.EIO, "of another kind"), None),
        (OSError("no number"), None),
    ],
)
def test_what_a_user_can_mend_of_a_disk(error: OSError, said: str | None) -> None:
    assert trouble_of(error) == said
