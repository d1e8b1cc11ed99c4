"""How good a network's answers are, on a split."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from understudy.core.nested import mapped
from understudy.data import AnySplit
from understudy.training.aim import CLASSES, Aim
from understudy.training.compute import Compute
from understudy.training.loop import Normalise, predict

_BATCH = 256


def scored(
    model: nn.Module,
    split: AnySplit,
    *,
    normalise: Normalise,
    compute: Compute,
    aim: Aim = CLASSES,
    taught: Tensor | None = None,
) -> float:
    """Return a model's score on a split, 0..1, in evaluation mode; outputs are held for one batch only.

    Args:
        model: on the compute's device; it is not changed.
        split: n examples.
        normalise: applied to every batch.
        compute: device, precision, memory format, threads.
        aim: what outputs are for.
        taught: the teacher's outputs (n, k) by example, which stand for targets where the split has none.

    Raises:
        ValueError: the score is not in 0..1.
    """
    parts = []
    for indices in torch.arange(len(split)).split(_BATCH):
        some = split.take(indices.to(split.indexed_on))
        outputs = predict(model, some, normalise=normalise, compute=compute, aim=aim).cpu()
        targets = mapped(some.labels, lambda tensor: tensor.cpu())
        if targets is None:
            assert taught is not None, "without targets the teacher's outputs are them"
            targets = aim.targets(taught[indices])
        parts.append(aim.sums(outputs, targets))
    return total(aim, parts)


def total(aim: Aim, parts: Sequence[tuple[Tensor, ...]]) -> float:
    """Return the score of what batches measured.

    Raises:
        ValueError: it is not in 0..1.
    """
    found = aim.objective.score([torch.stack(column).sum(0) for column in zip(*parts, strict=True)])
    if not 0.0 <= found <= 1.0:
        raise ValueError(f"a score must be in 0..1, the larger the better, but {aim.objective.metric} is {found}")
    return found
