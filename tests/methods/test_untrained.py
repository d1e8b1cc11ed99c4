"""First students of a search, found on looks at untrained ones."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from understudy.config.methods import N2N, ArchComp, Method
from understudy.core.architecture import Architecture
from understudy.methods.base import Searcher
from understudy.methods.n2n.search import N2NSearch
from understudy.methods.proposals import usage
from understudy.methods.untrained import best_untrained, seen_untrained
from understudy.testing.contracts import SearcherContract, run_searcher
from understudy.testing.landscapes import toy_cost, toy_problem, toy_score

SETTINGS = N2N(shrinkage_updates=3, glances=2, draws_per_rollout=4)
EMBEDDED = ArchComp(students=10, glances=6)


class Looks:
    """A glance that knows what a training would say, and counts."""

    def __init__(self, *, impossible: frozenset[str] = frozenset()) -> None:
        self.errors: dict[str, float] = {}
        self._impossible = impossible

    def __call__(self, architecture: Architecture) -> float:
        known = 1.0 - toy_score(architecture, noise=0.0)
        self.errors[architecture.digest] = math.inf if architecture.removed & self._impossible else known
        return self.errors[architecture.digest]


class TestN2NWithGlances(SearcherContract):
    def make(self, seed: int) -> Searcher:
        return SETTINGS.searcher(toy_problem(params="20x", seed=seed, glance=Looks()))


class TestArchCompWithGlances(SearcherContract):
    def make(self, seed: int) -> Searcher:
        return replace(EMBEDDED, glances=2).searcher(toy_problem(params="20x", seed=seed, glance=Looks()))


@pytest.mark.parametrize("settings", [SETTINGS, EMBEDDED])
def test_what_looks_best_is_trained_first(settings: N2N | ArchComp) -> None:
    looks = Looks()
    problem = toy_problem("residual", "20x", glance=looks)
    first = settings.searcher(problem).propose()
    assert len(looks.errors) == settings.glances * settings.expected_students and len(set(first)) == 5
    errors = [looks.errors[architecture.digest] for architecture in first]
    assert errors == sorted(errors) and errors[0] == min(looks.errors.values())
    assert all(usage(toy_cost(architecture), problem.reward.budgets) <= 1.0 for architecture in first)
    without = replace(settings, glances=0).searcher(problem).propose()
    assert max(toy_score(a, noise=0.0) for a in first) > max(toy_score(a, noise=0.0) for a in without)


@pytest.mark.parametrize(
    ("settings", "params", "sees"),
    [
        (replace(SETTINGS, glances=0), "20x", True),
        (SETTINGS, None, True),  # nothing says how small is small enough, and looks are no accuracies
        (SETTINGS, "20x", False),
        (replace(SETTINGS, removal_updates=1), "20x", True),
        (N2N.paper(), "20x", True),
        (ArchComp(students=10), "20x", True),
        (EMBEDDED, None, True),
        (EMBEDDED, "20x", False),
    ],
)
def test_nothing_is_looked_at(settings: Method, params: str | None, sees: bool) -> None:
    looks = Looks()
    assert settings.searcher(toy_problem(params=params, glance=looks if sees else None)).propose()
    assert not looks.errors


def test_what_cannot_be_built_or_breaks_the_budget_is_not_among_the_best() -> None:
    gone = frozenset({"stage0.1", "stage1.1"})
    problem = seen_untrained(toy_problem("residual", "20x", glance=Looks(impossible=gone)))
    found = best_untrained(N2NSearch(problem, replace(SETTINGS, glances=0, shrinkage_updates=6)), 5)
    assert found and not any(architecture.removed & gone for architecture in found)
    impossible = seen_untrained(toy_problem("residual", "50000x", glance=Looks()))
    assert best_untrained(N2NSearch(impossible, replace(SETTINGS, glances=0)), 5) == []


def test_students_that_are_nearly_alike_are_not_all_trained() -> None:
    found = SETTINGS.searcher(toy_problem("residual", "20x", glance=Looks())).propose()
    for number, one in enumerate(found):
        for other in found[:number]:
            widths = [(one.width(g.name), other.width(g.name)) for g in one.space.groups]
            unlike = sum(min(pair) < 0.9 * max(pair) for pair in widths)
            assert one.removed != other.removed or unlike > len(widths) / 4


@pytest.mark.parametrize(("settings", "students"), [(SETTINGS, 15), (replace(EMBEDDED, glances=2), 10)])
def test_a_whole_search_trains_as_many_as_it_says(settings: Method, students: int) -> None:
    problem = toy_problem("residual", "20x", glance=Looks())
    assert len(run_searcher(settings.searcher(problem))) == settings.expected_students == students
