"""Losses of distillation: pure functions of logits and labels, by name."""

from __future__ import annotations

from collections.abc import Callable

from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from understudy.config.training import Training

TEMPERATURE = 4.0  # softens both logits in Hinton's loss

Loss = Callable[[Tensor, Tensor | None, Tensor], Tensor]
"""(student logits (b, k), teacher logits (b, k) or None, labels (b,)) -> loss, a scalar."""


def mse(logits: Float[Tensor, "b ..."], teacher: Float[Tensor, "b ..."]) -> Float[Tensor, ""]:
    """Return the mean squared error between logits, before softmax (N2N, section 3.5)."""
    return functional.mse_loss(logits, teacher)


def cross_entropy(
    logits: Float[Tensor, "b k"], labels: Int[Tensor, " b"], *, smoothing: float = 0.0
) -> Float[Tensor, ""]:
    """Return the cross-entropy on labels (class indices), `smoothing` of their mass spread over all classes."""
    return functional.cross_entropy(logits, labels, label_smoothing=smoothing)


def softened_kl(
    logits: Float[Tensor, "b k"], teacher: Float[Tensor, "b k"], *, temperature: float
) -> Float[Tensor, ""]:
    """Return T^2 KL(teacher || student) of the softmax at temperature T, mean over the batch.

    Hinton, Vinyals, Dean (2015), section 2: the factor keeps the gradient's size independent of T.
    """
    student = functional.log_softmax(logits / temperature, dim=1)
    target = functional.log_softmax(teacher / temperature, dim=1)
    return functional.kl_div(student, target, reduction="batchmean", log_target=True) * temperature**2


def needs_teacher(training: Training) -> bool:
    """Return whether the training's loss reads the teacher's logits."""
    return training.loss != "ce"


def loss_for(training: Training) -> Loss:
    """Return the loss that the training names; only "ce" may be given None for the teacher's logits."""

    def loss(logits: Tensor, teacher: Tensor | None, labels: Tensor) -> Tensor:
        if training.loss == "ce":
            return cross_entropy(logits, labels, smoothing=training.label_smoothing)
        if teacher is None:
            raise ValueError(f"only the loss 'ce' works without teacher logits, but the loss is {training.loss!r}")
        if training.loss == "mse":
            return mse(logits, teacher)
        # N2N, section 3.5, and Hinton: L = L_hard + L_KD.
        hard = cross_entropy(logits, labels, smoothing=training.label_smoothing)
        if training.loss == "kl+ce":
            return hard + softened_kl(logits, teacher, temperature=TEMPERATURE)
        return hard + mse(logits, teacher)

    return loss
