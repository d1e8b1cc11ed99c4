"""How N2N's policies read, draw and learn: the paper's rules beside ours. `docs/n2n.md` numbers each. No torch."""

from __future__ import annotations

from dataclasses import dataclass

HIDDEN = 30  # units of each of the two LSTM layers (paper)
BASELINE_DECAY = 0.75  # of the moving average of rewards
STAGE_ONE_SHARE = 0.5  # with a budget of F times less, stage 1 is asked for F to this power
DEPTHS = 3.0  # where draws are ranked, each removes units at a chance this many times the policy's, or less


@dataclass(frozen=True, kw_only=True)
class Rules:
    """What of the algorithm is not settled by N2N's fields."""

    # The state (section 3.1).
    scaled: bool  # columns in 0..1; or raw numbers, as in the authors' code
    harmonics: int  # sinusoidal columns of a row's depth
    # The policies before they have learned.
    keep_bias: float  # logit towards keeping a unit in stage 1; 0: each is kept with probability 1/2
    calibrate: bool  # bias each policy until its median draw keeps the predicted budgets
    # From draws to students.
    resamples: int  # draws more for each student while what is drawn breaks a predicted budget or is known
    repair: bool  # where no resampled draw keeps the budgets, bring a draw to a legal architecture near by
    fill: bool  # scale the widths of every second draw so that it just fits the predicted budgets
    near: int  # draws change some decisions of one of so many best students; 0: they are the policy's alone
    phase_updates: int  # over which the penalty for breaking a budget sets in, in each stage; 0: at once
    look_ahead: bool  # stage 1 is judged by what stage 2 can make of its students
    # Learning (section 3.3).
    per_rollout: bool  # each rollout's own reward less the baseline; or one mean for all of an update
    replay: int  # updates whose students one policy update learns from, the present one among them
    gradient_steps: int  # of one policy update
    clip: float  # range of the probability ratio within which there is a gradient (PPO)
    entropy_bonus: float  # weight of the policy's entropy, per decision


PAPER = Rules(
    scaled=False,
    harmonics=0,
    keep_bias=0.0,
    calibrate=False,
    resamples=0,
    repair=False,
    fill=False,
    near=0,
    phase_updates=15,
    look_ahead=False,
    per_rollout=False,
    replay=1,
    gradient_steps=1,
    clip=0.2,  # of no effect within one step
    entropy_bonus=0.0,
)
TUNED = Rules(
    scaled=True,
    harmonics=12,
    keep_bias=1.0,
    calibrate=True,
    resamples=20,
    repair=True,
    fill=True,
    near=5,
    phase_updates=8,
    look_ahead=True,
    per_rollout=True,
    replay=4,
    gradient_steps=10,
    clip=0.2,
    entropy_bonus=0.01,
)
RULES = {"tuned": TUNED, "paper": PAPER}
