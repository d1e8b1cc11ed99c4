"""The numbers of architecture compression that nobody has to set, see `docs/archcomp.md`. No torch."""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True, kw_only=True)
class Rules:
    """How the embedding is made, fitted and ascended in. The paper states none of these but that it is learned."""

    informed: bool = True  # start from what is known of decisions and costs, not from random weights (paper)
    start: int = 20  # students of random search before the first fit, or half of all where those are fewer
    samples: int = 1500  # architectures with predicted costs that shape the embedding; a tenth more at every update
    channels: int = 8  # of the embedding, for each layer of the teacher
    hidden: int = 24  # channels of encoder, decoder and heads
    fit_steps: int = 400  # gradient steps of the first fit
    refit_steps: int = 60  # of each later one, which goes on from the one before
    batch_size: int = 64  # architectures in one step, and half as many with known score
    lr: float = 0.02  # Adam's peak
    noise: float = 0.1  # standard deviation on the embedding before it is decoded in training
    cost_weight: float = 1.0  # of the cost heads' squared error, in standard deviations
    score_weight: float = 0.3  # of the score head's
    draws: int = 5  # from the posterior of score; each student of an update is one draw's favourite
    starts: int = 40  # architectures that ascent starts from, in one batch
    steps: int = 30  # of ascent from each
    trust: float = 1.0  # radius of ascent at first, as a share of the median distance between architectures
    changes: float = 3.0  # decisions of a best student that are drawn anew where architectures near to it are wanted
    apart: int = 2  # decisions in which two students of an update differ, if there are such


TUNED = Rules()
RULES = {"tuned": TUNED, "paper": replace(TUNED, informed=False)}
