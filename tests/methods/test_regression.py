"""Bayesian linear regression: few students and many are regressed by different systems with the same solution."""

from __future__ import annotations

import math

import pytest
import torch

from understudy.methods.surrogate.regression import Forecast


@pytest.mark.parametrize("noise", [0.0, 0.3, 30.0])
def test_more_students_than_features_give_the_same_as_fewer(noise: float) -> None:
    drawing = torch.Generator().manual_seed(0)
    features_NP = torch.randn(40, 9, generator=drawing, dtype=torch.float64)
    features_NP[:, 4] = 2.0  # says nothing, so that a direction of the features is empty
    scores_N = features_NP @ torch.arange(9.0, dtype=torch.float64) + noise * torch.randn(40, generator=drawing)
    # Empty features change nothing but the number of features, which all are divided by.
    wide_NP = math.sqrt(90 / 9) * torch.cat([features_NP, torch.zeros(40, 81, dtype=torch.float64)], 1)
    few, many = (
        Forecast.of(known, scores_N, 400, torch.Generator().manual_seed(1)) for known in (wide_NP, features_NP)
    )
    torch.testing.assert_close(many(features_NP)[:, 0], few(wide_NP)[:, 0], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(many(features_NP)[:, 1:].std(1), few(wide_NP)[:, 1:].std(1), rtol=0.2, atol=1e-3)
