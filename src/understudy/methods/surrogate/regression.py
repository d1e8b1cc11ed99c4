"""What scores may be, given those that are known: Bayesian linear regression, and how its draws choose.

Shapes: B = architectures, D = decisions, P = features, N = known scores, M = draws, in the order of the suffix.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

_NOISES = torch.logspace(-4.0, 1.0, 16, dtype=torch.float64)  # noise over signal, of which evidence picks one


@contextmanager
def one_thread() -> Iterator[None]:
    """Compute on one thread: the last bits of a sum differ with their number, and hundreds of steps magnify them."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@dataclass(frozen=True)
class Forecast:
    """Bayesian linear regression of score on features, as of the fitted embedding (Snoek et al., 2015, DNGO).

    Weights have independent normal priors; the ratio of noise to signal is the one of greatest evidence.
    """

    centre_P: Tensor
    weights_MP: Tensor  # draws from the posterior; the first is its mean
    mean: float
    spread: float

    @classmethod
    def of(
        cls,
        features_NP: Float[Tensor, "n p"],
        scores_N: Float[Tensor, " n"],
        draws: int,
        generator: torch.Generator,
        *,
        before: Forecast | None = None,
    ) -> Forecast:
        """Return the posterior mean and that many draws, given the known scores.

        With the forecast of another search from the same features, what is regressed is how far that one is wrong.
        """
        if before is not None:
            scores_N = scores_N - before(features_NP)[:, 0]
        centre_P = features_NP.mean(0)
        features_NP = (features_NP - centre_P) / math.sqrt(features_NP.shape[1])
        mean, spread = scores_N.mean(), scores_N.std(correction=0).clamp_min(1e-3)
        wanted_N = (scores_N - mean) / spread
        noise, signal = _evident(features_NP, wanted_N)
        # Matheron's rule: a draw from the prior, corrected by what it gets wrong about noisy observations.
        prior_MP = torch.randn(draws + 1, features_NP.shape[1], generator=generator, dtype=torch.float64) * signal
        wrong_MN = torch.randn(draws + 1, len(wanted_N), generator=generator, dtype=torch.float64)
        wrong_MN = wrong_MN * signal * math.sqrt(noise)
        prior_MP[0], wrong_MN[0] = 0.0, 0.0
        left_NM = (wanted_N - prior_MP @ features_NP.T - wrong_MN).T
        weights_MP = (prior_MP + _ridge(features_NP, left_NM, noise)) / math.sqrt(features_NP.shape[1])
        if before is None:
            return cls(centre_P, weights_MP, mean.item(), spread.item())
        weights_MP = spread * weights_MP + before.spread * before.weights_MP[0]
        return cls(centre_P, weights_MP, (mean + before(centre_P[None])[0, 0]).item(), 1.0)

    def tensors(self) -> dict[str, Tensor]:
        """Return what `of_tensors` reads back."""
        scale = torch.tensor([self.mean, self.spread], dtype=torch.float64)
        return {"forecast.centre": self.centre_P, "forecast.weights": self.weights_MP, "forecast.scale": scale}

    @classmethod
    def of_tensors(cls, state: Mapping[str, Tensor]) -> Forecast:
        """Return the forecast that `tensors` was called of; others may be among them."""
        mean, spread = state["forecast.scale"].tolist()
        return cls(state["forecast.centre"], state["forecast.weights"], mean, spread)

    def __call__(self, features_BP: Float[Tensor, "b p"]) -> Float[Tensor, "b m"]:
        """Return the share of the teacher's score that the mean and each draw predict."""
        return self.mean + self.spread * ((features_BP - self.centre_P) @ self.weights_MP.T)


def _ridge(features_NP: Tensor, wanted_NM: Tensor, noise: float) -> Tensor:
    """Return the weights (m, p) of ridge regressions, from the smaller of the two equal systems."""
    count, size = features_NP.shape
    if count <= size:
        gram_NN = features_NP @ features_NP.T
        solved_NM: Tensor = torch.linalg.solve(gram_NN + noise * torch.eye(count, dtype=torch.float64), wanted_NM)
        return solved_NM.T @ features_NP
    gram_PP = features_NP.T @ features_NP
    solved_PM: Tensor = torch.linalg.solve(
        gram_PP + noise * torch.eye(size, dtype=torch.float64), features_NP.T @ wanted_NM
    )
    return solved_PM.T


def _evident(features_NP: Tensor, wanted_N: Tensor) -> tuple[float, float]:
    """Return the noise (variance, in units of the signal's) and signal (deviation) of greatest evidence."""
    values_N, squares_N = _spectrum(features_NP, wanted_N)
    sums = values_N.clamp_min(0.0) + _NOISES[:, None] * values_N.mean().clamp_min(1e-9)
    signals = (squares_N / sums).mean(1).clamp_min(1e-9)
    evidence = -len(wanted_N) * signals.log() - sums.log().sum(1)
    best = int(evidence.argmax())
    return (_NOISES[best] * values_N.mean().clamp_min(1e-9)).item(), math.sqrt(signals[best].item())


def _spectrum(features_NP: Tensor, wanted_N: Tensor) -> tuple[Tensor, Tensor]:
    """Return the eigenvalues of the features' Gram matrix (n, n), and what is wanted along each, squared."""
    count, size = features_NP.shape
    if count <= size:
        values_N, vectors_NN = torch.linalg.eigh(features_NP @ features_NP.T)
        return values_N, (vectors_NN.T @ wanted_N).square()
    # The same from (p, p): the other eigenvalues are 0, and what no feature explains lies along them.
    values_P, vectors_PP = torch.linalg.eigh(features_NP.T @ features_NP)
    squares_P = (vectors_PP.T @ (features_NP.T @ wanted_N)).square() / values_P.clamp_min(1e-300)
    squares_P = torch.where(values_P > 1e-12 * values_P.amax(), squares_P, 0.0)
    left = (wanted_N.square().sum() - squares_P.sum()).clamp_min(0.0) / (count - size)
    return torch.cat([values_P, torch.zeros_like(wanted_N[size:])]), torch.cat([squares_P, left.repeat(count - size)])


def in_turn(value_BM: Tensor, choices_BD: Tensor, *, apart: int, count: int) -> Tensor:
    """Return the order in which draws pick their favourites, in turn; what is too like an earlier pick comes last."""
    order, late = list[int](), list[int]()
    left_BM = value_BM.clone()
    while len(order) + len(late) < min(count, len(value_BM)):
        draw = len(order) % value_BM.shape[1]
        best = int(left_BM[:, draw].argmax())
        left_BM[best] = -math.inf
        differ_B = (choices_BD[order] != choices_BD[best]).sum(1)
        (order if (differ_B >= apart).all() else late).append(best)
    return torch.tensor(order + late, dtype=torch.int64)
