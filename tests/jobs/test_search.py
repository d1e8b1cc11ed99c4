from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from understudy.core.architecture import Architecture
from understudy.core.errors import RunError
from understudy.core.evaluation import Evaluation
from understudy.jobs.search import search
from understudy.methods.base import Searcher, Update
from understudy.runs.store import Store
from understudy.runs.workers.local import Pool
from understudy.testing.landscapes import toy_evaluation, toy_space

SPACE = toy_space()
GROUP = SPACE.groups[0].name


def key_of(architecture: Architecture) -> str:
    return toy_evaluation(architecture).key


class Scripted(Searcher):
    """Proposes given widths, then what follows from the best one that it was told."""

    def __init__(self, script: Sequence[Sequence[int]]) -> None:
        self.script = script
        self.told: list[list[Evaluation]] = []

    def propose(self) -> list[Architecture]:
        if len(self.told) == self.updates:
            return []
        if len(self.told) < len(self.script):
            return [SPACE.full.with_width(GROUP, width) for width in self.script[len(self.told)]]
        best = max((e for batch in self.told for e in batch), key=lambda e: e.score)
        return [best.architecture.without(SPACE.units[0].name)]

    def learn(self, evaluations: Sequence[Evaluation]) -> None:
        self.told.append(list(evaluations))

    @property
    def updates(self) -> int:
        return len(self.script) + 1

    @property
    def stage(self) -> str:
        return f"stage {len(self.told)}"


class Counting:
    """Evaluates, and counts how often it was asked for what."""

    def __init__(self) -> None:
        self.asked: list[int] = []

    def __call__(self, architecture: Architecture) -> Evaluation:
        self.asked.append(architecture.width(GROUP))
        return toy_evaluation(architecture)


def failed(architecture: Architecture, error: str) -> Evaluation:
    return toy_evaluation(architecture).with_error(error)


SCRIPT = [[8, 16, 8], [16, 24], [24, 8]]


def run(
    store: Store, evaluate: Callable[[Architecture], Evaluation], *, workers: int = 0
) -> tuple[Scripted, list[Update]]:
    searcher, updates = Scripted(SCRIPT), list[Update]()
    with Pool(evaluate, failed=failed, workers=workers) as pool:
        search(searcher, pool.evaluate_all, store, key_of=key_of, on_update=updates.append)
    return searcher, updates


def test_each_architecture_is_evaluated_once_and_all_are_told(tmp_path: Path) -> None:
    counting = Counting()
    with Store(tmp_path / "study.db", SPACE) as store:
        searcher, updates = run(store, counting)
        assert [e.architecture.width(GROUP) for e in store.all()] == counting.asked
    assert counting.asked[:3] == [8, 16, 24] and len(counting.asked) == 4
    assert [[e.architecture.width(GROUP) for e in batch] for batch in searcher.told[:3]] == SCRIPT
    assert [e == toy_evaluation(e.architecture) for batch in searcher.told for e in batch] == [True] * 8
    assert [update.trained for update in updates] == [2, 1, 0, 1]


def test_the_longest_of_an_update_is_begun_first_and_all_are_told_in_their_order(tmp_path: Path) -> None:
    counting, searcher = Counting(), Scripted(SCRIPT)
    with Store(tmp_path / "study.db", SPACE) as store, Pool(counting, failed=failed, workers=0) as pool:
        search(searcher, pool.evaluate_all, store, key_of=key_of, work_of=lambda a: a.width(GROUP))
    assert counting.asked[:3] == [16, 8, 24]
    assert [[e.architecture.width(GROUP) for e in batch] for batch in searcher.told[:3]] == SCRIPT


def test_updates_tell_the_stage_from_before_learning(tmp_path: Path) -> None:
    with Store(tmp_path / "study.db", SPACE) as store:
        searcher, updates = run(store, toy_evaluation)
    assert [(u.number, u.of, u.stage) for u in updates] == [(i + 1, 4, f"stage {i}") for i in range(4)]
    assert [list(u.evaluations) for u in updates] == searcher.told


def test_two_workers_find_what_one_finds(tmp_path: Path) -> None:
    with Store(tmp_path / "1.db", SPACE) as one, Store(tmp_path / "2.db", SPACE) as two:
        assert run(one, toy_evaluation)[1] == run(two, toy_evaluation, workers=2)[1]
        assert {e.key: e for e in one.all()} == {e.key: e for e in two.all()}


@pytest.mark.parametrize("interrupted_at", [0, 1, 2, 3])
def test_an_interrupted_search_goes_on_where_it_was(tmp_path: Path, interrupted_at: int) -> None:
    with Store(tmp_path / "whole.db", SPACE) as store:
        want = run(store, toy_evaluation)[0].told

    left = interrupted_at

    def evaluate(architecture: Architecture) -> Evaluation:
        nonlocal left
        if left == 0:
            raise KeyboardInterrupt
        left -= 1
        return toy_evaluation(architecture)

    path = tmp_path / "cut.db"
    with Store(path, SPACE) as store, pytest.raises(KeyboardInterrupt):
        run(store, evaluate)
    counting = Counting()
    with Store(path, SPACE) as store:
        assert len(store.all()) == interrupted_at
        assert run(store, counting)[0].told == want
    assert len(counting.asked) == 4 - interrupted_at


def test_a_finished_search_is_answered_from_the_store(tmp_path: Path) -> None:
    with Store(tmp_path / "study.db", SPACE) as store:
        first = run(store, toy_evaluation)[0].told
    counting = Counting()
    with Store(tmp_path / "study.db", SPACE) as store:
        searcher, updates = run(store, counting)
    assert searcher.told == first and counting.asked == [] and [u.trained for u in updates] == [0] * 4


def test_failed_evaluations_are_told_and_remembered(tmp_path: Path) -> None:
    with Store(tmp_path / "study.db", SPACE) as store:
        told = run(store, lambda a: failed(a, "diverged"))[0].told
    assert {e.status for batch in told for e in batch} == {"failed"}
    counting = Counting()
    with Store(tmp_path / "study.db", SPACE) as store:
        assert run(store, counting)[0].told == told
    assert counting.asked == []


def test_a_store_that_cannot_be_written_ends_the_search(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counting = Counting()

    def full(evaluation: Evaluation) -> None:
        raise RunError("disk is full")

    with Store(tmp_path / "study.db", SPACE) as store:
        monkeypatch.setattr(store, "add", full)
        with pytest.raises(RunError, match="disk is full"):
            run(store, counting)
    assert counting.asked == [8]


KILLED = """
import sys, time
from pathlib import Path
from understudy.core.architecture import Architecture
from understudy.jobs.search import search
from understudy.runs.store import Store
from understudy.testing.landscapes import toy_evaluation
from understudy.runs.workers.local import Pool
sys.path.insert(0, {tests!r})
from test_search import GROUP, SPACE, Scripted, failed, key_of

def evaluate(architecture: Architecture):
    with open("asked", "a") as file:
        file.write(f"{{architecture.width(GROUP)}}\\n")
    if architecture.width(GROUP) > 24 and not Path("go").exists():
        time.sleep(60)
    return toy_evaluation(architecture)

if __name__ == "__main__":
    searcher = Scripted([[8, 16], [24, 32, 40, 48]])
    with Store("study.db", SPACE) as store, Pool(evaluate, failed=failed, workers=2) as pool:
        search(searcher, pool.evaluate_all, store, key_of=key_of)
        print(len(searcher.told), len(store.all()))
"""


def test_nothing_finished_is_evaluated_again_after_kill_9(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(KILLED.format(tests=str(Path(__file__).parent)))
    driver = subprocess.Popen([sys.executable, "script.py"], cwd=tmp_path)
    asked = tmp_path / "asked"
    end = time.monotonic() + 300
    # Both workers are in the middle of the second update, and one of its students is finished.
    while not asked.exists() or len(asked.read_text().splitlines()) < 5:
        assert driver.poll() is None and time.monotonic() < end
        time.sleep(0.02)
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    with Store(tmp_path / "study.db", SPACE) as store:
        known = [e.architecture.width(GROUP) for e in store.all()]
    assert sorted(known) == [8, 16, 24]
    asked.unlink()
    (tmp_path / "go").touch()
    done = subprocess.run([sys.executable, "script.py"], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("3 7\n", "")
    *second, last = map(int, asked.read_text().split())
    assert sorted(second) == [32, 40, 48]
    tried = (SPACE.full.with_width(GROUP, width) for width in (8, 16, 24, 32, 40, 48))
    assert last == max(tried, key=lambda a: toy_evaluation(a).score).width(GROUP)  # what follows from the best one
