"""Which of a policy's draws are worth training: those expected to earn most, given the students so far (ours).

Costs are exact and free. What has to be guessed is score: by Bayesian linear regression on the entries of an
architecture's columns that change. The weight of an entry is one that all columns share, another for each end of the
network, and each column's own, all as large beforehand. What columns share means the same for every teacher, so the
students of another one say something about it.

Shapes: B = architectures, D = decisions, L = columns, P = features, S = features that columns share, N = students that
are known, M = draws, in the order of the suffix.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from understudy.config.methods import N2N
from understudy.core.architecture import Architecture
from understudy.core.errors import ConfigError
from understudy.core.evaluation import Evaluation
from understudy.methods.base import Problem
from understudy.methods.surrogate.columns import CHANGING, Columns
from understudy.methods.surrogate.regression import Forecast, in_turn, one_thread

T = TypeVar("T")
_FEATURES, _SHARES = "students.features", "students.shares"  # of what is known about students, among policies
_FEWEST = 5  # students before which their scores rank nothing
_SHARED = 3 * len(CHANGING)  # features: means over all columns, and over those at each end of the network
_APART = 2  # decisions in which the students of an update differ, if there are such


class Shortlist:
    """Orders draws by what they are expected to earn.

    Each student of an update is the favourite of another draw from the posterior of score, so that what is not
    known yet is tried as well (Thompson sampling).

    Args:
        problem: its policy holds what another search knew of its students, if at all.
        settings: of N2N.
        generator: of the search, which draws from the posterior.
    """

    def __init__(self, problem: Problem, settings: N2N, generator: torch.Generator) -> None:
        self._space, self._teacher_score = problem.space, problem.reward.teacher_score
        self._count, self._generator = settings.rollouts, generator
        self._columns = Columns(problem.space, problem.widths, granularity=settings.granularity)
        self._known_NP = self._features(self._choices([self._space.full]))
        self._scores = [self._teacher_score]
        policy = problem.policy or {}
        self._others_NS = policy.get(_FEATURES, torch.zeros(0, _SHARED, dtype=torch.float64))
        self._others_shares_N = policy.get(_SHARES, torch.zeros(0, dtype=torch.float64))

    def learn(self, evaluations: Sequence[Evaluation]) -> None:
        """Take in what became of students; failed ones say nothing about score."""
        known = [evaluation for evaluation in evaluations if evaluation.status != "failed"]
        if known:
            features_NP = self._features(self._choices([evaluation.architecture for evaluation in known]))
            self._known_NP = torch.cat([self._known_NP, features_NP])
            self._scores += [evaluation.score for evaluation in known]

    def order(
        self, draws: Sequence[tuple[T, Architecture]], worth: Callable[[Architecture], float]
    ) -> list[tuple[T, Architecture]]:
        """Return the draws, those first that are to be trained; as they are where too little is known or to choose.

        Args:
            draws: distinct architectures.
            worth: the reward that an architecture would earn at the score of the teacher.
        """
        known = len(self._scores) > _FEWEST or len(self._others_NS) > 0
        if not known or len(draws) <= self._count:
            return list(draws)
        with one_thread():
            architectures = [architecture for _, architecture in draws]
            choices_BD, shares_BM = self._choices(architectures), self.predicted(architectures)
            worth_B1 = torch.tensor([[worth(architecture)] for _, architecture in draws], dtype=torch.float64)
            values_BM = torch.where(worth_B1 > 0.0, worth_B1 * shares_BM, worth_B1)
            order = in_turn(values_BM, choices_BD, apart=_APART, count=len(draws))
        return [draws[index] for index in order.tolist()]

    def tensors(self) -> dict[str, Tensor]:
        """Return what a search on another teacher can use: all students that this one knows, as what columns share."""
        if len(self._scores) == 1:
            return {}
        return {
            _FEATURES: torch.cat([self._others_NS, self._known_NP[1:, :_SHARED]]),
            _SHARES: torch.cat([self._others_shares_N, self._known_shares()[1:]]),
        }

    def predicted(self, architectures: Sequence[Architecture]) -> Float[Tensor, "b m"]:
        """Return draws, one for each student of an update, of the share of the teacher's score."""
        features_NP, shares_N = self._known_NP, self._known_shares()
        # Nothing is known of what another teacher's students would have of each column, nor of how far all are off.
        others_NP = features_NP.mean(0).repeat(len(self._others_NS), 1)
        others_NP[:, :_SHARED] = self._others_NS
        others_NP[:, -1] = 1.0
        features_NP, shares_N = torch.cat([features_NP, others_NP]), torch.cat([shares_N, self._others_shares_N])
        forecast = Forecast.of(features_NP, shares_N, self._count, self._generator)
        return forecast(self._features(self._choices(architectures)))[:, 1:]

    def _known_shares(self) -> Float[Tensor, " n"]:
        """Return the shares of the teacher's score that it and the students have."""
        return torch.tensor(self._scores, dtype=torch.float64) / self._teacher_score

    def _choices(self, architectures: Sequence[Architecture]) -> Int[Tensor, "b d"]:
        return torch.stack([self._columns.choices(architecture) for architecture in architectures])

    @torch.no_grad()
    def _features(self, choices_BD: Int[Tensor, "b d"]) -> Float[Tensor, "b p"]:
        """Return what columns share, each one's own, and 0: not another teacher's student."""
        changing_BIL = self._changing(choices_BD)
        own_BP = changing_BIL.flatten(1) / changing_BIL.shape[2]
        return torch.cat([self._shared(changing_BIL), own_BP, own_BP.new_zeros(len(own_BP), 1)], 1)

    @staticmethod
    def _shared(changing_BIL: Float[Tensor, "b i l"]) -> Float[Tensor, "b s"]:
        """Return the means of the entries over all columns, and over those at each end."""
        place_L = torch.linspace(0.0, 1.0, changing_BIL.shape[2], dtype=torch.float64)
        weights_LE = torch.stack([torch.ones_like(place_L), 1.0 - place_L, place_L], 1)
        return (changing_BIL @ (weights_LE / weights_LE.sum(0).clamp_min(1.0))).flatten(1)  # one column has one end

    def _changing(self, choices_BD: Int[Tensor, "b d"]) -> Float[Tensor, "b i l"]:
        return self._columns.matrix(choices_BD)[:, -len(CHANGING) :]


def refuse_other_students(policy: Mapping[str, Tensor]) -> None:
    """Check that what another search knew of its students can be used, if it is there at all.

    Raises:
        ConfigError: it is of other features, or of unequal numbers of students.
    """
    found = {name: tuple(policy[name].shape) for name in (_FEATURES, _SHARES) if name in policy}
    count = found.get(_SHARES, found.get(_FEATURES, (0,)))[:1]
    wanted = {_FEATURES: (*count, _SHARED), _SHARES: count}
    for name, shape in wanted.items():
        if found and found.get(name) != shape:
            raise ConfigError(
                f"policy_from must name a policy with {_SHARED} features for each of its students, "
                f"but {name} is {found.get(name, 'not there')}, must be {shape}"
            )
