"""The settings of each method. No torch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Annotated, Literal

from understudy.config.checked import Amount, Checked, Count, Natural, Range, Share
from understudy.config.training import Training


@dataclass(frozen=True, kw_only=True)
class N2N(Checked):
    """N2N learning (Ashok et al., ICLR 2018): a policy removes layers, another shrinks what is left."""

    removal_updates: Natural = 0
    """Policy updates of stage 1 (N2N: up to 100); 0: stage 2 starts from the teacher and decides units as well."""
    shrinkage_updates: Natural = 24
    """Policy updates of stage 2 (N2N: up to 100)."""
    revisit: Share = 0.2
    """Chance that stage 2, before it has learned, decides a unit or a kernel otherwise than in the student it starts
    from (N2N: 0, units stay as stage 1 left them, kernels are drawn like widths; 0.5 and more: that says nothing)."""
    depths: Annotated[float, Range(1.0)] = 3.0
    """Where draws are ranked, each of stage 2 removes units at a chance of its own, from this many times less than the
    policy's to this many times more; 1: at the policy's."""
    refinement_updates: Natural = 0
    """Policy updates of a last stage that changes depth, widths and kernels of the best student together."""
    refinement_changes: Amount = 4.0
    """How many decisions of the best student a proposal of that stage changes, before it has learned."""
    rollouts: Count = 5
    """Students proposed for one update."""
    draws_per_rollout: Count = 20
    """Legal, new architectures that the policy draws for each student, of which those are trained that are expected
    to earn most, given the students so far (N2N: 1)."""
    granularity: Literal["units", "layers"] = "units"
    """What one removal takes: a convolution with its norm and activation, a pooling layer or a block; or a
    single layer as in the paper."""
    removal_controller: Literal["bidirectional", "autoregressive"] = "bidirectional"
    """How stage 1 reads the layers."""
    hidden: Count = 30
    """Hidden units of each LSTM layer (N2N: 30)."""
    removal_lr: Amount = 0.03
    """Adam's learning rate in stage 1 (N2N: 0.003)."""
    shrinkage_lr: Amount = 0.02
    """Adam's learning rate in stage 2 (authors' code: 0.1)."""
    keep_bias: Annotated[float, Range()] = 1.0
    """Logit towards keeping a unit before anything is learned (0: each is kept with probability 1/2, as in N2N)."""
    factors: Annotated[tuple[float, ...], Range(0.0, 1.0, above=True)] = (
        0.05,
        0.07,
        0.1,
        0.14,
        0.2,
        0.28,
        0.4,
        0.55,
        0.75,
        1.0,
    )
    """Widths that stage 2 can choose, as shares of what stage 1 left (N2N: 0.1 to 1.0 in steps of 0.1)."""
    shrink_kernels: bool = True
    """Let stage 2 shrink kernels as well as widths."""
    advantage: Literal["rollout", "update"] = "rollout"
    """Credit: each rollout its own reward less the baseline, or (authors' code) one mean for all of an update."""
    baseline: Literal["average", "critic"] = "average"
    """What a reward is compared with: a moving average, or (actor-critic, authors' code) what the policy's own
    critic expects beyond it at each decision."""
    baseline_decay: Share = 0.75
    """Decay of the moving average of rewards that serves as baseline."""
    entropy_bonus: Amount = 0.01
    """Weight of the policy's entropy, per decision."""
    scale_rows: bool = True
    """Scale the columns of the state to 0..1; false: raw numbers, as in the authors' code."""
    stage_one_share: Share = 0.5
    """With a parameter budget of F times: stage 1 is asked for F to this power, stage 2 for all of it."""
    penalty: Literal["phased", "lagrangian"] = "phased"
    """What breaking a budget costs: a penalty phased in (N2N), or so much for each factor by which it is broken as a
    multiplier says that follows the violations."""
    phase_updates: Natural = 8
    """Updates over which the phased penalty sets in, per stage (N2N: 15; 0: the hard form)."""
    budget_columns: bool = False
    """Columns of the state that tell the reduction asked for by each budget."""
    round_to: Count = 8
    """Widths are multiples of this (1: any), because hardware rewards it."""
    min_width: Count = 8
    """Fewest channels of a group (authors' code: 10)."""
    calibrate: bool = True
    """Before anything is trained, lean each policy until its median proposal keeps the predicted budgets."""
    redraws: Natural = 20
    """Draws more for each student while what is drawn breaks a predicted budget or was proposed before (N2N: 0)."""
    overshoot: Amount = 1.0
    """Share of a predicted budget above which a student is drawn again."""
    fill: bool = True
    """Bring every other draw of widths up to the predicted budgets: all grow in turn, a factor at a time, while they
    keep them."""
    repair: Literal["never", "fallback", "always"] = "fallback"
    """Bring what breaks a predicted budget to a legal architecture near by: where no redraw keeps it, or at once."""
    memory: Natural = 4
    """Updates whose students one policy update learns from, the present one among them (N2N: 1)."""
    gradient_steps: Natural = 10
    """Gradient steps of one policy update (N2N: 1)."""
    clip: Amount = 0.2
    """A choice's gradient stops once its probability has moved by this share since it was drawn (PPO; N2N: none)."""
    harmonics: Natural = 12
    """Columns of the state that tell where in the network a row stands (N2N: 0)."""
    policy_from: str | None = None
    """Run folder, or policy.safetensors of one, whose policies this search starts from, and whose students say which
    draws are expected to earn most: of any other teacher, data or goal (N2N, section 3.5)."""
    rank_by: str | None = None
    """Run folder, or policy.safetensors of one, of archcomp whose embedding says from the start which draws are
    expected to earn most: of the same teacher's structure, with any weights, data or goal."""

    def problems(self) -> Iterator[str]:
        """Yield what is wrong between fields."""
        if not self.removal_updates + self.shrinkage_updates + self.refinement_updates:
            yield "one of removal_updates, shrinkage_updates, refinement_updates must be at least 1"
        if self.rank_by and (self.draws_per_rollout == 1 or self.granularity == "layers"):
            yield "rank_by needs draws_per_rollout above 1 and granularity 'units'"


@dataclass(frozen=True, kw_only=True)
class ArchComp(Checked):
    """Architecture compression (Ashok, 2019): descent in a learned embedding of architectures."""

    students: Count = 120
    """How many are trained."""
    start: Count = 20
    """How many of them random search draws, before there is an embedding."""
    samples: Count = 1500
    """Architectures with predicted costs that shape the embedding; a tenth as many more for every update."""
    channels: Count = 8
    """Numbers of the embedding for each layer of the teacher."""
    hidden: Count = 24
    """Hidden channels of encoder, decoder and heads."""
    fit_steps: Natural = 400
    """Gradient steps of the first fit."""
    refit_steps: Natural = 60
    """Gradient steps of each later fit, which goes on from the one before."""
    batch_size: Count = 64
    """Architectures in one step, and half as many with known accuracy."""
    lr: Amount = 0.02
    """Adam's peak learning rate."""
    noise: Amount = 0.1
    """Standard deviation of noise on the embedding before it is decoded in training."""
    cost_weight: Amount = 1.0
    """Weight of the cost heads' squared error, in standard deviations, beside the decoder's cross-entropy."""
    accuracy_weight: Amount = 0.3
    """Weight of the accuracy head's squared error, in standard deviations."""
    draws: Count = 5
    """Draws from what accuracy may be like, given what is known; each student of an update is one draw's favourite."""
    starts: Count = 40
    """Architectures that descent starts from, in one batch."""
    descent_steps: Natural = 30
    """Steps of descent from each start."""
    trust: Amount = 1.0
    """How far descent goes from an architecture before it goes on from the best that it has met, as a share of the
    median distance between architectures; adapted for each start."""
    changes: Amount = 3.0
    """How many decisions of a best student are drawn anew where architectures near to it are wanted."""
    apart: Natural = 2
    """Decisions in which the students of one update differ, if there are such."""
    policy_from: str | None = None
    """Run folder, or policy.safetensors of one, whose embedding and accuracies this search starts from, in place of
    random students: of this method and the same teacher's structure, with any weights, data or goal."""
    round_to: Count = 8
    """Widths are multiples of this (1: any)."""
    min_width: Count = 8
    """Fewest channels of a group."""
    redraws: Natural = 20
    """Draws more for each student while what is drawn breaks a predicted budget or was proposed before."""


@dataclass(frozen=True, kw_only=True)
class RandomSearch(Checked):
    """The yardstick: units, widths and kernels drawn independently, as N2N draws them before it has learned."""

    students: Count = 120
    """How many are trained."""
    round_to: Count = 8
    """Widths are multiples of this (1: any)."""
    min_width: Count = 8
    """Fewest channels of a group."""
    redraws: Natural = 20
    """Draws more for each student while what is drawn breaks a predicted budget or was proposed before."""
    fill: bool = False
    """Bring every other draw up to the predicted budgets, as N2N does."""


@dataclass(frozen=True, kw_only=True)
class OptunaSearch(Checked):
    """The yardstick: a sampler of Optuna over the same units, widths and kernels."""

    sampler: Literal["tpe", "nsga2"] = "tpe"
    """Tree-structured Parzen estimator, or the genetic algorithm NSGA-II."""
    students: Count = 120
    """How many are trained."""
    start: Count = 20
    """How many of them random search draws before the sampler does; the size of NSGA-II's population."""
    round_to: Count = 8
    """Widths are multiples of this (1: any)."""
    min_width: Count = 8
    """Fewest channels of a group."""
    redraws: Natural = 20
    """Draws more for each student while what is drawn breaks a predicted budget or was proposed before."""
    fill: bool = False
    """Bring every other draw up to the predicted budgets, as N2N does."""


@dataclass(frozen=True, kw_only=True)
class UniformWidth(Checked):
    """The yardstick: one width factor for all groups, nothing removed."""

    students: Count = 10
    """How many are trained, from the widest that keeps the predicted budgets down to the narrowest, in even steps."""
    round_to: Count = 8
    """Widths are multiples of this (1: any)."""
    min_width: Count = 8
    """Fewest channels of a group."""


@dataclass(frozen=True, kw_only=True)
class Decore(Checked):
    """DECORE (Alwani, Wang, Madhavan, CVPR 2022): an agent on every channel learns whether it may go.

    Agents and network learn in one loop, from the teacher's weights; then channels go and the rest is trained as
    `Final` says.
    """

    penalty: Amount = 200.0
    """What a wrong answer costs where a right one earns 1 (DECORE's lambda). Dropping pays only while more than
    penalty / (1 + penalty) of the answers are right. With budgets on cost it is adapted instead."""
    last_penalty: Amount = 0.0
    """What it costs in the last epoch, reached evenly; 0: what it costs in the first."""
    training: Training = field(default_factory=lambda: Training(epochs=12, lr=0.001, schedule="constant", loss="ce"))
    """The network's training while the agents learn (DECORE: 260 epochs on labels, batches of 256)."""
    agent_lr: Amount = 0.0
    """Adam's learning rate of the agents' weights; 0: as large as it takes to walk from `initial` to p = 1/2 in an
    eighth of the loop's steps, at least DECORE's 0.01."""
    initial: Amount = 6.9
    """Weight that every agent starts with; its channel is kept with probability sigmoid(6.9) = 0.999 (DECORE)."""
    importance: Share = 0.6
    """By what share of `initial` the least important channel of a group, by the size of its weights, starts lower
    than the most important one, in 0..1; 0: all start alike (DECORE)."""
    pooled: Share = 0.9
    """Share of what answers tell an agent that it takes from the agents of its group on average, in 0..1; 0: DECORE."""
    pooled_layers: Share = 0.75
    """With `worth` "cost", share of what answers tell a group that it takes from all groups, by what their channels
    cost, in 0..1; 0: none; 1: all widths shrink alike."""
    worth: Literal["cost", "channel"] = "cost"
    """What agents earn where there are budgets on cost, other than on memory: what the channels that all of them
    dropped cost together, or how many of their own layer were dropped (DECORE), as where there are none."""
    limit: Amount = 6.9
    """Largest size of an agent's weight, so that it can still change its mind; 0: none (DECORE)."""
    score: Literal["right", "likelihood"] = "likelihood"
    """What counts as right: the first guess (DECORE), or the probability of the label, which tells more."""
    baseline: Literal["example", "none"] = "example"
    """Compare each reward with what the example earned before, which lowers the variance; none: DECORE."""
    budget_by: Share = 0.8
    """Share of the loop by which a budget should be reached, in 0..1; the rest settles what is kept."""
    gain: Amount = 10.0
    """How fast the penalty follows when the cost is not where it should be on its way to the budget."""
    round_to: Count = 1
    """Widths are multiples of this (1: any)."""
    min_width: Count = 1
    """Fewest channels of a group."""


Method = N2N | Decore | ArchComp | RandomSearch | OptunaSearch | UniformWidth
