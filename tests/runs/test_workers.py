from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from understudy.core.architecture import Architecture
from understudy.core.errors import RunError, SurgeryError
from understudy.core.evaluation import Evaluation
from understudy.runs.workers import Pool, refuse_reimport
from understudy.testing.landscapes import toy_evaluation, toy_space

SPACE = toy_space()
GROUP = SPACE.groups[0].name
ARCHITECTURES = [SPACE.full.with_width(GROUP, width) for width in (8, 16, 24, 32, 40)]


def failed(architecture: Architecture, error: str) -> Evaluation:
    return toy_evaluation(architecture).with_error(error)


class Unpicklable(Exception):
    def __init__(self, one: int, two: int) -> None:
        super().__init__(f"{one} and {two}")


@dataclass(frozen=True)
class Toy:
    """Evaluates at once, but for the widths for which something else is to happen."""

    tensor: Any = None
    die: int = 0
    kill: int = 0
    surgery: int = 0
    strange: int = 0
    mark: bool = False  # puts the number of the process where the seed belongs

    def __call__(self, architecture: Architecture) -> Evaluation:
        width = architecture.width(GROUP)
        if width == self.die:
            os._exit(3)
        if width == self.kill:
            os.kill(os.getpid(), signal.SIGKILL)
        if width == self.surgery:
            raise SurgeryError(f"at width {width}")
        if width == self.strange:
            raise Unpicklable(1, 2)
        if self.tensor is not None:
            return replace(toy_evaluation(architecture), accuracy=float(self.tensor.sum()))
        if self.mark:
            return replace(toy_evaluation(architecture), seed=os.getpid())
        return toy_evaluation(architecture)


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_any_number_of_workers_gives_the_same(workers: int) -> None:
    want = [toy_evaluation(a) for a in ARCHITECTURES]
    told: list[Evaluation] = []
    with Pool(Toy(), failed=failed, workers=workers) as pool:
        assert pool.evaluate_all(ARCHITECTURES, on_done=told.append) == want
        assert pool.evaluate_all([]) == []
    assert sorted(told, key=lambda e: e.key) == sorted(want, key=lambda e: e.key)


def test_one_worker_is_this_process_and_two_are_others_that_stay() -> None:
    with Pool(Toy(mark=True), failed=failed) as pool:
        assert {e.seed for e in pool.evaluate_all(ARCHITECTURES)} == {os.getpid()}
    with Pool(Toy(mark=True), failed=failed, workers=2) as pool:
        first = {e.seed for e in pool.evaluate_all(ARCHITECTURES)}
        assert len(first) == 2 and os.getpid() not in first
        assert {e.seed for e in pool.evaluate_all(ARCHITECTURES * 2)} == first


def test_no_more_processes_are_started_than_there_is_work() -> None:
    with Pool(Toy(), failed=failed, workers=8) as pool:
        assert pool._workers == []
        pool.evaluate_all(ARCHITECTURES[:1])
        assert len(pool._workers) == 1


def test_tensors_reach_the_workers() -> None:
    import torch  # not above, because every worker imports this file

    with Pool(Toy(tensor=torch.full((64, 64), 0.5**12)), failed=failed, workers=2) as pool:
        assert [e.accuracy for e in pool.evaluate_all(ARCHITECTURES)] == [1.0] * len(ARCHITECTURES)


@pytest.mark.parametrize(
    ("toy", "why"),
    [
        (Toy(die=16), "the worker process ended with exit code 3"),
        (Toy(kill=16), "the worker process was ended by SIGKILL (memory ran out?)"),
    ],
)
def test_a_worker_that_dies_fails_its_architecture_only(toy: Toy, why: str) -> None:
    want = [toy_evaluation(a) for a in ARCHITECTURES]
    want[1] = failed(ARCHITECTURES[1], why)
    told: list[Evaluation] = []
    with Pool(toy, failed=failed, workers=2) as pool:
        assert pool.evaluate_all(ARCHITECTURES, on_done=told.append) == want
        assert pool.evaluate_all(ARCHITECTURES[2:]) == want[2:]
    assert want[1] in told and len(told) == len(want)


def test_a_worker_that_died_while_idle_is_replaced() -> None:
    with Pool(Toy(mark=True), failed=failed, workers=2) as pool:
        first = {e.seed for e in pool.evaluate_all(ARCHITECTURES[:2])}
        for pid in first:
            os.kill(pid, signal.SIGKILL)
        for worker in pool._workers:
            worker.process.join()
        second = pool.evaluate_all(ARCHITECTURES[:2])
        assert [e.status for e in second] == ["ok", "ok"]
        assert not first & {e.seed for e in second}


@pytest.mark.parametrize("workers", [1, 2])
def test_an_error_is_raised_here_and_the_pool_goes_on(workers: int) -> None:
    with Pool(Toy(surgery=8), failed=failed, workers=workers) as pool:
        with pytest.raises(SurgeryError, match="at width 8") as caught:
            pool.evaluate_all(ARCHITECTURES)
        if workers > 1:
            assert "in __call__\n" in caught.value.__notes__[0]
        assert pool.evaluate_all(ARCHITECTURES[1:]) == [toy_evaluation(a) for a in ARCHITECTURES[1:]]


def test_an_error_that_cannot_be_pickled_is_told() -> None:
    with Pool(Toy(strange=8), failed=failed, workers=2) as pool, pytest.raises(RuntimeError, match="1 and 2"):
        pool.evaluate_all(ARCHITECTURES)


def test_an_error_of_on_done_ends_the_workers() -> None:
    def full(evaluation: Evaluation) -> None:
        raise RunError("no room")

    with Pool(Toy(), failed=failed, workers=2) as pool:
        with pytest.raises(RunError, match="no room"):
            pool.evaluate_all(ARCHITECTURES, on_done=full)
        assert pool._workers == []


def test_what_cannot_be_pickled_is_named() -> None:
    lock = threading.Lock()
    evaluate = [lambda a: toy_evaluation(a), Toy(tensor=lock)]
    said = r"must be picklable.*but it is not: .*; or use workers=1"
    for one in evaluate:
        with Pool(one, failed=failed, workers=2) as pool, pytest.raises(RunError, match=said):
            pool.evaluate_all(ARCHITECTURES)


def test_refuse_reimport_lets_others_pass() -> None:
    refuse_reimport()
    with Pool(Reimport(), failed=failed, workers=2) as pool:
        assert pool.evaluate_all(ARCHITECTURES[:1]) == [toy_evaluation(ARCHITECTURES[0])]


class Reimport:
    def __call__(self, architecture: Architecture) -> Evaluation:
        refuse_reimport()  # a worker that works is none that imports
        return toy_evaluation(architecture)


PRELUDE = """
import os, sys, time
from understudy.core.errors import UnderstudyError
from understudy.testing.landscapes import toy_evaluation, toy_space
from understudy.runs.workers import Pool

space = toy_space()
architectures = [space.full.with_width(space.groups[0].name, width) for width in (8, 16, 24, 32)]

def failed(architecture, error):
    return toy_evaluation(architecture).with_error(error)

def evaluate(architecture):
    return toy_evaluation(architecture)

def slowly(architecture):
    for _ in range(600):
        with open(f"{sys.argv[1]}/{os.getpid()}", "a") as beat:
            beat.write(".")
        time.sleep(0.02)
    return toy_evaluation(architecture)

def main(evaluate=evaluate):
    try:
        with Pool(evaluate, failed=failed, workers=2) as pool:
            print(len(pool.evaluate_all(architectures)))
    except UnderstudyError as error:
        print(error)
"""


@pytest.fixture
def script(tmp_path: Path) -> Callable[[str], list[str]]:
    def command(end: str) -> list[str]:
        (tmp_path / "script.py").write_text(PRELUDE + end)
        (tmp_path / "beats").mkdir()
        return [sys.executable, str(tmp_path / "script.py"), str(tmp_path / "beats")]

    return command


def test_a_script_with_the_guard_works(script: Callable[[str], list[str]]) -> None:
    done = subprocess.run(script('if __name__ == "__main__":\n    main()'), capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("4\n", "")


def test_a_script_without_the_guard_is_told_in_one_line(script: Callable[[str], list[str]]) -> None:
    done = subprocess.run(script("main()"), capture_output=True, text=True)
    said = 'a script that uses workers > 1 must make its calls below `if __name__ == "__main__":`, '
    assert (done.stdout, done.stderr) == (f"{said}but this one has no such line\n", "")


def test_a_class_that_workers_cannot_import_is_named() -> None:
    done = subprocess.run([sys.executable, "-c", PRELUDE + "main()"], capture_output=True, text=True)
    assert done.stdout.startswith("with workers > 1 the teacher's class must be in a module that can be imported, but")
    assert "'evaluate'" in done.stdout and done.stdout.endswith("or use workers=1\n")
    assert done.stderr == ""


def test_a_script_that_fails_to_import_is_told(script: Callable[[str], list[str]]) -> None:
    end = 'if __name__ == "__main__":\n    main()\nelse:\n    raise OSError("not again")'
    done = subprocess.run(script(end), capture_output=True, text=True)
    assert "a worker must be able to start, but it ended with exit code 1; its own error stands above" in done.stdout
    assert "OSError: not again" in done.stderr


def beats(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_size for path in folder.iterdir()}


def wait_until(condition: Callable[[], bool], seconds: float = 30.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_no_worker_outlives_the_driver(script: Callable[[str], list[str]], tmp_path: Path, how: signal.Signals) -> None:
    # A suite that runs in a shell's background hands down an ignored SIGINT.
    heed = "    import signal\n    signal.signal(signal.SIGINT, signal.default_int_handler)\n"
    command = script(f'if __name__ == "__main__":\n{heed}    main(slowly)')
    driver = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    folder = tmp_path / "beats"
    wait_until(lambda: len(beats(folder)) == 2)
    driver.send_signal(how)
    _, stderr = driver.communicate(timeout=120)
    # SIGINT came to the driver alone: one traceback, its own.
    assert stderr.count("Traceback") == (how is signal.SIGINT)

    def silent() -> bool:
        before = beats(folder)
        time.sleep(0.3)
        return beats(folder) == before

    wait_until(silent)


@dataclass(frozen=True)
class Slow:
    """Takes its time."""

    def __call__(self, architecture: Architecture) -> Evaluation:
        time.sleep(2.5)
        return toy_evaluation(architecture)


def test_the_driver_is_called_while_it_waits_for_workers() -> None:
    calls: list[float] = []
    with Pool(Slow(), failed=failed, workers=2, on_wait=lambda: calls.append(time.monotonic())) as pool:
        assert len(pool.evaluate_all(ARCHITECTURES[:2])) == 2
    assert calls
