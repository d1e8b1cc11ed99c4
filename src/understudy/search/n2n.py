"""N2N learning (Ashok, Rhinehart, Beainy, Kitani, ICLR 2018, arXiv 1709.06030).

A policy reads the teacher's layers as a sequence and removes some; a second one reads what is left and
shrinks its widths and kernels. Both learn by REINFORCE from the rewards of their students. `docs/n2n.md`
numbers every choice with its source.

Shapes: B = proposals, L = rows of the state, I = columns of a row, D = decisions, F = factors, H = hidden
units, in the order of the suffix. Policies compute in float64, so that no proposal hangs on the last
bits of a sum, which differ between machines and numbers of threads.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from understudy.architecture import Architecture, Space
from understudy.config import N2N
from understudy.evaluation import Evaluation
from understudy.goal import Reward
from understudy.search import budget
from understudy.search.base import Searcher
from understudy.search.budget import Predict, Proposals, Scoring
from understudy.search.state import encode, rows_of, teacher_rows

# --- The policies (section 3.2): LSTMs of 2 layers whose shapes do not depend on the teacher ---


class Policy(nn.Module, ABC):
    """A distribution over D choices, learned by gradient. Draws nothing itself: uniform numbers are passed in."""

    def __init__(self, inputs: int, outputs: int, settings: N2N, *, bidirectional: bool) -> None:
        super().__init__()
        # On the meta device nothing is drawn: initial weights come from the searcher's own generator.
        self.lstm = nn.LSTM(
            inputs,
            settings.hidden,
            2,
            bidirectional=bidirectional,
            batch_first=True,
            device="meta",
            dtype=torch.float64,
        ).to_empty(device="cpu")
        features = settings.hidden * (2 if bidirectional else 1) + inputs
        self.out = nn.Linear(features, outputs, device="meta", dtype=torch.float64).to_empty(device="cpu")

    def draw_weights(self, generator: torch.Generator) -> None:
        """Draw the LSTM as torch does, uniform in +-1 / sqrt(H); the output starts at 0, so that only `lean` counts."""
        bound = 1.0 / math.sqrt(self.lstm.hidden_size)
        for parameter in self.lstm.parameters():
            nn.init.uniform_(parameter, -bound, bound, generator=generator)
        for parameter in self.out.parameters():
            nn.init.zeros_(parameter)

    def read(
        self, rows_BLI: Tensor, state: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Return the outputs for each row, which see the LSTM and the row itself, and the LSTM's state."""
        hidden_BLH, state = self.lstm(rows_BLI, state)
        outputs: Tensor = self.out(torch.cat([hidden_BLH, rows_BLI], -1))
        return outputs, state

    @abstractmethod
    def lean(self, prior: float) -> None:
        """Set the bias of the output: the larger, the larger the students that are drawn."""

    @abstractmethod
    def sample(self, uniform_BD: Float[Tensor, "b d"]) -> Int[Tensor, "b d"]:
        """Return choices from numbers in 0..1."""

    @abstractmethod
    def log_probabilities(self, choices_BD: Int[Tensor, "b d"]) -> tuple[Float[Tensor, "b d"], Float[Tensor, "b d"]]:
        """Return the log-probability of each choice and the entropy of its distribution (nats)."""


class RemovalPolicy(Policy):
    """Stage 1: keep (1) or remove (0), for each unit at its row.

    Bidirectional, it reads all rows before it decides anything. Autoregressive, it reads them once, in
    order, and sees as one more column what it decided at the row before (1, -1, or 0 for nothing).
    """

    def __init__(self, rows_LI: Float[Tensor, "l i"], at: Sequence[int], settings: N2N) -> None:
        in_turn = settings.removal_controller == "autoregressive"
        super().__init__(rows_LI.shape[1] + in_turn, 1, settings, bidirectional=not in_turn)
        self._in_turn = in_turn
        self._rows_LI, self._at_D = rows_LI, torch.tensor(at)

    def lean(self, prior: float) -> None:
        nn.init.constant_(self.out.bias, prior)

    @torch.no_grad()
    def sample(self, uniform_BD: Float[Tensor, "b d"]) -> Int[Tensor, "b d"]:
        choices_BD = torch.zeros_like(uniform_BD, dtype=torch.int64)
        if not self._in_turn:
            return (uniform_BD < self._logits(choices_BD).sigmoid()).long()
        before_B1, state = uniform_BD.new_zeros(len(uniform_BD), 1), None
        for row, row_I in enumerate(self._rows_LI):
            row_BI = torch.cat([row_I.expand(len(uniform_BD), -1), before_B1], 1)
            logits_B11, state = self.read(row_BI[:, None], state)
            here = self._at_D == row
            choices_BD[:, here] = (uniform_BD[:, here] < logits_B11[:, 0].sigmoid()).long()
            before_B1 = (2.0 * choices_BD[:, here].double() - 1.0).sum(1, keepdim=True)
        return choices_BD

    def log_probabilities(self, choices_BD: Int[Tensor, "b d"]) -> tuple[Float[Tensor, "b d"], Float[Tensor, "b d"]]:
        logits_BD = self._logits(choices_BD)
        keep_BD, remove_BD = nn.functional.logsigmoid(logits_BD), nn.functional.logsigmoid(-logits_BD)
        entropy_BD = -(keep_BD.exp() * keep_BD + remove_BD.exp() * remove_BD)
        return torch.where(choices_BD == 1, keep_BD, remove_BD), entropy_BD

    def _logits(self, choices_BD: Tensor) -> Tensor:
        """Return the logits to keep, (B, D), in turn given the choices before."""
        rows_BLI = self._rows_LI[None]
        if self._in_turn:
            before_BL = torch.zeros(len(choices_BD), len(self._rows_LI) + 1, dtype=torch.float64)
            before_BL.index_add_(1, self._at_D + 1, 2.0 * choices_BD.double() - 1.0)
            rows_BLI = torch.cat([rows_BLI.expand(len(choices_BD), -1, -1), before_BL[:, :-1, None]], -1)
        logits_BL1, _ = self.read(rows_BLI)
        return logits_BL1[:, self._at_D, 0].expand(len(choices_BD), -1)


class ShrinkagePolicy(Policy):
    """Stage 2: one of the factors for each width and kernel in turn; what came of it is fed back.

    A row describes the layer and whether a width (0) or a kernel (1) is decided; the last column is the
    share that the decision before left of its width or kernel (0 at the start). Factors that end in the
    same legal value are one choice: its probability is their sum.
    """

    def __init__(self, rows_DI: Float[Tensor, "d i"], shares_DF: Float[Tensor, "d f"], settings: N2N) -> None:
        super().__init__(rows_DI.shape[1] + 1, len(settings.factors), settings, bidirectional=False)
        self._rows_DI, self._shares_DF = rows_DI, shares_DF
        self._same_DFF = shares_DF[:, :, None] == shares_DF[:, None, :]
        smallest, largest = min(settings.factors), max(settings.factors)
        self._slope_F = (2.0 * torch.tensor(settings.factors, dtype=torch.float64) - smallest - largest) / max(
            largest - smallest, 1e-9
        )

    def lean(self, prior: float) -> None:
        with torch.no_grad():
            self.out.bias.copy_(prior * self._slope_F)

    @torch.no_grad()
    def sample(self, uniform_BD: Float[Tensor, "b d"]) -> Int[Tensor, "b d"]:
        choices_BD = torch.zeros_like(uniform_BD, dtype=torch.int64)
        before_B, state = uniform_BD.new_zeros(len(uniform_BD)), None
        for decision, row_I in enumerate(self._rows_DI):
            row_BI = torch.cat([row_I.expand(len(uniform_BD), -1), before_B[:, None]], 1)
            logits_B1F, state = self.read(row_BI[:, None], state)
            below_BF = logits_B1F[:, 0].softmax(-1).cumsum(-1)[:, :-1]
            choices_BD[:, decision] = (uniform_BD[:, decision, None] >= below_BF).sum(-1)
            before_B = self._shares_DF[decision, choices_BD[:, decision]]
        return choices_BD

    def log_probabilities(self, choices_BD: Int[Tensor, "b d"]) -> tuple[Float[Tensor, "b d"], Float[Tensor, "b d"]]:
        shares_BD = self._shares_DF[torch.arange(choices_BD.shape[1]), choices_BD]
        before_BD = nn.functional.pad(shares_BD[:, :-1], (1, 0))
        rows_BDI = torch.cat([self._rows_DI.expand(len(choices_BD), -1, -1), before_BD[..., None]], -1)
        factors_BDF = self.read(rows_BDI)[0].log_softmax(-1)
        values_BDF = factors_BDF[..., None, :].masked_fill(~self._same_DFF, -math.inf).logsumexp(-1)
        entropy_BD = -(factors_BDF.exp() * values_BDF).sum(-1)
        return values_BDF.gather(-1, choices_BD[..., None])[..., 0], entropy_BD


# --- What the choices mean ---


class Removal:
    """Choices of stage 1 <-> architectures of the Space."""

    name = "removal"

    def __init__(self, space: Space, settings: N2N) -> None:
        self.updates, self.lr, self.prior = settings.removal_updates, settings.removal_lr, settings.keep_bias
        self.leans = (self.prior - budget.REMOVAL_LEAN, self.prior)
        self._space = space
        rows, decided = teacher_rows(space, settings.granularity)
        self._units = [name for _, name in decided]
        self.decisions = len(decided)
        self.policy = RemovalPolicy(encode(rows, settings), [row for row, _ in decided], settings)
        layers = [set(space.unit(name).layers) for name in self._units]
        self._inside_DD = torch.tensor([[inner < outer for outer in layers] for inner in layers])

    def architecture(self, choices_D: Tensor) -> Architecture:
        """Return what the choices stand for."""
        return self._space.architecture(
            removed=[unit for unit, keep in zip(self._units, choices_D.tolist(), strict=True) if not keep]
        )

    def counts(self, choices_BD: Tensor) -> Tensor:
        """Return 1 for each choice that changes the student, (B, D); 0 inside of a block that goes anyway."""
        return 1.0 - ((choices_BD == 0).double() @ self._inside_DD.double().T > 0).double()


class Shrinkage:
    """Choices of stage 2 <-> architectures with the units of a start, narrower and with smaller kernels."""

    name = "shrinkage"

    def __init__(self, start: Architecture, settings: N2N) -> None:
        self.updates, self.lr, self.prior = settings.shrinkage_updates, settings.shrinkage_lr, 0.0
        self.leans = budget.SHRINKAGE_LEAN
        self._start = start
        rows, self._values, seen = rows_of(start), dict[tuple[str, str], list[int]](), set[str | None]()
        at: list[int] = []
        for index, layer in enumerate(rows):
            if layer.group and layer.outputs and layer.group not in seen:
                seen.add(layer.group)
                width = start.width(layer.group)
                group = replace(start.space.group(layer.group), width=width)
                self._values["width", group.name] = [
                    group.nearest(f * width, round_to=settings.round_to, minimum=settings.min_width)
                    for f in settings.factors
                ]
                at.append(index)
            if settings.shrink_kernels and len(layer.kernels) > 1:
                self._values["kernel", layer.name] = [budget.nearest_kernel(layer, f) for f in settings.factors]
                at.append(index)
        self.decisions = len(at)
        kinds = torch.tensor([float(kind == "kernel") for kind, _ in self._values], dtype=torch.float64)
        shares = [[value / max(values) for value in values] for values in self._values.values()]
        rows_DI = torch.cat([encode(rows, settings)[at], kinds[:, None]], 1)
        shares_DF = torch.tensor(shares, dtype=torch.float64).reshape(-1, len(settings.factors))
        self.policy = ShrinkagePolicy(rows_DI, shares_DF, settings)

    def architecture(self, choices_D: Tensor) -> Architecture:
        """Return what the choices stand for."""
        decided = {name: values[c] for (name, values), c in zip(self._values.items(), choices_D.tolist(), strict=True)}
        return self._start.space.architecture(
            removed=self._start.removed,
            widths={name: value for (kind, name), value in decided.items() if kind == "width"},
            kernels={name: value for (kind, name), value in decided.items() if kind == "kernel"},
        )

    def counts(self, choices_BD: Tensor) -> Tensor:
        """Return 1 for each choice, (B, D): all change the student."""
        return torch.ones_like(choices_BD, dtype=torch.float64)


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
        generator: torch.Generator,
    ) -> None:
        self.name, self.updates, self.done = choices.name, choices.updates, 0
        self.policy: Policy = choices.policy
        self._choices, self._scoring, self._settings = choices, scoring, settings
        self._proposals, self._generator = proposals, generator
        self._baseline = Baseline(settings.baseline_decay)
        self._memory: list[Rollouts] = []
        self._proposed_BD = torch.zeros(0)
        self.policy.draw_weights(generator)
        self._adam = torch.optim.Adam(self.policy.parameters(), lr=choices.lr)
        self._set_prior()

    def _set_prior(self) -> None:
        """Lean the untrained policy until the median of its proposals keeps the predicted budgets, if only just."""
        prior = self._choices.prior
        if self._settings.calibrate and self._scoring.reward.budgets.limits():
            uniform_BD = self._uniform(budget.CALIBRATION)

            def usages_at(lean: float) -> list[float]:
                self.policy.lean(lean)
                return [self._usage(self._choices.architecture(c_D)) for c_D in self.policy.sample(uniform_BD)]

            prior = budget.calibrated(usages_at, *self._choices.leans)
        self.policy.lean(prior)

    def _uniform(self, count: int) -> Tensor:
        return torch.rand(count, self._choices.decisions, generator=self._generator, dtype=torch.float64)

    def _usage(self, architecture: Architecture) -> float:
        return self._scoring.usage(self._proposals.cost(architecture))

    def _draws(self) -> Iterator[tuple[Tensor, Architecture]]:
        while True:
            for choices_D in self.policy.sample(self._uniform(self._settings.rollouts)):
                yield choices_D, self._choices.architecture(choices_D)

    def propose(self) -> list[Architecture]:
        """Return one update's students, drawn from the policy."""
        picked = self._proposals.pick(self._draws(), self._settings.rollouts, self._usage)
        self._proposed_BD = torch.stack([choices_D for choices_D, _ in picked])
        return [architecture for _, architecture in picked]

    def rewards(self, evaluations: Sequence[Evaluation]) -> list[float]:
        """Return the rewards at the present update."""
        return [self._scoring(evaluation, update=self.done) for evaluation in evaluations]

    def learn(self, evaluations: Sequence[Evaluation]) -> None:
        """Update baseline and policy by the students proposed last."""
        rewards_B = torch.tensor(self.rewards(evaluations), dtype=torch.float64)
        with torch.no_grad():
            logs_BD, _ = self.policy.log_probabilities(self._proposed_BD)
        self._memory = [*self._memory, Rollouts(self._proposed_BD, logs_BD, rewards_B)][-self._settings.memory :]
        if self._settings.advantage == "rollout" or self.done == 0:
            self._baseline.add(rewards_B)
            self._reinforce()
        else:  # as in the authors' code, against earlier updates only
            self._reinforce()
            self._baseline.add(rewards_B)
        self.done += 1

    def _advantages(self) -> Tensor:
        """Return how much better than the baseline each remembered rollout was, in standard deviations, (B,)."""
        rewards = [rollouts.rewards_B for rollouts in self._memory]
        if self._settings.advantage == "update":
            rewards = [rewards_B.mean().expand_as(rewards_B) for rewards_B in rewards]
        return (torch.cat(rewards) - self._baseline.mean) / self._baseline.spread

    def _reinforce(self) -> None:
        """Raise the expected reward: gradient of `mean_B sum_D A log pi`, of each choice until it has moved by `clip`.

        With a memory and several steps, log pi becomes the ratio to the probability at the time of the
        draw, clipped as in PPO; at the first step on new rollouts that is the same gradient.
        """
        settings = self._settings
        choices_BD = torch.cat([rollouts.choices_BD for rollouts in self._memory])
        logs_BD = torch.cat([rollouts.logs_BD for rollouts in self._memory])
        counts_BD, advantage_B1 = self._choices.counts(choices_BD), self._advantages()[:, None]
        for _ in range(settings.gradient_steps):
            now_BD, entropy_BD = self.policy.log_probabilities(choices_BD)
            ratio_BD = (now_BD - logs_BD).exp()
            clipped_BD = ratio_BD.clamp(1.0 - settings.clip, 1.0 + settings.clip)
            gain_BD = torch.minimum(ratio_BD * advantage_B1, clipped_BD * advantage_B1)
            gain = ((gain_BD + settings.entropy_bonus * entropy_BD) * counts_BD).sum(1).mean()
            self._adam.zero_grad()
            (-gain).backward()
            self._adam.step()


class N2NSearch(Searcher):
    """Removal, then shrinkage of the best student of removal.

    Args:
        space: what the teacher allows.
        reward: N2N's reward with the budgets of the whole search.
        settings: of N2N.
        seed: of the searcher's own generator, which draws the policies' weights and their choices.
        predict: the exact cost of an architecture, None if it cannot be built.
    """

    def __init__(self, space: Space, reward: Reward, settings: N2N, *, seed: int, predict: Predict) -> None:
        self._space, self._settings = space, settings
        self._reward = replace(reward, phase_updates=settings.phase_updates)
        self._generator = torch.Generator().manual_seed(seed)
        self._proposals = Proposals(predict, redraws=settings.redraws, overshoot=settings.overshoot)
        self._best: Evaluation | None = None
        units = budget.offered_units(space, settings.granularity)
        kernels = settings.shrink_kernels and any(len(layer.kernels) > 1 for layer in space.layers)
        removes, shrinks = bool(units) and settings.removal_updates > 0, bool(space.groups) or kernels
        self._shrinkage_updates = settings.shrinkage_updates if shrinks else 0
        # Where one stage has nothing to do, the other is asked for all.
        ahead = budget.foresight(space, units, reward, predict, share=settings.stage_one_share)
        self._first = Scoring(self._reward, ahead if self._shrinkage_updates else None)
        self._removal = self._stage(Removal(space, settings), self._first) if removes else None
        self._shrinkage: Stage | None = None

    def _stage(self, choices: Removal | Shrinkage, scoring: Scoring) -> Stage:
        return Stage(choices, scoring, self._settings, self._proposals, self._generator)

    def _now(self) -> Stage | None:
        if self._removal and self._removal.done < self._removal.updates:
            return self._removal
        if self._shrinkage is None and self._shrinkage_updates:
            choices = Shrinkage(self._start(), self._settings)
            if not choices.decisions:  # what could shrink is gone
                self._shrinkage_updates = 0
                return None
            self._shrinkage = self._stage(choices, Scoring(self._reward))
        return self._shrinkage if self._shrinkage and self._shrinkage.done < self._shrinkage.updates else None

    def _start(self) -> Architecture:
        """Return the best student of stage 1, or the teacher if that is better: its reward is 0 if it fits, else -1."""
        fits = self._first.usage(self._reward.teacher_cost) <= 1.0
        if self._best and self._first.merit(self._best) > (0.0 if fits else -1.0, fits, self._reward.teacher_accuracy):
            return self._best.architecture
        return self._space.full

    def propose(self) -> list[Architecture]:
        now = self._now()
        return now.propose() if now else []

    def learn(self, evaluations: Sequence[Evaluation]) -> None:
        now = self._now()
        assert now is not None, "learn follows propose"
        if now is self._removal:
            known = [self._best] if self._best else []
            self._best = max([*known, *evaluations], key=self._first.merit)
        now.learn(evaluations)

    @property
    def updates(self) -> int:
        return (self._removal.updates if self._removal else 0) + self._shrinkage_updates

    @property
    def stage(self) -> str:
        now = self._now()
        return now.name if now else "done"

    def rewards(self, evaluations: Sequence[Evaluation]) -> list[float]:
        now = self._now()
        return now.rewards(evaluations) if now else [self._reward(evaluation) for evaluation in evaluations]

    def state_dict(self) -> dict[str, object]:
        stages = [stage for stage in (self._removal, self._shrinkage) if stage]
        return {f"{s.name}.{name}": tensor for s in stages for name, tensor in s.policy.state_dict().items()}
