"""What ends a command from outside, a signal or a disk, ends it in order, with a word on how to go on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import pytest
from rich.text import Text

from understudy.cli import entry, main
from understudy.cli.runs import Runs
from understudy.core.errors import RunError

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals end a process there")
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in _SIGNALS}
    for number in _SIGNALS:  # as in a terminal: jobs in the background ignore some
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def stopped_by(monkeypatch: pytest.MonkeyPatch, *numbers: int) -> list[str]:
    """Let `understudy runs` get the first signal while it works, and the others while it tidies up."""
    done: list[str] = []

    def run(self: Runs, typed: Sequence[str]) -> int:
        try:
            os.kill(os.getpid(), numbers[0])
            done.append("went on")
            return 0
        finally:
            for number in numbers[1:]:
                os.kill(os.getpid(), number)
            done.append("tidied up")

    monkeypatch.setattr(Runs, "run", run)
    return done


@pytest.mark.parametrize(
    ("numbers", "code"),
    [
        ((signal.SIGINT,), 130),
        ((signal.SIGTERM,), 143),
        ((signal.SIGHUP,), 129),
        ((signal.SIGTERM, signal.SIGINT, signal.SIGINT), 143),
        ((signal.SIGINT, signal.SIGTERM), 130),
    ],
)
def test_a_signal_ends_a_command_in_order(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], numbers: tuple[int, ...], code: int
) -> None:
    done = stopped_by(monkeypatch, *numbers)
    assert main(["runs", "my runs"]) == code
    assert done == ["tidied up"]
    said = "stopped; nothing that was finished is lost. Continue with: understudy runs 'my runs'"
    assert said in " ".join(capsys.readouterr().err.split())


def test_a_signal_while_an_error_is_told_ends_a_command_in_order(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    told = entry._complain

    def complain(text: Text) -> None:
        if text.plain.startswith("error"):
            os.kill(os.getpid(), signal.SIGTERM)
        told(text)

    def run(self: Runs, typed: Sequence[str]) -> int:
        raise RunError("no run")

    monkeypatch.setattr(Runs, "run", run)
    monkeypatch.setattr(entry, "_complain", complain)
    assert main(["runs"]) == 143
    assert "Continue with: understudy runs" in capsys.readouterr().err


def test_a_signal_in_a_destructor_is_not_lost(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Dying:
        def __del__(self) -> None:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.01)  # here the handler is called, and what it raises is lost

    def run(self: Runs, typed: Sequence[str]) -> int:
        Dying()
        time.sleep(5.0)
        return 0

    monkeypatch.setattr(Runs, "run", run)
    hook = sys.unraisablehook
    assert main(["runs"]) == 143
    assert "Continue with" in capsys.readouterr().err
    assert sys.unraisablehook is hook


def test_a_signal_as_modules_load_ends_a_command_without_a_word() -> None:
    code = """
import os, signal, sys
from understudy.cli import main
assert not [name for name in sys.modules if name.startswith("understudy.c") and name != "understudy.cli"]

class Finder:
    def find_spec(self, name, *more):
        os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, Finder())
signal.signal(signal.SIGINT, signal.default_int_handler)
sys.exit(main(["runs"]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGINT, b"", b"")


@pytest.mark.slow
def test_a_signal_as_numpy_is_loaded_is_heard() -> None:
    code = """
import os, signal, sys
from understudy.cli import main

class Finder:
    def find_spec(self, name, *more):
        if name == "numpy.lib":
            os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, Finder())
signal.signal(signal.SIGINT, signal.default_int_handler)
sys.exit(main(["inspect", "zoo:vgg11"]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False, text=True)
    assert (done.returncode, done.stdout) == (130, "")
    assert done.stderr.strip().endswith("Continue with: understudy inspect zoo:vgg11")


def test_a_signal_that_was_kept_from_us_can_be_sent_again(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(self: Runs, typed: Sequence[str]) -> int:
        with suppress(BaseException):  # as a network's own code may
            os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGINT)
        return 0

    monkeypatch.setattr(Runs, "run", run)
    monkeypatch.setattr(entry, "_TIDYING", 0.01)
    assert main(["runs"]) == 130
    assert "Continue with" in capsys.readouterr().err


def test_how_to_go_on_is_said_also_where_it_cannot_be_found_out(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(self: Runs, typed: Sequence[str]) -> str:
        raise RecursionError

    stopped_by(monkeypatch, signal.SIGINT)
    monkeypatch.setattr(Runs, "again", fail)
    assert main(["runs"]) == 130
    assert "Continue with: understudy runs" in capsys.readouterr().err


def test_what_is_ignored_stays_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    done = stopped_by(monkeypatch, signal.SIGHUP)
    assert main(["runs"]) == 0
    assert done == ["went on", "tidied up"]


def test_handlers_are_as_they_were(tmp_path: Path) -> None:
    before = [signal.getsignal(number) for number in _SIGNALS]
    assert main(["runs", str(tmp_path)]) == 0
    assert [signal.getsignal(number) for number in _SIGNALS] == before


def test_a_closed_disk_is_one_message(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    errors = [PermissionError(13, "Permission denied", "my runs"), OSError("a mistake of ours")]

    def run(self: Runs, typed: Sequence[str]) -> int:
        raise errors.pop(0)

    monkeypatch.setattr(Runs, "run", run)
    assert main(["runs"]) == 2
    assert "error: files and folders must be accessible, but my runs is not" in capsys.readouterr().err
    with pytest.raises(OSError, match="a mistake of ours"):
        main(["runs"])


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no full device")
def test_an_error_that_cannot_be_printed_is_an_exit_code() -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run([sys.executable, "-m", "understudy", "resume", "nowhere"], stderr=full, check=False)
    assert done.returncode == 2
