"""The agents, against expectations that are summed over all actions."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from understudy.config.widths import Widths
from understudy.core.architecture import Group, Space
from understudy.methods import decore
from understudy.methods.decore import Agents, Rules, Steering, chosen, expected, saturated

GROUPS = (Group(name="a", width=3), Group(name="b", width=2))
SPACE = Space(layers=(), groups=GROUPS, units=())
WEIGHTS = torch.tensor([0.3, -0.8, 1.2, 0.1, 2.0])
WORTH = torch.tensor([2.0, 0.5])
LABELS = torch.tensor([0, 1])
ANY = Widths(round_to=1, min_width=1)


def agents(together: bool = False, **settings: Any) -> Agents:
    chosen = Rules(**{"pooled": 0.0, "pooled_layers": 0.0, "score": "right", **settings})
    made = Agents(GROUPS, chosen, examples=2, steps=1000, together=together)
    made.weights.copy_(WEIGHTS)
    if together:
        made.worth.copy_(WORTH)
    return made


def logits_of(actions: Tensor) -> Tensor:
    """An imagined network: logits (B, 2) of two examples that hang on which channels are there, (B, 5)."""
    pull = actions @ torch.tensor([2.0, 0.5, 1.0, -1.0, 0.3]) - 1.6
    sign = torch.tensor([1.0, -1.0])
    return torch.stack([pull * sign, -pull * sign + actions[:, 3] * 0.7], dim=1)


def rewards(actions: Tensor, penalty: float, score: str, together: bool = False) -> Tensor:
    """The paper's reward (B, L); together: for what all layers dropped, a channel being worth as `WORTH` says."""
    logits = logits_of(actions)
    if score == "right":
        outcome = torch.where(logits.argmax(1) == LABELS, 1.0, -penalty)
    else:
        likelihood = logits.softmax(1)[torch.arange(2), LABELS]
        outcome = likelihood - penalty * (1 - likelihood)
    dropped = torch.stack([(1 - actions[:, :3]).sum(1), (1 - actions[:, 3:]).sum(1)], dim=1)
    saved = (dropped @ WORTH)[:, None].expand(-1, 2) if together else dropped
    return saved * outcome[:, None]


def brute_force(penalty: float, score: str, together: bool = False) -> Tensor:
    """The gradient of each agent's expected reward, by differentiating the sum over all actions."""
    weights = WEIGHTS.clone().requires_grad_()
    chances = torch.sigmoid(weights)
    total = torch.zeros(2)
    for choice in itertools.product([0.0, 1.0], repeat=5):
        actions = torch.tensor(choice)
        probability = torch.where(actions == 1, chances, 1 - chances).prod()
        total = total + probability * rewards(actions.expand(2, 5), penalty, score, together).mean(0)
    first, second = (torch.autograd.grad(total[i], weights, retain_graph=True)[0] for i in range(2))
    return torch.cat([first[:3], second[3:]])


def mean_gradient(monkeypatch: pytest.MonkeyPatch, *, known: str = "examples", **settings: Any) -> Tensor:
    """The gradient that `learn` ascends, summed over all pairs of actions with their probabilities.

    `known`, of earlier steps: what each of the "examples" scored, only their running "mean", or "nothing".
    """
    taken: list[Tensor] = []
    monkeypatch.setattr(Agents, "ascend", lambda self, gradient: taken.append(gradient))
    total = torch.zeros(5)
    chances = torch.sigmoid(WEIGHTS)
    every = [torch.tensor(choice) for choice in itertools.product([0.0, 1.0], repeat=5)]
    made = agents(**settings)
    for one, two in itertools.product(every, repeat=2):
        actions = torch.stack([one, two])
        made.earned.copy_(torch.tensor([0.9, 0.4] if known == "examples" else [math.nan, math.nan]))
        made.score.fill_(math.nan if known == "nothing" else 0.7)
        made.learn(actions, logits_of(actions), LABELS, torch.tensor([0, 1]))
        total += torch.where(actions == 1, chances, 1 - chances).prod() * taken.pop()
    return total


@pytest.mark.parametrize("baseline", ["none", "example"])
@pytest.mark.parametrize("score", ["right", "likelihood"])
@pytest.mark.parametrize("penalty", [-0.5, 3.0])
@pytest.mark.parametrize("together", [False, True])
def test_the_gradient_is_that_of_the_expected_reward(
    monkeypatch: pytest.MonkeyPatch, baseline: str, score: str, penalty: float, together: bool
) -> None:
    found = mean_gradient(monkeypatch, together=together, baseline=baseline, score=score, penalty=penalty)
    assert torch.allclose(found * (1 + max(penalty, 0)), brute_force(penalty, score, together), atol=1e-5)


@pytest.mark.parametrize("known", ["nothing", "mean"])
@pytest.mark.parametrize("together", [False, True])
def test_the_gradient_is_unbiased_in_the_first_epoch_too(
    monkeypatch: pytest.MonkeyPatch, known: str, together: bool
) -> None:
    found = mean_gradient(monkeypatch, known=known, together=together, penalty=3.0)
    assert torch.allclose(found * 4.0, brute_force(3.0, "right", together), atol=1e-5)


def test_a_first_batch_of_one_example_has_a_baseline() -> None:
    made = Agents(GROUPS, Rules(), examples=1, steps=1000)
    actions = torch.tensor([[1.0, 0, 1, 1, 0]])
    made.learn(actions, logits_of(actions.expand(2, 5))[:1], LABELS[:1], torch.tensor([0]))
    assert made.weights.isfinite().all() and made.earned.isfinite().all()


def test_layers_have_the_same_sums_where_torch_cannot_reduce_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    # As on MPS.
    values, made = torch.arange(10.0).view(2, 5), agents()
    usual = made._per_layer(values)
    monkeypatch.setattr(decore, "_WITHOUT_SEGMENTS", ("cpu",))
    monkeypatch.setattr(torch, "segment_reduce", None)
    assert torch.equal(made._per_layer(values), usual)


def test_agents_of_a_group_share_what_answers_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    # What a layer is told in all stays unbiased, and with all of it shared each agent gets by how open it is.
    layers = torch.tensor([[1.0, 1, 1, 0, 0], [0, 0, 0, 1, 1]])
    known = layers @ brute_force(3.0, "right")
    for pooled in (0.3, 1.0):
        found = mean_gradient(monkeypatch, pooled=pooled, penalty=3.0, baseline="none") * 4.0
        assert torch.allclose(layers @ found, known, atol=1e-5)
    chances = torch.sigmoid(WEIGHTS)
    ratios = found / (chances * (1 - chances))
    assert torch.allclose(ratios, ratios[[0, 0, 0, 3, 3]], atol=1e-4)
    assert not torch.allclose(brute_force(3.0, "right"), found, atol=1e-3)


def test_layers_share_what_answers_tell_by_their_cost(monkeypatch: pytest.MonkeyPatch) -> None:
    # What all are told stays unbiased, and with all of it shared each agent gets by how open it is and what it saves.
    known = brute_force(3.0, "right", together=True)
    chances = torch.sigmoid(WEIGHTS)
    for share in (0.5, 1.0):
        found = 4.0 * mean_gradient(monkeypatch, together=True, pooled_layers=share, penalty=3.0, baseline="none")
        assert torch.allclose(found.sum(), known.sum(), atol=1e-5)
        apart = found - (1 - share) * known
        ratios = apart / (chances * (1 - chances) * WORTH[[0, 0, 0, 1, 1]])
        assert torch.allclose(ratios, ratios[[0]], atol=1e-4)
    assert not torch.allclose(known, found, atol=1e-2)


def test_the_baseline_lowers_the_variance(monkeypatch: pytest.MonkeyPatch) -> None:
    # One example is easy and one is hard, whatever is drawn: that says nothing about the channels.
    taken: list[Tensor] = []
    monkeypatch.setattr(Agents, "ascend", lambda self, gradient: taken.append(gradient))

    def moments(**settings: Any) -> tuple[Tensor, float]:
        taken.clear()
        torch.manual_seed(0)
        made = agents(penalty=0.5, **settings)
        for _ in range(2000):
            made.learn(made.draw(2), torch.eye(2)[[0, 0]], LABELS, torch.tensor([0, 1]))
        return torch.stack(taken).mean(0), float(torch.stack(taken).var(0).sum())

    (with_it, small), (without, large) = moments(baseline="example"), moments(baseline="none")
    assert small < 0.01 * large
    assert torch.allclose(with_it, without, atol=0.05)


def test_actions_are_drawn_for_each_example() -> None:
    made = agents()
    torch.manual_seed(0)
    actions = made.draw(20_000)
    assert actions.shape == (20_000, 5) and set(actions.unique().tolist()) == {0.0, 1.0}
    assert torch.allclose(actions.mean(0), torch.sigmoid(WEIGHTS), atol=0.015)
    torch.manual_seed(0)
    assert torch.equal(made.draw(20_000), actions)


def test_agents_start_at_keep() -> None:
    assert torch.allclose(Agents(GROUPS, Rules(), examples=2, steps=1000).chances, torch.full((5,), 0.999), atol=1e-4)
    assert torch.allclose(Agents(GROUPS, Rules(initial=0.0), examples=2, steps=1000).chances, torch.full((5,), 0.5))


def test_the_least_important_start_lowest() -> None:
    made = Agents(
        GROUPS, Rules(initial=4.0, importance=0.5), examples=2, steps=9, magnitudes=torch.tensor([3.0, 1, 2, 5, 9])
    )
    assert made.weights.tolist() == [4.0, 2.0, 3.0, 2.0, 4.0]


def test_adam_is_torchs() -> None:
    made, weights = agents(limit=0.0, agent_lr=0.05), WEIGHTS.clone().requires_grad_()
    optimizer = torch.optim.Adam([weights], lr=0.05, maximize=True)
    for step in range(20):
        gradient = torch.sin(torch.arange(5.0) + step)
        made.ascend(gradient)
        weights.grad = gradient.clone()
        optimizer.step()
    assert torch.allclose(made.weights, weights.detach(), atol=1e-5)


def test_the_rate_is_enough_for_the_way() -> None:
    # Whatever the number of steps: an eighth of them, at the rate, leads from the start to p = 1/2.
    for steps in (40, 120, 1000):
        made = Agents(GROUPS, Rules(), examples=2, steps=steps)
        for _ in range(steps // 8):
            made.ascend(-torch.ones(5))
        assert made.weights.abs().max() < 0.01
    assert Agents(GROUPS, Rules(), examples=2, steps=10**6).rate == 0.01
    assert agents(agent_lr=0.3).rate == 0.3


def test_weights_stay_within_the_limit() -> None:
    made = agents(limit=1.0, agent_lr=0.5)
    for _ in range(10):
        made.ascend(torch.tensor([1.0, -1.0, 1.0, -1.0, 1.0]))
    assert made.weights.tolist() == [1.0, -1.0, 1.0, -1.0, 1.0]
    assert saturated(made.weights, 1.0).all() and not saturated(made.weights, 0.0).any()


def test_right_answers_drop_and_wrong_ones_keep() -> None:
    # Whatever is drawn, all answers are right, or all are wrong: the expected reward pushes one way.
    for right in (True, False):
        made = agents(penalty=5.0)
        for _ in range(50):
            actions = made.draw(2)
            logits = torch.nn.functional.one_hot(LABELS if right else 1 - LABELS).float()
            made.learn(actions, logits, LABELS, torch.tensor([0, 1]))
        assert bool(((made.weights < WEIGHTS) == right).all())
        assert made.score == float(right)


def test_all_that_was_learned_is_in_the_state() -> None:
    def steps(made: Agents, count: int) -> None:
        for _ in range(count):
            actions = made.draw(2)
            made.learn(actions, logits_of(actions), LABELS, torch.tensor([0, 1]))

    torch.manual_seed(1)
    first = agents()
    steps(first, 5)
    second = Agents(GROUPS, first.settings, examples=2, steps=1000)
    second.load_state_dict(first.state_dict())
    state = torch.get_rng_state()
    steps(first, 5)
    torch.set_rng_state(state)
    steps(second, 5)
    assert all(
        torch.equal(a, b) for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    )


def used(most: float) -> Any:
    """The usage of a budget on the number of channels."""
    return lambda architecture: [sum(architecture.width(g.name) for g in GROUPS) / most]


def test_what_is_likelier_kept_stays() -> None:
    kept = chosen(SPACE, GROUPS, WEIGHTS, torch.zeros(5), ANY)
    assert dict(kept.channels) == {"a": (0, 2)} and kept.width("b") == 2


def test_the_most_that_keeps_the_budget_stays() -> None:
    for most, channels in ((2, {"a": (2,), "b": (1,)}), (3, {"a": (0, 2), "b": (1,)}), (4, {"a": (0, 2)}), (9, {})):
        kept = chosen(SPACE, GROUPS, WEIGHTS, torch.zeros(5), ANY, used(most))
        assert dict(kept.channels) == channels
    # Equal weights go by magnitude; out of reach, what must stay anyway.
    equal, magnitudes = torch.zeros(5), torch.tensor([1.0, 2.0, 3.0, 5.0, 4.0])
    kept = chosen(SPACE, GROUPS, equal, magnitudes, ANY, used(3))
    assert dict(kept.channels) == {"a": (2,)}
    assert used(1)(chosen(SPACE, GROUPS, WEIGHTS, magnitudes, ANY, lambda a: [2.0, 0.0])) == [2]


def test_widths_are_rounded_and_never_too_small() -> None:
    groups = (Group(name="a", width=12), Group(name="g", width=8, step=4))
    space = Space(layers=(), groups=groups, units=())
    weights = torch.tensor([-1.0] * 9 + [1.0] * 3 + [2.0, -2.0])
    kept = chosen(space, groups, weights, torch.zeros(14), Widths(round_to=4, min_width=4))
    assert (kept.width("a"), kept.width("g")) == (4, 4)
    assert dict(kept.channels)["a"] == (0, 9, 10, 11) and dict(kept.channels)["g"] == (0,)


def test_expected_widths_are_sums_of_chances() -> None:
    widths = expected(SPACE, GROUPS, torch.tensor([0.9, 0.6, 0.2, 0.0, 0.1]))
    assert (widths.width("a"), widths.width("b")) == (2, 1)


def test_without_a_budget_the_penalty_is_the_one_given() -> None:
    made = agents()
    steady = Steering(settings=Rules(penalty=70.0), space=SPACE, groups=GROUPS, steps=10)
    steady(made)
    assert float(made.penalty) == 70.0


def test_channels_are_worth_what_they_cost() -> None:
    def steer(made: Agents, most: tuple[float, float], by_cost: bool = True) -> list[float]:
        def usage(architecture: Any) -> list[float]:
            a, b = architecture.width("a"), architecture.width("b")
            return [(4 * a + b) / most[0], (a + 4 * b) / most[1]]

        Steering(settings=Rules(), space=SPACE, groups=GROUPS, steps=500, usage=usage, by_cost=by_cost)(made)
        return made.worth.tolist()

    made = agents()
    made.weights.fill_(9.0)
    one, both = 14.0, 11.0  # what all channels cost
    assert steer(made, (one, both), by_cost=False) == [1.0, 1.0]
    # Only the first budget is near, only the second, or both alike; relative to the mean over 3 and 2 channels.
    assert steer(made, (one, 100 * both)) == pytest.approx([4 / 2.8, 1 / 2.8])
    assert steer(made, (100 * one, both)) == pytest.approx([1 / 2.2, 4 / 2.2])
    a, b = 4 / one + 1 / both, 1 / one + 4 / both
    assert steer(made, (one, both)) == pytest.approx([5 * a / (3 * a + 2 * b), 5 * b / (3 * a + 2 * b)])
    # The last channel of a layer has a cost too.
    made.weights.fill_(-9.0)
    assert steer(made, (one, 100 * both)) == pytest.approx([4 / 2.8, 1 / 2.8])
    # Where no channel costs anything, none is worth more than another.
    Steering(settings=Rules(), space=SPACE, groups=GROUPS, steps=9, usage=lambda a: [2.0], by_cost=True)(made)
    assert made.worth.tolist() == [1.0, 1.0]


def kept_where_a_narrow_layer_matters(seed: int, *, together: bool) -> list[int]:
    """Return the widths that agents come to: 8 channels of which 60% must stay, and 64 that cost four times as much."""
    groups = (Group(name="few", width=8), Group(name="many", width=64))
    space = Space(layers=(), groups=groups, units=())
    settings, steps = Rules(), 200

    def usage(architecture: Any) -> list[float]:
        return [(architecture.width("few") + 4 * architecture.width("many")) / 88]  # of 264

    torch.manual_seed(seed)
    made = Agents(groups, settings, examples=64, steps=steps, together=together)
    steer = Steering(settings=settings, space=space, groups=groups, steps=steps, usage=usage, by_cost=together)
    for step in range(steps):
        if step % 10 in (0, 1):
            steer(made)
        actions = made.draw(64)
        few, many = actions[:, :8].mean(1), actions[:, 8:].mean(1)
        right = 0.9 * torch.sigmoid(10 * (few - 0.6)) * many.clamp(min=0.01) ** 0.3
        logits = torch.stack([right, 1 - right], dim=1).log()
        made.learn(actions, logits, torch.zeros(64, dtype=torch.int64), torch.arange(64))
    kept = chosen(space, groups, made.weights, torch.zeros(72), ANY, usage)
    return [kept.width(group.name) for group in groups]


def test_a_narrow_layer_that_matters_is_not_emptied() -> None:
    for seed in range(3):
        few, many = kept_where_a_narrow_layer_matters(seed, together=True)
        assert few >= 7 and many >= 19
    # Where each layer learns by itself, which of them goes is a matter of luck.
    assert min(kept_where_a_narrow_layer_matters(seed, together=False)[0] for seed in range(2)) < 7


def test_the_penalty_follows_the_cost() -> None:
    made = agents(budget_by=0.5, gain=2.0)
    steer = Steering(settings=made.settings, space=SPACE, groups=GROUPS, steps=100, usage=used(2))
    steer(made)
    assert float(made.penalty) == 0.0  # nobody has answered yet
    made.score.fill_(0.9)

    def penalty(done: int, weight: float) -> float:
        made.steps.fill_(done)
        made.weights.fill_(weight)
        steer(made)
        return float(made.penalty)

    odds = 0.9 / 0.1
    assert penalty(0, 9.0) == pytest.approx(odds)  # all there, as it should be at the start
    assert penalty(50, 9.0) == pytest.approx((1 + odds) / 2.5**2 - 1)  # 5 channels where it should be 2
    assert penalty(99, -9.0) == pytest.approx(odds)  # 2 of 2
    assert penalty(10, -9.0) > odds  # too few, too early
    made.score.fill_(0.3)
    assert -1 < penalty(50, 9.0) < 0  # so far off that wrong answers earn too
    steer = replace(steer, usage=lambda architecture: (1e-300,))  # a budget far beyond what the teacher has
    assert penalty(50, 9.0) == 1e4
