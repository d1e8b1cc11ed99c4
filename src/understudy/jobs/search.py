"""The one place where searcher, evaluations and store meet."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, runtime_checkable

from understudy.core.architecture import Architecture
from understudy.core.evaluation import Evaluation
from understudy.methods.base import Searcher, Update
from understudy.runs.store import Store


@runtime_checkable
class EvaluateAll(Protocol):
    """What evaluates, such as `workers.Pool.evaluate_all`."""

    def __call__(
        self, architectures: Sequence[Architecture], *, on_done: Callable[[Evaluation], object]
    ) -> list[Evaluation]:
        """Return the evaluation of each, in their order; call `on_done` with each as it is finished."""
        ...


def search(
    searcher: Searcher,
    evaluate_all: EvaluateAll,
    store: Store,
    *,
    key_of: Callable[[Architecture], str],
    work_of: Callable[[Architecture], float] = lambda architecture: 0.0,
    measured: Callable[[Evaluation], Evaluation] = lambda evaluation: evaluation,
    on_update: Callable[[Update], object] = lambda update: None,
) -> None:
    """Let a searcher propose and learn until it is done; every evaluation is in the store as soon as it is finished.

    What the store knows is not evaluated again. So a search that was interrupted is continued by the
    same call with a new searcher of the same seed: it proposes the same, is answered from the store,
    and goes on from where the answers end.

    Args:
        searcher: what proposes and learns; new.
        evaluate_all: what evaluates.
        store: what is known; everything new goes there.
        key_of: the key (`Evaluation.key`) that an architecture's evaluation will have.
        work_of: how long an evaluation takes beside others, in any unit. The longest of an update are begun first, so
            that no worker is left alone with a long one (longest processing time first; Graham, 1969).
        measured: adds what is measured when nothing trains any more, once all proposals of an update were evaluated;
            called in their order, also for what the store knows.
        on_update: told about each update after the searcher has learned.

    Raises:
        RunError: the store cannot be written, or workers cannot be started.
    """
    number = 0
    while proposals := searcher.propose():
        number += 1
        stage = searcher.stage
        missing = {key_of(a): a for a in proposals if store.get(key_of(a)) is None}
        evaluate_all(sorted(missing.values(), key=work_of, reverse=True), on_done=store.add)
        evaluations = [measured(_known(store, key_of(a))) for a in proposals]
        searcher.learn(evaluations)
        on_update(
            Update(
                number=number,
                of=searcher.updates,
                stage=stage,
                evaluations=tuple(evaluations),
                trained=len(missing),
            )
        )


def _known(store: Store, key: str) -> Evaluation:
    evaluation = store.get(key)
    assert evaluation is not None, f"the evaluation of {key} came back under another key"
    return evaluation
