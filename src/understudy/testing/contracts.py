"""The contract of a searcher, as a class for tests to inherit."""

from __future__ import annotations

import functools
import multiprocessing
from concurrent.futures import ProcessPoolExecutor

import numpy as np

from understudy.core.architecture import Architecture
from understudy.core.evaluation import Evaluation
from understudy.methods.base import Searcher
from understudy.testing.landscapes import toy_evaluation


def run_searcher(searcher: Searcher, *, landscape: int = 0, noise: float = 0.004) -> list[Evaluation]:
    """Return the evaluations of a whole search on a toy landscape, in the order proposed."""
    evaluations: list[Evaluation] = []
    while proposals := searcher.propose():
        found = [toy_evaluation(a, landscape=landscape, noise=noise) for a in proposals]
        searcher.learn(found)
        evaluations += found
    return evaluations


class SearcherContract:
    """What every searcher must hold. Inherit in a test file and say how to make one.

    ```python
    class TestRandomSearcher(SearcherContract):
        def make(self, seed: int) -> Searcher:
            return RandomSearch().searcher(toy_problem(seed=seed))
    ```
    """

    deterministic = False  # True: the seed says nothing, as with a fixed schedule

    def make(self, seed: int) -> Searcher:
        """Return a new searcher on a toy Space; at least 15 students, unless `deterministic`."""
        raise NotImplementedError

    def digests(self, seed: int, count: int = 15) -> list[str]:
        """Return the digests of the first `count` proposals."""
        searcher, digests = self.make(seed), list[str]()
        while len(digests) < count and (proposals := searcher.propose()):
            digests += [a.digest for a in proposals]
            searcher.learn([toy_evaluation(a) for a in proposals])
        return digests[:count]

    def test_same_seed_same_proposals(self) -> None:
        assert self.digests(3) == self.digests(3)

    def test_other_seed_other_proposals(self) -> None:
        assert (self.digests(3) == self.digests(4)) is self.deterministic

    def test_same_in_another_process(self) -> None:
        assert _another_process().submit(_digests_of, type(self), 3).result() == self.digests(3)

    def test_global_randomness_is_untouched(self) -> None:
        import torch

        before = torch.get_rng_state(), np.random.get_state()[1].copy()  # type: ignore[index]
        self.digests(3)
        assert torch.equal(torch.get_rng_state(), before[0])
        assert (np.random.get_state()[1] == before[1]).all()  # type: ignore[index]

    def test_replay_gives_the_same_proposals(self) -> None:
        first, told = self.make(3), list[list[Evaluation]]()
        for _ in range(3):
            told.append([toy_evaluation(a) for a in first.propose()])
            first.learn(told[-1])
        again = self.make(3)
        for evaluations in told:
            assert again.propose() == [e.architecture for e in evaluations]
            again.learn(evaluations)
        assert again.propose() == first.propose()

    def test_every_proposal_is_valid_and_updates_are_as_many_as_said(self) -> None:
        searcher, updates = self.make(3), 0
        while proposals := searcher.propose():
            updates += 1
            for architecture in proposals:
                assert Architecture.from_json(architecture.space, architecture.to_json()) == architecture
                assert architecture == architecture.canonical()
            found = [toy_evaluation(a) for a in proposals]
            assert all(-1.0 <= reward <= 1.0 for reward in searcher.rewards(found))
            searcher.learn(found)
        assert searcher.updates in (updates, 0)
        assert searcher.propose() == []

    def test_failed_evaluations_are_survived(self) -> None:
        searcher, updates = self.make(3), 0
        while proposals := searcher.propose():
            updates += 1
            searcher.learn([toy_evaluation(a).with_error("diverged") for a in proposals])
        assert searcher.updates in (updates, 0)


@functools.cache
def _another_process() -> ProcessPoolExecutor:
    """Return a process for all contracts: it takes longer to import torch than to search."""
    return ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"))


def _digests_of(contract: type[SearcherContract], seed: int) -> list[str]:
    return contract().digests(seed)
