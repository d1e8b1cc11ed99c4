from __future__ import annotations

import math
import statistics
from dataclasses import replace

import pytest
import torch

from benchmarks.policies import CASES, figures
from understudy.config.methods import N2N, RandomSearch
from understudy.core.architecture import Architecture
from understudy.core.errors import ConfigError
from understudy.core.evaluation import Cost, Evaluation
from understudy.core.goal import Budgets, Goal
from understudy.methods.base import Searcher
from understudy.methods.n2n.search import Baseline, N2NSearch, refuse_other_policy
from understudy.methods.proposals import Multiplier, foresight, offered_units
from understudy.testing.landscapes import (
    SearcherContract,
    ToyKind,
    run_searcher,
    toy_cost,
    toy_evaluation,
    toy_reward,
    toy_space,
)

QUICK = N2N(removal_updates=4, shrinkage_updates=4, gradient_steps=2, draws_per_rollout=1)


def n2n(settings: N2N, *, kind: ToyKind = "chain", params: str | None = None, seed: int = 0) -> N2NSearch:
    space = toy_space(kind)
    return N2NSearch(space, toy_reward(space, Goal(params=params)), settings, seed=seed, predict=toy_cost)


class TestN2N(SearcherContract):
    def make(self, seed: int) -> Searcher:
        return n2n(QUICK, params="127x", seed=seed)


class TestVariantsOfN2N(SearcherContract):
    def make(self, seed: int) -> Searcher:
        settings = replace(
            QUICK,
            removal_controller="autoregressive",
            baseline="critic",
            penalty="lagrangian",
            budget_columns=True,
            repair="always",
            redraws=2,
            removal_updates=3,
            shrinkage_updates=1,
        )
        return n2n(settings, kind="residual", params="10x", seed=seed)


class TestPublishedN2N(SearcherContract):
    def make(self, seed: int) -> Searcher:
        published = N2N(
            removal_updates=3,
            shrinkage_updates=2,
            granularity="layers",
            revisit=0.0,
            draws_per_rollout=1,
            advantage="update",
            scale_rows=False,
            calibrate=False,
            redraws=0,
            memory=1,
            gradient_steps=1,
            harmonics=0,
        )
        return n2n(published, params="5x", seed=seed)


def test_parameters_do_not_depend_on_the_teacher() -> None:
    shapes = []
    for kind in ("chain", "residual"):
        searcher = n2n(replace(QUICK, removal_updates=1), kind=kind)  # type: ignore[arg-type]
        searcher.learn([toy_evaluation(a) for a in searcher.propose()])
        searcher.propose()
        tensors = {name: value for name, value in searcher.state_dict().items() if isinstance(value, torch.Tensor)}
        shapes.append({name: tuple(tensor.shape) for name, tensor in tensors.items()})
    assert shapes[0] == shapes[1]
    assert {name.split(".")[0] for name in shapes[0]} == {"removal", "shrinkage", "students"}


def test_global_generator_is_left_alone_while_weights_are_made() -> None:
    before = torch.get_rng_state()
    n2n(QUICK)
    assert torch.equal(torch.get_rng_state(), before)


# --- REINFORCE ---


def test_one_step_without_memory_is_the_gradient_of_reinforce() -> None:
    settings = replace(QUICK, memory=1, gradient_steps=1, entropy_bonus=0.0)
    searcher = n2n(settings)
    found = [toy_evaluation(a) for a in searcher.propose()]
    stage = searcher._stages[-1]
    reward_B = torch.tensor(searcher.rewards(found), dtype=torch.float64)
    logs_BD, _, _ = stage.policy.judge(stage._proposed_BD)
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


def test_a_critic_learns_what_to_expect_and_takes_it_off() -> None:
    settings = replace(QUICK, removal_updates=0, revisit=0.0, baseline="critic", rollouts=20, memory=1)
    settings = replace(settings, gradient_steps=200, shrinkage_lr=0.005, clip=0.0)
    searcher = n2n(settings)
    wide = [(a, a.width("features.0") >= 24) for a in searcher.propose()]
    found = [replace(toy_evaluation(a), accuracy=0.9 if good else 0.3) for a, good in wide]
    stage = searcher._stages[-1]
    proposed_BD = stage._proposed_BD
    assert not stage.policy.judge(proposed_BD).values_BD.any()
    searcher.learn(found)
    values_BD, reached_B1 = stage.policy.judge(proposed_BD).values_BD, stage._advantages()[:, None]
    assert (values_BD - reached_B1)[:, 1:].square().mean() < 0.3 * reached_B1.square().mean()
    assert torch.equal(values_BD[:, 0], values_BD[:1, 0].expand(20))  # before anything is decided, all are alike


# --- Budgets and stages ---


@pytest.mark.parametrize(("kind", "params"), [("chain", "127x"), ("residual", "60x"), ("residual", "2x")])
def test_students_keep_a_hard_budget_and_are_never_the_same(kind: ToyKind, params: str) -> None:
    searcher = n2n(QUICK, kind=kind, params=params)
    students = run_searcher(searcher)
    assert len({e.architecture.digest for e in students}) == len(students) == 40
    most = toy_cost(toy_space(kind).full).parameters / float(params[:-1])
    assert all(toy_cost(e.architecture).parameters <= most for e in students[20:])
    assert statistics.median(toy_cost(e.architecture).parameters for e in students[20:]) > 0.2 * most


@pytest.mark.parametrize(
    ("repair", "redraws", "kept"), [("never", 1, False), ("fallback", 1, True), ("always", 0, True)]
)
def test_where_no_draw_keeps_a_budget_draws_are_mended(repair: str, redraws: int, kept: bool) -> None:
    settings = replace(QUICK, calibrate=False, keep_bias=2.0, redraws=redraws, repair=repair, stage_one_share=1.0)
    searcher = n2n(settings, params="40x")
    most, first = toy_cost(toy_space().full).parameters / 40, searcher.propose()
    assert all((toy_cost(a).parameters <= most) is kept for a in first)
    assert len(set(first)) > 1 or not kept


def test_the_multiplier_follows_the_violations() -> None:
    multiplier, values = Multiplier(), list[float]()
    for violation in (3.0, 0.5, -0.5, -9.0, -9.0, -9.0):
        values.append(multiplier.value)
        multiplier.learn([violation, violation])
    assert values == [1.0, 1.5, 1.75, 1.5, 1.0, 0.5] and multiplier.value == 0.0
    assert Multiplier().reward(0.8, -1.0) == 0.8
    assert Multiplier().reward(0.8, 0.25) == pytest.approx(0.55)
    assert Multiplier().reward(0.8, math.inf) == -1.0


def test_a_lagrangian_weighs_the_factor_by_which_budgets_are_broken() -> None:
    space = toy_space()
    searcher = n2n(replace(QUICK, penalty="lagrangian", removal_updates=0, redraws=0, repair="never"), params="4x")
    full = toy_cost(space.full).parameters
    found = [toy_evaluation(a) for a in searcher.propose()]
    plain = toy_reward(space)
    for evaluation, reward in zip(found, searcher.rewards(found), strict=True):
        excess = max(math.log(4 * toy_cost(evaluation.architecture).parameters / full), 0.0)
        assert reward == pytest.approx(max(plain(evaluation) - excess, -1.0))
    assert any(4 * toy_cost(e.architecture).parameters > full for e in found)


def test_stage_two_shrinks_the_best_of_stage_one() -> None:
    searcher, found = n2n(replace(QUICK, revisit=0.0), params="20x"), list[Evaluation]()
    for _ in range(4):
        assert searcher.stage == "removal"
        proposals = searcher.propose()
        assert all(not a.widths and not a.kernels for a in proposals)
        found += [toy_evaluation(a) for a in proposals]
        searcher.learn(found[-5:])
    assert searcher.stage == "shrinkage"
    best = max(found, key=lambda e: e.accuracy)  # nearly: the reward is all but saturated
    starts = {a.removed for a in searcher.propose()}
    assert len(starts) == 1
    accuracies = {e.architecture.removed: e.accuracy for e in found}
    assert accuracies[starts.pop()] > best.accuracy - 0.1


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
    searcher = N2NSearch(space, reward, QUICK, seed=0, predict=predict)
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
        searcher = N2NSearch(which, toy_reward(which), settings, seed=0, predict=toy_cost)
        assert (searcher.updates, searcher.stage) == (4, name)
        assert len(run_searcher(searcher)) == 20
        assert searcher.stage == "done"


# --- Units once more in stage 2 ---


def first_of_stage_two(revisit: float, params: str | None) -> tuple[frozenset[str], list[Architecture]]:
    """Return what stage 1 removed in the student that stage 2 starts from, and the first proposals of stage 2."""
    settings = replace(QUICK, removal_updates=2, rollouts=40, revisit=revisit, redraws=40)
    searcher, found = n2n(settings, params=params), list[Evaluation]()
    while searcher.stage != "shrinkage":
        found += [toy_evaluation(a) for a in searcher.propose()]
        searcher.learn(found[-40:])
    return searcher._best(searcher._first).removed, searcher.propose()


@pytest.mark.parametrize("params", [None, "20x"])
def test_stage_two_decides_units_again_as_often_as_asked(params: str | None) -> None:
    removed, proposals = first_of_stage_two(0.25, params)
    units = len(offered_units(toy_space(), "units"))
    shares = [len(a.removed ^ removed) / units for a in proposals]
    assert removed
    assert any(removed - a.removed for a in proposals)
    assert any(a.removed - removed for a in proposals)
    assert 0.1 < statistics.fmean(shares) < 0.4  # what is over the budget is drawn again


def test_without_revisits_units_stay_as_stage_one_left_them() -> None:
    removed, proposals = first_of_stage_two(0.0, None)
    assert all(a.removed == removed for a in proposals)


# --- Refinement, and policies that learned elsewhere ---


class TestRefinedN2N(SearcherContract):
    def make(self, seed: int) -> Searcher:
        return n2n(
            replace(QUICK, removal_updates=2, shrinkage_updates=2, refinement_updates=3), params="20x", seed=seed
        )


@pytest.mark.parametrize("kind", ["chain", "residual"])
def test_refinement_changes_a_few_decisions_of_the_best_student(kind: ToyKind) -> None:
    settings = replace(QUICK, refinement_updates=8, rollouts=20, refinement_changes=3.0, redraws=40)
    searcher, found = n2n(settings, kind=kind, params="20x"), list[Evaluation]()
    while searcher.stage != "refinement":
        found += [toy_evaluation(a) for a in searcher.propose()]
        searcher.learn(found[-20:])
    reward = toy_reward(toy_space(kind), Goal(params="20x"))
    best = max(found, key=reward).architecture
    proposals = searcher.propose()
    changes = [changed(best, a) for a in proposals]
    assert best not in proposals
    assert 1.0 < statistics.fmean(changes) < 6.0
    assert any(a.removed != best.removed for a in proposals)
    assert any(a.removed == best.removed for a in proposals)
    assert all(not reward.budgets.broken_by(toy_cost(a)) for a in proposals)


def changed(one: Architecture, other: Architecture) -> int:
    """Return how many units, widths and kernels differ."""
    space = one.space
    widths = sum(one.width(group.name) != other.width(group.name) for group in space.groups)
    kernels = sum(one.kernel(x.name) != other.kernel(x.name) for x in space.layers if len(x.kernels) > 1)
    return len(one.removed ^ other.removed) + widths + kernels


@pytest.mark.parametrize(("learned_on", "used_on"), [("chain", "chain"), ("residual", "chain")])
def test_a_policy_that_learned_elsewhere_is_where_it_starts(learned_on: ToyKind, used_on: ToyKind) -> None:
    teacher = n2n(replace(QUICK, removal_updates=6), kind=learned_on, params="20x")
    run_searcher(teacher)
    policy = {name: tensor for name, tensor in teacher.state_dict().items() if isinstance(tensor, torch.Tensor)}
    space = toy_space(used_on)
    refuse_other_policy(policy, space, QUICK)
    reward = toy_reward(space, Goal(params="40x"))
    searcher = N2NSearch(space, reward, QUICK, seed=3, predict=toy_cost, policy=policy)
    while stage := (searcher.propose() and searcher._stages[-1]):
        begun = stage.policy.state_dict()
        same = [torch.equal(begun[name], policy[f"{stage.name}.{name}"]) for name in begun]
        assert all(same) is (stage._done == 0)
        searcher.learn([toy_evaluation(a) for a in map(stage._choices.architecture, stage._proposed_BD)])


@pytest.mark.parametrize("stages", [{"removal_updates": 0, "shrinkage_updates": 1}, {"removal_updates": 1}])
def test_what_a_policy_was_calibrated_to_is_not_carried_to_another_search(stages: dict[str, int]) -> None:
    """What leans widths to a hard budget must not remove units of a teacher that has none."""
    settings = replace(QUICK, draws_per_rollout=1, fill=False, revisit=0.1, **stages)
    hard = n2n(replace(settings, shrinkage_lr=0.0, removal_lr=0.0, entropy_bonus=0.0), kind="residual", params="100x")
    run_searcher(hard)
    policy = {name: tensor for name, tensor in hard.state_dict().items() if isinstance(tensor, torch.Tensor)}
    space = toy_space()
    means = []
    for known in (None, policy):
        moved = N2NSearch(space, toy_reward(space), settings, seed=3, predict=toy_cost, policy=known)
        moved.propose()
        stage = moved._stages[-1]
        uniform_BD = torch.rand(200, stage.decisions, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        drawn = [stage._choices.architecture(choices_D) for choices_D in stage.policy.sample(uniform_BD)]
        widths = [a.width(group.name) / group.width for a in drawn for group in space.groups]
        means.append((statistics.fmean(len(a.removed) for a in drawn), statistics.fmean(widths)))
    assert means[0] == means[1]  # nothing was learned


def test_a_learned_removal_is_repeated_without_a_budget() -> None:
    space = toy_space()
    settings = N2N(removal_updates=12, shrinkage_updates=0, redraws=0, draws_per_rollout=1)
    teacher = N2NSearch(space, toy_reward(space), settings, seed=0, predict=toy_cost)
    learned = [toy_reward(space)(e) for e in run_searcher(teacher)]
    policy = {name: tensor for name, tensor in teacher.state_dict().items() if isinstance(tensor, torch.Tensor)}
    searcher = N2NSearch(space, toy_reward(space), settings, seed=7, predict=toy_cost, policy=policy)
    first = [toy_reward(space)(toy_evaluation(a)) for a in searcher.propose()]
    assert statistics.fmean(first) > statistics.fmean(learned[:10]) + 0.1


def test_a_policy_of_other_settings_is_refused() -> None:
    teacher = n2n(replace(QUICK, hidden=7))
    teacher.propose()
    policy = {name: tensor for name, tensor in teacher.state_dict().items() if isinstance(tensor, torch.Tensor)}
    with pytest.raises(ConfigError, match="policy_from must name a policy of the same hidden"):
        refuse_other_policy(policy, toy_space(), QUICK)
    with pytest.raises(ConfigError, match=r"removal.critic.bias is not there, must be \(1,\)"):
        refuse_other_policy(policy, toy_space(), replace(QUICK, hidden=7, baseline="critic"))
    with pytest.raises(ConfigError, match="there is none in it"):
        refuse_other_policy({}, toy_space(), QUICK)
    fits = n2n(replace(QUICK, removal_updates=1))
    fits.learn([toy_evaluation(a) for a in fits.propose()])
    known = {name: tensor for name, tensor in fits.state_dict().items() if isinstance(tensor, torch.Tensor)}
    refuse_other_policy(known, toy_space(), QUICK)
    features = known["students.features"]
    for cut in (features[:, :-1], features[:-1], features[0]):
        with pytest.raises(ConfigError, match=r"18 features for each of its students, but students.features is \("):
            refuse_other_policy({**known, "students.features": cut}, toy_space(), QUICK)
    del known["students.shares"]
    with pytest.raises(ConfigError, match=r"students\.shares is not there"):
        refuse_other_policy(known, toy_space(), QUICK)


# --- The claim: on a known landscape, what is learned beats chance at equal numbers of students ---


@pytest.mark.slow
@pytest.mark.parametrize("name", ["rt", "st"])  # benchmarks/policies.py has the others, too long for here
def test_it_beats_random_search_with_the_same_help(name: str) -> None:
    case, seeds = CASES[name], range(10)
    learned = [figures(case, N2N(), seed) for seed in seeds]
    chance = [figures(case, RandomSearch(students=case.students), seed) for seed in seeds]
    best = [a[0] - b[0] for a, b in zip(learned, chance, strict=True)]
    late = [a[1] - b[1] for a, b in zip(learned, chance, strict=True)]
    assert sum(gain > 0 for gain in best) >= 8
    assert sum(gain > 0 for gain in late) >= 9
    assert statistics.fmean(best) > statistics.stdev(best) / math.sqrt(len(best))
    assert statistics.fmean(late) > 0.05


@pytest.mark.parametrize("name", ["rt", "st"])
def test_each_stage_learns(name: str) -> None:
    learned = [figures(CASES[name], N2N(), seed) for seed in range(2)]
    chance = [figures(CASES[name], RandomSearch(students=60), seed) for seed in range(2)]
    for figure in (0, 1):
        assert statistics.fmean(x[figure] for x in learned) > statistics.fmean(x[figure] for x in chance)
