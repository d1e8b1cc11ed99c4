"""Evaluations on a Ray cluster: several nodes on this machine, killed and added while tasks run."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.evaluators import ARCHITECTURES, GROUP, SPACE, Toy, failed
from tests.support.third_party import need
from tests.support.tiny import DEVICE, outcome, squeeze, teach_tiny
from understudy.core.architecture import Architecture
from understudy.core.errors import MachineError, RunError, SurgeryError
from understudy.core.evaluation import Evaluation
from understudy.core.goal import Goal
from understudy.jobs.teach import load_teacher
from understudy.runs.journal import Journal
from understudy.runs.workers.packing import packed, unpacked
from understudy.runs.workers.retries import Patience, Retries
from understudy.testing.landscapes import toy_evaluation

need("ray", "cloudpickle")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

from ray.cluster_utils import Cluster as RayCluster  # noqa: E402

from understudy.runs.workers.ray.pool import Cluster, RayPool  # noqa: E402

# Ray leaves sockets and files to the end of the process, and warns of it.
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.xdist_group("ray"),
]
ROOT = str(Path(__file__).parents[2])
NODE: dict[str, Any] = {"num_cpus": 2, "object_store_memory": 120 * 2**20}


@pytest.fixture(scope="module")
def cluster() -> Iterator[RayCluster]:
    """A head and one more node, of two cores each."""
    made = RayCluster(initialize_head=True, head_node_args={**NODE, "include_dashboard": False})
    made.add_node(**NODE)
    yield made
    made.shutdown()


def pool(cluster: RayCluster, evaluate: Any, journal: Journal | None = None, **settings: Any) -> RayPool:
    retries = Retries(failed=failed, patience=Patience(pause=0.1), journal=journal or Journal())
    return RayPool(evaluate, SPACE, Cluster(address=cluster.address, **settings), retries)


@dataclass(frozen=True)
class Crash:
    """Crashes in native code at one width, leaves a file per attempt, and waits for a file at others."""

    folder: str
    crash: int = 0
    wait: int = 0

    def __call__(self, architecture: Architecture) -> Evaluation:
        width = architecture.width(GROUP)
        attempts = len(list(Path(self.folder).glob(f"{width} *")))
        (Path(self.folder) / f"{width} {attempts} {os.getpid()}").touch()
        if width == self.crash:
            os.kill(os.getpid(), signal.SIGSEGV)
        while width == self.wait and not (Path(self.folder) / "go").exists():
            time.sleep(0.05)
        return toy_evaluation(architecture)


def started(folder: Path, pattern: str) -> Path:
    """Return the file that an attempt leaves when it begins; every attempt has a core, but workers start at leisure."""
    deadline = time.monotonic() + 300.0
    while not (found := list(folder.glob(pattern))):
        assert time.monotonic() < deadline, f"no attempt has left {pattern}"
        time.sleep(0.05)
    (file,) = found
    return file


def test_evaluations_come_in_order_and_are_told_as_they_finish(cluster: RayCluster) -> None:
    told: list[Evaluation] = []
    with pool(cluster, Toy()) as workers:
        found = workers.evaluate_all(ARCHITECTURES, on_done=told.append)
        assert workers.evaluate_all([]) == []
    assert found == [toy_evaluation(architecture) for architecture in ARCHITECTURES]
    assert sorted(told, key=found.index) == found


def test_what_the_network_is_at_fault_for_is_raised_as_in_one_process(cluster: RayCluster) -> None:
    with pool(cluster, Toy(surgery=24)) as workers, pytest.raises(SurgeryError, match="at width 24") as caught:
        workers.evaluate_all(ARCHITECTURES)
    assert "On a node of the cluster" in caught.value.__notes__[0]


def test_no_memory_is_tried_again_and_then_told(cluster: RayCluster, tmp_path: Path) -> None:
    once = Toy(memory=16, counted=str(tmp_path), at_first=1)
    with pool(cluster, once) as workers:
        assert [e.status for e in workers.evaluate_all(ARCHITECTURES)] == ["ok"] * 5
    with pool(cluster, Toy(memory=16)) as workers, pytest.raises(MachineError, match=r"in 3 attempts.*8 GiB"):
        workers.evaluate_all(ARCHITECTURES[:3])


def test_what_crashes_in_native_code_twice_has_failed(cluster: RayCluster, tmp_path: Path) -> None:
    journal = Journal(tmp_path / "crashes.json")
    with pool(cluster, Crash(str(tmp_path), crash=24), journal) as workers:
        found = workers.evaluate_all(ARCHITECTURES)
    assert [e.status for e in found] == ["ok", "ok", "failed", "ok", "ok"]
    assert found[2].error is not None and "Segmentation fault, 2 times" in found[2].error
    with pool(cluster, Crash(str(tmp_path), crash=24), Journal(tmp_path / "crashes.json")) as workers:
        assert workers.evaluate_all(ARCHITECTURES[2:3])[0].status == "failed"
    assert len(list(tmp_path.glob("24 *"))) == 2  # another run of it knows


def test_a_killed_worker_and_a_removed_node_lose_nothing(cluster: RayCluster, tmp_path: Path) -> None:
    extra = cluster.add_node(num_cpus=2, object_store_memory=NODE["object_store_memory"])
    evaluate = Crash(str(tmp_path), wait=24)
    told: list[int] = []

    def on_done(evaluation: Evaluation) -> None:
        told.append(evaluation.architecture.width(GROUP))
        if len(told) == 1:
            os.kill(int(started(tmp_path, "24 0 *").name.split()[-1]), signal.SIGKILL)
        if len(told) == 3:
            cluster.remove_node(extra)
            cluster.add_node(**NODE)
            (tmp_path / "go").touch()

    with pool(cluster, evaluate) as workers:
        found = workers.evaluate_all(ARCHITECTURES, on_done=on_done)
    assert found == [toy_evaluation(architecture) for architecture in ARCHITECTURES]
    assert sorted(told) == [8, 16, 24, 32, 40]  # each finished once


def test_too_little_room_and_no_cluster_are_told_at_the_door(cluster: RayCluster) -> None:
    with pytest.raises(RunError, match=r"room for one evaluation, which takes 64 CPUs.*lower device.threads"):
        pool(cluster, Toy(), cpus=64)
    with pytest.raises(RunError, match=r"room for one evaluation, which takes 1 CPUs and 1 GPUs"):
        pool(cluster, Toy(), gpus=1)
    retries = Retries(failed=failed)
    for address in ("127.0.0.1:9", "nowhere"):
        with pytest.raises(RunError, match=f"a Ray cluster must answer at '{address}'"):
            RayPool(Toy(), SPACE, Cluster(address=address), retries)


def test_nodes_have_the_drivers_versions(cluster: RayCluster) -> None:
    retries = Retries(failed=failed)
    other = RayPool(Toy(), SPACE, Cluster(address=cluster.address), retries, driver_runs={"torch": "1.0"})
    with other, pytest.raises(RunError, match=r"must have the driver's versions.*torch .* \(the driver has 1.0\)"):
        other.evaluate_all(ARCHITECTURES[:1])


def test_a_run_on_a_cluster_is_the_run_of_one_process(cluster: RayCluster, tmp_path: Path) -> None:
    teach_tiny(tmp_path / "teacher")
    teacher = load_teacher(tmp_path / "teacher", trust_code=True)
    on_cluster = replace(DEVICE, cluster=cluster.address)
    squeeze(teacher, tmp_path / "here", goal=Goal(params="4x"))
    squeeze(teacher, tmp_path / "there", goal=Goal(params="4x"), device=on_cluster)
    assert outcome(tmp_path / "there") == outcome(tmp_path / "here")
    assert {path.suffix for path in (tmp_path / "there" / "students").iterdir()} == {".json", ".safetensors", ".curve"}


LOCAL = """
from tests.support.evaluators import ARCHITECTURES, SPACE, Toy, failed
from understudy.runs.workers.ray.pool import Cluster, RayPool
from understudy.runs.workers.retries import Retries
from understudy.testing.landscapes import toy_evaluation

with RayPool(Toy(), SPACE, Cluster(address="local"), Retries(failed=failed)) as pool:
    assert pool.evaluate_all(ARCHITECTURES) == [toy_evaluation(architecture) for architecture in ARCHITECTURES]
import ray
assert not ray.is_initialized()
"""


def test_a_cluster_of_this_machine_alone_lasts_as_long_as_its_pool() -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [ROOT, os.environ.get("PYTHONPATH")]))}
    subprocess.run([sys.executable, "-c", LOCAL], env=environment, check=True, capture_output=True, timeout=300)


DRIVER = """
import sys
from pathlib import Path
from dataclasses import replace
from tests.support.tiny import DEVICE, squeeze
from understudy.core.goal import Goal
from understudy.jobs.teach import load_teacher

address, teacher, folder = sys.argv[1:]
device = replace(DEVICE, cluster=address)
squeeze(load_teacher(teacher, trust_code=True), Path(folder), goal=Goal(params="4x"), device=device)
"""


def test_a_killed_driver_goes_on_where_it_was(cluster: RayCluster, tmp_path: Path) -> None:
    teach_tiny(tmp_path / "teacher")
    squeeze(load_teacher(tmp_path / "teacher", trust_code=True), tmp_path / "here", goal=Goal(params="4x"))
    (tmp_path / "driver.py").write_text(DRIVER)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [ROOT, os.environ.get("PYTHONPATH")]))}
    command = [
        sys.executable,
        str(tmp_path / "driver.py"),
        cluster.address,
        str(tmp_path / "teacher"),
        str(tmp_path / "run"),
    ]
    driver = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
    students = tmp_path / "run" / "students"
    while not list(students.glob("*.checkpoint.pt")) and driver.poll() is None:
        time.sleep(0.02)
    driver.kill()
    driver.wait()
    subprocess.run(command, env=environment, check=True, capture_output=True)
    assert outcome(tmp_path / "run") == outcome(tmp_path / "here")


def test_large_tensors_lie_beside_the_pickle() -> None:
    large, small = torch.arange(1_000_000, dtype=torch.float32), torch.arange(3)
    content = packed({"large": large, "small": small, "trained": torch.nn.Parameter(torch.ones(300_000))})
    assert len(content.pickled) < 2_000_000 and [b.nbytes for b in content.buffers] == [4_000_000, 1_200_000]
    back = unpacked(content)
    assert torch.equal(back["large"], large) and torch.equal(back["small"], small)
    assert isinstance(back["trained"], torch.nn.Parameter)
