"""Which pool evaluates: processes on this machine, or a Ray cluster."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from understudy.config.training import Device
from understudy.core.architecture import Space
from understudy.core.evaluation import Evaluation
from understudy.core.extras import optional
from understudy.runs.journal import Journal
from understudy.runs.workers.base import Workers
from understudy.runs.workers.local import Evaluate, Pool
from understudy.runs.workers.retries import Retries
from understudy.training.evaluator import Evaluator

if TYPE_CHECKING:
    from understudy.runs.workers.ray.pool import RayPool


def pool_for(
    device: Device,
    evaluator: Evaluator,
    evaluate: Evaluate,
    *,
    workers: int,
    journal: Journal,
    tell: Callable[[str], object],
    seconds: Sequence[float] = (),
    here: Evaluate | None = None,
    on_wait: Callable[[], object] = lambda: None,
) -> Workers:
    """Return what evaluates in processes that may crash or hang, and remembers that they did.

    Args:
        device: says where.
        evaluator: of the run.
        evaluate: what a process evaluates with: the evaluator, or what trains final students with it.
        workers: processes on this machine.
        journal: where crashes are noted.
        tell: told in one line what failed and is tried again.
        seconds: what earlier evaluations of the kind took.
        here: what evaluates if it happens in this process; None for `evaluate`.
        on_wait: called every second or so while processes are busy.

    Raises:
        ExtraError: there is no Ray.
        RunError: the cluster does not answer, or has no room for one evaluation.
    """
    if not device.cluster:
        return Pool(
            evaluate,
            failed=evaluator.failed,
            workers=workers,
            on_wait=on_wait,
            here=here,
            tell=tell,
            journal=journal,
            seconds=seconds,
        )
    return _on_cluster(
        device,
        evaluator.compute.device.type == "cuda",
        evaluate,
        evaluator.analysis.space,
        Retries(failed=evaluator.failed, tell=tell, journal=journal, seconds=list(seconds)),
        on_wait,
    )


def _on_cluster(
    device: Device, on_gpu: bool, evaluate: Evaluate, space: Space, retries: Retries, on_wait: Callable[[], object]
) -> RayPool:
    optional("ray", extra="ray")
    from understudy.runs.workers.ray.pool import Cluster, RayPool

    gpus = 1 / max(device.workers, 1) if on_gpu else 0.0
    cluster = Cluster(address=device.cluster, cpus=max(device.threads, 1), gpus=gpus)
    return RayPool(evaluate, space, cluster, retries, on_wait=on_wait)


def seconds_of(evaluations: Sequence[Evaluation]) -> list[float]:
    """Return what trainings took that came to their end."""
    return [evaluation.seconds for evaluation in evaluations if evaluation.status == "ok"]
