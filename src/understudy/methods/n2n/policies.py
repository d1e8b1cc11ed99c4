"""The policies of N2N learning (Ashok et al., ICLR 2018, section 3.2): LSTMs whose shapes do not depend on the teacher.

Shapes: B = proposals, L = rows of the state, I = columns of a row, D = decisions, F = factors, H = hidden
units, in the order of the suffix. Policies compute in float64, so that no proposal hangs on the last
bits of a sum, which differ between machines and numbers of threads.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from understudy.methods.n2n.rules import HIDDEN
from understudy.methods.proposals import positions


class Judgement(NamedTuple):
    """What a policy makes of choices, each (B, D)."""

    logs_BD: Float[Tensor, "b d"]  # log-probability of each choice
    entropy_BD: Float[Tensor, "b d"]  # of its distribution, nats


class Policy(nn.Module, ABC):
    """A distribution over D choices, learned by gradient. Draws nothing itself: uniform numbers are passed in."""

    def __init__(self, inputs: int, outputs: int, *, bidirectional: bool) -> None:
        super().__init__()
        # On the meta device nothing is drawn: initial weights come from the searcher's own generator.
        self.lstm = nn.LSTM(
            inputs,
            HIDDEN,
            2,
            bidirectional=bidirectional,
            batch_first=True,
            device="meta",
            dtype=torch.float64,
        ).to_empty(device="cpu")
        features = HIDDEN * (2 if bidirectional else 1) + inputs
        self.out = nn.Linear(features, outputs, device="meta", dtype=torch.float64).to_empty(device="cpu")

    def draw_weights(self, generator: torch.Generator) -> None:
        """Draw the LSTM as torch does, uniform in +-1 / sqrt(H); the output starts at 0: only `set_bias` counts."""
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

    def start(self, generator: torch.Generator, known: Mapping[str, Tensor] | None) -> None:
        """Draw the weights, or take those of a policy that learned elsewhere."""
        if known is None:
            self.draw_weights(generator)
        else:
            self.load_state_dict(dict(known))

    @abstractmethod
    def set_bias(self, prior: float) -> None:
        """Set the bias of all choices: the larger, the larger the students that are drawn.

        No weight: what fits one teacher and its budgets is not carried to another.
        """

    @abstractmethod
    def sample(self, uniform_BD: Float[Tensor, "b d"]) -> Int[Tensor, "b d"]:
        """Return choices from numbers in 0..1."""

    @abstractmethod
    def judge(self, choices_BD: Int[Tensor, "b d"]) -> Judgement:
        """Return what the policy makes of choices."""


class RemovalPolicy(Policy):
    """Stage 1: keep (1) or remove (0), for each unit at its row, once all rows are read."""

    def __init__(self, rows_LI: Float[Tensor, "l i"], at: Sequence[int]) -> None:
        super().__init__(rows_LI.shape[1], 1, bidirectional=True)
        self._rows_LI, self._at_D = rows_LI, torch.tensor(at)
        self._bias = 0.0

    def set_bias(self, prior: float) -> None:
        self._bias = prior

    @torch.no_grad()
    def sample(self, uniform_BD: Float[Tensor, "b d"]) -> Int[Tensor, "b d"]:
        return (uniform_BD < self._logits_D().sigmoid()).long()

    def judge(self, choices_BD: Int[Tensor, "b d"]) -> Judgement:
        logits_BD = self._logits_D().expand(len(choices_BD), -1)
        keep_BD, remove_BD = nn.functional.logsigmoid(logits_BD), nn.functional.logsigmoid(-logits_BD)
        entropy_BD = -(keep_BD.exp() * keep_BD + remove_BD.exp() * remove_BD)
        return Judgement(torch.where(choices_BD == 1, keep_BD, remove_BD), entropy_BD)

    def _logits_D(self) -> Tensor:
        logits_BL1, _ = self.read(self._rows_LI[None])
        logits_D: Tensor = logits_BL1[0, self._at_D, 0] + self._bias
        return logits_D


WIDTH, KERNEL, UNIT = 0.0, 1.0, -1.0  # in the last column of a row of stage 2: what is decided there


class ShrinkagePolicy(Policy):
    """Stage 2: one of the factors for each width and kernel in turn; what came of it is fed back.

    A row describes the layer and whether a width (0), a kernel (1) or a unit (-1) is decided; the last column
    is the share that the decision before left of its width or kernel (0 at the start). Factors that end in
    the same legal value are one choice: its probability is their sum. `prior_DF` is added to the logits.
    """

    def __init__(
        self,
        rows_DI: Float[Tensor, "d i"],
        shares_DF: Float[Tensor, "d f"],
        factors: Sequence[float],
        prior_DF: Float[Tensor, "d f"] | None = None,
    ) -> None:
        super().__init__(rows_DI.shape[1] + 1, len(factors), bidirectional=False)
        self._rows_DI, self._shares_DF = rows_DI, shares_DF
        self._own_DF = torch.zeros_like(shares_DF) if prior_DF is None else prior_DF
        self._prior_DF = self._own_DF
        self._same_DFF = shares_DF[:, :, None] == shares_DF[:, None, :]
        # Narrower students are wanted, not fewer units or smaller kernels: those follow their priors alone.
        slope_F = torch.tensor(positions(factors), dtype=torch.float64)
        self._slope_DF = slope_F * (rows_DI[:, -1:] == WIDTH)

    def set_bias(self, prior: float) -> None:
        self._prior_DF = self._own_DF + prior * self._slope_DF

    @torch.no_grad()
    def sample(self, uniform_BD: Float[Tensor, "b d"]) -> Int[Tensor, "b d"]:
        choices_BD = torch.zeros_like(uniform_BD, dtype=torch.int64)
        before_B, state = uniform_BD.new_zeros(len(uniform_BD)), None
        for decision, row_I in enumerate(self._rows_DI):
            row_BI = torch.cat([row_I.expand(len(uniform_BD), -1), before_B[:, None]], 1)
            logits_B1F, state = self.read(row_BI[:, None], state)
            below_BF = (logits_B1F[:, 0] + self._prior_DF[decision]).softmax(-1).cumsum(-1)[:, :-1]
            choices_BD[:, decision] = (uniform_BD[:, decision, None] >= below_BF).sum(-1)
            before_B = self._shares_DF[decision, choices_BD[:, decision]]
        return choices_BD

    def judge(self, choices_BD: Int[Tensor, "b d"]) -> Judgement:
        shares_BD = self._shares_DF[torch.arange(choices_BD.shape[1]), choices_BD]
        before_BD = nn.functional.pad(shares_BD[:, :-1], (1, 0))
        rows_BDI = torch.cat([self._rows_DI.expand(len(choices_BD), -1, -1), before_BD[..., None]], -1)
        outputs_BDF, _ = self.read(rows_BDI)
        factors_BDF = (outputs_BDF + self._prior_DF).log_softmax(-1)
        logs_BDF = factors_BDF[..., None, :].masked_fill(~self._same_DFF, -math.inf).logsumexp(-1)
        entropy_BD = -(factors_BDF.exp() * logs_BDF).sum(-1)
        return Judgement(logs_BDF.gather(-1, choices_BD[..., None])[..., 0], entropy_BD)
