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
from typing import NamedTuple

import torch
from torch import Tensor

from understudy.config.methods import N2N
from understudy.core.architecture import Architecture
from understudy.core.errors import ConfigError
from understudy.core.evaluation import Evaluation
from understudy.methods import proposals as budget
from understudy.methods.base import Problem, Searcher
from understudy.methods.n2n.choices import Near, Removal, Shrinkage
from understudy.methods.n2n.policies import Policy
from understudy.methods.n2n.rules import BASELINE_DECAY, RULES, STAGE_ONE_SHARE, Rules
from understudy.methods.proposals import Proposals, Scoring
from understudy.methods.surrogate.regression import one_thread
from understudy.methods.surrogate.shortlist import Shortlist, refuse_other_students
from understudy.methods.untrained import best_untrained, seen_untrained

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


class Trained(NamedTuple):
    """A student that draws may stay near to."""

    reward: float
    choices_D: Tensor  # nearest to it
    student: Architecture


class Stage:
    """One policy: proposes by it, improves it."""

    def __init__(
        self,
        choices: Removal | Shrinkage,
        scoring: Scoring,
        settings: N2N,
        rules: Rules,
        *,
        proposals: Proposals,
        shortlist: Shortlist,
        generator: torch.Generator,
        known: Mapping[str, Tensor],
    ) -> None:
        self.name, self.decisions, self.left, self._done = choices.name, choices.decisions, choices.updates, 0
        self.policy: Policy = choices.policy
        self.choices, self._scoring, self._settings, self._rules = choices, scoring, settings, rules
        self._proposals, self._shortlist, self._generator = proposals, shortlist, generator
        self._baseline = Baseline(BASELINE_DECAY)
        self._replay: list[Rollouts] = []
        self.proposed_BD = torch.zeros(0)
        self._best: list[Trained] = []
        own = {name.removeprefix(f"{self.name}."): known[name] for name in known if name.startswith(f"{self.name}.")}
        self.policy.start(generator, own or None)
        self._adam = torch.optim.Adam(self.policy.parameters(), lr=settings.lr)
        self._set_prior(choices.prior)
        self._first = choices.first(self._usage, proposals.macs)

    def _set_prior(self, prior: float) -> None:
        """Lean the policy until the median of its first proposals keeps the predicted budgets, if only just."""
        if self._rules.calibrate and self._scoring.reward.budgets.limits():
            uniform_BD = self._uniform(budget.CALIBRATION)

            def usages_at(bias: float) -> list[float]:
                self.policy.set_bias(bias)
                drawn = [self.choices.architecture(choices_D) for choices_D in self.policy.sample(uniform_BD)]
                # Without the architecture, as only such a usage falls with the bias.
                return [self._scoring.usage(self._proposals.cost(architecture)) for architecture in drawn]

            low, high = self.choices.biases
            prior = budget.calibrated(usages_at, low, high)
        self.policy.set_bias(prior)

    def _uniform(self, count: int) -> Tensor:
        return torch.rand(count, self.choices.decisions, generator=self._generator, dtype=torch.float64)

    def _usage(self, architecture: Architecture) -> float:
        return self._scoring.usage(self._proposals.cost(architecture), architecture)

    def _worth(self, architecture: Architecture) -> float:
        return self._scoring.worth(self._proposals.cost(architecture), architecture)

    def _draws(self) -> Iterator[tuple[Tensor, Architecture]]:
        settings = self._settings
        yield from self._first
        while True:
            uniform_BD = self._uniform(settings.rollouts * settings.draws_per_rollout)
            if settings.draws_per_rollout > 1:
                uniform_BD = self.choices.spread(uniform_BD, self._generator)
            choices_BD = self.policy.sample(uniform_BD)
            yield from self._near(choices_BD) if self._best else self._far(choices_BD)

    def _far(self, choices_BD: Tensor) -> Iterator[tuple[Tensor, Architecture]]:
        """Yield what the policy draws, every second one filled."""
        for number, choices_D in enumerate(choices_BD):
            if self._rules.fill and number % 2 == 1:
                yield choices_D, self.choices.filled(choices_D, self._usage)
            else:
                yield choices_D, self.choices.architecture(choices_D)

    def _near(self, choices_BD: Tensor) -> Iterator[tuple[Tensor, Architecture]]:
        """Yield students that have some decisions of one of the best students, the others of what the policy draws.

        The chance that a decision is the policy's is drawn for each, log-uniform between one of all decisions and all.
        """
        count, decisions = choices_BD.shape
        chance_B1 = float(decisions) ** -torch.rand(count, 1, generator=self._generator, dtype=torch.float64)
        among_B = torch.randint(len(self._best), (count,), generator=self._generator).tolist()
        best_BD = torch.stack([self._best[place].choices_D for place in among_B])
        # What is gone from the student with a unit says nothing that could be kept.
        kept_BD = (self._uniform(count) >= chance_B1) & (self.choices.counts(best_BD) > 0)
        mixed_BD = torch.where(kept_BD, best_BD, choices_BD)
        for mixed_D, kept_D, place in zip(mixed_BD, kept_BD, among_B, strict=True):
            yield mixed_D, self.choices.filled(mixed_D, self._usage, Near(self._best[place].student, kept_D))

    def _repaired(self, draw: tuple[Tensor, Architecture]) -> tuple[Tensor, Architecture]:
        choices_D = self.choices.repaired(draw[0], self._usage)
        return choices_D, self.choices.architecture(choices_D)

    def begin_with(self, students: Sequence[Architecture]) -> None:
        """Propose these before any other."""
        self._first = [(self.choices.near_to(student), student) for student in students] + self._first

    def propose(self) -> list[Architecture]:
        """Return one update's students, drawn from the policy."""
        picked = self._proposals.pick(
            self._draws(),
            self._settings.rollouts,
            self._usage,
            self._repaired if self._rules.repair else None,
            order=lambda draws: self._shortlist.order(draws, self._worth),
            among=self._settings.draws_per_rollout,
        )
        self.proposed_BD = torch.stack([choices_D for choices_D, _ in picked])
        proposed = {architecture.digest for _, architecture in picked}
        # With fewer rollouts than first students the others come next.
        self._first = [first for first in self._first if first[1].digest not in proposed]
        return [architecture for _, architecture in picked]

    def rewards(self, evaluations: Sequence[Evaluation]) -> list[float]:
        """Return the rewards at the present update."""
        return [self._scoring(evaluation, update=self._done) for evaluation in evaluations]

    def learn(self, evaluations: Sequence[Evaluation]) -> None:
        """Update baseline and policy by the students proposed last."""
        rewards = self.rewards(evaluations)
        students = (evaluation.architecture for evaluation in evaluations)
        known = [*self._best, *map(Trained, rewards, self.proposed_BD, students)]
        self._best = sorted(known, key=lambda trained: -trained.reward)[: self._rules.near]
        rewards_B = torch.tensor(rewards, dtype=torch.float64)
        with torch.no_grad():
            logs_BD = self.policy.judge(self.proposed_BD).logs_BD
        self._replay = [*self._replay, Rollouts(self.proposed_BD, logs_BD, rewards_B)][-self._rules.replay :]
        if self._rules.per_rollout or self._done == 0:
            self._baseline.add(rewards_B)
            self._reinforce()
        else:  # as in the authors' code, against earlier updates only
            self._reinforce()
            self._baseline.add(rewards_B)
        self._done += 1
        self.left -= 1

    def _advantages(self) -> Tensor:
        """Return how much better than the baseline each remembered rollout was, in standard deviations, (B,)."""
        rewards = [rollouts.rewards_B for rollouts in self._replay]
        if not self._rules.per_rollout:
            rewards = [rewards_B.mean().expand_as(rewards_B) for rewards_B in rewards]
        return (torch.cat(rewards) - self._baseline.mean) / self._baseline.spread

    def _reinforce(self) -> None:
        """Raise the expected reward: gradient of `mean_B sum_D A log pi`, of each choice until it has moved by `clip`.

        With replayed updates and several steps, log pi becomes the ratio to the probability at the time of the draw,
        clipped as in PPO; at the first step on new rollouts that is the same gradient.
        """
        rules = self._rules
        choices_BD = torch.cat([rollouts.choices_BD for rollouts in self._replay])
        logs_BD = torch.cat([rollouts.logs_BD for rollouts in self._replay])
        counts_BD, advantage_B1 = self.choices.counts(choices_BD), self._advantages()[:, None]
        for _ in range(rules.gradient_steps):
            now_BD, entropy_BD = self.policy.judge(choices_BD)
            ratio_BD = (now_BD - logs_BD).exp()
            clipped_BD = ratio_BD.clamp(1.0 - rules.clip, 1.0 + rules.clip)
            gain_BD = torch.minimum(ratio_BD * advantage_B1, clipped_BD * advantage_B1)
            gain = ((gain_BD + rules.entropy_bonus * entropy_BD) * counts_BD).sum(1).mean()
            self._adam.zero_grad()
            (-gain).backward()
            self._adam.step()


class N2NSearch(Searcher):
    """Removal, then shrinkage of the best student of removal.

    Args:
        problem: its policy may hold policies, which start from there (section 3.5).
        settings: of N2N.
        rules: instead of those that the settings name.
    """

    def __init__(self, problem: Problem, settings: N2N, *, rules: Rules | None = None) -> None:
        super().__init__(problem)
        space, reward = problem.space, problem.reward
        self._settings, self._rules = settings, rules or RULES[settings.rules]
        self._policy: Mapping[str, Tensor] = problem.policy or {}
        self._reward = replace(reward, phase_updates=self._rules.phase_updates)
        self._generator = torch.Generator().manual_seed(problem.seed)
        self._proposals = Proposals(problem.predict, resamples=self._rules.resamples)
        self._shortlist = Shortlist(problem, settings, self._generator)
        self._told: list[Evaluation] = []
        self._stages: list[Stage] = []
        units = settings.removable(space)
        kernels = any(len(layer.kernels) > 1 for layer in space.layers)
        removes = bool(units) and settings.removal_updates > 0
        revisits = bool(units) and settings.revisit > 0.0 and not removes
        shrinks = (bool(space.groups) or kernels or revisits) and settings.shrinkage_updates > 0
        self._looks = settings.glances > 0 and problem.glance is not None and shrinks and not removes
        self._last = self._first = Scoring(self._reward)
        if removes and shrinks and self._rules.look_ahead:  # else one stage is asked for all
            narrowest = budget.narrowest_of(space, problem.predict, problem.widths)
            ahead = budget.foresight(space, units, reward, problem.predict, share=STAGE_ONE_SHARE, narrowest=narrowest)
            self._first = Scoring(self._reward, ahead)
        self._to_come = [*([self._begin_removal] if removes else []), *([self._begin_shrinkage] if shrinks else [])]
        self._updates = removes * settings.removal_updates + shrinks * settings.shrinkage_updates

    def _begin_removal(self) -> Stage:
        return self._stage(Removal(self.problem.space, self._settings, self._rules), self._first)

    def start_of_shrinkage(self) -> Architecture:
        """Return what stage 2 would start from now: the best student of stage 1, or the teacher."""
        return self._best(self._first)

    def _begin_shrinkage(self) -> Stage:
        start, budgets = self.start_of_shrinkage(), bool(self._reward.budgets.limits())
        choices = Shrinkage(start, self._settings, self.problem.widths, self._rules, budgets=budgets)
        return self._stage(choices, self._last)

    def _stage(self, choices: Removal | Shrinkage, scoring: Scoring) -> Stage:
        return Stage(
            choices,
            scoring,
            self._settings,
            self._rules,
            proposals=self._proposals,
            shortlist=self._shortlist,
            generator=self._generator,
            known=self._policy,
        )

    @property
    def now(self) -> Stage | None:
        """The stage that proposes next; None once all are done."""
        while self._to_come and not (self._stages and self._stages[-1].left):
            stage = self._to_come.pop(0)()
            if stage.decisions:  # else what could change is gone
                self._stages.append(stage)
            else:
                self._updates -= stage.left
        return self._stages[-1] if self._stages and self._stages[-1].left else None

    def _best(self, scoring: Scoring) -> Architecture:
        """Return the best student so far, or the teacher if that is better: its reward is 0 if it fits, else -1."""
        fits = scoring.usage(self._reward.teacher_cost, self.problem.space.full) <= 1.0
        best = max(self._told, key=scoring.merit, default=None)
        if best and scoring.merit(best) > (0.0 if fits else -1.0, fits, self._reward.teacher_score):
            return best.architecture
        return self.problem.space.full

    @one_thread()  # workers have the cores
    def propose(self) -> list[Architecture]:
        now = self.now
        if now is None:
            return []
        if self._looks and self._reward.budgets.limits():
            now.begin_with(best_untrained(self._on_glances(), self._settings.rollouts))
        self._looks = False
        return now.propose()

    def _on_glances(self) -> N2NSearch:
        """Return the same search, on untrained students."""
        updates = self._settings.glances * self._settings.shrinkage_updates
        settings = replace(self._settings, glances=0, shrinkage_updates=updates)
        return N2NSearch(seen_untrained(self.problem), settings, rules=self._rules)

    @one_thread()
    def learn(self, evaluations: Sequence[Evaluation]) -> None:
        now = self.now
        assert now is not None, "learn follows propose"
        self._told += evaluations
        self._shortlist.learn(evaluations)
        now.learn(evaluations)

    @property
    def updates(self) -> int:
        return self._updates

    @property
    def stage(self) -> str:
        now = self.now
        return now.name if now else "done"

    def rewards(self, evaluations: Sequence[Evaluation]) -> list[float]:
        now = self.now
        return now.rewards(evaluations) if now else [self._reward(evaluation) for evaluation in evaluations]

    def state_dict(self) -> dict[str, object]:
        policies = {f"{s.name}.{name}": tensor for s in self._stages for name, tensor in s.policy.state_dict().items()}
        return {**policies, **self._shortlist.tensors()}

    @classmethod
    def check_start(cls, tensors: Mapping[str, Tensor], problem: Problem, settings: N2N) -> None:
        """Check that policies which learned elsewhere fit these settings; their shapes do not depend on the teacher.

        Raises:
            ConfigError: a shape differs, or there is no policy in it.
        """
        refuse_other_students(tensors)
        unlike, known, rules = [], False, RULES[settings.rules]
        stages = (
            Removal(problem.space, settings, rules),
            Shrinkage(problem.space.full, settings, problem.widths, rules),
        )
        for choices in stages:
            shapes = {f"{choices.name}.{name}": tuple(t.shape) for name, t in choices.policy.state_dict().items()}
            found = {name: tuple(t.shape) for name, t in tensors.items() if name.startswith(f"{choices.name}.")}
            known = known or bool(found)
            unlike += [
                f"{name} is {found.get(name, 'not there')}, must be {shapes.get(name, 'absent')}"
                for name in sorted({*shapes, *found} if found else ())
                if found.get(name) != shapes.get(name)
            ]
        if unlike or not known:
            raise ConfigError(
                "policy_from must name a policy of as many widths.factors and of the same n2n.rules, but "
                f"{unlike[0] if unlike else 'there is none in it'}"
            )
