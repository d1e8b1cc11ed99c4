from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import replace

import pytest
import torch

from understudy.config.methods import N2N, RandomSearch
from understudy.core.architecture import Architecture, Group, Layer, Space
from understudy.core.evaluation import Evaluation
from understudy.methods.base import Searcher
from understudy.methods.baselines.random import RandomSearcher
from understudy.methods.n2n.rules import TUNED
from understudy.methods.n2n.search import N2NSearch
from understudy.methods.proposals import Proposals, Scoring
from understudy.methods.surrogate.shortlist import Shortlist
from understudy.testing.contracts import SearcherContract, run_searcher
from understudy.testing.landscapes import (
    ToyKind,
    toy_cost,
    toy_evaluation,
    toy_problem,
    toy_reward,
    toy_score,
    toy_space,
)

Draws = list[tuple[int, Architecture]]
SETTINGS = N2N()


def drawn(count: int, seed: int, kind: ToyKind = "chain") -> list[Architecture]:
    random = RandomSearcher(toy_problem(kind, seed=seed), RandomSearch())
    return list(dict.fromkeys(random.drawn() for _ in range(count)))


def shortlist(
    kind: ToyKind = "chain", policy: Mapping[str, torch.Tensor] | None = None, settings: N2N = SETTINGS, seed: int = 0
) -> Shortlist:
    return Shortlist(toy_problem(kind, policy=policy), settings, torch.Generator().manual_seed(seed))


def ordered(ranked: Shortlist, architectures: list[Architecture]) -> list[Architecture]:
    scoring = Scoring(toy_reward(architectures[0].space))
    draws: Draws = list(enumerate(architectures))
    found = ranked.order(draws, lambda a: scoring.worth(toy_cost(a), a))
    assert sorted(number for number, _ in found) == list(range(len(draws)))
    return [architecture for _, architecture in found]


def rewards(architectures: list[Architecture], landscape: int = 0) -> list[float]:
    reward = toy_reward(architectures[0].space)
    return [reward(toy_evaluation(a, landscape=landscape, noise=0.0)) for a in architectures]


@pytest.mark.parametrize("kind", ["chain", "residual"])
def test_those_that_earn_most_come_first(kind: ToyKind) -> None:
    ranked, others = shortlist(kind), drawn(100, seed=1, kind=kind)
    ranked.learn([toy_evaluation(a) for a in drawn(60, seed=2, kind=kind)])
    first = rewards(ordered(ranked, others)[:5])
    assert statistics.fmean(first) > sorted(rewards(others))[80]  # by luck, about the median


def test_students_of_an_update_differ_in_more_than_one_decision() -> None:
    space = toy_space()
    best = drawn(1, seed=3)[0]
    like_it = [best.with_width(group.name, width) for group in space.groups[:4] for width in (8, 16, 24)]
    ranked, others = shortlist(), list(dict.fromkeys([*like_it, *drawn(30, seed=4)]))
    ranked.learn([toy_evaluation(a) for a in drawn(40, seed=2)])
    chosen = ordered(ranked, others)[:5]
    decided = [{**{g.name: a.width(g.name) for g in space.groups}, "removed": a.removed} for a in chosen]
    for number, one in enumerate(decided):
        assert all(sum(one[key] != other[key] for key in one) != 1 for other in decided[:number])


@pytest.mark.parametrize(("known", "offered"), [(4, 50), (40, 5)])
def test_where_too_little_is_known_or_nothing_is_to_choose_draws_stay_as_they_are(known: int, offered: int) -> None:
    generator = torch.Generator().manual_seed(0)
    before = generator.get_state()
    others = drawn(60, seed=1)[:offered]
    ranked = Shortlist(toy_problem(), SETTINGS, generator)
    failed = [replace(toy_evaluation(a), status="failed", score=0.0, error="no memory") for a in others[:5]]
    ranked.learn([*failed, *(toy_evaluation(a) for a in drawn(60, seed=2)[:known])])
    assert ordered(ranked, others) == others
    assert torch.equal(generator.get_state(), before)


def test_a_teacher_of_one_layer_has_one_end() -> None:
    layer = Layer(
        name="conv", type="conv", kernel=3, padding=1, outputs=64, parameters=1728, group="conv", kernels=(1, 3)
    )
    space = Space(layers=(layer,), groups=(Group(name="conv", width=64, layers=("conv",)),), units=())
    ranked = Shortlist(toy_problem(space, policy=known_of("chain", 0)), SETTINGS, torch.Generator().manual_seed(0))
    students = [space.architecture(widths={"conv": width}) for width in (8, 16, 32, 48)]
    ranked.learn([toy_evaluation(a) for a in students])
    assert ranked.predicted([*students, space.full]).isfinite().all()


def test_an_order_does_not_hang_on_the_number_of_threads() -> None:
    known, others = [toy_evaluation(a) for a in drawn(40, seed=2)], drawn(60, seed=1)
    threads, found = torch.get_num_threads(), []
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            ranked = shortlist()
            ranked.learn(known)
            found.append(ordered(ranked, others))
            assert torch.get_num_threads() == count
    finally:
        torch.set_num_threads(threads)
    assert found[0] == found[1]


def test_what_was_offered_but_not_picked_may_be_picked_later() -> None:
    architectures = drawn(12, seed=5)[:10]
    proposals = Proposals(toy_cost, resamples=0)
    found = []
    for _ in range(5):
        picked = proposals.pick(
            iter([(0, a) for a in architectures]), 2, lambda a: 0.5, order=lambda draws: draws[::-1], among=5
        )
        found += [architecture for _, architecture in picked]
    assert found == architectures[::-1]


# --- In a search ---


class TestShortlistedN2N(SearcherContract):
    def make(self, seed: int) -> Searcher:
        settings = N2N(removal_updates=2, shrinkage_updates=2, draws_per_rollout=6)
        return N2NSearch(toy_problem("residual", seed=seed), settings, rules=replace(TUNED, gradient_steps=2))


def searched(settings: N2N, policy: Mapping[str, torch.Tensor] | None = None, seed: int = 0) -> list[Evaluation]:
    return run_searcher(N2NSearch(toy_problem(seed=seed, policy=policy), settings))


def test_a_policy_that_never_learns_finds_more_when_its_draws_are_ranked() -> None:
    frozen, reward = N2N(shrinkage_updates=5, lr=0.0), toy_reward(toy_space())
    plain, ranked = (
        [reward(evaluation) for evaluation in searched(replace(frozen, draws_per_rollout=draws))] for draws in (1, 10)
    )
    assert len(plain) == len(ranked) == 25
    assert statistics.fmean(ranked[10:]) > statistics.fmean(plain[10:])


# --- By the students of another teacher ---


def known_of(kind: ToyKind, landscape: int) -> dict[str, torch.Tensor]:
    """Return what a shortlist keeps of 60 students of a toy teacher, on a landscape that all teachers share."""
    ranked = shortlist(kind)
    accuracies = {a: toy_score(a, landscape=landscape, shared=True) for a in drawn(60, seed=2, kind=kind)}
    ranked.learn([replace(toy_evaluation(a), score=accuracy) for a, accuracy in accuracies.items()])
    return ranked.tensors()


@pytest.mark.parametrize("landscape", [0, 1, 2])
@pytest.mark.parametrize(("smaller", "larger"), [("chain", "residual"), ("residual", "chain")])
def test_students_of_another_teacher_rank_before_anything_is_trained(
    smaller: ToyKind, larger: ToyKind, landscape: int
) -> None:
    others, known = drawn(100, seed=1, kind=larger), known_of(smaller, landscape)
    accuracies = {a: toy_score(a, landscape=landscape, noise=0.0, shared=True) for a in others}
    predicted_B = shortlist(larger, known, N2N(rollouts=200)).predicted(others).mean(1)
    best = [accuracies[others[index]] for index in predicted_B.argsort(descending=True)[:10].tolist()]
    assert statistics.fmean(best) > sorted(accuracies.values())[75]  # by luck, about the median
    assert ordered(shortlist(larger, known), others) != others


def test_what_is_kept_of_students_adds_up_over_searches() -> None:
    first = known_of("chain", 0)
    second = shortlist("residual", first)
    assert not shortlist("residual").tensors()
    second.learn([toy_evaluation(a) for a in drawn(7, seed=3, kind="residual")])
    both = second.tensors()
    assert both.keys() == first.keys()
    for name, tensor in both.items():
        assert len(tensor) == len(first[name]) + 7
        assert torch.equal(tensor[: len(first[name])], first[name])


def test_the_teachers_own_students_outvote_those_of_another() -> None:
    wrong = known_of("residual", 0)
    wrong["students.shares"] = 1.0 - wrong["students.shares"]  # the opposite of the truth
    others, found = drawn(100, seed=1), []
    for count in (0, 60):
        ranked = shortlist(policy=wrong)
        ranked.learn([toy_evaluation(a) for a in drawn(60, seed=2)[:count]])
        found.append(statistics.fmean(rewards(ordered(ranked, others)[:5])))
    assert found[1] > found[0]
    assert found[1] > sorted(rewards(others))[65]
