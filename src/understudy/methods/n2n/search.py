"""N2N learning (Ashok, Rhinehart, Beainy, Kitani, ICLR 2018, arXiv 1709.06030).

A policy reads the teacher's layers as a sequence and removes some; a second one reads what is left and
shrinks its widths and kernels. Both learn by REINFORCE from the rewards of their students. `docs/n2n.md`
numbers every choice with its source.

Shapes: B = proposals, L = rows of the state, I = columns of a row, D = decisions, F = factors, H = hidden
units, in the order of the suffix.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from understudy.config.methods import N2N
from understudy.core.architecture import Architecture, Space
from understudy.core.errors import ConfigError
from understudy.core.evaluation import Evaluation
from understudy.core.goal import Reward
from understudy.methods import proposals as budget
from understudy.methods.base import Searcher
from understudy.methods.n2n.choices import Refinement, Removal, Shrinkage
from understudy.methods.n2n.policies import Policy
from understudy.methods.proposals import Predict, Proposals, Scoring
from understudy.methods.surrogate.shortlist import Shortlist, refuse_other_students

_CRITIC_WEIGHT = 0.5  # of a critic's squared error

# --- One stage: its sampling, baseline and REINFORCE updates (section 3.3) ---


class Baseline:
    """Moving average and spread of rewards; recent updates count most."""

    def __init__(self, decay: float) -> None:
        self._decay, self._weight, self.mean, self._square = decay, 0.0, 0.0, 0.0

    def add(self, reward_B: Tensor) -> None:
        """Take in the rewards of one update."""
        self._weight = self._decay * self._weight + 1.0
        self.mean += (reward_B.mean().item() - self.mean) / self._weight
        self._square += (reward_B.square().mean().item() - self._square) / self._weight

    @property
    def spread(self) -> float:
        """The standard deviation, never 0."""
        return max(math.sqrt(max(self._square - self.mean**2, 0.0)), 1e-3)


@dataclass(frozen=True)
class Rollouts:
    """The students of one update: what was chosen, how likely it was then, and what they earned."""

    choices_BD: Tensor
    logs_BD: Tensor
    rewards_B: Tensor


class Stage:
    """One policy: proposes by it, improves it."""

    def __init__(
        self,
        choices: Removal | Shrinkage,
        scoring: Scoring,
        settings: N2N,
        proposals: Proposals,
        *,
        shortlist: Shortlist,
        generator: torch.Generator,
        known: Mapping[str, Tensor],
    ) -> None:
        self.name, self.decisions, self.left, self._done = choices.name, choices.decisions, choices.updates, 0
        self.policy: Policy = choices.policy
        self._choices, self._scoring, self._settings = choices, scoring, settings
        self._proposals, self._shortlist, self._generator = proposals, shortlist, generator
        self._baseline = Baseline(settings.baseline_decay)
        self._multiplier = budget.Multiplier()
        self._memory: list[Rollouts] = []
        self._proposed_BD = torch.zeros(0)
        own = {name.removeprefix(f"{self.name}."): known[name] for name in known if name.startswith(f"{self.name}.")}
        self.policy.start(generator, own or None)
        self._adam = torch.optim.Adam(self.policy.parameters(), lr=choices.lr)
        self._set_prior(choices.prior)

    def _set_prior(self, prior: float) -> None:
        """Lean the policy until the median of its first proposals keeps the predicted budgets, if only just."""
        leans = self._choices.leans
        if self._settings.calibrate and leans is not None and self._scoring.reward.budgets.limits():
            uniform_BD = self._uniform(budget.CALIBRATION)

            def usages_at(lean: float) -> list[float]:
                self.policy.lean(lean)
                drawn = [self._choices.architecture(choices_D) for choices_D in self.policy.sample(uniform_BD)]
                # Without the architecture, as only such a usage falls with the lean.
                return [self._scoring.usage(self._proposals.cost(architecture)) for architecture in drawn]

            prior = budget.calibrated(usages_at, *leans)
        self.policy.lean(prior)

    def _uniform(self, count: int) -> Tensor:
        return torch.rand(count, self._choices.decisions, generator=self._generator, dtype=torch.float64)

    def _usage(self, architecture: Architecture) -> float:
        return self._scoring.usage(self._proposals.cost(architecture), architecture)

    def _worth(self, architecture: Architecture) -> float:
        return self._scoring.worth(self._proposals.cost(architecture), architecture)

    def _draws(self) -> Iterator[tuple[Tensor, Architecture]]:
        settings = self._settings
        first_D = self._choices.first(self._usage) if self._done == 0 else None
        if first_D is not None:
            first_D = self._choices.filled(first_D, self._usage) if settings.fill else first_D
            yield first_D, self._choices.architecture(first_D)
        while True:
            uniform_BD = self._uniform(settings.rollouts * settings.draws_per_rollout)
            if settings.draws_per_rollout > 1:
                uniform_BD = self._choices.spread(uniform_BD, self._generator)
            for number, choices_D in enumerate(self.policy.sample(uniform_BD)):
                if settings.fill and number % 2:
                    choices_D = self._choices.filled(choices_D, self._usage)
                draw = choices_D, self._choices.architecture(choices_D)
                yield self._mended(draw) if settings.repair == "always" else draw

    def _mended(self, draw: tuple[Tensor, Architecture]) -> tuple[Tensor, Architecture]:
        choices_D = self._choices.mended(draw[0], self._usage)
        return choices_D, self._choices.architecture(choices_D)

    def propose(self) -> list[Architecture]:
        """Return one update's students, drawn from the policy."""
        mend = None if self._settings.repair == "never" else self._mended
        picked = self._proposals.pick(
            self._draws(),
            self._settings.rollouts,
            self._usage,
            mend,
            order=lambda draws: self._shortlist.order(draws, self._worth),
            among=self._settings.draws_per_rollout,
        )
        self._proposed_BD = torch.stack([choices_D for choices_D, _ in picked])
        return [architecture for _, architecture in picked]

    def rewards(self, evaluations: Sequence[Evaluation]) -> list[float]:
        """Return the rewards at the present update."""
        if self._settings.penalty == "phased":
            return [self._scoring(evaluation, update=self._done) for evaluation in evaluations]
        pairs = [(self._scoring.plain(evaluation), self._scoring.violation(evaluation)) for evaluation in evaluations]
        return [self._multiplier.reward(plain, violation) for plain, violation in pairs]

    def learn(self, evaluations: Sequence[Evaluation]) -> None:
        """Update baseline and policy by the students proposed last."""
        rewards_B = torch.tensor(self.rewards(evaluations), dtype=torch.float64)
        with torch.no_grad():
            logs_BD = self.policy.judge(self._proposed_BD).logs_BD
        self._memory = [*self._memory, Rollouts(self._proposed_BD, logs_BD, rewards_B)][-self._settings.memory :]
        if self._settings.advantage == "rollout" or self._done == 0:
            self._baseline.add(rewards_B)
            self._reinforce()
        else:  # as in the authors' code, against earlier updates only
            self._reinforce()
            self._baseline.add(rewards_B)
        self._multiplier.learn([self._scoring.violation(evaluation) for evaluation in evaluations])
        self._done += 1
        self.left -= 1

    def _advantages(self) -> Tensor:
        """Return how much better than the baseline each remembered rollout was, in standard deviations, (B,)."""
        rewards = [rollouts.rewards_B for rollouts in self._memory]
        if self._settings.advantage == "update":
            rewards = [rewards_B.mean().expand_as(rewards_B) for rewards_B in rewards]
        return (torch.cat(rewards) - self._baseline.mean) / self._baseline.spread

    def _reinforce(self) -> None:
        """Raise the expected reward: gradient of `mean_B sum_D A log pi`, of each choice until it has moved by `clip`.

        With a memory and several steps, log pi becomes the ratio to the probability at the time of the
        draw, clipped as in PPO; at the first step on new rollouts that is the same gradient. A critic learns
        what advantage to expect before each decision, which is taken off.
        """
        settings = self._settings
        choices_BD = torch.cat([rollouts.choices_BD for rollouts in self._memory])
        logs_BD = torch.cat([rollouts.logs_BD for rollouts in self._memory])
        counts_BD, reached_B1 = self._choices.counts(choices_BD), self._advantages()[:, None]
        for _ in range(settings.gradient_steps):
            now_BD, entropy_BD, values_BD = self.policy.judge(choices_BD)
            advantage_BD = reached_B1 - values_BD.detach()
            ratio_BD = (now_BD - logs_BD).exp()
            clipped_BD = ratio_BD.clamp(1.0 - settings.clip, 1.0 + settings.clip)
            gain_BD = torch.minimum(ratio_BD * advantage_BD, clipped_BD * advantage_BD)
            error_BD = _CRITIC_WEIGHT * (values_BD - reached_B1).square()  # without a critic a constant
            gain = ((gain_BD + settings.entropy_bonus * entropy_BD - error_BD) * counts_BD).sum(1).mean()
            self._adam.zero_grad()
            (-gain).backward()
            self._adam.step()


class N2NSearch(Searcher):
    """Removal, then shrinkage of the best student of removal, then, if asked for, refinement of the best of all.

    Args:
        space: what the teacher allows.
        reward: N2N's reward with the budgets of the whole search.
        settings: of N2N.
        seed: of the searcher's own generator, which draws the policies' weights and their choices.
        predict: the exact cost of an architecture, None if it cannot be built.
        policy: what another search's `state_dict` gave; policies that are in it start from there (section 3.5).
    """

    def __init__(
        self,
        space: Space,
        reward: Reward,
        settings: N2N,
        *,
        seed: int,
        predict: Predict,
        policy: Mapping[str, Tensor] | None = None,
    ) -> None:
        self._space, self._settings, self._policy = space, settings, policy or {}
        self._reward = replace(reward, phase_updates=settings.phase_updates)
        self._asked = budget.asked(reward)
        self._generator = torch.Generator().manual_seed(seed)
        self._proposals = Proposals(predict, redraws=settings.redraws, overshoot=settings.overshoot)
        self._shortlist = Shortlist(space, reward.teacher_accuracy, settings, self._generator, self._policy)
        self._told: list[Evaluation] = []
        self._stages: list[Stage] = []
        units = budget.offered_units(space, settings.granularity)
        kernels = settings.shrink_kernels and any(len(layer.kernels) > 1 for layer in space.layers)
        removes = bool(units) and settings.removal_updates > 0
        revisits = bool(units) and settings.revisit > 0.0 and not removes
        shrinks = (bool(space.groups) or kernels or revisits) and settings.shrinkage_updates > 0
        refines = bool(units or space.groups or kernels) and settings.refinement_updates > 0
        # Where one stage has nothing to do, the other is asked for all.
        narrowest = budget.narrowest_of(
            space,
            predict,
            factor=min(settings.factors),
            round_to=settings.round_to,
            minimum=settings.min_width,
            kernels=settings.shrink_kernels,
        )
        ahead = budget.foresight(space, units, reward, predict, share=settings.stage_one_share, narrowest=narrowest)
        self._first, self._last = Scoring(self._reward, ahead if shrinks else None), Scoring(self._reward)
        self._to_come = [
            *([self._begin_removal] if removes else []),
            *([self._begin_shrinkage] if shrinks else []),
            *([self._begin_refinement] if refines else []),
        ]
        self._updates = (
            removes * settings.removal_updates
            + shrinks * settings.shrinkage_updates
            + refines * settings.refinement_updates
        )

    def _begin_removal(self) -> Stage:
        return self._stage(Removal(self._space, self._settings, self._asked), self._first)

    def _begin_shrinkage(self) -> Stage:
        return self._stage(Shrinkage(self._best(self._first), self._settings, self._asked), self._last)

    def _begin_refinement(self) -> Stage:
        return self._stage(Refinement(self._best(self._last), self._settings, self._asked), self._last)

    def _stage(self, choices: Removal | Shrinkage, scoring: Scoring) -> Stage:
        return Stage(
            choices,
            scoring,
            self._settings,
            self._proposals,
            shortlist=self._shortlist,
            generator=self._generator,
            known=self._policy,
        )

    def _now(self) -> Stage | None:
        while self._to_come and not (self._stages and self._stages[-1].left):
            stage = self._to_come.pop(0)()
            if stage.decisions:  # else what could change is gone
                self._stages.append(stage)
            else:
                self._updates -= stage.left
        return self._stages[-1] if self._stages and self._stages[-1].left else None

    def _best(self, scoring: Scoring) -> Architecture:
        """Return the best student so far, or the teacher if that is better: its reward is 0 if it fits, else -1."""
        fits = scoring.usage(self._reward.teacher_cost, self._space.full) <= 1.0
        best = max(self._told, key=scoring.merit, default=None)
        if best and scoring.merit(best) > (0.0 if fits else -1.0, fits, self._reward.teacher_accuracy):
            return best.architecture
        return self._space.full

    def propose(self) -> list[Architecture]:
        now = self._now()
        return now.propose() if now else []

    def learn(self, evaluations: Sequence[Evaluation]) -> None:
        now = self._now()
        assert now is not None, "learn follows propose"
        self._told += evaluations
        self._shortlist.learn(evaluations)
        now.learn(evaluations)

    @property
    def updates(self) -> int:
        return self._updates

    @property
    def stage(self) -> str:
        now = self._now()
        return now.name if now else "done"

    def rewards(self, evaluations: Sequence[Evaluation]) -> list[float]:
        now = self._now()
        return now.rewards(evaluations) if now else [self._reward(evaluation) for evaluation in evaluations]

    def state_dict(self) -> dict[str, object]:
        policies = {f"{s.name}.{name}": tensor for s in self._stages for name, tensor in s.policy.state_dict().items()}
        return {**policies, **self._shortlist.tensors()}


def refuse_other_policy(policy: Mapping[str, Tensor], space: Space, settings: N2N) -> None:
    """Check that policies which learned elsewhere fit these settings; their shapes do not depend on the teacher.

    Raises:
        ConfigError: a shape differs, or there is no policy in it.
    """
    refuse_other_students(policy)
    unlike, known = [], False
    for choices in (Removal(space, settings), Shrinkage(space.full, settings), Refinement(space.full, settings)):
        shapes = {f"{choices.name}.{name}": tuple(t.shape) for name, t in choices.policy.state_dict().items()}
        found = {name: tuple(t.shape) for name, t in policy.items() if name.startswith(f"{choices.name}.")}
        known = known or bool(found)
        unlike += [
            f"{name} is {found.get(name, 'not there')}, must be {shapes.get(name, 'absent')}"
            for name in sorted({*shapes, *found} if found else ())
            if found.get(name) != shapes.get(name)
        ]
    if unlike or not known:
        raise ConfigError(
            "n2n.policy_from must name a policy of the same hidden, harmonics, factors, removal_controller, baseline "
            f"and budget_columns, but {unlike[0] if unlike else 'there is none in it'}"
        )
