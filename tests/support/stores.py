"""The contract of a store, as a class for tests to inherit: a file and a database hold the same."""

from __future__ import annotations

from dataclasses import replace

import pytest

from understudy.core.architecture import Space
from understudy.core.errors import RunError
from understudy.core.evaluation import Evaluation
from understudy.runs.store import Store
from understudy.testing.landscapes import toy_evaluation, toy_space

SPACE = toy_space()


def evaluations(space: Space = SPACE) -> list[Evaluation]:
    """One of each status; the last could not be built."""
    thin = space.full.with_width(space.groups[0].name, 8)
    thinner = thin.without(space.units[0].name).with_kernel(space.layers[0].name, 1)
    return [
        replace(toy_evaluation(space.full), seconds=2.5),
        replace(toy_evaluation(thin), status="stopped"),
        toy_evaluation(thinner).with_error("diverged: loss is nan"),
        replace(toy_evaluation(thinner), recipe="other", cost=None, status="failed", error="at node x", score=0.0),
    ]


class StoreContract:
    """What every store must hold: inherit and give `address` and `prefix`."""

    address: str  # of the file or database
    prefix = ""  # of the names of its studies, where tests share a database

    def open(self, space: Space = SPACE, name: str = "candidates") -> Store:
        """Return the study of that name, made if it is new."""
        return Store(self.address, space, name=self.prefix + name)

    def test_what_was_added_is_there_after_reopening(self) -> None:
        with self.open() as store:
            for evaluation in evaluations():
                store.add(evaluation)
            assert store.all() == evaluations()
        with self.open() as store:
            assert store.all() == evaluations()
            assert [store.get(e.key) for e in evaluations()] == evaluations()
            assert store.get("unknown") is None

    def test_a_known_key_keeps_its_first_evaluation(self) -> None:
        first = toy_evaluation(SPACE.full)
        with self.open() as store:
            store.add(first)
            store.add(replace(first, score=0.25))
            assert store.all() == [first]
        with self.open() as store:
            store.add(replace(first, score=0.25))
            assert store.all() == [first]

    def test_the_returned_list_is_the_callers(self) -> None:
        with self.open() as store:
            store.all().append(toy_evaluation(SPACE.full))
            assert store.all() == []

    def test_names_keep_studies_apart(self) -> None:
        with self.open(name="one") as one, self.open(name="two") as two:
            one.add(toy_evaluation(SPACE.full))
            assert two.all() == []
        with self.open(name="one") as one:
            assert one.all() == [toy_evaluation(SPACE.full)]

    def test_another_space_is_refused(self) -> None:
        self.open().close()
        other = toy_space("residual")
        with pytest.raises(RunError, match=f"is of Space {SPACE.digest}, but this teacher's is {other.digest}"):
            self.open(other)
        self.open().close()  # which is still as it was
