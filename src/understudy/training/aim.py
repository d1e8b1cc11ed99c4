"""An objective, fitted to the outputs of one network: which count, how large they are, and what a batch of them earns.

Outputs travel as one matrix: those that count, side by side, a row for each example.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from understudy.config.training import Training
from understudy.core.errors import DataError, MachineError, ModelError, UnderstudyError, a_kind, did_you_mean
from understudy.core.memory import enough_memory
from understudy.core.nested import called, first, leaves, mapped
from understudy.data import AnySplit, Data, Split
from understudy.data.data import first_images
from understudy.graph.copies import copied
from understudy.graph.seeds import seeded
from understudy.training.builtin import BUILT_IN
from understudy.training.objective import Loss
from understudy.training.objectives import Objective


@dataclass(frozen=True, kw_only=True, eq=False)
class Aim:
    """An objective and the outputs that it reads."""

    objective: Objective
    names: tuple[str, ...] = ("",)  # of the outputs that count
    shapes: tuple[tuple[int, ...], ...] = ((-1,),)  # of one example's; -1 where a lone vector may be of any length
    scales: tuple[float, ...] = (1.0,)  # the teacher's variance of each

    def read(self, given: Any) -> Float[Tensor, "b k"]:
        """Return what counts of what a network gave, float32; one that gives more in training mode has it first."""
        if isinstance(given, Tensor):
            return _rows(given)
        found = dict(tensors(given))
        if len(self.names) == 1:
            return _rows(found.get(self.names[0], next(iter(found.values()))))
        lacking = [name for name in self.names if name not in found]
        if lacking:
            raise RuntimeError(f"the network must give {lacking[0]!r} in each mode, but gives {', '.join(found)}")
        return torch.cat([_rows(found[name]) for name in self.names], 1)

    def outputs(self, matrix: Float[Tensor, "b k"]) -> dict[str, Tensor]:
        """Return the outputs by name, each (b, ...)."""
        if len(self.names) == 1:
            shape = self.shapes[0]
            return {self.names[0]: matrix if len(shape) == 1 else matrix.view(len(matrix), *shape)}
        parts = matrix.split([math.prod(shape) for shape in self.shapes], 1)
        rows = zip(self.names, self.shapes, parts, strict=True)
        return {name: part.reshape(len(matrix), *shape) for name, shape, part in rows}

    def loss(self, training: Training) -> Loss:
        """Return the loss of a batch, of rows of outputs, the teacher's, and targets."""
        scales = dict(zip(self.names, self.scales, strict=True))

        def loss(matrix: Tensor, teacher: Tensor | None, targets: Any) -> Tensor:
            taught = None if teacher is None else self.outputs(teacher)
            return self.objective.loss(self.outputs(matrix), taught, targets, training, scales)

        return loss

    def each(self, matrix: Float[Tensor, "b k"], targets: Any) -> Float[Tensor, " b"]:
        """Return how good the answer to each example is, in 0..1."""
        return self.objective.each(self.outputs(matrix), targets, dict(zip(self.names, self.scales, strict=True)))

    def targets(self, teacher: Float[Tensor, "b k"]) -> Any:
        """Return what stands for targets, by what the teacher gave."""
        return self.objective.guesses(self.outputs(teacher))

    def sums(self, matrix: Float[Tensor, "b k"], targets: Any) -> tuple[Tensor, ...]:
        """Return what adds up over batches."""
        return self.objective.measure(self.outputs(matrix), targets)


_MEMORY = ("while the teacher ran on a few examples", "use a machine with more of it")
_FITTED = 32  # validation examples that outputs are measured on
_COLUMNS = 64  # of whole numbers in an example; so few may have a table each, more are a text's

CLASSES = Aim(objective=BUILT_IN["classification"])
"""Classification by a network that gives logits."""


def tensors(given: Any) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors of what a network gave, by name."""
    return ((name, leaf) for name, leaf in leaves(given) if isinstance(leaf, Tensor))


def aimed(objective: Objective, network: nn.Module, data: Data) -> Aim:
    """Fit an objective to a network by what it gives for some validation examples; the network is not changed.

    Raises:
        ModelError: the network does not take the inputs, or gives no finite outputs, or others in training mode.
        DataError: the objective does not fit the outputs or the targets.
        MachineError: memory ran out.
    """
    some = data.val.take(torch.arange(min(_FITTED, len(data.val)), device=data.val.indexed_on))
    inputs, count = first_images(data, some, len(some)), len(some)
    given = _given(copied(network).cpu().eval(), inputs, data)
    rows = {
        name: tensor.view(count, -1) if tensor.ndim == 1 else tensor
        for name, tensor in tensors(given)
        if tensor.ndim and len(tensor) == count
    }
    if not rows:
        raise ModelError(
            f"the model must give tensors with a row for each of {count} examples of {data.source}, but gives "
            f"{_told(given)}"
        )
    names = objective.counts(rows)
    counted = {name: rows[name].float() for name in names}
    if any(not bool(torch.isfinite(tensor).all()) for tensor in counted.values()):
        raise ModelError("the model must give finite outputs, but there are NaN or infinite ones")
    _check_targets(objective, counted, data, some)
    _check_numbers(network, data)
    aim = Aim(
        objective=objective,
        names=names,
        shapes=tuple(tuple(tensor.shape[1:]) for tensor in counted.values()),
        scales=tuple(float(t.double().var(0, correction=0).mean()) or 1.0 for t in counted.values()),
    )
    _check_training(aim, network, inputs, data)
    if not _comes_with_this(objective):
        _check_own(aim, aim.read(given), _targets_of(some))
    return aim


def _rows(output: Tensor) -> Float[Tensor, "b k"]:
    """Return a row for each example; an output may be one number for each, (b,)."""
    return output.float().reshape(len(output), -1) if output.ndim == 1 else output.float().flatten(1)


def _check_targets(objective: Objective, outputs: Mapping[str, Tensor], data: Data, some: AnySplit) -> None:
    """Check that targets fit the outputs for some examples: those of every split, by what comes with this package."""
    if not _comes_with_this(objective):  # its check may read more of outputs than their shapes
        objective.check(dict(outputs), _targets_of(some), data)
        return
    objective.check(dict(outputs), None, data)
    for name, split in data.splits:
        alike = {key: output[:1].expand(len(split), *output.shape[1:]) for key, output in outputs.items()}
        try:
            objective.check(alike, split.labels, data)
        except DataError as error:
            raise DataError(f"{error} (in {name})") from error


def _comes_with_this(objective: Objective) -> bool:
    return objective is BUILT_IN.get(objective.name)


def _targets_of(some: AnySplit) -> Any:
    targets = some.batch(torch.arange(len(some), device=some.indexed_on))[1]
    return mapped(targets, lambda tensor: tensor.cpu())


def _check_own(aim: Aim, rows: Float[Tensor, "b k"], targets: Any) -> None:
    """Check what an objective of the caller's own makes of the teacher's outputs, before anything is trained by it.

    Raises:
        DataError: it fails, or its loss or score is none.
    """
    training = Training(loss="mse" if targets is None else "mse+ce")
    with _in_own_code("loss"):  # of other outputs than the teacher's
        loss = aim.loss(training)(rows.roll(1, 0), rows, targets)
    if not isinstance(loss, Tensor) or loss.ndim:
        got = f"one of shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else a_kind(loss)
        raise DataError(f"the loss of an objective must be one number, a tensor of shape (), but got {got}")
    with _in_own_code("score"):
        aim.sums(rows, aim.targets(rows) if targets is None else targets)


@contextmanager
def _in_own_code(what: str) -> Iterator[None]:
    try:
        with enough_memory(*_MEMORY):
            yield
    except UnderstudyError:
        raise
    except Exception as error:  # the caller's code may raise anything
        raise DataError(
            f"the {what} of an objective must work on the outputs and targets of some examples, but it failed: "
            f"{type(error).__name__}: {error}"
        ) from error


def _check_numbers(network: nn.Module, data: Data) -> None:
    """Check that a network takes the largest and smallest whole numbers, such as tokens, that a split in memory has.

    One that its table does not have would end a run when it is met, on the test split after all that was trained.

    Raises:
        DataError: it does not take them.
        MachineError: memory ran out.
    """
    for name, split in data.splits:
        if data.are_images or not isinstance(split, Split):
            continue
        numbers = [
            tensor.reshape(len(tensor), -1)
            for _, tensor in leaves(split.images)
            if tensor.dtype in (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
        ]
        found = sorted({at for rows in numbers for at in _extremes(rows)})
        if not found:
            continue
        inputs = split.batch(torch.tensor(found, device=split.indexed_on))[0]
        try:
            with torch.no_grad(), seeded(), enough_memory(*_MEMORY):
                called(copied(network).cpu().eval(), mapped(inputs, lambda tensor: tensor.cpu()))
        except MachineError:
            raise
        except Exception as error:  # the caller's code may raise anything
            ranges = ", ".join(f"{int(rows.min())}..{int(rows.max())}" for rows in numbers)
            raise DataError(
                f"the model must take every example of {name}, but it fails where the whole numbers in them, {ranges}, "
                f"are largest or smallest: {str(error) or type(error).__name__}"
            ) from error


def _extremes(rows: Int[Tensor, "n k"]) -> list[int]:
    """Return which rows have the largest and smallest numbers: of all, and of each of few columns."""
    found = [int(rows.amax(1).argmax()), int(rows.amin(1).argmin())]
    if rows.shape[1] <= _COLUMNS:
        found += [*rows.argmax(0).tolist(), *rows.argmin(0).tolist()]
    return found


def _check_training(aim: Aim, network: nn.Module, inputs: Any, data: Data) -> None:
    """Check that the network gives the same kind of outputs in training mode; auxiliary ones may follow."""
    inputs = mapped(inputs, lambda tensor: tensor[:2])
    count = len(first(inputs))
    wanted = (count, sum(math.prod(shape) for shape in aim.shapes))

    def as_wanted(given: Any) -> bool:
        found = dict(tensors(given))
        some = found and (len(aim.names) == 1 or set(aim.names) <= set(found))
        return bool(some) and tuple(aim.read(given).shape) == wanted

    _given(copied(network).cpu().eval(), mapped(inputs, lambda tensor: tensor[:1]), data)  # as it is timed
    given, alike = (_given(copied(network).cpu().train(mode), inputs, data) for mode in (True, False))
    if not as_wanted(alike):
        raise ModelError(
            "the model must give each example outputs of its own, of one size in a batch of any size, but it gives "
            f"{_told(alike)} for {count} examples and others for more: compress the part inside that does, with "
            "us.Data.from_inputs(inputs, part=model.encoder, of=model)"
        )
    if not as_wanted(given):
        raise ModelError(
            "the model must return its outputs in training mode as well, alone or first in a tuple, as those with "
            f"auxiliary classifiers do, but returned {_told(given)} there: return the logits first"
        )


def _given(network: nn.Module, inputs: Any, data: Data) -> Any:
    _check_names(network, inputs)
    try:
        with torch.no_grad(), seeded(), enough_memory(*_MEMORY):
            return called(network, inputs)
    except MachineError:
        raise
    except Exception as error:  # the caller's code may raise anything
        raise ModelError(
            f"the model must take the inputs of the data, here {_told(inputs)}, but it failed: "
            f"{str(error) or type(error).__name__}. {_how(data)}"
        ) from error


def _how(data: Data) -> str:
    """Return how data are passed to a network, for one that does not take them."""
    if data.are_images and data.has_targets:
        sizes = " x ".join(map(str, data.shape))
        return (
            f"These are images of {sizes} (channels, height, width): read them as the network was trained, with size= "
            "and grey= (--size, --grey), and give what is no image to Data.from_inputs(inputs, targets)"
        )
    return (
        "A tuple is passed as one argument after the other, a dict by name; the items of a list or dataset are one "
        "example each, batches come from a DataLoader. Pairs of inputs and labels or targets go to Data.from_datasets"
    )


def _check_names(network: nn.Module, inputs: Any) -> None:
    """Refuse inputs by a name that the forward pass does not know, as tokenizers give more than models take.

    Raises:
        ModelError: there is one; names it, and what the model takes.
    """
    taken = inspect.signature(network.forward).parameters
    if not isinstance(inputs, Mapping) or any(p.kind is p.VAR_KEYWORD for p in taken.values()):
        return
    unknown = [name for name in inputs if name not in taken]
    if unknown:
        raise ModelError(
            f"every input must be one that the model takes by name, which are {', '.join(taken)}, but the data have "
            f"{', '.join(map(repr, unknown))}{did_you_mean(str(unknown[0]), taken)}: leave it out of the dict, or name "
            "it as the model does"
        )


def _told(value: Any) -> str:
    """Return the names, types and shapes of what is inside."""
    parts = [
        f"{name + ': ' if name else ''}{str(leaf.dtype).removeprefix('torch.')} {tuple(leaf.shape)}"
        if isinstance(leaf, Tensor)
        else f"{name}: {type(leaf).__name__}"
        for name, leaf in leaves(value)
    ]
    return ", ".join(parts) or "nothing"
