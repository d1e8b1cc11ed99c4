from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from understudy.config.widths import Widths
from understudy.methods.archcomp.embedding import FIGURES, Embedding, Known, log_shares
from understudy.methods.archcomp.rules import Rules
from understudy.methods.surrogate.columns import Columns
from understudy.methods.surrogate.regression import Forecast
from understudy.testing.landscapes import toy_cost, toy_score, toy_space

RULES = Rules(hidden=16)
TEACHER = [float(getattr(toy_cost(toy_space().full), name)) for name in FIGURES]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def small() -> Columns:
    """Of the first convolutions alone, so that little has to be learned."""
    space = toy_space()
    names = {layer.name for layer in space.layers[:13]}
    units = tuple(unit for unit in space.units if names.issuperset(unit.layers))
    layers = tuple(x if x.name in names else replace(x, kernels=(), group=None) for x in space.layers)
    groups = tuple(group for group in space.groups if group.name in names)
    return Columns(replace(space, layers=layers, groups=groups, units=units), Widths())


def known(columns: Columns, count: int, trained: int, seed: int) -> Known:
    choices_BD = columns.sample(count, generator(seed))
    figures = [
        [float(getattr(toy_cost(columns.architecture(choices_D)), name)) for name in FIGURES]
        for choices_D in choices_BD
    ]
    shares = [toy_score(columns.architecture(choices_D), noise=0.0) / 0.95 for choices_D in choices_BD[:trained]]
    return Known(choices_BD, log_shares(figures, TEACHER), choices_BD[:trained], torch.tensor(shares).double())


def embedding(columns: Columns, seed: int = 0) -> Embedding:
    made = Embedding(columns, RULES)
    made.draw_weights(generator(seed))
    return made


def test_an_unfitted_embedding_knows_decisions_and_what_the_teacher_costs() -> None:
    columns = small()
    made = embedding(columns)
    sampled_BD = columns.sample(100, generator())
    with torch.no_grad():
        assert torch.equal(made.decode(made.encode(sampled_BD)), sampled_BD)
        assert made.costs(made.encode(columns.last_D[None])).abs().max() < 1e-6


def test_what_is_not_legal_is_never_decoded() -> None:
    columns = small()
    made = embedding(columns)
    code_BCL = 10.0 * torch.randn(64, RULES.channels, len(columns.rows), generator=generator(), dtype=torch.float64)
    decoded_BD = made.decode(code_BCL)
    assert columns.legal_DK.gather(1, decoded_BD.T).all()
    assert torch.equal(columns.canonical(decoded_BD), decoded_BD)
    assert len(decoded_BD.unique(dim=0)) > 10
    assert (made.decisions(code_BCL)[:, ~columns.legal_DK] == -math.inf).all()


def test_fitting_teaches_costs_and_accuracies_that_hold_for_others() -> None:
    columns = small()
    made, data, held = embedding(columns), known(columns, 800, 40, 0), known(columns, 60, 60, 1)
    matter_BD = columns.matter(held.choices_BD)

    def errors_F() -> torch.Tensor:
        return (made.costs(made.encode(held.choices_BD)) - held.logs_BF).abs().median(0).values

    with torch.no_grad():
        before_F = errors_F()
    made.fit(data, 250, generator(1))
    with torch.no_grad():
        code_BCL = made.encode(held.choices_BD)
        right_BD = made.decode(code_BCL) == held.choices_BD
        assert right_BD[matter_BD].double().mean() > 0.99
        # That a layer costs the product of its widths is known from the start, but not at how many positions.
        assert (errors_F() < 0.05).all() and errors_F()[1] < 0.2 * before_F[1]
        forecast = Forecast.of(made.features(made.encode(data.trained_ND)), data.scores_N, 50, generator(2))
        guessed_BM = forecast(made.features(code_BCL))
    wrong_B = guessed_BM[:, 0] - held.scores_N
    assert wrong_B.square().mean().sqrt() < 0.5 * held.scores_N.std()
    # The draws spread about as far as the mean is wrong.
    spread = guessed_BM[:, 1:].std(1).square().mean().sqrt()
    assert 0.2 < (wrong_B.square().mean().sqrt() / spread).item() < 5.0


def test_costs_that_are_unknown_teach_nothing() -> None:
    columns = small()
    data = known(columns, 50, 5, 0)
    unknown = replace_logs(data, torch.full_like(data.logs_BF, math.nan))
    made = embedding(columns)
    cost = [parameter.clone() for parameter in made.cost.parameters()]
    made.fit(unknown, 3, generator())
    assert all(torch.equal(a, b) for a, b in zip(cost, made.cost.parameters(), strict=True))
    assert all(parameter.isfinite().all() for parameter in made.parameters())


def replace_logs(data: Known, logs_BF: torch.Tensor) -> Known:
    return Known(data.choices_BD, logs_BF, data.trained_ND, data.scores_N)


def test_a_forecast_meets_what_is_known_and_doubts_what_is_not() -> None:
    columns = small()
    made, data = embedding(columns), known(columns, 60, 12, 0)
    with torch.no_grad():
        features_NP = made.features(made.encode(data.trained_ND))
        forecast = Forecast.of(features_NP, data.scores_N, 200, generator())
        trained_NM = forecast(features_NP)
        others_BM = forecast(made.features(made.encode(data.choices_BD[12:])))
    assert torch.allclose(trained_NM[:, 0], data.scores_N, atol=0.3 * data.scores_N.std().item())
    assert others_BM[:, 1:].std(1).mean() > 1.5 * trained_NM[:, 1:].std(1).mean()
    torch.testing.assert_close(others_BM[:, 1:].mean(), others_BM[:, 0].mean(), rtol=0.0, atol=0.1)


def test_a_single_known_accuracy_is_what_is_expected() -> None:
    columns = small()
    made, data = embedding(columns), known(columns, 30, 1, 0)
    with torch.no_grad():
        features_NP = made.features(made.encode(data.trained_ND))
        forecast = Forecast.of(features_NP, data.scores_N, 2, generator())
        guessed_BM = forecast(made.features(made.encode(data.choices_BD)))
    assert guessed_BM.isfinite().all()
    assert guessed_BM[:, 0].tolist() == pytest.approx([data.scores_N.item()] * 30)


def test_shares_of_figures() -> None:
    shares_BF = log_shares([[50.0, 10.0, 0.0], None], [100.0, 10.0, 4.0])
    assert shares_BF[0].exp().tolist() == pytest.approx([0.5, 1.0, 0.0], abs=1e-6)
    assert shares_BF[1].isnan().all()
