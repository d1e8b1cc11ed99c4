"""Weights that students share: they learn once, through many students in turn, and are kept in a file."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from torch import nn

from understudy.core.architecture import Architecture
from understudy.core.errors import ModelError
from understudy.graph.analysis import Analysis
from understudy.models.weights import read_weights, write_tensors
from understudy.surgery.shared import SharedWeights, Turns
from understudy.training.compute import Compute
from understudy.training.loop import Outcome

Fit = Callable[[nn.Module, Compute, Path], Outcome]
"""Trains a network in place, or goes on from the checkpoint of that path."""


def shared_weights(
    analysis: Analysis, students: Sequence[Architecture], place: Path, *, compute: Compute, fit: Fit
) -> SharedWeights:
    """Return the weights of a file, or those that learn now and are written there.

    Args:
        analysis: of the teacher, from whose weights they start.
        students: learn in turn, one at each step.
        place: of the file; a checkpoint lies beside it while they learn.
        compute: device, precision and memory format of the training.
        fit: trains.

    Raises:
        ModelError: they cannot learn, or the file is damaged.
    """
    if place.is_file():
        return SharedWeights(analysis, read_weights(place, ours=True))
    weights, checkpoint = SharedWeights(analysis), place.with_suffix(".checkpoint.pt")
    turns = Turns(weights, students, compute.device)
    for student in turns.students:  # what is not safe for one of them is not for the training
        compute = compute.suited(student)
    outcome = fit(turns, compute, checkpoint)
    if outcome.status == "failed":
        raise ModelError(
            f"shared weights must be able to learn, but {outcome.error}; lower candidates.training.lr, or set "
            "candidates.weights to compensated"
        )
    write_tensors(place, weights.tensors)
    checkpoint.unlink(missing_ok=True)
    return weights
