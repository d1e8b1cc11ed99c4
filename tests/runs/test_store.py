from __future__ import annotations

import contextlib
import logging
import resource
import sqlite3
import subprocess
import sys
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import pytest

from tests.support.stores import SPACE, StoreContract, evaluations
from understudy.core.architecture import Group, Layer, Space, Unit
from understudy.core.errors import DamageError, RunError
from understudy.core.evaluation import Cost, Evaluation
from understudy.runs import database as database_module
from understudy.runs.store import Store
from understudy.testing.landscapes import toy_evaluation


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run" / "study.db"


class TestFile(StoreContract):
    @pytest.fixture(autouse=True)
    def place(self, path: Path) -> None:
        self.address = str(path)


def study_in(path: Path) -> optuna.Study:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return optuna.load_study(study_name="candidates", storage=f"sqlite:///{path}")


def test_optuna_sees_objectives_states_and_parameters(path: Path) -> None:
    with Store(path, SPACE) as store:
        for evaluation in evaluations():
            store.add(evaluation)
    study = study_in(path)
    assert [d.name for d in study.directions] == ["MAXIMIZE", "MINIMIZE"]
    assert study.metric_names == ["score", "parameters"]
    full, stopped, failed, unbuilt = study.trials
    assert [t.state.name for t in study.trials] == ["COMPLETE", "PRUNED", "FAIL", "FAIL"]
    want = evaluations()
    assert want[0].cost is not None
    assert full.values == [want[0].score, want[0].cost.parameters]
    assert full.duration is not None and full.duration.total_seconds() == 2.5
    assert study.best_trials == [full]
    group, unit, layer = SPACE.groups[0], SPACE.units[0], SPACE.layers[0]
    assert full.params[f"width {group.name}"] == group.width
    assert stopped.params[f"width {group.name}"] == 8
    assert (full.params[f"remove {unit.name}"], failed.params[f"remove {unit.name}"]) == (False, True)
    assert (full.params[f"kernel {layer.name}"], failed.params[f"kernel {layer.name}"]) == (3, 1)
    assert len(full.params) == len(SPACE.units) + len(SPACE.groups) + sum(len(x.kernels) > 1 for x in SPACE.layers)
    assert failed.user_attrs["error"] == "diverged: loss is nan"
    assert unbuilt.user_attrs["digest"] == want[3].architecture.digest
    assert Evaluation.from_json(SPACE, unbuilt.user_attrs["evaluation"]) == want[3]


def test_trials_that_others_queued_are_left_out(path: Path) -> None:
    with Store(path, SPACE) as store:
        store.add(toy_evaluation(SPACE.full))
    study_in(path).enqueue_trial({"x": 1})
    with Store(path, SPACE) as store:
        assert store.all() == [toy_evaluation(SPACE.full)]


def test_it_says_nothing_and_leaves_logging_alone(path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    optuna.logging.set_verbosity(logging.DEBUG)
    try:
        with Store(path, SPACE) as store:
            store.add(toy_evaluation(SPACE.full))
        assert optuna.logging.get_verbosity() == logging.DEBUG
    finally:
        optuna.logging.set_verbosity(logging.WARNING)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("name", ["a b", "50%41", "{x}", "a?b#c", "Zürich"])
def test_any_path_will_do(tmp_path: Path, name: str) -> None:
    path = tmp_path / name / f"{name}.db"
    with Store(path, SPACE) as store:
        store.add(toy_evaluation(SPACE.full))
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_no_file_is_there_before_all_of_its_tables_are(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(database_module, "write_whole", killed)
        with pytest.raises(KeyboardInterrupt):
            Store(path, SPACE)
    assert not path.exists()
    Store(path, SPACE).close()
    with contextlib.closing(sqlite3.connect(path)) as database:
        unique = [row[2] for row in database.execute("PRAGMA index_list(studies)") if row[1].startswith("ix_")]
    assert unique == [1]  # without it, a study would be made twice


def test_an_address_will_do(path: Path) -> None:
    path.parent.mkdir()
    with Store(f"sqlite:///{path}", SPACE) as store:
        store.add(toy_evaluation(SPACE.full))
    with Store(path, SPACE) as store:
        assert store.all() == [toy_evaluation(SPACE.full)]


@pytest.mark.parametrize("found", [1, 3, None])
def test_another_format_is_refused(path: Path, found: int | None) -> None:
    Store(path, SPACE).close()
    study_in(path).set_user_attr("format", found)
    with pytest.raises(RunError, match=f"must be of format 2, but {path} is of format {found}"):
        Store(path, SPACE)


def test_a_study_of_somebody_else_is_refused(path: Path) -> None:
    path.parent.mkdir()
    study = optuna.create_study(
        study_name="candidates", storage=f"sqlite:///{path}", directions=["maximize", "minimize"]
    )
    study.add_trial(optuna.trial.create_trial(values=[0.5, 1.0]))
    with pytest.raises(RunError, match="of format None"):
        Store(path, SPACE)


@pytest.mark.parametrize("written", [{}, {"format": 2}])
def test_a_store_whose_making_was_interrupted_is_completed(path: Path, written: dict[str, int]) -> None:
    path.parent.mkdir()
    study = optuna.create_study(
        study_name="candidates", storage=f"sqlite:///{path}", directions=["maximize", "minimize"]
    )
    for key, value in written.items():
        study.set_user_attr(key, value)
    with Store(path, SPACE) as store:
        store.add(toy_evaluation(SPACE.full))
    assert study_in(path).user_attrs == {"format": 2, "space": SPACE.digest}


def small_space() -> Space:
    """A Space that stays as it is, whatever becomes of the toy ones."""
    layers = (
        Layer(name="conv", type="conv", kernel=3, outputs=16, parameters=432, group="conv", kernels=(1, 3)),
        Layer(name="relu", type="activation"),
    )
    groups = (Group(name="conv", width=16, layers=("conv",)),)
    return Space(layers=layers, groups=groups, units=(Unit(name="conv", kind="conv", layers=("conv", "relu")),))


def small_evaluations() -> list[Evaluation]:
    full = Evaluation(
        architecture=small_space().full,
        teacher="teacher",
        data="data",
        recipe="recipe",
        cost=Cost(parameters=432, macs=5000, weight_bytes=1728, peak_activation_bytes=64, latency_ms=0.5),
        score=0.75,
        seconds=1.5,
        seed=7,
    )
    thin = replace(full, architecture=full.architecture.with_width("conv", 8), status="stopped", score=0.125)
    gone = replace(full, architecture=full.architecture.without("conv"), cost=None).with_error("at node conv")
    return [full, thin, gone]


def test_a_store_of_format_2_can_be_read(tmp_path: Path) -> None:
    # Made by this version: the evaluations above were added to an empty Store, and the file was written out by
    # `sqlite3.connect("study.db").iterdump()`, a statement a line. Once a version is released, the file stays as it is
    # and later versions must read it; before that, it is made again where the format of a Space changes.
    database = sqlite3.connect(tmp_path / "study.db")
    database.executescript((Path(__file__).parent.parent / "assets" / "store_v2.sql").read_text())
    database.close()
    with Store(tmp_path / "study.db", small_space()) as store:
        assert store.all() == small_evaluations()


def test_another_optuna_is_refused(path: Path) -> None:
    Store(path, SPACE).close()
    with sqlite3.connect(path) as database:
        database.execute("UPDATE alembic_version SET version_num = 'v99.0.0.a'")
    database.close()
    with pytest.raises(RunError, match=f"the store {path} cannot be used: The runtime optuna version .* no longer"):
        Store(path, SPACE)


def test_a_copy_can_be_looked_at_where_nothing_can_be_written(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Store(path, SPACE) as store:
        store.add(toy_evaluation(SPACE.full))
    connect = sqlite3.connect

    def read_only(address: str, *args: Any, **more: Any) -> sqlite3.Connection:
        connection = connect(address, *args, **more)
        if address != ":memory:":
            connection.execute("PRAGMA query_only = ON")
        return connection

    monkeypatch.setattr(sqlite3, "connect", read_only)
    with pytest.raises(RunError, match="attempt to write a readonly database"):
        Store(path, SPACE)
    with Store(path, SPACE, copy=True) as store:
        assert store.all() == [toy_evaluation(SPACE.full)]


def test_a_file_that_is_no_database(path: Path) -> None:
    path.parent.mkdir()
    path.write_text("x" * 4096)
    with pytest.raises(RunError, match=f"the store {path} cannot be used: file is not a database"):
        Store(path, SPACE)


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match=r"file/study\.db cannot be used: .*(exists|Not a directory)"):
        Store(tmp_path / "file" / "study.db", SPACE)


def with_attributes(path: Path, change: str) -> None:
    with contextlib.closing(sqlite3.connect(path)) as file, file:
        file.execute(f"UPDATE trial_user_attributes SET value_json = {change} WHERE key = 'evaluation'")


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ("replace(value_json, '5', '6')", "its fields are not those of its"),
        ("CAST(x'2230ff3022' AS TEXT)", "Could not decode to UTF-8"),
        ("substr(value_json, 1, 9)", "JSONDecodeError"),
    ],
)
def test_a_changed_evaluation_is_noticed(path: Path, change: str, why: str) -> None:
    with Store(path, SPACE) as store:
        store.add(toy_evaluation(SPACE.full))
    with_attributes(path, change)
    with pytest.raises(DamageError, match=f"study.db.*{why}(.|\n)*Mend it or move it away"):
        Store(path, SPACE)


@pytest.mark.parametrize("change", [b"MAXIMIZ\xc9", b"MAXIMIZF"])
def test_damage_that_only_optuna_sees(path: Path, change: bytes) -> None:
    Store(path, SPACE).close()
    content = path.read_bytes()
    at = content.rindex(b"MAXIMIZE")
    path.write_bytes(content[:at] + change + content[at + len(change) :])
    with pytest.raises(DamageError, match=r"study\.db cannot be used: "):
        Store(path, SPACE)


def test_a_locked_file(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database_module, "_LOCK_SECONDS", 0.01)
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # Optuna waits between its attempts
    with Store(path, SPACE) as store:
        lock = sqlite3.connect(path, isolation_level=None)
        lock.execute("BEGIN EXCLUSIVE")
        with pytest.raises(RunError, match=f"the store {path} cannot be used: database is locked: close what"):
            store.add(toy_evaluation(SPACE.full))
        lock.close()
        assert store.all() == []
        store.add(toy_evaluation(SPACE.full))
        assert store.all() == [toy_evaluation(SPACE.full)]


FULL_DISK = """
import resource, sys, time
from understudy.core.errors import DamageError, RunError
from understudy.runs.store import Store
from understudy.testing.landscapes import toy_evaluation, toy_space

time.sleep = lambda seconds: None  # Optuna waits between its attempts
space = toy_space()
with Store(sys.argv[1], space) as store:
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]),) * 2)
    try:
        for width in range(1, 64):
            store.add(toy_evaluation(space.full.with_width(space.groups[0].name, width)))
    except RunError as error:
        print(error)
        print(len(store.all()))
"""


@pytest.mark.skipif(not hasattr(resource, "RLIMIT_FSIZE"), reason="needs a limit on file sizes")
def test_a_full_disk_loses_nothing(path: Path) -> None:
    Store(path, SPACE).close()
    limit = path.stat().st_size + 60_000
    command = [sys.executable, "-c", FULL_DISK, str(path), str(limit)]
    said, count = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    reasons = ("disk I/O error: see whether the disk works, and `ulimit -f`", "database or disk is full")
    assert said in {f"the store {path} cannot be used: {why}" for why in reasons}
    assert int(count) > 0
    with Store(path, SPACE) as store:
        widths = [e.architecture.width(SPACE.groups[0].name) for e in store.all()]
        assert widths == list(range(1, int(count) + 1))


def test_a_password_is_not_shown() -> None:
    with pytest.raises(RunError, match="understudy") as caught:
        Store("nonsense://me:" + "secret@host/understudy", SPACE)
    assert "secret" not in str(caught.value)
