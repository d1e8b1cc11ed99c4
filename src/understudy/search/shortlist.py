"""Which of a policy's draws are worth training: those expected to earn most, given the students so far (ours).

Costs are exact and free. What has to be guessed is accuracy: by Bayesian linear regression on the entries of an
architecture's columns that change, or on the features of an embedding that another search fitted and saved.

Shapes: B = architectures, D = decisions, P = features, M = draws, in the order of the suffix.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from understudy.architecture import Architecture, Space
from understudy.config import N2N, ArchComp
from understudy.evaluation import Evaluation
from understudy.search.columns import CHANGING, Columns
from understudy.search.embedding import Embedding, loaded, settings_of
from understudy.search.forecast import Forecast, in_turn, one_thread

T = TypeVar("T")
PREFIX = "shortlist."  # of the tensors of an embedding among those of policies
_FEWEST = 10  # students before which their accuracies rank nothing
_APART = 2  # decisions in which the students of an update differ, if there are such


class Shortlist:
    """Orders draws by what they are expected to earn.

    Each student of an update is the favourite of another draw from the posterior of accuracy, so that what is not
    known yet is tried as well (Thompson sampling).

    Args:
        space: what the teacher allows.
        teacher_accuracy: in 0..1, known without training.
        settings: of N2N.
        generator: of the search, which draws from the posterior.
        policy: what the search starts from; an embedding is in it under `PREFIX`, if at all.
    """

    def __init__(
        self,
        space: Space,
        teacher_accuracy: float,
        settings: N2N,
        generator: torch.Generator,
        policy: Mapping[str, Tensor],
    ) -> None:
        self._space, self._teacher_accuracy = space, teacher_accuracy
        self._count, self._generator = settings.rollouts, generator
        self._known: list[Evaluation] = []
        self._before: Forecast | None = None
        fitted = {name.removeprefix(PREFIX): policy[name] for name in policy if name.startswith(PREFIX)}
        if fitted:
            known = settings_of(fitted, round_to=settings.round_to, min_width=settings.min_width)
            self._columns = Columns(space, known)
            self._embedding = Embedding(self._columns, known)
            self._before = loaded(self._embedding, fitted)
        else:
            plain = ArchComp(round_to=settings.round_to, min_width=settings.min_width)
            self._columns = Columns(space, plain, granularity=settings.granularity)

    def learn(self, evaluations: Sequence[Evaluation]) -> None:
        """Take in what became of students; failed ones say nothing about accuracy."""
        self._known += [evaluation for evaluation in evaluations if evaluation.status != "failed"]

    def order(
        self, draws: Sequence[tuple[T, Architecture]], worth: Callable[[Architecture], float]
    ) -> list[tuple[T, Architecture]]:
        """Return the draws, those first that are to be trained; as they are where too little is known or to choose.

        Args:
            draws: distinct architectures.
            worth: the reward that an architecture would earn at the accuracy of the teacher.
        """
        known = len(self._known) >= _FEWEST or self._before is not None
        if not known or len(draws) <= self._count:
            return list(draws)
        with one_thread():
            choices_BD = self._choices([architecture for _, architecture in draws])
            shares_BM = self._forecast()(self._features(choices_BD))[:, 1:]
            worth_B1 = torch.tensor([[worth(architecture)] for _, architecture in draws], dtype=torch.float64)
            values_BM = torch.where(worth_B1 > 0.0, worth_B1 * shares_BM, worth_B1)
            order = in_turn(values_BM, choices_BD, apart=_APART, count=len(draws))
        return [draws[index] for index in order.tolist()]

    def _forecast(self) -> Forecast:
        """Return what is known about the share of the teacher's accuracy: its mean, and a draw for each student."""
        choices_ND = self._choices([self._space.full, *(evaluation.architecture for evaluation in self._known)])
        accuracies = [self._teacher_accuracy, *(evaluation.accuracy for evaluation in self._known)]
        shares_N = torch.tensor(accuracies, dtype=torch.float64) / self._teacher_accuracy
        return Forecast.of(self._features(choices_ND), shares_N, self._count, self._generator, before=self._before)

    def _choices(self, architectures: Sequence[Architecture]) -> Int[Tensor, "b d"]:
        return torch.stack([self._columns.choices(architecture) for architecture in architectures])

    @torch.no_grad()
    def _features(self, choices_BD: Int[Tensor, "b d"]) -> Float[Tensor, "b p"]:
        if self._before is not None:
            return self._embedding.features(self._embedding.encode(choices_BD))
        return self._columns.matrix(choices_BD)[:, -len(CHANGING) :].flatten(1)
