"""The run folder as others see it who only look."""

from __future__ import annotations

import errno
import fcntl
import logging
import threading
from dataclasses import replace
from pathlib import Path
from typing import TextIO

import pytest

from understudy.cli.entry import main
from understudy.config.job import Compression
from understudy.core.errors import ConfigError, MachineError, RunError
from understudy.runs.folder import Identity, Run, runs_in
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


def test_settings_that_were_edited_are_refused(tmp_path: Path) -> None:
    folder = tmp_path / "one"
    with Run.open(folder, SETTINGS, IDENTITY):
        pass
    config = folder / "config.toml"
    written = config.read_text()
    config.write_text("# more at a time\n" + written.replace("workers = 1", "workers = 2"))
    with Run.open(folder, Run(folder).settings, IDENTITY) as run:
        assert run.settings.device.workers == 2
    config.write_text(written.replace("seed = 0", "seed = 1").replace("stop_below = 0.2", "stop_below = 0.0"))
    for settings in (SETTINGS, Run(folder).settings):
        with pytest.raises(RunError) as caught, Run.open(folder, settings, IDENTITY):
            pass
        assert "seed was 0, is 1" in str(caught.value) and "candidates.stop_below was 0.2" in str(caught.value)
    config.write_text(written)
    with Run.open(folder, SETTINGS, IDENTITY):
        pass


def test_settings_that_are_damaged_can_be_moved_away(tmp_path: Path) -> None:
    folder = tmp_path / "one"
    with Run.open(folder, SETTINGS, IDENTITY):
        pass
    config = folder / "config.toml"
    written = config.read_text()
    config.write_bytes(written.encode()[:20] + b"\xff")
    with pytest.raises(ConfigError, match=r"config\.toml .* is damaged at byte 20. Mend it or move it away"):
        Run(folder).settings  # noqa: B018
    config.unlink()
    assert runs_in(tmp_path) == [folder] and Run(folder).settings == SETTINGS
    Run.refuse(folder)
    with pytest.raises(RunError, match="seed was 0, is 1"), Run.open(folder, replace(SETTINGS, seed=1), IDENTITY):
        pass
    assert config.read_text() == written
    (folder / "identity.json").unlink()
    config.write_text("{")
    with pytest.raises(ConfigError, match=r"config\.toml is not: .* Mend it or give another run folder"):
        Run(folder).settings  # noqa: B018


@pytest.mark.parametrize(("code", "flag"), [(False, ""), (True, " --trust-code")])
def test_how_to_go_on_is_said_with_the_flag_that_its_code_needs(code: bool, flag: str, tmp_path: Path) -> None:
    def fail(folder: Path, data: dict[str, str] | None) -> None:
        with Run.open(folder, SETTINGS, IDENTITY) as run:
            run.remember("source", {"model": {"name": "zoo:resnet20"}, "data": data})
            if code:
                (folder / "code").mkdir()
            raise MachineError("no memory")

    again = f"continue with: the same call or command, or understudy resume '{tmp_path / 'one run'}'{flag}$"
    with pytest.raises(MachineError, match=again):
        fail(tmp_path / "one run", {"spec": "digits"})
    with pytest.raises(MachineError, match=r"continue with: the same call or command$"):
        fail(tmp_path / "of Python", None)


def test_a_log_on_a_full_disk_prints_no_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(self: logging.StreamHandler[TextIO]) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(logging.FileHandler, "flush", refuse)
    with Run.open(tmp_path / "one", SETTINGS, IDENTITY):
        logging.getLogger("understudy").info("a line")
        monkeypatch.undo()
    assert "Traceback" not in capsys.readouterr().err
