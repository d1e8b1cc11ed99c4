from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional

from understudy.config.training import Training
from understudy.training import objective as distill

LOGITS = torch.tensor([[1.0, 2.0, 3.0], [0.5, -1.0, 0.0]])
TEACHER = torch.tensor([[2.0, 0.0, 3.0], [0.5, 1.0, -2.0]])
LABELS = torch.tensor([2, 0])


def test_mse_is_the_mean_over_batch_and_classes() -> None:
    assert distill.mse(LOGITS, TEACHER).item() == pytest.approx((1 + 4 + 0 + 0 + 4 + 4) / 6, rel=1e-7)


def test_cross_entropy_spreads_the_smoothed_mass_over_all_classes() -> None:
    uniform = torch.zeros(2, 4)
    assert distill.cross_entropy(uniform, LABELS).item() == pytest.approx(math.log(4), abs=1e-6)
    log_probabilities = LOGITS.log_softmax(1)
    hard = -log_probabilities[torch.arange(2), LABELS].mean()
    spread = -log_probabilities.mean()
    smoothed = distill.cross_entropy(LOGITS, LABELS, smoothing=0.1)
    torch.testing.assert_close(smoothed, 0.9 * hard + 0.1 * spread)


def test_kl_is_zero_for_the_teacher_itself_and_positive_otherwise() -> None:
    assert distill.softened_kl(TEACHER, TEACHER, temperature=4.0).item() == 0.0
    assert distill.softened_kl(LOGITS, TEACHER, temperature=4.0).item() > 0.01


def test_kl_is_the_sum_of_its_definition() -> None:
    p, q = (TEACHER / 3.0).softmax(1), (LOGITS / 3.0).softmax(1)
    expected = 9.0 * (p * (p / q).log()).sum(1).mean()
    torch.testing.assert_close(distill.softened_kl(LOGITS, TEACHER, temperature=3.0), expected)


def test_kl_tends_to_half_the_centred_squared_error_at_high_temperature() -> None:
    # Hinton et al. (2015), section 2.1: with centred logits, T^2 KL -> sum (z - v)^2 / 2 / classes.
    centred, target = (x - x.mean(1, keepdim=True) for x in (LOGITS.double(), TEACHER.double()))
    expected = ((centred - target) ** 2).sum(1).mean() / 2 / 3
    assert distill.softened_kl(centred, target, temperature=1000.0).item() == pytest.approx(expected.item(), rel=1e-2)


@pytest.mark.parametrize("name", ["mse", "ce", "mse+ce", "kl+ce"])
def test_loss_for_gives_the_loss_of_that_name(name: str) -> None:
    training = Training(loss=name, label_smoothing=0.1)  # type: ignore[arg-type]
    hard = functional.cross_entropy(LOGITS, LABELS, label_smoothing=0.1)
    soft = functional.mse_loss(LOGITS, TEACHER)
    expected = {
        "mse": soft,
        "ce": hard,
        "mse+ce": hard + soft,
        "kl+ce": hard + distill.softened_kl(LOGITS, TEACHER, temperature=distill.TEMPERATURE),
    }[name]
    assert torch.equal(distill.loss_for(training)(LOGITS, TEACHER, LABELS), expected)
    assert distill.needs_teacher(training) is (name != "ce")


def test_only_cross_entropy_works_without_a_teacher() -> None:
    assert torch.isfinite(distill.loss_for(Training(loss="ce"))(LOGITS, None, LABELS))
    with pytest.raises(ValueError, match="only the loss 'ce' works without teacher logits, but the loss is 'kl\\+ce'"):
        distill.loss_for(Training(loss="kl+ce"))(LOGITS, None, LABELS)
