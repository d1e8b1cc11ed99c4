"""The built-in objectives, by what outputs are."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from understudy.config.training import Training
from understudy.core.errors import DataError
from understudy.data import Data
from understudy.training.objective import TEMPERATURE, loss_for, mse, softened_kl
from understudy.training.objectives import Measure, Objective, Outputs, cosine_loss

_RETRIEVED = 8  # fewest examples among which a nearest one says anything
IGNORED = -100  # the target of what has none, as in torch.nn.functional.cross_entropy


@dataclass(frozen=True, kw_only=True)
class _OfOne(Objective):
    """Base of those that read one output: the one called "logits", else the first."""

    def counts(self, outputs: Outputs) -> tuple[str, ...]:
        """Return the name of the one output."""
        if isinstance(self.teach, Mapping):
            return super().counts(outputs)
        found = super().counts(outputs)
        return ("logits",) if "logits" in found else found[:1]


@dataclass(frozen=True, kw_only=True)
class Classification(_OfOne):
    """One class for each example: logits (b, k), targets (b,), without which the teacher's first guesses are them."""

    name = "classification"
    metric = "accuracy"

    def check(self, outputs: Outputs, targets: Any, data: Data) -> None:
        """Check that there is one logit for each class."""
        got, count = tuple(_one(outputs).shape), len(_one(outputs))
        if targets is not None and not data.classes:
            raise DataError("for classification targets must be one whole number from 0 for each example")
        wanted = (count, len(data.classes) or got[-1])
        if got != wanted:
            raise DataError(
                f"the model must give one logit for each class: for {count} examples of {data.source} with "
                f"{wanted[1]} classes that is {wanted}, but got {got}"
            )

    def loss(
        self, outputs: Outputs, teacher: Outputs | None, targets: Any, training: Training, scales: Mapping[str, float]
    ) -> Tensor:
        """Return the loss that the settings name; without targets, the teacher's part of it."""
        logits, taught = _one(outputs), None if teacher is None else _one(teacher)
        if targets is not None:
            return loss_for(training)(logits, taught, targets)
        assert taught is not None
        kl = training.loss.startswith("kl")
        return softened_kl(logits, taught, temperature=TEMPERATURE) if kl else mse(logits, taught)

    def guesses(self, teacher: Outputs) -> Tensor:
        """Return the teacher's first guesses, (b,)."""
        return _one(teacher).argmax(1)

    def each(self, outputs: Outputs, targets: Any, scales: Mapping[str, float]) -> Tensor:
        """Return the probability of each target."""
        return _one(outputs).softmax(1).gather(1, targets[:, None])[:, 0]

    def measure(self, outputs: Outputs, targets: Any) -> tuple[Tensor, ...]:
        """Return how many are right, and of how many; NaN is never right."""
        right = rightly(_one(outputs), targets)
        return right.sum().double(), torch.tensor(float(right.numel()))


def rightly(logits: Tensor, labels: Tensor) -> Tensor:
    """Return for logits (n, k) and labels (n,) whether each was classified rightly; NaN is never right."""
    return (logits.argmax(1) == labels) & ~logits.isnan().any(1)


@dataclass(frozen=True, kw_only=True)
class MultiLabel(_OfOne):
    """Any number of labels for each example: logits (b, k), targets (b, k) of 0 and 1. Scored by F1 over all labels."""

    name = "multilabel"
    metric = "F1"

    def check(self, outputs: Outputs, targets: Any, data: Data) -> None:
        """Check that there is one target for each logit, in 0..1."""
        _same_shape(self, _one(outputs), targets)
        if targets is not None and len(wrong := targets[(targets < 0) | (targets > 1)]):
            raise DataError(f"for {self.name} targets must be 0 or 1 for each label, but got {float(wrong[0]):g}")

    def learned(self, outputs: Outputs, targets: Any, scales: Mapping[str, float]) -> Tensor:
        """Return the binary cross-entropy."""
        return functional.binary_cross_entropy_with_logits(_one(outputs), targets.float())

    def guesses(self, teacher: Outputs) -> Tensor:
        """Return the labels that the teacher finds, (b, k)."""
        return (_one(teacher) > 0).float()

    def each(self, outputs: Outputs, targets: Any, scales: Mapping[str, float]) -> Tensor:
        """Return the share of labels that are right."""
        right: Tensor = (_one(outputs) > 0) == (targets > 0.5)
        return right.float().flatten(1).mean(1)

    def measure(self, outputs: Outputs, targets: Any) -> tuple[Tensor, ...]:
        """Return how many labels were found, were there, and were found rightly."""
        found, there = _one(outputs) > 0, targets > 0.5
        return found.sum().double(), there.sum().double(), (found & there).sum().double()

    def score(self, sums: Sequence[Tensor]) -> float:
        """Return F1 = 2 right / (found + there)."""
        found, there, right = map(float, sums)
        return 2.0 * right / max(found + there, 1.0)


@dataclass(frozen=True, kw_only=True)
class Regression(_OfOne):
    """Numbers: outputs and targets (b, ...). Scored by R^2, the share of the targets' variance that is explained."""

    name = "regression"
    metric = "R2"

    def check(self, outputs: Outputs, targets: Any, data: Data) -> None:
        """Check that there is one target for each number."""
        _same_shape(self, _one(outputs), targets, loose=True)

    def learned(self, outputs: Outputs, targets: Any, scales: Mapping[str, float]) -> Tensor:
        """Return the mean squared error in units of the teacher's variance."""
        output = _one(outputs)
        return mse(output, targets.to(output.dtype).view_as(output)) / _only(scales)

    def guesses(self, teacher: Outputs) -> Tensor:
        """Return what the teacher says."""
        return _one(teacher)

    def each(self, outputs: Outputs, targets: Any, scales: Mapping[str, float]) -> Tensor:
        """Return 1 / (1 + e) for a squared error of e times the variance."""
        return _near(_one(outputs), targets, _only(scales))

    def measure(self, outputs: Outputs, targets: Any) -> tuple[Tensor, ...]:
        """Return what the errors and the targets' variance are made of."""
        return unexplained(_one(outputs), targets)

    def score(self, sums: Sequence[Tensor]) -> float:
        """Return R^2, 0 for less."""
        return max(0.0, 1.0 - _share(sums))


@dataclass(frozen=True, kw_only=True)
class Segmentation(_OfOne):
    """A class for each place: logits (b, k, ...), targets (b, ...); -100 is no class. Scored by the mean IoU.

    The mean is over the classes that occur in targets or guesses.
    """

    name = "segmentation"
    metric = "mean IoU"

    def check(self, outputs: Outputs, targets: Any, data: Data) -> None:
        """Check that there is one target for each place, and that they are classes."""
        logits = _one(outputs)
        if logits.ndim < 3:
            raise DataError(
                f"for {self.name} the model must give logits for each place, (b, classes, height, width), "
                f"but got {tuple(logits.shape)}"
            )
        if targets is not None:
            _classes(self, targets, logits.shape[1], (len(logits), *logits.shape[2:]))

    def learned(self, outputs: Outputs, targets: Any, scales: Mapping[str, float]) -> Tensor:
        """Return the cross-entropy, in the mean over all places."""
        return functional.cross_entropy(_one(outputs), targets.long(), ignore_index=IGNORED)

    def guesses(self, teacher: Outputs) -> Tensor:
        """Return the teacher's first guesses, (b, ...)."""
        return _one(teacher).argmax(1)

    def each(self, outputs: Outputs, targets: Any, scales: Mapping[str, float]) -> Tensor:
        """Return the share of places that are right."""
        known: Tensor = targets != IGNORED
        right: Tensor = (_one(outputs).argmax(1) == targets) & known
        return right.flatten(1).float().sum(1) / known.flatten(1).sum(1).clamp(min=1)

    def measure(self, outputs: Outputs, targets: Any) -> tuple[Tensor, ...]:
        """Return how often each class was guessed for each one, (k, k), targets first."""
        logits = _one(outputs)
        classes, known = logits.shape[1], targets != IGNORED
        pairs = targets[known].long() * classes + logits.argmax(1)[known]
        return (torch.bincount(pairs.flatten(), minlength=classes * classes).double().view(classes, classes),)

    def score(self, sums: Sequence[Tensor]) -> float:
        """Return the mean of intersection over union."""
        counts = sums[0]
        union = counts.sum(0) + counts.sum(1) - counts.diag()
        return float((counts.diag() / union.clamp(min=1.0))[union > 0].mean())


@dataclass(frozen=True, kw_only=True)
class Pixels(Segmentation):
    """As segmentation, scored by the share of places that are right."""

    name = "pixels"
    metric = "pixel accuracy"

    def score(self, sums: Sequence[Tensor]) -> float:
        """Return the share of places whose class is right."""
        return float(sums[0].diag().sum() / sums[0].sum().clamp(min=1.0))


@dataclass(frozen=True, kw_only=True)
class Embedding(_OfOne):
    """A vector for each example, (b, d), that is to point where the teacher's does. Scored by the mean cosine."""

    name = "embedding"
    metric = "cosine"
    teach: Mapping[str, str | Measure] | str | Measure = "cosine"

    def check(self, outputs: Outputs, targets: Any, data: Data) -> None:
        """Check that there is one vector for each example, and that targets, where there are any, are alike."""
        _same_shape(self, _one(outputs), targets)

    def learned(self, outputs: Outputs, targets: Any, scales: Mapping[str, float]) -> Tensor:
        """Return one minus the mean cosine."""
        return cosine_loss(_one(outputs), targets)

    def guesses(self, teacher: Outputs) -> Tensor:
        """Return the teacher's vectors."""
        return _one(teacher)

    def each(self, outputs: Outputs, targets: Any, scales: Mapping[str, float]) -> Tensor:
        """Return the cosine, 0 for less."""
        return functional.cosine_similarity(_one(outputs).flatten(1), targets.flatten(1), dim=1).clamp(0.0, 1.0)

    def measure(self, outputs: Outputs, targets: Any) -> tuple[Tensor, ...]:
        """Return the sum of cosines, and of how many."""
        cosines = functional.cosine_similarity(_one(outputs).flatten(1).double(), targets.flatten(1).double(), dim=1)
        return cosines.sum(), torch.tensor(float(len(cosines)))

    def score(self, sums: Sequence[Tensor]) -> float:
        """Return the mean cosine, 0 for less."""
        return min(max(0.0, float(sums[0] / sums[1])), 1.0)


@dataclass(frozen=True, kw_only=True)
class Retrieval(Embedding):
    """As embedding, scored by how often the nearest of the other examples is the one that it is in the teacher.

    Nearest by cosine, among the validation examples of one batch of 256.
    """

    name = "retrieval"
    metric = "retrieval agreement"

    def check(self, outputs: Outputs, targets: Any, data: Data) -> None:
        """Check as embedding does, and that there are examples to choose from."""
        super().check(outputs, targets, data)
        if len(data.val) < _RETRIEVED:
            raise DataError(
                f"for {self.name} there must be at least {_RETRIEVED} validation examples to find the nearest of, but "
                f"there are {len(data.val)}"
            )

    def measure(self, outputs: Outputs, targets: Any) -> tuple[Tensor, ...]:
        """Return how often the nearest is the same, and of how many; one without others does not count."""
        both = [functional.normalize(rows.flatten(1).double(), dim=1) for rows in (_one(outputs), targets)]
        same = torch.ones(0) == 1
        if len(both[0]) > 1:
            found, wanted = ((rows @ rows.T).fill_diagonal_(-2.0).argmax(1) for rows in both)
            same = (found == wanted) & ~both[0].isnan().any(1)
        return same.sum().double(), torch.tensor(float(len(same)))

    def score(self, sums: Sequence[Tensor]) -> float:
        """Return the share of examples whose nearest is the same."""
        return float(sums[0] / sums[1])


@dataclass(frozen=True, kw_only=True)
class Language(_OfOne):
    """A token for each place: logits (b, t, vocabulary), targets (b, t), what each place is to predict; -100: nothing.

    Scored by one over the perplexity, the geometric mean of the probabilities of the targets.
    """

    name = "language"
    metric = "1 / perplexity"
    teach: Mapping[str, str | Measure] | str | Measure = "kl"

    def check(self, outputs: Outputs, targets: Any, data: Data) -> None:
        """Check that there is one target for each place, and that they are tokens."""
        logits = _one(outputs)
        if logits.ndim != 3:
            raise DataError(
                f"for {self.name} the model must give logits (b, places, vocabulary), but got {tuple(logits.shape)}"
            )
        if targets is not None:
            _classes(self, targets, logits.shape[2], tuple(logits.shape[:2]))

    def learned(self, outputs: Outputs, targets: Any, scales: Mapping[str, float]) -> Tensor:
        """Return the cross-entropy, in the mean over all places."""
        return functional.cross_entropy(_one(outputs).flatten(0, 1), targets.flatten().long(), ignore_index=IGNORED)

    def guesses(self, teacher: Outputs) -> Tensor:
        """Return the likeliest tokens, (b, t)."""
        return _one(teacher).argmax(2)

    def each(self, outputs: Outputs, targets: Any, scales: Mapping[str, float]) -> Tensor:
        """Return the mean probability of the targets."""
        known: Tensor = targets != IGNORED
        found: Tensor = _one(outputs).softmax(2).gather(2, targets.clamp(min=0)[..., None])[..., 0]
        return (found * known).sum(1) / known.sum(1).clamp(min=1)

    def measure(self, outputs: Outputs, targets: Any) -> tuple[Tensor, ...]:
        """Return the summed cross-entropy, and of how many places."""
        logits, wanted = _one(outputs).flatten(0, 1), targets.flatten().long()
        lost = functional.cross_entropy(logits, wanted, ignore_index=IGNORED, reduction="sum")
        return lost.double(), (wanted != IGNORED).sum().double()

    def score(self, sums: Sequence[Tensor]) -> float:
        """Return one over the perplexity."""
        return math.exp(-float(sums[0] / sums[1].clamp(min=1.0)))

    def _taught(self, name: str, output: Tensor, teacher: Tensor, training: Training, scale: float) -> Tensor:
        return super()._taught(name, output.movedim(2, 1), teacher.movedim(2, 1), training, scale)


@dataclass(frozen=True, kw_only=True)
class Agreement(Objective):
    """Every output is to be the teacher's; no targets. Scored by 1 - |student - teacher| / |teacher - its mean|.

    The norms are over all examples; with several outputs, the mean of their scores. 0 is what a constant reaches.
    """

    name = "agreement"
    metric = "agreement"

    def check(self, outputs: Outputs, targets: Any, data: Data) -> None:
        """Every model fits."""

    def each(self, outputs: Outputs, targets: Any, scales: Mapping[str, float]) -> Tensor:
        """Return 1 / (1 + e) for a squared error of e times the variance, in the mean over outputs."""
        return torch.stack([_near(outputs[name], targets[name], scales[name]) for name in outputs]).mean(0)

    def measure(self, outputs: Outputs, targets: Any) -> tuple[Tensor, ...]:
        """Return, of each output, what the errors and the variance of the teacher's are made of."""
        return tuple(sum_ for name in outputs for sum_ in unexplained(outputs[name], targets[name]))

    def score(self, sums: Sequence[Tensor]) -> float:
        """Return the mean over outputs of one minus the relative error, 0 for less."""
        shares = [_share(sums[start : start + 4]) for start in range(0, len(sums), 4)]
        return sum(max(0.0, 1.0 - math.sqrt(share)) for share in shares) / len(shares)


def unexplained(output: Tensor, target: Tensor) -> tuple[Tensor, ...]:
    """Return of outputs (b, ...) the summed squared error, the sums of targets and of their squares, and the number."""
    found, wanted = output.flatten(1).double(), target.reshape(len(output), -1).double()
    return (found - wanted).square().sum(), wanted.sum(0), wanted.square().sum(0), torch.tensor(float(len(found)))


def _share(sums: Sequence[Tensor]) -> float:
    """Return the squared error over the squared distance of the targets from their mean; constants are hit or not."""
    error, size = float(sums[0]), float(sums[2].sum())
    spread = float((sums[2] - sums[1].square() / sums[3]).clamp(min=0.0).sum())
    if spread > 1e-12 * size:
        return error / spread
    return 0.0 if error <= 1e-9 * size else math.inf


def _near(output: Tensor, target: Tensor, scale: float) -> Tensor:
    error = (output.flatten(1) - target.reshape(len(output), -1)).square().mean(1)
    return 1.0 / (1.0 + error / scale)


def _one(outputs: Outputs) -> Tensor:
    return next(iter(outputs.values()))


def _only(scales: Mapping[str, float]) -> float:
    return next(iter(scales.values()))


def _same_shape(objective: Objective, output: Tensor, targets: Any, *, loose: bool = False) -> None:
    if targets is None:
        return
    got = tuple(targets.shape) if isinstance(targets, Tensor) else type(targets).__name__
    if isinstance(targets, Tensor) and (got == tuple(output.shape) or (loose and targets.numel() == output.numel())):
        return
    raise DataError(
        f"for {objective.name} there must be one target for each number of the output, {tuple(output.shape)}, but "
        f"targets are {got}"
    )


def _classes(objective: Objective, targets: Any, classes: int, shape: tuple[int, ...]) -> None:
    if not isinstance(targets, Tensor) or targets.is_floating_point() or tuple(targets.shape) != shape:
        got = f"{targets.dtype} {tuple(targets.shape)}" if isinstance(targets, Tensor) else type(targets).__name__
        raise DataError(f"for {objective.name} targets must be whole numbers {shape}, but got {got}")
    wrong = targets[((targets < 0) | (targets >= classes)) & (targets != IGNORED)]
    if len(wrong):
        raise DataError(
            f"for {objective.name} targets must be in 0..{classes - 1}, or {IGNORED} for none, but got {int(wrong[0])}"
        )
    if bool((targets == IGNORED).all()):
        raise DataError(f"for {objective.name} some targets must be in 0..{classes - 1}, but all are {IGNORED}, none")


BUILT_IN: dict[str, Objective] = {
    made.name: made
    for made in (
        Classification(), MultiLabel(), Regression(), Segmentation(), Pixels(), Embedding(), Retrieval(), Language(),
        Agreement(),
    )
}  # fmt: skip
