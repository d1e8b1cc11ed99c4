"""The driver's side: which tasks run, what they found, and what follows when a node or a process dies. No torch.

What all evaluations share, data and teacher, goes to the object store once, and each node reads it there. Files
travel through it as well: logits to the nodes, checkpoints and weights of final students both ways, so no two
nodes need a common disk. Each evaluation is one task. Results depend neither on the number of nodes nor on who finishes
first, and are those of one process.
"""

from __future__ import annotations

import hashlib
import logging
import os
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from understudy.core.architecture import Architecture, Space
from understudy.core.errors import CrashError, DataError, MachineError, RunError
from understudy.core.evaluation import Evaluation
from understudy.runs.folder import versions
from understudy.runs.workers.packing import packed
from understudy.runs.workers.ray.node import Courier, Order, crash_report, evaluated
from understudy.runs.workers.retries import Attempt, Retries

LOCAL = "local"  # the address of a cluster that is this machine alone, started and ended with the pool
_log = logging.getLogger("understudy")
_LOOK_EVERY = 1.0  # seconds between two looks at what is running
_NO_ROOM = 30.0  # seconds without any room for a task until that is said
_CONNECT = 30.0  # seconds until an address that does not answer is given up


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """Which cluster, and what one evaluation takes of it."""

    address: str = LOCAL
    """`local` for this machine, `auto` for the cluster that this machine belongs to, or HOST:PORT of its head."""
    cpus: float = 1.0
    """Processor cores of one evaluation."""
    gpus: float = 0.0
    """Share of a GPU, or number of GPUs, of one evaluation."""


class RayPool:
    """Evaluates architectures as tasks of a Ray cluster, as many at the same time as there is room for.

    The contract is that of the local `Pool`. Nodes may come and go. What a node, a worker process or too little memory
    ends is tried again, a bounded number of times; what crashes its process in native code again and again is a failed
    evaluation. Use it in a `with` statement.

    Args:
        evaluate: gives the evaluation of an architecture; one with `places` (name -> folder) and `moved(places)` has
            its files brought to where it runs, and back.
        space: what all architectures belong to.
        cluster: where.
        retries: what is done when the machine fails.
        on_wait: called every second or so while tasks run.
        driver_runs: versions that all nodes must have, by name; those of this process if None.

    Raises:
        RunError: the cluster does not answer, or has less than one evaluation takes.
    """

    def __init__(
        self,
        evaluate: Callable[[Architecture], Evaluation],
        space: Space,
        cluster: Cluster,
        retries: Retries,
        *,
        on_wait: Callable[[], object] = lambda: None,
        driver_runs: Mapping[str, str] | None = None,
    ) -> None:
        self._evaluate, self._space, self._cluster, self._retries = evaluate, space, cluster, retries
        self._on_wait = on_wait
        self._versions = dict(driver_runs or versions())
        self._places: dict[str, Path] = dict(getattr(evaluate, "places", {}))
        self._started = _connect(cluster)
        self._run = ray.remote(evaluated).options(num_cpus=cluster.cpus, num_gpus=cluster.gpus, max_retries=0)
        self._shared: _Shared | None = None
        try:
            self._check_room()
        except BaseException:
            self.close()
            raise

    def evaluate_all(
        self, architectures: Sequence[Architecture], *, on_done: Callable[[Evaluation], object] = lambda _: None
    ) -> list[Evaluation]:
        """Return the evaluation of each architecture, in their order; `on_done` gets each as it is finished.

        Raises:
            MachineError, DataError: the machine or the data failed in every attempt.
            RunError: the cluster is gone, or a node has other versions than this process.
        """
        if not architectures:
            return []
        shared = self._share()
        batch = _Batch(architectures)
        try:
            while not batch.complete:
                self._hand_out(batch, shared)
                for task in self._first_to_answer(batch):
                    self._take(batch, task, on_done)
        except BaseException:
            for task in batch.running.values():
                with suppress(Exception):
                    ray.cancel(task.reference, force=True)
            raise
        return [batch.done[number] for number in range(len(architectures))]

    def close(self) -> None:
        """Let go of the cluster; one that was started here ends."""
        self._shared = None
        if self._started:
            ray.shutdown()
            self._started = False

    def __enter__(self) -> RayPool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _share(self) -> _Shared:
        """Put what all evaluations need into the object store, once."""
        if self._shared is None:
            content = packed((self._evaluate, self._space))
            here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
            names = {name: str(folder.resolve()) for name, folder in self._places.items()}
            courier = ray.remote(Courier).options(num_cpus=0, scheduling_strategy=here).remote(names)
            key = hashlib.sha256(content.pickled + repr(sorted(names.items())).encode()).hexdigest()[:16]
            self._shared = _Shared(
                key=key,
                content=ray.put(content.pickled),
                buffers=[ray.put(buffer) for buffer in content.buffers],
                files={},
                courier=courier,
                versions=self._versions,
            )
        return self._shared

    def _hand_out(self, batch: _Batch, shared: _Shared) -> None:
        """Start as many tasks as there is room for; what the machine failed at comes last, alone."""
        for attempt in list(batch.waiting):
            known = self._retries.known_crashes(attempt.architecture)
            if known is not None:
                batch.waiting.remove(attempt)
                batch.done[attempt.number] = known
        while batch.waiting and len(batch.running) < self._room():
            self._start(batch, batch.waiting.popleft(), shared)
        if not batch.waiting and batch.alone and not batch.running:
            attempt = batch.alone.popleft()
            if self._retries.is_last(attempt):
                time.sleep(self._retries.patience.pause)
            self._start(batch, attempt, shared)

    def _start(self, batch: _Batch, attempt: Attempt, shared: _Shared) -> None:
        shared.files |= {path: ray.put(path.read_bytes()) for path in self._inputs() if path not in shared.files}
        shared.tries += 1
        order = Order(
            key=shared.key,
            content=shared.content,
            buffers=shared.buffers,
            files=[("logits", path.name, reference) for path, reference in shared.files.items()],
            own=self._own_files(attempt.architecture.digest),
            courier=shared.courier,
            digest=attempt.architecture.digest,
            architecture=attempt.architecture.to_json(),
            number=shared.tries,
            versions=shared.versions,
        )
        reference = self._run.remote(order)
        batch.running[reference] = _Task(reference, attempt, shared.tries, time.monotonic())

    def _inputs(self) -> list[Path]:
        """Return the files that every evaluation may read: the teacher's logits."""
        folder = self._places.get("logits")
        return sorted(folder.glob("*.npy")) if folder is not None else []

    def _own_files(self, digest: str) -> list[tuple[str, str, bytes]]:
        """Return what an earlier attempt at a final student left: its checkpoint, above all."""
        folder = self._places.get("students")
        found = sorted(folder.glob(f"{digest}.*")) if folder is not None else []
        return [("students", path.name, path.read_bytes()) for path in found if ".partial" not in path.name]

    def _first_to_answer(self, batch: _Batch) -> list[_Task]:
        """Wait until a task has ended or is late; none if there is new room for those that wait."""
        waited = 0.0
        while batch.running:
            ready, _ = ray.wait(list(batch.running), num_returns=1, timeout=_LOOK_EVERY)
            late = [task for task in batch.running.values() if self._is_late(task)]
            if ready or late:
                return [batch.running[r] for r in ready] + [task for task in late if task.reference not in ready]
            self._on_wait()
            if batch.waiting and len(batch.running) < self._room():
                return []
            waited = 0.0 if self._room() else waited + _LOOK_EVERY
            if waited > _NO_ROOM:
                self._check_room()
        return []

    def _is_late(self, task: _Task) -> bool:
        limit = self._retries.time_limit()
        return limit is not None and task.busy_for > limit

    def _take(self, batch: _Batch, task: _Task, on_done: Callable[[Evaluation], object]) -> None:
        """Take what a task found; decide what follows from a failure."""
        del batch.running[task.reference]
        try:
            evaluation = self._answer_of(task)
        except (MachineError, DataError) as error:
            gave_up = self._retries.after(task.attempt, error)
            if gave_up is None:
                batch.alone.append(task.attempt)
                return
            evaluation = gave_up
        else:
            self._retries.took([task.busy_for] * (evaluation.status == "ok"))
        batch.done[task.attempt.number] = evaluation
        on_done(evaluation)

    def _answer_of(self, task: _Task) -> Evaluation:
        if self._is_late(task) and not ray.wait([task.reference], timeout=0)[0]:
            ray.cancel(task.reference, force=True)
            raise self._retries.late(task.busy_for)
        try:
            answer = ray.get(task.reference)
        except ray.exceptions.OutOfMemoryError as error:
            raise MachineError(f"out of memory on its node: {_first_line(error)}") from error
        except (
            ray.exceptions.WorkerCrashedError,
            ray.exceptions.NodeDiedError,
            ray.exceptions.ObjectLostError,
        ) as error:
            raise self._death(task) from error
        except ray.exceptions.RayTaskError as error:  # only what comes before the evaluation is raised
            raise (
                error.cause if isinstance(error.cause, RunError) else MachineError(_first_line(error.cause))
            ) from error
        except ray.exceptions.RayError as error:
            raise RunError(f"the Ray cluster must answer, but does not: {_first_line(error)}") from error
        if isinstance(answer, Exception):
            raise answer
        return Evaluation.from_json(self._space, answer)

    def _death(self, task: _Task) -> MachineError:
        """Return how the process of a task died: a crash in native code leaves a trace on its node."""
        assert self._shared is not None
        node = ray.get(self._shared.courier.node_of.remote(task.number))
        alive = {n["NodeID"] for n in ray.nodes() if n["Alive"]}
        if node is None or node not in alive:
            return MachineError("its node is gone")
        strategy = NodeAffinitySchedulingStrategy(node, soft=False)
        ask = ray.remote(crash_report).options(num_cpus=0, scheduling_strategy=strategy, max_retries=2)
        try:
            report = ray.get(ask.remote(self._shared.key, task.number), timeout=_CONNECT)
        except ray.exceptions.RayError:
            return MachineError("its node is gone")
        return CrashError(f"its process crashed: {report}") if report else MachineError("its process was ended")

    def _room(self) -> int:
        """Return how many evaluations the cluster can run at the same time now."""
        return _fits(ray.cluster_resources(), self._cluster)

    def _check_room(self) -> None:
        there = ray.cluster_resources()
        if _fits(there, self._cluster) < 1:
            raise RunError(
                f"a cluster must have room for one evaluation, which takes {self._cluster.cpus:g} CPUs and "
                f"{self._cluster.gpus:g} GPUs, but it has {there.get('CPU', 0):g} CPUs and "
                f"{there.get('GPU', 0):g} GPUs; lower device.threads, or have device.workers share a GPU"
            )


@dataclass
class _Task:
    reference: Any
    attempt: Attempt
    number: int
    since: float

    @property
    def busy_for(self) -> float:
        return time.monotonic() - self.since


@dataclass
class _Shared:
    """What is in the object store for all evaluations."""

    key: str
    content: Any
    buffers: list[Any]
    files: dict[Path, Any]
    courier: Any
    versions: dict[str, str]
    tries: int = 0


class _Batch:
    """What one call evaluates, and how far it is."""

    def __init__(self, architectures: Sequence[Architecture]) -> None:
        self.waiting = deque(Attempt(number, architecture) for number, architecture in enumerate(architectures))
        self.alone: deque[Attempt] = deque()
        self.running: dict[Any, _Task] = {}
        self.done: dict[int, Evaluation] = {}
        self._count = len(architectures)

    @property
    def complete(self) -> bool:
        return len(self.done) == self._count


def _connect(cluster: Cluster) -> bool:
    """Connect to the cluster, or start one on this machine; return whether this pool is to let go of it."""
    if ray.is_initialized():
        return False
    quiet: dict[str, Any] = {"log_to_driver": False, "configure_logging": False, "logging_level": logging.ERROR}
    try:
        if cluster.address == LOCAL:
            os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is sent anywhere unless the user wants it
            ray.init(address="local", include_dashboard=False, **quiet)
        else:
            _check_answers(cluster.address)
            ray.init(address=cluster.address, **quiet)
    except (ConnectionError, RuntimeError, ValueError, TimeoutError, OSError) as error:
        raise RunError(
            f"a Ray cluster must answer at {cluster.address!r}, but: {_first_line(error)}. Start one with "
            "`ray start --head`, join this machine to it, and give HOST:PORT of its head; `local` is this machine alone"
        ) from error
    return True


def _check_answers(address: str) -> None:
    """Refuse an address at which nobody listens, sooner than Ray does."""
    import socket

    host, colon, port = address.rpartition(":")
    if address == "auto":
        return
    if not colon or not port.isdigit():
        raise ValueError("an address is auto, local or HOST:PORT")
    socket.create_connection((host.removeprefix("ray://"), int(port)), timeout=_CONNECT).close()


def _fits(resources: Mapping[str, float], cluster: Cluster) -> int:
    counts = []
    if cluster.cpus > 0:
        counts.append(int(resources.get("CPU", 0.0) / cluster.cpus + 1e-9))
    if cluster.gpus > 0:
        counts.append(int(resources.get("GPU", 0.0) / cluster.gpus + 1e-9))
    return min(counts, default=1)


def _first_line(error: BaseException | None) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0]
