"""What a network's outputs are for: how a teacher teaches each, how a student is scored, what a target is."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from understudy.config.training import Training
from understudy.core.errors import ConfigError, DataError, a_kind, did_you_mean
from understudy.core.nested import mapped
from understudy.data import Data
from understudy.training.objective import TEMPERATURE, mse, softened_kl

Outputs = Mapping[str, Tensor]
"""What a network gives for b examples, (b, ...), by the path to it: "logits", "0"; "" where it gives one tensor."""
Measure = Callable[[Tensor, Tensor], Tensor]
"""(a student's output, the teacher's), each (b, ...) -> loss, a scalar."""

_TAUGHT = ("mse", "kl", "cosine")


@dataclass(frozen=True, kw_only=True)
class Objective:
    """What outputs are for. A subclass says it, or `Objective(scored=...)` with functions of your own.

    A score is in 0..1, larger is better, 1 is as good as can be. Functions must be importable, because worker
    processes import them.
    """

    name: ClassVar[str] = "own"  # what settings call it
    metric: ClassVar[str] = "score"  # what people call the score
    needs_targets: ClassVar[bool] = False

    teach: Mapping[str, str | Measure] | str | Measure = "mse"
    """How the teacher teaches: "mse" (in units of the teacher's variance), "kl" (Hinton's, over the second dimension),
    "cosine", or a function of two tensors. For every output that counts, or by the names of those that do."""
    learn: Callable[[Outputs, Any], Tensor] | None = None
    """(outputs, targets) -> the loss on targets, a scalar; None: targets are for the score alone."""
    scored: Callable[[Outputs, Any], Tensor] | None = None
    """(outputs, targets) -> the score of each example, (b,), in 0..1."""

    def __post_init__(self) -> None:
        ways = self.teach.values() if isinstance(self.teach, Mapping) else (self.teach,)
        for way in ways:
            if not callable(way) and way not in _TAUGHT:
                raise ConfigError(
                    f"teach must be one of {', '.join(_TAUGHT)}, or a function, but got {way!r}"
                    + did_you_mean(str(way), _TAUGHT)
                )
        for name in ("learn", "scored"):
            if (function := getattr(self, name)) is not None and not callable(function):
                raise ConfigError(f"{name} must be a function of outputs and targets, but got {function!r}")

    @property
    def key(self) -> str:
        """What tells it from others, in digests: its class and its fields, functions by their names."""
        values = [getattr(self, field.name) for field in fields(self)]
        named = mapped(values, lambda v: f"{v.__module__}.{v.__qualname__}" if callable(v) else repr(v))
        return repr((f"{type(self).__module__}.{type(self).__qualname__}", named))

    @property
    def digest(self) -> str:
        """The key, short: what a run belongs to where the settings say only that the objective is an own one."""
        return hashlib.sha256(self.key.encode()).hexdigest()[:16]

    def counts(self, outputs: Outputs) -> tuple[str, ...]:
        """Return the names of the outputs that teach and are scored: of `teach`, else all of floating point.

        Raises:
            DataError: there are none, or not those that are named.
        """
        if isinstance(self.teach, Mapping):
            lacking = [name for name in self.teach if name not in outputs]
            if lacking:
                raise DataError(
                    f"teach must name outputs of the model, which are {_named(outputs)}, but names {lacking[0]!r}"
                    + did_you_mean(lacking[0], outputs)
                )
            return tuple(self.teach)
        found = tuple(name for name, tensor in outputs.items() if tensor.is_floating_point())
        if not found:
            raise DataError(f"the model must give at least one tensor of floating point, but gives {_kinds(outputs)}")
        return found

    def check(self, outputs: Outputs, targets: Any, data: Data) -> None:
        """Check that outputs and targets of some examples fit; targets are None where the data have none.

        Raises:
            DataError: they do not.
        """
        if self.scored is None and type(self).measure is Objective.measure:
            raise ConfigError("an objective of your own must say how a student is scored: Objective(scored=function)")

    def loss(
        self, outputs: Outputs, teacher: Outputs | None, targets: Any, training: Training, scales: Mapping[str, float]
    ) -> Tensor:
        """Return the loss of a batch: what the teacher says of it, and, where the settings say ce, the targets.

        Args:
            outputs: the student's.
            teacher: the teacher's, None where the settings' loss does not read them.
            targets: of the data, None without.
            training: whose `loss` says what is learned from.
            scales: the variance of each output of the teacher.
        """
        parts = []
        if teacher is not None:
            taught = [self._taught(name, outputs[name], teacher[name], training, scales[name]) for name in teacher]
            parts.append(torch.stack(taught).mean())
        if (
            targets is not None
            and "ce" in training.loss
            and (hard := self.learned(outputs, targets, scales)) is not None
        ):
            parts.append(hard)
        if not parts:
            raise ValueError(f"there must be something to learn from, but the loss is {training.loss!r}")
        return parts[0] if len(parts) == 1 else parts[0] + parts[1]

    def learned(self, outputs: Outputs, targets: Any, scales: Mapping[str, float]) -> Tensor | None:
        """Return the loss on targets, None if nothing is learned from them."""
        return None if self.learn is None else self.learn(outputs, targets)

    def guesses(self, teacher: Outputs) -> Any:
        """Return what stands for targets where data have none: the teacher's outputs, unless a subclass says more."""
        return dict(teacher)

    def measure(self, outputs: Outputs, targets: Any) -> tuple[Tensor, ...]:
        """Return of some examples what adds up, over batches, to what `score` needs."""
        assert self.scored is not None
        each, count = self.scored(outputs, targets), len(next(iter(outputs.values())))
        if not isinstance(each, Tensor) or each.shape != (count,):
            got = tuple(each.shape) if isinstance(each, Tensor) else a_kind(each)
            raise DataError(
                f"a score must be one number for each example, a tensor of shape ({count},), but scored returned {got}"
            )
        return each.double().sum(), torch.tensor(float(count))

    def each(self, outputs: Outputs, targets: Any, scales: Mapping[str, float]) -> Tensor:
        """Return how good the answer to each example is, (b,), in 0..1, for methods that learn from single answers."""
        assert self.scored is not None
        return self.scored(outputs, targets)

    def score(self, sums: Sequence[Tensor]) -> float:
        """Return the score, 0..1, of what `measure` gave in sum."""
        return float(sums[0] / sums[1])

    def _taught(self, name: str, output: Tensor, teacher: Tensor, training: Training, scale: float) -> Tensor:
        way = self.teach[name] if isinstance(self.teach, Mapping) else self.teach
        if callable(way):
            return way(output, teacher)
        if way == "kl":
            return soft_kl(output, teacher)
        return cosine_loss(output, teacher) if way == "cosine" else mse(output, teacher) / scale


def soft_kl(output: Tensor, teacher: Tensor) -> Tensor:
    """Return Hinton's loss with classes in the second dimension, in the mean over all places."""
    classes = output.shape[1]
    flat = (tensor.movedim(1, -1).reshape(-1, classes) for tensor in (output, teacher))
    return softened_kl(*flat, temperature=TEMPERATURE)


def cosine_loss(output: Tensor, teacher: Tensor) -> Tensor:
    """Return one minus the cosine of rows, in the mean."""
    return 1.0 - functional.cosine_similarity(output.flatten(1), teacher.flatten(1), dim=1).mean()


def _kinds(outputs: Outputs) -> str:
    """Return the kinds of numbers of outputs, with their names where they have some."""
    said = [f"{name + ': ' if name else ''}{str(t.dtype).removeprefix('torch.')}" for name, t in outputs.items()]
    return ", ".join(said) or "nothing"


def _named(outputs: Iterable[str]) -> str:
    return ", ".join(repr(name) for name in outputs) or "nothing"
