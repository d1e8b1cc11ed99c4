"""The run folder as others see it who only look."""

from __future__ import annotations

import fcntl
import threading
from pathlib import Path

from understudy.cli.entry import main
from understudy.config.job import Compression
from understudy.runs.folder import Identity, Run
from understudy.testing.landscapes import toy_evaluation, toy_space

SETTINGS, SPACE = Compression(), toy_space()
IDENTITY = Identity(teacher="teacher", data="data", space=SPACE.digest)


def content(folder: Path) -> dict[Path, tuple[int, bytes]]:
    return {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in folder.rglob("*") if path.is_file()}


def test_looking_at_runs_writes_nothing_and_keeps_nobody_out(tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "one"
    with Run.open(folder, SETTINGS, IDENTITY) as run:
        (folder / "space.json").write_text(SPACE.to_json())
        with run.store(SPACE) as store:
            store.add(toy_evaluation(SPACE.full))
        assert Run(folder).state == "running"
    before = content(folder)
    assert main(["runs", str(folder.parent)]) == 0
    assert Run(folder).state == "stopped" and len(Run(folder).evaluations()) == 1
    assert content(folder) == before
    with (folder / ".lock").open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_SH)  # as one who looks, at the very moment when the run is continued
        threading.Timer(0.2, lambda: fcntl.flock(file, fcntl.LOCK_UN)).start()
        with Run.open(folder, SETTINGS, IDENTITY):
            assert Run(folder).state == "running"
