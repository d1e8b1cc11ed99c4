from __future__ import annotations

import functools
import math
import statistics
from dataclasses import replace
from operator import ne

import pytest
import torch

from understudy.config.methods import N2N, RandomSearch
from understudy.config.presets import paper
from understudy.config.widths import Widths
from understudy.core.architecture import Architecture
from understudy.core.errors import ConfigError
from understudy.core.evaluation import Cost, Evaluation
from understudy.core.goal import Budgets, Goal
from understudy.methods.base import Searcher
from understudy.methods.n2n.rules import TUNED, Rules
from understudy.methods.n2n.search import Baseline, N2NSearch
from understudy.methods.proposals import foresight, offered_units
from understudy.testing.contracts import SearcherContract, run_searcher
from understudy.testing.landscapes import (
    ToyKind,
    toy_cost,
    toy_evaluation,
    toy_problem,
    toy_reward,
    toy_space,
)

QUICK = N2N(removal_updates=4, shrinkage_updates=4, draws_per_rollout=1)
RULES = replace(TUNED, gradient_steps=2)


def n2n(
    settings: N2N, rules: Rules = RULES, *, kind: ToyKind = "chain", params: str | None = None, seed: int = 0
) -> N2NSearch:
    return N2NSearch(toy_problem(kind, params, seed=seed), settings, rules=rules)


def tensors_of(searcher: Searcher) -> dict[str, torch.Tensor]:
    return {name: value for name, value in searcher.state_dict().items() if isinstance(value, torch.Tensor)}


class TestN2N(SearcherContract):
    def make(self, seed: int) -> Searcher:
        return n2n(QUICK, params="127x", seed=seed)


class TestPublishedN2N(SearcherContract):
    def make(self, seed: int) -> Searcher:
        settings = replace(N2N.paper(), removal_updates=3, shrinkage_updates=2)
        widths = paper("n2n").widths
        return settings.searcher(toy_problem(params="5x", seed=seed, widths=widths))


@pytest.mark.parametrize("factor", [0.5, 1.0])
def test_one_width_alone_may_be_offered(factor: float) -> None:
    problem = toy_problem(params="2x", widths=Widths(factors=(factor,)))
    searcher = replace(QUICK, rules="paper", removal_updates=1).searcher(problem)
    assert run_searcher(searcher)


def test_parameters_do_not_depend_on_the_teacher() -> None:
    shapes = []
    for kind in ("chain", "residual"):
        searcher = n2n(replace(QUICK, removal_updates=1), kind=kind)  # type: ignore[arg-type]
        searcher.learn([toy_evaluation(a) for a in searcher.propose()])
        searcher.propose()
        shapes.append({name: tuple(tensor.shape) for name, tensor in tensors_of(searcher).items()})
    assert shapes[0] == shapes[1]
    assert {name.split(".")[0] for name in shapes[0]} == {"removal", "shrinkage", "students"}


def test_global_generator_is_left_alone_while_weights_are_made() -> None:
    before = torch.get_rng_state()
    n2n(QUICK)
    assert torch.equal(torch.get_rng_state(), before)


# --- REINFORCE ---


def test_one_step_without_replay_is_the_gradient_of_reinforce() -> None:
    rules = replace(RULES, replay=1, gradient_steps=1, entropy_bonus=0.0)
    searcher = n2n(QUICK, rules)
    found = [toy_evaluation(a) for a in searcher.propose()]
    stage = searcher.now
    assert stage is not None
    reward_B = torch.tensor(searcher.rewards(found), dtype=torch.float64)
    logs_BD, _ = stage.policy.judge(stage.proposed_BD)
    advantage_B = (reward_B - reward_B.mean()) / reward_B.std(correction=0)
    (-(advantage_B * logs_BD.sum(1)).mean()).backward()
    expected = [p.grad.clone() for p in stage.policy.parameters() if p.grad is not None]
    searcher.learn(found)
    got = [p.grad for p in stage.policy.parameters() if p.grad is not None]
    assert len(got) == len(expected) == len(list(stage.policy.parameters()))
    for gradient, same in zip(got, expected, strict=True):
        torch.testing.assert_close(gradient, same, rtol=1e-6, atol=1e-9)


def test_baseline_is_the_mean_and_spread_with_recent_updates_first() -> None:
    baseline = Baseline(0.5)
    baseline.add(torch.tensor([0.0, 2.0]))
    assert (baseline.mean, baseline.spread) == (1.0, 1.0)
    baseline.add(torch.tensor([4.0, 4.0]))
    assert baseline.mean == pytest.approx((0.5 * 1 + 4) / 1.5)
    assert baseline.spread == pytest.approx(math.sqrt((0.5 * 2 + 16) / 1.5 - 3.0**2))


# --- Budgets and stages ---


@pytest.mark.parametrize(("kind", "params"), [("chain", "127x"), ("residual", "60x"), ("residual", "2x")])
def test_students_keep_a_hard_budget_and_are_never_the_same(kind: ToyKind, params: str) -> None:
    searcher = n2n(QUICK, kind=kind, params=params)
    students = run_searcher(searcher)
    assert len({e.architecture.digest for e in students}) == len(students) == 40
    most = toy_cost(toy_space(kind).full).parameters / float(params[:-1])
    assert all(toy_cost(e.architecture).parameters <= most for e in students[20:])
    assert statistics.median(toy_cost(e.architecture).parameters for e in students[20:]) > 0.2 * most


@pytest.mark.parametrize("repair", [False, True])
def test_where_no_draw_keeps_a_budget_draws_are_mended(repair: bool) -> None:
    rules = replace(RULES, calibrate=False, keep_bias=2.0, resamples=1, repair=repair, look_ahead=False)
    searcher = n2n(QUICK, rules, params="40x")
    most, first = toy_cost(toy_space().full).parameters / 40, searcher.propose()
    assert all((toy_cost(a).parameters <= most) is repair for a in first)
    assert len(set(first)) > 1 or not repair


def test_stage_two_shrinks_the_best_of_stage_one() -> None:
    searcher, found = n2n(replace(QUICK, revisit=0.0), params="20x"), list[Evaluation]()
    for _ in range(4):
        assert searcher.stage == "removal"
        proposals = searcher.propose()
        assert all(not a.widths and not a.kernels for a in proposals)
        found += [toy_evaluation(a) for a in proposals]
        searcher.learn(found[-5:])
    assert searcher.stage == "shrinkage"
    best = max(found, key=lambda e: e.score)  # nearly: the reward is all but saturated
    starts = {a.removed for a in searcher.propose()}
    assert len(starts) == 1
    accuracies = {e.architecture.removed: e.score for e in found}
    assert accuracies[starts.pop()] > best.score - 0.1


def test_stage_two_starts_from_the_teacher_if_all_failed() -> None:
    searcher = n2n(replace(QUICK, removal_updates=1, revisit=0.0))
    searcher.learn([toy_evaluation(a).with_error("diverged") for a in searcher.propose()])
    assert {a.removed for a in searcher.propose()} == {frozenset()}


def test_stage_one_is_asked_for_no_more_than_its_share_of_what_removals_reach() -> None:
    for kind, factor_asked in (("chain", math.sqrt(100.0)), ("residual", math.sqrt(17442890 / 4827466))):
        space = toy_space(kind)  # type: ignore[arg-type]
        reward = toy_reward(space, Goal(params="100x"))
        units = offered_units(space, "units")
        ahead = foresight(space, units, reward, toy_cost, share=0.5)
        full = toy_cost(space.full)
        for factor, fits in ((0.99, False), (1.01, True)):
            left = replace(full, parameters=round(full.parameters / (factor_asked * factor)))
            assert (not reward.budgets.broken_by(ahead(left))) is fits


def test_stage_one_leaves_what_stage_two_can_bring_within_the_budgets() -> None:
    space, unit = toy_space(), "features.3"

    def predict(architecture: Architecture) -> Cost:  # without that unit memory stays large at any width
        cost = toy_cost(architecture)
        memory = 1_000_000 if unit in architecture.removed or not architecture.widths else 10_000
        return replace(cost, peak_activation_bytes=memory)

    reward = toy_reward(space)
    reward = replace(reward, teacher_cost=predict(space.full), budgets=Budgets(parameters=8e5, memory_mb=0.5))
    searcher = N2NSearch(toy_problem(space, reward=reward, predict=predict), QUICK, rules=RULES)
    found: list[Evaluation] = []
    while proposals := searcher.propose():
        assert all(unit not in a.removed for a in proposals)
        found += [replace(toy_evaluation(a), cost=predict(a)) for a in proposals]
        searcher.learn(found[-len(proposals) :])
    best = max(found, key=reward).cost
    assert best is not None and not reward.budgets.broken_by(best)


def test_a_stage_without_decisions_is_left_out() -> None:
    space = toy_space()
    fixed = replace(space, groups=(), layers=tuple(replace(layer, group=None, kernels=()) for layer in space.layers))
    together = replace(QUICK, removal_updates=0)
    for which, settings, name in (
        (fixed, QUICK, "removal"),
        (fixed, together, "shrinkage"),
        (replace(space, units=()), QUICK, "shrinkage"),
    ):
        searcher = N2NSearch(toy_problem(which), settings, rules=RULES)
        assert (searcher.updates, searcher.stage) == (4, name)
        assert len(run_searcher(searcher)) == 20
        assert searcher.stage == "done"


# --- Units once more in stage 2 ---


def first_of_stage_two(revisit: float, params: str | None) -> tuple[frozenset[str], list[Architecture]]:
    """Return what stage 1 removed in the student that stage 2 starts from, and the first proposals of stage 2."""
    settings = replace(QUICK, removal_updates=2, rollouts=40, revisit=revisit)
    searcher, found = n2n(settings, replace(RULES, resamples=40), params=params), list[Evaluation]()
    while searcher.stage != "shrinkage":
        found += [toy_evaluation(a) for a in searcher.propose()]
        searcher.learn(found[-40:])
    return searcher.start_of_shrinkage().removed, searcher.propose()


@pytest.mark.parametrize("params", [None, "20x"])
def test_stage_two_decides_units_again_as_often_as_asked(params: str | None) -> None:
    removed, proposals = first_of_stage_two(0.25, params)
    units = len(offered_units(toy_space(), "units"))
    shares = [len(a.removed ^ removed) / units for a in proposals]
    assert removed
    assert any(removed - a.removed for a in proposals)
    assert any(a.removed - removed for a in proposals)
    assert 0.1 < statistics.fmean(shares) < 0.4  # what is over the budget is drawn again


@pytest.mark.parametrize("rollouts", [1, 2, 5])
def test_uniform_students_of_all_depths_come_first_however_many_at_a_time(rollouts: int) -> None:
    settings = N2N(shrinkage_updates=5, rollouts=rollouts, draws_per_rollout=1)
    searcher, students = n2n(settings, kind="residual", params="20x"), list[Architecture]()
    while len(students) < 5:
        proposed = searcher.propose()
        searcher.learn([toy_evaluation(a) for a in proposed])
        students += proposed
    blocks = [len(a.removed) for a in students[:5]]
    assert blocks == sorted(set(blocks)) and blocks[0] == 0


def changes(near: int) -> list[int]:
    """Return, for each student of the second update, the decisions in which it differs from the nearest of the first.

    On no landscape, so that neither says which is better, and without budgets, so that widths stay as they are drawn.
    """
    searcher = n2n(N2N(rollouts=20, draws_per_rollout=1), replace(RULES, near=near), kind="residual")
    first = searcher.propose()
    searcher.learn([replace(toy_evaluation(a), score=0.5) for a in first])
    names = [*(unit.name for unit in offered_units(first[0].space, "units")), *(g.name for g in first[0].space.groups)]

    def values(architecture: Architecture) -> list[object]:
        decided = {name: int(name not in architecture.removed) for name in names}
        return list((decided | {g.name: architecture.width(g.name) for g in architecture.space.groups}).values())

    return [min(sum(map(ne, values(a), values(b))) for b in first) for a in searcher.propose()]


def test_draws_of_later_updates_change_a_few_decisions_of_the_best_students_or_all() -> None:
    near, far = sorted(changes(near=5)), sorted(changes(near=0))
    assert near[5] < far[0] / 3  # a quarter of them change few
    assert near[-1] > far[0] / 2  # and some much
    assert statistics.median(near) < 0.7 * statistics.median(far)


def test_without_revisits_units_stay_as_stage_one_left_them() -> None:
    removed, proposals = first_of_stage_two(0.0, None)
    assert all(a.removed == removed for a in proposals)


# --- Policies that learned elsewhere ---


@pytest.mark.parametrize(("learned_on", "used_on"), [("chain", "chain"), ("residual", "chain")])
def test_a_policy_that_learned_elsewhere_is_where_it_starts(learned_on: ToyKind, used_on: ToyKind) -> None:
    teacher = n2n(replace(QUICK, removal_updates=6), kind=learned_on, params="20x")
    run_searcher(teacher)
    policy = tensors_of(teacher)
    problem = toy_problem(used_on, "40x", seed=3, policy=policy)
    QUICK.check_start(policy, problem)
    searcher, seen = N2NSearch(problem, QUICK, rules=RULES), set[str]()
    while proposals := searcher.propose():
        assert searcher.now is not None
        begun, name = searcher.now.policy.state_dict(), searcher.stage
        same = [torch.equal(begun[key], policy[f"{name}.{key}"]) for key in begun]
        assert all(same) is (name not in seen)
        seen.add(name)
        searcher.learn([toy_evaluation(a) for a in proposals])


@pytest.mark.parametrize("stages", [{"removal_updates": 0, "shrinkage_updates": 1}, {"removal_updates": 1}])
def test_what_a_policy_was_calibrated_to_is_not_carried_to_another_search(stages: dict[str, int]) -> None:
    """What biases widths to a hard budget must not remove units of a teacher that has none."""
    settings, rules = replace(QUICK, revisit=0.1, **stages), replace(RULES, fill=False, entropy_bonus=0.0)
    hard = n2n(replace(settings, lr=0.0), rules, kind="residual", params="100x")
    run_searcher(hard)
    space, means = toy_space(), []
    for known in (None, tensors_of(hard)):
        moved = N2NSearch(toy_problem(space, seed=3, policy=known), settings, rules=rules)
        stage = moved.now
        assert stage is not None
        uniform_BD = torch.rand(200, stage.decisions, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        drawn = [stage.choices.architecture(choices_D) for choices_D in stage.policy.sample(uniform_BD)]
        widths = [a.width(group.name) / group.width for a in drawn for group in space.groups]
        means.append((statistics.fmean(len(a.removed) for a in drawn), statistics.fmean(widths)))
    assert means[0] == means[1]  # nothing was learned


def test_a_learned_removal_is_repeated_without_a_budget() -> None:
    space = toy_space()
    settings, rules = N2N(removal_updates=12, shrinkage_updates=0, draws_per_rollout=1), replace(TUNED, resamples=0)
    teacher = n2n(settings, rules)
    learned = [toy_reward(space)(e) for e in run_searcher(teacher)]
    searcher = N2NSearch(toy_problem(space, seed=7, policy=tensors_of(teacher)), settings, rules=rules)
    first = [toy_reward(space)(toy_evaluation(a)) for a in searcher.propose()]
    assert statistics.fmean(first) > statistics.fmean(learned[:10]) + 0.1


def test_a_policy_of_other_settings_is_refused() -> None:
    fits = n2n(replace(QUICK, removal_updates=1))
    fits.learn([toy_evaluation(a) for a in fits.propose()])
    fits.propose()
    known, problem = tensors_of(fits), toy_problem()
    QUICK.check_start(known, problem)
    with pytest.raises(ConfigError, match=r"policy_from must name a policy of as many widths\.factors"):
        QUICK.check_start(known, toy_problem(widths=Widths(factors=(0.5, 1.0))))
    with pytest.raises(ConfigError, match=r"of the same n2n.rules, but removal.lstm.weight_ih_l0 is"):
        replace(QUICK, rules="paper").check_start(known, problem)
    with pytest.raises(ConfigError, match="there is none in it"):
        QUICK.check_start({}, problem)
    features = known["students.features"]
    for cut in (features[:, :-1], features[:-1], features[0]):
        with pytest.raises(ConfigError, match=r"18 features for each of its students, but students.features is \("):
            QUICK.check_start({**known, "students.features": cut}, problem)
    del known["students.shares"]
    with pytest.raises(ConfigError, match=r"students\.shares is not there"):
        QUICK.check_start(known, problem)


# --- The claim: on a known landscape, what is learned beats chance at equal numbers of students ---


@functools.cache  # two tests look at the same searches
def figures(part: str, method: N2N | RandomSearch, seed: int) -> tuple[float, float]:
    """Return the best reward and the mean of the last third; `part` of the decisions alone, 12 times smaller."""
    space = toy_space()
    if part == "removal":
        layers = tuple(replace(layer, group=None, kernels=()) for layer in space.layers)
        space = replace(space, layers=layers, groups=())
    else:
        space = replace(space, units=())
    problem = toy_problem(space, "12x", seed=seed)
    rewards = [problem.reward(e) for e in run_searcher(method.searcher(problem), landscape=seed)]
    assert len(rewards) == 60
    return max(rewards), statistics.fmean(rewards[-20:])


ALONE = N2N(removal_updates=12, shrinkage_updates=12)


@pytest.mark.slow
@pytest.mark.parametrize("part", ["removal", "shrinkage"])  # benchmarks/policies.py has more, too long for here
def test_it_beats_random_search_with_the_same_help(part: str) -> None:
    learned = [figures(part, ALONE, seed) for seed in range(7)]
    chance = [figures(part, RandomSearch(students=60), seed) for seed in range(7)]
    best = [a[0] - b[0] for a, b in zip(learned, chance, strict=True)]
    late = [a[1] - b[1] for a, b in zip(learned, chance, strict=True)]
    assert min(best) > 0 and min(late) > 0  # in each of seven: p < 0.01 in a sign test
    assert statistics.fmean(best) > statistics.stdev(best) / math.sqrt(len(best))
    assert statistics.fmean(late) > 0.05


@pytest.mark.parametrize("part", ["removal", "shrinkage"])
def test_each_stage_learns(part: str) -> None:
    learned = [figures(part, ALONE, seed) for seed in range(2)]
    chance = [figures(part, RandomSearch(students=60), seed) for seed in range(2)]
    for figure in (0, 1):
        assert statistics.fmean(x[figure] for x in learned) > statistics.fmean(x[figure] for x in chance)
