"""A study in a PostgreSQL database that runs share: a real server, started for these tests."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import pytest

from tests.support.evaluators import ARCHITECTURES, SPACE
from tests.support.stores import StoreContract
from tests.support.third_party import need
from tests.support.tiny import DEVICE, outcome, squeeze, teach_tiny
from understudy.config.training import Device
from understudy.core.errors import ConfigError, RunError
from understudy.core.goal import Goal
from understudy.jobs.teach import load_teacher
from understudy.runs.database import study_claimed
from understudy.runs.folder import Run
from understudy.runs.store import Store
from understudy.testing.landscapes import toy_evaluation

need("psycopg")

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


def test_runs_share_a_database_and_find_what_they_find_on_their_own(server: Server, tmp_path: Path) -> None:
    teach_tiny(tmp_path / "teacher")
    teacher = load_teacher(tmp_path / "teacher", trust_code=True)
    squeeze(teacher, tmp_path / "file", goal=GOAL)
    for name in ("one", "two"):
        squeeze(teacher, tmp_path / name, goal=GOAL, device=on(server))
        assert outcome(tmp_path / name) == outcome(tmp_path / "file")
        assert not (tmp_path / name / "study.db").exists()
        found, alone = Run(tmp_path / name).evaluations(), Run(tmp_path / "file").evaluations()
        assert [(e.key, e.score, e.cost) for e in found] == [(e.key, e.score, e.cost) for e in alone]
    storage = optuna.storages.RDBStorage(server.address.replace("postgresql:", "postgresql+psycopg:"))
    names = [name.rpartition("-")[0] for name in optuna.get_all_study_names(storage)]
    storage.remove_session()
    storage.engine.dispose()
    assert names.count("one") == names.count("two") == 1


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
