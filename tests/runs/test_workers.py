from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path

import pytest

from tests.support.evaluators import ARCHITECTURES, KilledAtStart, Locked, Reimport, Slow, Toy, failed, in_a_daemon
from understudy.core.errors import CrashError, DataError, MachineError, RunError, SurgeryError
from understudy.core.evaluation import Evaluation
from understudy.runs.journal import Journal
from understudy.runs.workers.local import Pool, refuse_reimport
from understudy.runs.workers.process import Worker
from understudy.runs.workers.retries import Patience
from understudy.testing.landscapes import toy_evaluation

# A time limit only where one is tested: on a busy machine any process may stand still for a second.
SOON, LIMITED = Patience(times=1.0, pause=0.0), Patience(at_least=2.0, times=1.0, pause=0.0)


@pytest.mark.parametrize("workers", [0, 1, 2, 3])
def test_any_number_of_workers_gives_the_same(workers: int) -> None:
    want = [toy_evaluation(a) for a in ARCHITECTURES]
    told: list[Evaluation] = []
    with Pool(Toy(), failed=failed, workers=workers) as pool:
        assert pool.evaluate_all(ARCHITECTURES, on_done=told.append) == want
        assert pool.evaluate_all([]) == []
    assert sorted(told, key=lambda e: e.key) == sorted(want, key=lambda e: e.key)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_daemonic_process_evaluates_itself(workers: int, tmp_path: Path) -> None:
    daemon = get_context("spawn").Process(target=in_a_daemon, args=(workers, tmp_path), daemon=True)
    daemon.start()
    daemon.join()
    assert (tmp_path / "same").is_file()


@pytest.mark.skipif(sys.platform == "win32", reason="signals end no process there")
def test_a_worker_that_is_still_starting_is_not_waited_for() -> None:
    worker = Worker(import_main=False)
    worker.stop()
    assert "SIGKILL" in worker.end()


@pytest.mark.skipif(sys.platform == "win32", reason="signals end no process there")
@pytest.mark.parametrize("workers", [1, 2])
def test_a_worker_that_is_killed_as_it_starts_is_started_again(workers: int, tmp_path: Path) -> None:
    told: list[str] = []
    evaluate = KilledAtStart(2, tmp_path)
    with Pool(evaluate, failed=failed, workers=workers, patience=SOON, tell=told.append) as pool:
        assert pool.evaluate_all(ARCHITECTURES) == [toy_evaluation(a) for a in ARCHITECTURES]
    assert told == ["a worker is started again: the worker process was ended by SIGKILL (memory ran out?)"] * 2


@pytest.mark.skipif(sys.platform == "win32", reason="signals end no process there")
def test_workers_that_are_always_killed_as_they_start_end_it(tmp_path: Path) -> None:
    with (
        Pool(KilledAtStart(99, tmp_path), failed=failed, workers=2, patience=SOON, tell=lambda _: None) as pool,
        pytest.raises(MachineError, match=r"must be able to start, but 3 in a row did not: .* ended by SIGKILL"),
    ):
        pool.evaluate_all(ARCHITECTURES)
    assert not pool.processes


def test_no_worker_is_this_process_and_workers_are_others_that_stay() -> None:
    with Pool(Toy(mark=True), failed=failed, workers=0) as pool:
        assert {e.seed for e in pool.evaluate_all(ARCHITECTURES)} == {os.getpid()}
    with Pool(Toy(mark=True), failed=failed) as pool:
        first = {e.seed for e in pool.evaluate_all(ARCHITECTURES)}
        assert len(first) == 1 and os.getpid() not in first
        assert {e.seed for e in pool.evaluate_all(ARCHITECTURES)} == first
    with Pool(Toy(mark=True), failed=failed, workers=2) as pool:
        first = {e.seed for e in pool.evaluate_all(ARCHITECTURES)}
        assert len(first) == 2 and os.getpid() not in first
        assert {e.seed for e in pool.evaluate_all(ARCHITECTURES * 2)} == first


def test_no_more_processes_are_started_than_there_is_work() -> None:
    with Pool(Toy(), failed=failed, workers=8) as pool:
        assert pool.processes == []
        pool.evaluate_all(ARCHITECTURES[:1])
        assert len(pool.processes) == 1


def test_tensors_reach_the_workers() -> None:
    import torch  # not above, because every worker imports this file

    with Pool(Toy(tensor=torch.full((64, 64), 0.5**12)), failed=failed, workers=2) as pool:
        assert [e.score for e in pool.evaluate_all(ARCHITECTURES)] == [1.0] * len(ARCHITECTURES)


@pytest.mark.parametrize("workers", [1, 2])
def test_what_crashes_its_process_twice_has_failed(workers: int, tmp_path: Path) -> None:
    want = [toy_evaluation(a) for a in ARCHITECTURES]
    want[1] = failed(ARCHITECTURES[1], "the worker process ended with exit code 3, 2 times")
    told: list[Evaluation] = []
    said: list[str] = []
    toy = Toy(die=16, counted=str(tmp_path))
    with Pool(toy, failed=failed, workers=workers, tell=said.append, patience=SOON) as pool:
        assert pool.evaluate_all(ARCHITECTURES, on_done=told.append) == want
        assert pool.evaluate_all(ARCHITECTURES[2:]) == want[2:]
    assert want[1] in told and len(told) == len(want)
    assert len(list(tmp_path.glob("16 *"))) == 2
    assert said == [
        f"student {ARCHITECTURES[1].digest} is tried again, alone, because the machine failed: "
        "the worker process ended with exit code 3",
        f"student {ARCHITECTURES[1].digest} failed: the worker process ended with exit code 3, 2 times",
    ]


def test_a_crash_is_remembered_by_the_next_process(tmp_path: Path) -> None:
    file, crashing = tmp_path / "crashes.json", ARCHITECTURES[1]
    Journal(file, "search ").crashed(crashing.digest, "the worker process was ended by SIGSEGV")
    with Pool(Toy(die=16), failed=failed, journal=Journal(file, "search "), patience=SOON) as pool:
        (found,) = pool.evaluate_all([crashing])
    assert found.error == "the worker process ended with exit code 3, 2 times"
    # Killed before the evaluation was stored: it is not evaluated again.
    with Pool(Toy(die=16), failed=failed, journal=Journal(file, "search "), patience=SOON) as pool:
        assert pool.evaluate_all([crashing]) == [found]
    assert len(Journal(file, "search ").crashes(crashing.digest)) == 2
    assert Journal(file, "final ").crashes(crashing.digest) == []


def test_a_damaged_journal_is_told(tmp_path: Path) -> None:
    for text in ("{", "[]", '{"crashes": 3, "begun": {}}'):
        (tmp_path / "crashes.json").write_text(text)
        with pytest.raises(RunError, match=r"crashes\.json"):
            Journal(tmp_path / "crashes.json")


@pytest.mark.parametrize(
    ("toy", "why"),
    [
        (Toy(kill=16), "the worker process was ended by SIGKILL"),
        (Toy(memory=16), "out of memory: 8 GiB"),
        (Toy(hang=16), "it was not done after"),
    ],
)
def test_what_the_machine_failed_at_is_tried_again_alone_and_then_raised(toy: Toy, why: str, tmp_path: Path) -> None:
    said: list[str] = []
    told: list[Evaluation] = []
    toy = replace(toy, counted=str(tmp_path))
    patience = LIMITED if toy.hang else SOON
    pool = Pool(toy, failed=failed, workers=2, tell=said.append, seconds=[0.01], patience=patience)
    with pool, pytest.raises(MachineError, match=r"could not be evaluated in 3 attempts.*not held against") as caught:
        pool.evaluate_all(ARCHITECTURES, on_done=told.append)
    assert why in str(caught.value) and not isinstance(caught.value, CrashError)
    assert len(said) == 2 and all(why in line for line in said)
    assert len(told) == len(ARCHITECTURES) - 1 and all(e.status == "ok" for e in told)
    assert len({path.name.split()[2] for path in tmp_path.glob("16 *")}) == 3


@pytest.mark.parametrize("workers", [0, 2])
def test_a_passing_failure_of_the_machine_leaves_no_trace(workers: int, tmp_path: Path) -> None:
    toy = Toy(memory=16, unreadable=24, counted=str(tmp_path), at_first=1)
    with Pool(toy, failed=failed, workers=workers, patience=SOON) as pool:
        assert pool.evaluate_all(ARCHITECTURES) == [toy_evaluation(a) for a in ARCHITECTURES]
    assert len(list(tmp_path.glob("16 *"))) == len(list(tmp_path.glob("24 *"))) == 2


@pytest.mark.parametrize("workers", [0, 1])
def test_an_image_that_cannot_be_read_is_no_failed_student(workers: int) -> None:
    pool = Pool(Toy(unreadable=16), failed=failed, workers=workers, patience=SOON)
    with pool, pytest.raises(DataError, match=r"^dog\.png cannot be read"):
        pool.evaluate_all(ARCHITECTURES)


def begun_and_killed(file: Path, times: int) -> None:
    """Leave what a process leaves that is killed so many times while it evaluates the second architecture."""
    for _ in range(times):
        with Journal(file).begun(ARCHITECTURES[1].digest):
            content = file.read_bytes()
        file.write_bytes(content)


def test_what_ends_this_process_again_and_again_is_evaluated_apart(tmp_path: Path) -> None:
    file, said = tmp_path / "crashes.json", list[str]()
    for toy in (Toy(mark=True), Toy(die=16)):
        begun_and_killed(file, 3)
        pool = Pool(toy, failed=failed, workers=0, journal=Journal(file), tell=said.append, patience=SOON)
        with pool:
            found = pool.evaluate_all(ARCHITECTURES)
        if toy.mark:
            assert [e.seed == os.getpid() for e in found] == [True, False, True, True, True]
            assert "in a process of its own: the process that evaluated it ended 3 times" in said[0]
        else:
            assert [e.status for e in found] == ["ok", "failed", "ok", "ok", "ok"]


def test_no_kill_of_this_process_is_held_against_a_student_that_must_stay_in_it(tmp_path: Path) -> None:
    file = tmp_path / "crashes.json"
    begun_and_killed(file, 9)
    with Pool(Locked(threading.Lock()), failed=failed, workers=0, journal=Journal(file)) as pool:
        assert pool.evaluate_all(ARCHITECTURES) == [toy_evaluation(a) for a in ARCHITECTURES]


def test_an_interrupt_is_no_end_of_this_process(tmp_path: Path) -> None:
    def interrupted(_: object) -> Evaluation:
        raise KeyboardInterrupt

    pool = Pool(interrupted, failed=failed, workers=0, journal=Journal(tmp_path / "crashes.json"))
    with pool, pytest.raises(KeyboardInterrupt):
        pool.evaluate_all(ARCHITECTURES)
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(sys.platform == "win32", reason="signals end no process there")
def test_what_crashes_this_process_twice_has_failed(tmp_path: Path) -> None:
    file = tmp_path / "crashes.json"
    code = (
        "import os, pathlib; from understudy.runs.journal import Journal\n"
        f"with Journal(pathlib.Path({str(file)!r})).begun({ARCHITECTURES[1].digest!r}): os.abort()"
    )
    for _ in range(2):
        assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -signal.SIGABRT
    with Pool(Locked(threading.Lock()), failed=failed, workers=0, journal=Journal(file)) as pool:
        found = pool.evaluate_all(ARCHITECTURES)
    assert [e.status for e in found] == ["ok", "failed", "ok", "ok", "ok"]
    assert found[1].error == "the process ended with 'Fatal Python error: Aborted', 2 times"


def test_a_worker_that_died_while_idle_is_replaced() -> None:
    with Pool(Toy(mark=True), failed=failed, workers=2) as pool:
        first = {e.seed for e in pool.evaluate_all(ARCHITECTURES[:2])}
        for pid in first:
            os.kill(pid, signal.SIGKILL)
        for worker in pool.processes:
            worker.process.join()
        second = pool.evaluate_all(ARCHITECTURES[:2])
        assert [e.status for e in second] == ["ok", "ok"]
        assert not first & {e.seed for e in second}


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_an_error_is_raised_here_and_the_pool_goes_on(workers: int) -> None:
    with Pool(Toy(surgery=8), failed=failed, workers=workers) as pool:
        with pytest.raises(SurgeryError, match="at width 8") as caught:
            pool.evaluate_all(ARCHITECTURES)
        if workers > 0:
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
        assert pool.processes == []


def test_what_cannot_be_pickled_is_named() -> None:
    lock = threading.Lock()
    evaluate = [lambda a: toy_evaluation(a), Locked(lock)]
    said = r"must be picklable.*but it is not: .*; or use workers=1"
    for one in evaluate:
        with Pool(one, failed=failed, workers=2) as pool, pytest.raises(RunError, match=said):
            pool.evaluate_all(ARCHITECTURES)
        with Pool(one, failed=failed) as pool:  # one worker can be this process
            assert len(pool.evaluate_all(ARCHITECTURES)) == len(ARCHITECTURES)


def test_refuse_reimport_lets_others_pass() -> None:
    refuse_reimport()
    with Pool(Reimport(), failed=failed, workers=2) as pool:
        assert pool.evaluate_all(ARCHITECTURES[:1]) == [toy_evaluation(ARCHITECTURES[0])]


PRELUDE = """
import os, sys, time
from understudy.core.errors import UnderstudyError
from understudy.testing.landscapes import toy_evaluation, toy_space
from understudy.runs.workers.local import Pool

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
    said = "a script that defines the teacher's class itself and uses workers > 1 must make its calls below "
    said += '`if __name__ == "__main__":`, '
    assert (done.stdout, done.stderr) == (f"{said}but this one has no such line\n", "")


def test_a_script_without_the_guard_works_where_nothing_of_it_is_needed(script: Callable[[str], list[str]]) -> None:
    done = subprocess.run(script("main(toy_evaluation)"), capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("4\n", "")


def test_a_script_from_standard_input_is_told_what_to_do() -> None:
    done = subprocess.run([sys.executable], input=PRELUDE + "main()", capture_output=True, text=True)
    said = "with workers > 1 the teacher's class must be in a file that can be imported, but its script is <stdin>; "
    assert (done.stdout, done.stderr) == (f"{said}save it as a file, or use workers=1\n", "")


def test_a_class_that_was_typed_in_is_told_what_to_do() -> None:
    done = subprocess.run([sys.executable, "-c", PRELUDE + "main()"], capture_output=True, text=True)
    said = "with workers > 1 the teacher's class must be in a file that can be imported, but it was typed in, as into "
    assert (done.stdout, done.stderr) == (f"{said}a notebook; save it as a file, or use workers=1\n", "")


def test_a_script_that_fails_to_import_is_told(script: Callable[[str], list[str]]) -> None:
    end = 'if __name__ == "__main__":\n    main()\nelse:\n    raise OSError("not again")'
    done = subprocess.run(script(end), capture_output=True, text=True)
    assert "a worker must be able to start, but it ended with exit code 1; its own error stands above" in done.stdout
    assert "OSError: not again" in done.stderr


def beats(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_size for path in folder.iterdir()}


def wait_until(condition: Callable[[], bool], seconds: float = 300.0) -> None:
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


def test_the_driver_is_called_while_it_waits_for_workers() -> None:
    calls: list[float] = []
    with Pool(Slow(), failed=failed, workers=2, on_wait=lambda: calls.append(time.monotonic())) as pool:
        assert len(pool.evaluate_all(ARCHITECTURES[:2])) == 2
    assert calls
