"""A study in a PostgreSQL database that runs share: a real server, started for these tests."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import optuna
import pytest

from tests.support.evaluators import ARCHITECTURES, SPACE
from tests.support.stores import StoreContract
from tests.support.third_party import need
from tests.support.tiny import DEVICE, outcome, squeeze, teach_tiny
from understudy.cli import main
from understudy.config.training import Device
from understudy.core.errors import ConfigError, RunError
from understudy.core.evaluation import Evaluation
from understudy.core.goal import Goal
from understudy.jobs.teach import load_teacher
from understudy.report.facts import Facts
from understudy.report.tables import run_row
from understudy.runs.database import study_claimed
from understudy.runs.folder import Run
from understudy.runs.store import Store
from understudy.testing.landscapes import toy_evaluation

need("psycopg")
import psycopg  # noqa: E402

pytestmark = pytest.mark.slow
GOAL = Goal(params="4x")


class Server:
    """A PostgreSQL server on a free port of this machine, as a user of its own where this one is root."""

    def __init__(self, programs: Path, folder: Path) -> None:
        self._programs, self._folder = programs, folder
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self._user: dict[str, Any] = {"user": "postgres", "group": "postgres"} if os.getuid() == 0 else {}
        if self._user:
            shutil.chown(folder, "postgres", "postgres")
        self.run("initdb", "-D", str(folder / "data"), "-U", "tester", "--auth=trust", "--no-sync")
        self.start()

    def run(self, program: str, *arguments: str) -> None:
        command = [str(self._programs / program), *arguments]
        subprocess.run(command, check=True, cwd=self._folder, stdout=subprocess.DEVNULL, **self._user)

    def start(self) -> None:
        options = f"-p {self.port} -c listen_addresses=127.0.0.1 -k {self._folder} -c fsync=off"
        self.run("pg_ctl", "-D", "data", "-w", "-o", options, "-l", str(self._folder / "log"), "start")

    def stop(self) -> None:
        self.run("pg_ctl", "-D", "data", "-m", "immediate", "-w", "stop")

    @property
    def address(self) -> str:
        return f"postgresql://tester@127.0.0.1:{self.port}/postgres"


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    places = [Path(found).parent] if (found := shutil.which("initdb")) else []
    places += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    if not places:
        pytest.skip("PostgreSQL's server programs (initdb, pg_ctl) must be installed, but are not")
    folder = Path(tempfile.mkdtemp(prefix="postgresql-"))
    made = Server(places[0], folder)
    yield made
    made.stop()
    shutil.rmtree(folder)


def on(server: Server) -> Device:
    return replace(DEVICE, storage=server.address)


class TestDatabase(StoreContract):
    @pytest.fixture(autouse=True)
    def place(self, server: Server, request: pytest.FixtureRequest) -> None:
        self.address, self.prefix = server.address, f"{request.node.name}-"


def test_runs_share_a_database_and_find_what_they_find_on_their_own(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    teach_tiny(tmp_path / "teacher")
    teacher = load_teacher(tmp_path / "teacher", trust_code=True)
    squeeze(teacher, tmp_path / "file", goal=GOAL)
    for name in ("one", "two"):
        squeeze(teacher, tmp_path / name, goal=GOAL, device=on(server))
        assert outcome(tmp_path / name) == outcome(tmp_path / "file")
        assert not (tmp_path / name / "study.db").exists()
        found, alone = Run(tmp_path / name).evaluations(), Run(tmp_path / "file").evaluations()
        assert [(e.key, e.score, e.cost) for e in found] == [(e.key, e.score, e.cost) for e in alone]
    names: list[str] = []
    served = SimpleNamespace(run_server=lambda storage, **_: names.extend(optuna.get_all_study_names(storage)))
    monkeypatch.setitem(sys.modules, "optuna_dashboard", served)
    assert main(["dashboard", str(tmp_path / "one")]) == 0
    assert [name.rpartition("-")[0] for name in names].count("one") == 1
    assert [name.rpartition("-")[0] for name in names].count("two") == 1

    capsys.readouterr()
    assert main(["runs", str(tmp_path)]) == 0
    one, two, alone = (run_row(Run(tmp_path / name))[1:] for name in ("one", "two", "file"))
    assert one == two == alone
    assert main(["report", str(tmp_path / "one")]) == 0
    shared, alone = Facts.read(tmp_path / "one"), Facts.read(tmp_path / "file")
    assert [(e.key, e.score) for e in shared.evaluations] == [(e.key, e.score) for e in alone.evaluations]

    name = next(name for name in names if name.startswith("one-"))
    (tmp_path / "one" / "summary.json").unlink()
    with study_claimed(server.address, name), pytest.raises(RunError, match="is in use by another"):
        squeeze(teacher, tmp_path / "one", goal=GOAL, device=on(server))


def test_drivers_that_come_first_to_a_database_do_not_collide(server: Server) -> None:
    with psycopg.connect(server.address, autocommit=True) as connection:
        connection.execute("create database fresh")
    address, together = server.address.removesuffix("postgres") + "fresh", threading.Barrier(4)

    def drive(number: int) -> list[Evaluation]:
        together.wait()
        with Store(address, SPACE, name=f"run {number}") as store:
            store.add(toy_evaluation(SPACE.full))
            return store.all()

    with ThreadPoolExecutor(4) as drivers:
        assert list(drivers.map(drive, range(4))) == [[toy_evaluation(SPACE.full)]] * 4


ADDING = """
import sys
from tests.support.evaluators import ARCHITECTURES, SPACE
from understudy.report.facts import Facts
from understudy.report.tables import run_row
from understudy.runs.database import study_claimed
from understudy.runs.store import Store
from understudy.testing.landscapes import toy_evaluation

with study_claimed(sys.argv[1], "killed"), Store(sys.argv[1], SPACE, name="killed") as store:
    for architecture in ARCHITECTURES:
        store.add(toy_evaluation(architecture))
        print(architecture.digest, flush=True)
"""


@pytest.mark.parametrize("finished", [1, 4])
def test_a_driver_that_is_killed_leaves_what_was_finished_and_no_lock(server: Server, finished: int) -> None:
    root = str(Path(__file__).parents[2])
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])}
    command = [sys.executable, "-c", ADDING, server.address]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as driver:
        assert driver.stdout is not None
        told = [driver.stdout.readline().strip() for _ in range(finished)]
        driver.kill()
    deadline = time.monotonic() + 60.0
    while True:  # the server notices a moment later
        try:
            with study_claimed(server.address, "killed"), Store(server.address, SPACE, name="killed") as store:
                found = [evaluation.architecture.digest for evaluation in store.all()]
            break
        except RunError:
            assert time.monotonic() < deadline, "the server keeps the lock of a process that is gone"
            time.sleep(0.05)
    assert found[: len(told)] == told and len(set(found)) == len(found)


def test_two_drivers_on_one_study_are_refused(server: Server) -> None:
    with study_claimed(server.address, "mine"):
        with pytest.raises(RunError, match="driven by one process at a time, but 'mine' in postgresql://tester@"):
            study_claimed(server.address, "mine").__enter__()
        with study_claimed(server.address, "yours"):
            pass
    with study_claimed(server.address, "mine"):
        pass


# The driver warns of connections that the server dropped, whenever they happen to be collected.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_what_a_database_that_went_away_did_not_get_is_sent_later(server: Server, tmp_path: Path) -> None:
    evaluations = [toy_evaluation(architecture) for architecture in ARCHITECTURES[:2]]
    with Store(server.address, SPACE, name="away", unsent=tmp_path) as store:
        store.add(evaluations[0])
        server.stop()
        with pytest.raises(RunError, match=r"the store postgresql://tester@127.0.0.1:\d+/postgres cannot be used"):
            store.add(evaluations[1])
    with pytest.raises(RunError, match=r"cannot be used: .*onnection"):
        Store(server.address, SPACE, name="away", unsent=tmp_path)
    server.start()
    with Store(server.address, SPACE, name="away", unsent=tmp_path) as store:
        assert store.all() == evaluations
    assert list(tmp_path.iterdir()) == []


def test_a_read_only_database_is_said(server: Server) -> None:
    address = server.address + "?options=-c%20default_transaction_read_only%3Don"
    with pytest.raises(RunError, match=r"cannot be used: cannot execute .* in a read-only transaction"):
        Store(address, SPACE, name="closed")


def test_an_address_holds_no_password_and_answers(tmp_path: Path) -> None:
    teacher = teach_tiny(tmp_path / "teacher")
    with pytest.raises(ConfigError, match=r"storage must hold no password.*PGPASSWORD"):
        Device(storage="postgresql://me:secret@host/db")
    with pytest.raises(ConfigError, match="storage must be an address such as postgresql://USER@HOST/NAME"):
        Device(storage="study.db")
    with pytest.raises(RunError, match="cannot be used: connection failed"):
        squeeze(teacher, tmp_path / "run", device=replace(DEVICE, storage="postgresql://me@127.0.0.1:1/x"))
    assert not (tmp_path / "run").exists()
