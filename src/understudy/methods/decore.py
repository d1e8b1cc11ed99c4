"""DECORE (Alwani, Wang, Madhavan, CVPR 2022, arXiv 2106.06091): an agent on every channel.

Shapes: B = examples of a batch, A = agents, L = groups of channels (the paper's layers), N = examples of the split.
`docs/decore.md` numbers every choice with its source.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from understudy.config.methods import Decore
from understudy.config.widths import Widths
from understudy.core.architecture import Architecture, Group, Space

_BETAS = (0.9, 0.999)  # Adam's
_MEMORY = 0.98  # of running means over batches
_MOST_PENALTY = 1e4
_LEAST_RATIO = 1e-9  # of a cost to where it should be, from which on a budget far beyond the teacher says no more
_LEAST_RATE = 0.01  # the paper's
_NEAREST = 8  # power of what a budget is used, by which it counts beside the one that is nearest to its limit
_WITHOUT_SEGMENTS = ("mps",)  # devices on which torch has no segment_reduce
_WALK = 1 / 8  # of the steps, to come from the start to where dropping is as likely as keeping


@dataclass(frozen=True, kw_only=True)
class Rules:
    """How agents learn: `TUNED`, which are ours, and `PAPER`; shares are in 0..1."""

    penalty: float = 200.0  # of a wrong answer (lambda)
    agent_lr: float = 0.0  # Adam's; 0: to walk from `initial` to p = 1/2 in an eighth of the steps, 0.01 at least
    initial: float = 6.9  # weight that agents start with: sigmoid(6.9) = 0.999 (paper)
    importance: float = 0.6  # share of `initial` by which the channel of the smallest weights starts lower
    pooled: float = 0.9  # share of an agent's gradient that is its part of its group's mean
    pooled_layers: float = 0.75  # with `worth` "cost", share of a group's gradient that is its part of all groups'
    worth: Literal["cost", "channel"] = "cost"  # what dropped channels earn where there are budgets on cost
    limit: float = 6.9  # clamp on the size of weights, which keeps agents from saturating; 0: none
    score: Literal["right", "likelihood"] = "likelihood"  # the first guess, or the probability of the label
    baseline: Literal["example", "none"] = "example"  # what each example earned before is taken off its reward
    budget_by: float = 0.8  # share of the loop by which a budget should be reached
    gain: float = 10.0  # how fast the penalty follows when the cost is not where it should be

    @classmethod
    def of(cls, method: Decore) -> Rules:
        """Return the rules of a method's settings."""
        return replace(PAPER if method.rules == "paper" else TUNED, penalty=method.penalty, agent_lr=method.agent_lr)


TUNED = Rules()
PAPER = Rules(
    agent_lr=0.01,
    importance=0.0,
    pooled=0.0,
    pooled_layers=0.0,
    worth="channel",
    limit=0.0,
    score="right",
    baseline="none",
)


class Agents(nn.Module):
    """The agents' weights and what they have learned so far; all of it is in the state dict.

    Agent j keeps its channel with probability `p_j = sigmoid(w_j)`. Its action multiplies the channel. Channels
    that an addition, a depthwise convolution or a gate ties are one agent's.

    Args:
        groups: those whose channels the agents decide on, L of them.
        settings: of the method.
        examples: N, of the split that is learned from.
        steps: of the whole loop.
        magnitudes: (A,), of the network's weights, the larger the more important; None: not known.
        together: every agent earns what all dropped channels are worth, not only those of its layer.
        each: (outputs, targets) -> how good each answer is, (b,), in 0..1; None: by labels, as `settings.score` says.
    """

    weights: Tensor
    mean: Tensor
    square: Tensor
    steps: Tensor
    penalty: Tensor
    score: Tensor
    reward: Tensor
    earned: Tensor
    sizes: Tensor
    layer: Tensor
    worth: Tensor

    def __init__(
        self,
        groups: Sequence[Group],
        settings: Rules,
        *,
        examples: int,
        steps: int,
        magnitudes: Float[Tensor, " a"] | None = None,
        together: bool = False,
        each: Callable[[Tensor, Any], Tensor] | None = None,
    ) -> None:
        super().__init__()
        self.settings, self.together, self.each = settings, together, each
        self.rate = settings.agent_lr or max(_LEAST_RATE, abs(settings.initial) / (_WALK * steps))
        sizes = torch.tensor([group.width // group.step for group in groups])
        count, self._lengths = int(sizes.sum()), sizes.tolist()
        self.register_buffer("sizes", sizes, persistent=False)
        self.register_buffer("layer", torch.arange(len(groups)).repeat_interleave(sizes), persistent=False)
        behind = torch.zeros(count) if magnitudes is None else _behind(magnitudes, sizes.tolist())
        self.register_buffer("weights", settings.initial * (1.0 - settings.importance * behind))
        self.register_buffer("worth", torch.ones(len(groups)))  # of a channel of each layer
        self.register_buffer("mean", torch.zeros(count))
        self.register_buffer("square", torch.zeros(count))
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        self.register_buffer("penalty", torch.tensor(settings.penalty))
        self.register_buffer("score", torch.tensor(math.nan))  # running, of answers with masks drawn
        self.register_buffer("reward", torch.tensor(math.nan))  # running, of a layer
        self.register_buffer("earned", torch.full((examples,), math.nan))  # what each example scored, running

    @property
    def chances(self) -> Float[Tensor, " a"]:
        """The probability of each agent to keep its channel."""
        return torch.sigmoid(self.weights)

    def draw(self, examples: int) -> Float[Tensor, "b a"]:
        """Return actions for a batch, 1 to keep and 0 to drop, from torch's global generator."""
        chances = self.chances
        return (torch.rand((examples, len(chances)), device=chances.device) < chances).float()

    def learn(
        self,
        actions: Float[Tensor, "b a"],
        logits: Float[Tensor, "b k"],
        labels: Any,
        indices: Int[Tensor, " b"],
    ) -> None:
        """Take one step of REINFORCE, up the gradient `mean_b sum_i R_bi grad log pi(a_bi)` of the reward.

        `R_i = R_C,i * R_acc` for each layer i and example: what the channels that it dropped are worth (`together`:
        those of all layers), times 1 where the answer is right and -penalty where it is wrong. With w the weights,
        `grad log pi(a) = a - p`.
        """
        score = self._scores(logits, labels)
        outcome = (1.0 + self.penalty) * score - self.penalty  # R_acc
        saved = self._saved(actions)  # R_C
        chances = self.chances
        if self.settings.baseline == "none":
            credit = (saved * outcome[:, None])[:, self.layer]
            gradient = self._pooled((credit * (actions - chances)).mean(0))
        else:
            expected = (1.0 + self.penalty) * self._expected(score, indices) - self.penalty
            surprise = saved * (outcome - expected)[:, None]
            # What remains is the reward that does not depend on the answer: its gradient is known, not sampled.
            gradient = self._pooled((surprise[:, self.layer] * (actions - chances)).mean(0))
            gradient -= chances * (1.0 - chances) * expected.mean() * self.worth[self.layer]
        self._remember(score, (saved * outcome[:, None]).mean())
        # A factor changes nothing for Adam, unless it moves: so rewards stay in -1..1 whatever the penalty does.
        self.ascend(gradient / (1.0 + self.penalty.clamp(min=0.0)))

    def _pooled(self, gradient: Float[Tensor, " a"]) -> Float[Tensor, " a"]:
        """Return the gradient with a part of each agent's replaced by its share in the sum of its layer's.

        With `together` a part of that is replaced in turn by its share in the sum of all, by what channels are worth.
        """
        spread = self.chances * (1.0 - self.chances)
        sums = self._per_layer(torch.stack([gradient, spread]))
        pooled = gradient.lerp(spread * (sums[0] / sums[1].clamp(min=1e-9))[self.layer], self.settings.pooled)
        if not self.together:
            return pooled
        price = sums[0].sum() / (sums[1] * self.worth).sum().clamp(min=1e-9)
        return pooled.lerp(spread * price * self.worth[self.layer], self.settings.pooled_layers)

    def _scores(self, logits: Tensor, labels: Any) -> Float[Tensor, " b"]:
        if self.each is not None:
            return self.each(logits, labels)
        if self.settings.score == "likelihood":
            likely: Tensor = logits.softmax(1).gather(1, labels[:, None])[:, 0]
            return likely
        right: Tensor = logits.argmax(1) == labels
        return right.float()

    def _saved(self, actions: Float[Tensor, "b a"]) -> Float[Tensor, "b l"]:
        saved = self._per_layer(1.0 - actions) * self.worth
        return saved.sum(1, keepdim=True).expand_as(saved) if self.together else saved

    def _per_layer(self, values: Float[Tensor, "r a"]) -> Float[Tensor, "r l"]:
        """Return the sum over the agents of each layer; unlike `index_add_` it uses no atomic additions on a GPU."""
        if values.device.type in _WITHOUT_SEGMENTS:
            return torch.stack([part.sum(1) for part in values.split(self._lengths, 1)], 1)
        lengths = self.sizes.expand(len(values), -1).contiguous()
        return torch.segment_reduce(values, "sum", lengths=lengths, axis=1, unsafe=True)

    def _expected(self, score: Float[Tensor, " b"], indices: Int[Tensor, " b"]) -> Float[Tensor, " b"]:
        """Return the baseline of each example's score, independent of the actions drawn for it now, and note the score.

        It is the running score of the example; in the first epoch the running mean over earlier batches; in the first
        batch the mean over the batch's other examples.
        """
        others = (score.sum() - score) / max(len(score) - 1, 1)
        before = self.earned[indices]
        known = torch.where(before.isnan(), torch.where(self.score.isnan(), others, self.score), before)
        self.earned[indices] = torch.where(before.isnan(), score, 0.5 * before + 0.5 * score)
        return known

    def _remember(self, score: Tensor, reward: Tensor) -> None:
        for running, now in ((self.score, score.mean()), (self.reward, reward)):
            running.copy_(torch.where(running.isnan(), now, running.lerp(now, 1.0 - _MEMORY)))

    def ascend(self, gradient: Float[Tensor, " a"]) -> None:
        """Take a step of Adam; its state is in the state dict with everything else."""
        self.steps += 1
        self.mean.lerp_(gradient, 1.0 - _BETAS[0])
        self.square.lerp_(gradient.square(), 1.0 - _BETAS[1])
        mean = self.mean / (1.0 - _BETAS[0] ** self.steps)
        square = self.square / (1.0 - _BETAS[1] ** self.steps)
        self.weights += self.rate * mean / (square.sqrt() + 1e-8)
        if self.settings.limit:
            self.weights.clamp_(-self.settings.limit, self.settings.limit)


Usage = Callable[[Architecture], Sequence[float]]
"""How much of each budget an architecture uses: the ratio of a cost to its limit."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Steering:
    """Sets the penalty while the agents learn: to the one given, or so that a budget is met.

    With a budget the expected cost is to fall evenly, in its logarithm, from the teacher's to the limit at
    `budget_by`. Agents drop more while the reward of an answer is positive on average, that is while the penalty is
    under the odds of a right answer, and less while it is over. So 1 + penalty is 1 + these odds, times the distance
    from where the cost should be, to the power of -`gain`. A penalty under 0 pays for wrong answers too: at -1 all
    that counts is what is dropped, so every budget can be reached. Before the first answers the penalty is 0.
    """

    settings: Rules
    space: Space
    groups: Sequence[Group]
    steps: int  # of the whole loop
    usage: Usage | None = None  # None: no budget
    by_cost: bool = False  # a dropped channel is worth what it costs

    def __call__(self, agents: Agents) -> None:
        """Set the agents' penalty for the next steps, and what their channels are worth."""
        if self.usage is not None and self.by_cost:
            agents.worth.copy_(self._worths(agents, self.usage))
        share = int(agents.steps) / self.steps
        agents.penalty.fill_(self.settings.penalty if self.usage is None else self._steered(share, agents))

    def _worths(self, agents: Agents, usage: Usage) -> Float[Tensor, " l"]:
        """Return what a channel of each layer adds to the budgets' usage, relative to the mean over channels.

        Budgets count by how near they are to their limits: alike where they are used alike.
        """
        base = expected(self.space, self.groups, agents.chances)
        used, added = torch.tensor(usage(base), dtype=torch.float64), []
        for group in self.groups:
            width = base.width(group.name)
            step = -group.step if width > max(group.step, group.least) else group.step
            other = torch.tensor(usage(base.with_width(group.name, width + step)), dtype=torch.float64)
            added.append(math.copysign(1.0, step) * (other - used))
        nearness = (used / used.max()) ** _NEAREST
        found = (torch.stack(added) @ nearness).clamp(min=0.0).float()
        mean = found[agents.layer.cpu()].mean()
        return found / mean if mean > 0 else torch.ones_like(found)

    def _steered(self, share: float, agents: Agents) -> float:
        assert self.usage is not None
        if bool(agents.score.isnan()):
            return 0.0  # nobody has answered yet
        start = max(*self.usage(self.space.full), 1.0)
        aim = start ** (1.0 - min(share / max(self.settings.budget_by, 1e-9), 1.0))
        used = max(self.usage(expected(self.space, self.groups, agents.chances)))
        ratio = max(used / aim, _LEAST_RATIO)
        right = min(max(float(agents.score), 1e-4), 1.0 - 1e-4)
        return float(min(ratio**-self.settings.gain / (1.0 - right) - 1.0, _MOST_PENALTY))


def _behind(magnitudes: Float[Tensor, " a"], sizes: Sequence[int]) -> Float[Tensor, " a"]:
    """Return the rank of each agent's channel in its layer: 0 for the most important one, 1 for the least."""
    ranks = [part.argsort(stable=True).argsort() / max(len(part) - 1, 1) for part in magnitudes.split(list(sizes))]
    return 1.0 - torch.cat(ranks).float()


def expected(space: Space, groups: Sequence[Group], chances: Float[Tensor, " a"]) -> Architecture:
    """Return the architecture of the widths that are kept on average, rounded."""
    parts = chances.double().cpu().split([group.width // group.step for group in groups])
    slots = torch.stack([part.sum() for part in parts]).round().clamp(min=1).long().tolist()
    return space.architecture(widths={g.name: max(n * g.step, g.least) for g, n in zip(groups, slots, strict=True)})


def chosen(
    space: Space,
    groups: Sequence[Group],
    weights: Float[Tensor, " a"],
    magnitudes: Float[Tensor, " a"],
    widths: Widths,
    usage: Usage | None = None,
) -> Architecture:
    """Return the architecture of the channels that stay: those with p >= 1/2, or as many as the budget allows.

    With a budget the channels of the largest weights stay, over all groups, as many as keep it; if even the
    fewest break it, those. Equal weights go by magnitude. Each group keeps at least `min_width`, and a
    multiple of `round_to`.
    """
    parts = [group.width // group.step for group in groups]
    order = sorted(range(len(weights)), key=lambda j: (-float(weights[j]), -float(magnitudes[j])))
    ranks = torch.empty(len(order), dtype=torch.int64)
    ranks[torch.tensor(order, dtype=torch.int64)] = torch.arange(len(order))

    def keeping(count: int) -> Architecture:
        channels = {}
        for group, own in zip(groups, ranks.split(parts), strict=True):
            wanted = int((own < count).sum()) * group.step
            width = widths.nearest(group, wanted)
            channels[group.name] = own.argsort()[: width // group.step].tolist()
        return space.architecture(channels=channels)

    if usage is None:
        return keeping(int((weights >= 0).sum()))
    low, high = 0, len(order)
    while low < high:  # the most that keep the budget
        middle = (low + high + 1) // 2
        low, high = (middle, high) if max(usage(keeping(middle))) <= 1.0 else (low, middle - 1)
    return keeping(low)


def saturated(weights: Float[Tensor, " a"], limit: float) -> Bool[Tensor, " a"]:
    """Return which agents hardly ever choose otherwise: their weights are at or above the limit in size."""
    return weights.abs() >= (limit or 6.9)
