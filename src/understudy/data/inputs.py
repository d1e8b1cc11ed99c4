"""Splits of any inputs: nestings of tensors, datasets and loaders whose items are such, and the inputs of a part."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, default_collate

from understudy.core.caller import as_usual
from understudy.core.errors import DataError, ModelError, UnderstudyError, a_kind, check_kind
from understudy.core.nested import called, first, leaves, mapped, zipped
from understudy.data.images import fail, shown
from understudy.data.split import AnySplit, Split, StreamedSplit, Targets, tensor_of

_BATCH = 256  # items that are read at once
_ITEMS = "give tensors, a tuple or dict of tensors, or a dataset or loader of such"


@dataclass(frozen=True)
class NestedReader:
    """Reads the inputs of one item of a dataset."""

    dataset: Any
    collate: Callable[[list[Any]], Any]
    labelled: bool
    name: str

    def __call__(self, index: int, /) -> Any:
        """Return the inputs of one item, without a first dimension."""
        return mapped(self.batch([index])[0], lambda tensor: tensor[0])

    def batch(self, indices: Iterable[int]) -> tuple[Any, Any]:
        """Return inputs and targets of some items."""
        items = [item_of(self.dataset, index, self.name) for index in indices]
        try:
            found = self.collate(items)
        except (RuntimeError, TypeError, ValueError, KeyError) as error:
            said = f"not all have {error}" if isinstance(error, KeyError) else error
            raise DataError(f"items of {self.name} must be of one size and structure, but: {said}") from error
        return _divided(found, self.labelled, self.name)


def item_of(dataset: Any, index: int, name: str) -> Any:
    """Return an item of a dataset of the caller's own.

    Raises:
        DataError: its code fails.
    """
    try:
        return dataset[index]
    except (UnderstudyError, MemoryError):
        raise
    except Exception as error:  # the caller's code may raise anything
        raise DataError(f"item {index} of {name} cannot be read: {type(error).__name__}: {error}") from error


def has_items(given: Any) -> bool:
    """Return whether a dataset has items that can be asked for by number, and says how many."""
    return hasattr(given, "__len__") and hasattr(given, "__getitem__") and not isinstance(given, IterableDataset)


def length_of(dataset: Any, name: str) -> int:
    """Return how many items a dataset of the caller's own has.

    Raises:
        DataError: its code fails.
    """
    try:
        return len(dataset)
    except Exception as error:  # the caller's code may raise anything
        raise DataError(f"{name} must know how many items it has, but: {type(error).__name__}: {error}") from error


@as_usual
def split_of(given: Any, targets: Any, name: str, *, labelled: bool, memory_gb: float, progress: bool) -> AnySplit:
    """Return a split of inputs.

    Args:
        given: tensors or arrays (n, ...), alone or in a tuple or dict; or a dataset, a loader or batches of them.
        targets: theirs, likewise (n, ...); None where there are none, or where items bring them.
        name: of the split, for errors.
        labelled: whether items are (inputs, targets).
        memory_gb: a dataset of more gigabytes (10^9) than this is read at each use.
        progress: show a bar.

    Raises:
        DataError: what is given cannot be used.
    """
    check_kind(memory_gb, int | float, "memory_gb must be a number of gigabytes", DataError)
    if isinstance(given, (Tensor, np.ndarray, tuple, Mapping)):
        return _checked(_tensors(given, f"inputs of {name}"), _tensors(targets, f"targets of {name}"), name)
    if targets is not None:
        raise DataError(f"targets of {name} beside a dataset must be in its items, (inputs, targets): {_ITEMS}")
    dataset, collate = given, default_collate
    if isinstance(given, DataLoader):
        dataset, collate = given.dataset, given.collate_fn or default_collate
    if has_items(dataset):
        count = length_of(dataset, name)
        return _of_dataset(NestedReader(dataset, collate, labelled, name), count, memory_gb, progress)
    if isinstance(given, IterableDataset):  # of single items; what else can be iterated gives batches
        given = DataLoader(given, batch_size=_BATCH)
    if not isinstance(given, Iterable):
        raise DataError(f"{name} must hold inputs, but got {type(given).__name__}: {_ITEMS}")
    return _joined(_read_once(given, labelled, name, memory_gb), name)


def _read_once(given: Iterable[Any], labelled: bool, name: str, memory_gb: float) -> list[tuple[Any, Any]]:
    """Return the batches of what can only be iterated, which may have no end."""
    batches: list[tuple[Any, Any]] = []
    size = 0.0
    for batch in _each(given, name):
        batches.append(_divided(batch, labelled, name))
        size += sum(tensor.nbytes for _, tensor in leaves(batches[-1])) / 1e9
        if size > memory_gb:
            raise DataError(
                f"batches of {name} that are read once must fit memory_gb = {memory_gb:g} gigabytes, but there are "
                "more: give a dataset with a length and items, fewer of them, or a larger memory_gb"
            )
    return batches


def _each(given: Iterable[Any], name: str) -> Iterator[Any]:
    """Give the batches of the caller's own iteration, whose code may raise anything."""
    read = 0
    try:
        for batch in given:
            read += 1
            yield batch
    except (UnderstudyError, MemoryError):
        raise
    except Exception as error:
        raise DataError(f"batch {read} of {name} cannot be read: {type(error).__name__}: {error}") from error


def _of_dataset(reader: NestedReader, count: int, memory_gb: float, progress: bool) -> AnySplit:
    name = reader.name
    if not count:
        raise DataError(f"{name} must have at least one item, but the dataset is empty")
    inputs, _ = reader.batch([0])
    again, _ = reader.batch([0])
    if any(not torch.equal(one, other) for (_, one), (_, other) in zip(leaves(inputs), leaves(again), strict=True)):
        raise DataError(f"an item must be the same each time, but item 0 of {name} differs when read again")
    held = sum(tensor.nbytes for _, tensor in leaves(inputs)) * count / 1e9 <= memory_gb
    starts = shown(range(0, count, _BATCH), -(-count // _BATCH), f"Reading {name}", progress)
    if held:
        return _joined([reader.batch(range(start, min(start + _BATCH, count))) for start in starts], name)
    targets = [reader.batch(range(start, min(start + _BATCH, count)))[1] for start in starts] if reader.labelled else []
    return StreamedSplit(
        read=reader,
        items=torch.arange(count),
        labels=_cat(targets, name) if targets else None,
        shape=tuple(inputs.shape[1:]) if isinstance(inputs, Tensor) else (),
        dtype=first(inputs).dtype,
    )


def _divided(batch: Any, labelled: bool, name: str) -> tuple[Any, Any]:
    """Return inputs and targets of a batch; a tuple of one is that one."""
    batch = tuple(batch) if isinstance(batch, list) else batch
    if labelled:
        if not isinstance(batch, tuple) or len(batch) != 2:
            raise DataError(f"items of {name} must be (inputs, targets), but are {type(batch).__name__}")
        return _tensors(batch[0], f"inputs of {name}"), _tensors(batch[1], f"targets of {name}")
    alone = isinstance(batch, tuple) and len(batch) == 1
    return _tensors(batch[0] if alone else batch, f"inputs of {name}"), None


def _joined(batches: list[tuple[Any, Any]], name: str) -> Split:
    if not batches:
        raise DataError(f"{name} must have at least one batch, but there is none")
    return _checked(
        _cat([inputs for inputs, _ in batches], name), _cat([targets for _, targets in batches], name), name
    )


def _cat(parts: list[Any], name: str) -> Any:
    try:
        return zipped(parts, torch.cat)
    except (RuntimeError, ValueError) as error:
        raise DataError(
            f"examples of {name} must be of one size and structure, padded where they are not, but: {error}"
        ) from error


def _tensors(value: Any, what: str) -> Any:
    """Return nested tensors on the CPU, floats as float32, of what may be arrays."""

    def tensor(leaf: Any) -> Tensor:
        found = tensor_of(leaf, f"{what} must be tensors or arrays: {_ITEMS}")
        if found.is_floating_point():
            found = found.to(torch.float32)
            if not bool(torch.isfinite(found).all()):
                raise DataError(f"{what} must be finite, but hold NaN or infinity")
        return found.contiguous()

    value = tuple(value) if isinstance(value, list) and value and not np.isscalar(value[0]) else value
    return mapped(value, tensor) if not isinstance(value, list) else tensor(value)


def _checked(inputs: Any, targets: Targets, name: str) -> Split:
    """Return the split of tensors that have as many rows."""
    found = [(f"input {label}".strip(), tensor) for label, tensor in leaves(inputs)]
    found += [(f"target {label}".strip(), tensor) for label, tensor in leaves(targets)]
    if not found or not any(label.startswith("input") for label, _ in found):
        raise DataError(f"{name} must hold inputs, but there are none: {_ITEMS}")
    count = len(found[0][1]) if found[0][1].ndim else 0
    fail(
        f"tensors of {name} must all have one row for each example, {count} as the first, and at least one",
        [f"{label} is {tuple(t.shape)}" for label, t in found if not t.ndim or len(t) != count or not t.numel()],
    )
    return Split(inputs, _whole(targets))


def _whole(targets: Targets) -> Targets:
    """Return whole-number targets as int64."""
    return mapped(targets, lambda tensor: tensor if tensor.is_floating_point() else tensor.to(torch.int64))


@as_usual
def inputs_of_part(part: nn.Module, model: nn.Module, split: AnySplit) -> Split:
    """Return what a part of a model is given when the model runs on each example, in evaluation mode.

    Raises:
        ModelError: the part is not in the model, or is not called exactly once.
    """
    check_kind(model, nn.Module, "of must be the model that runs on the inputs, a torch.nn.Module", ModelError)
    if not any(module is part for module in model.modules()):
        raise ModelError("a part must be a module of the model, but this one is not in it")
    calls: list[Any] = []

    def keep(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if args and kwargs:
            raise ModelError("a part must be given its inputs all by name or all by place, but it gets both")
        calls.append(mapped(kwargs or (args[0] if len(args) == 1 else args), lambda leaf: _row(leaf)))

    modes = [(module, module.training) for module in model.modules()]
    handle = part.register_forward_pre_hook(keep, with_kwargs=True)
    found = []
    try:
        model.eval()
        device = next((p.device for p in model.parameters()), torch.device("cpu"))
        for indices in torch.arange(len(split)).split(_BATCH):
            calls.clear()
            with torch.no_grad():
                called(model, mapped(split.batch(indices)[0], lambda tensor: tensor.to(device)))
            if len(calls) != 1:
                raise ModelError(
                    f"a part must be called once in a forward pass, but this one is called {len(calls)} times"
                )
            found.append(calls[0])
    finally:
        handle.remove()
        for module, mode in modes:
            module.training = mode
    return _checked(_cat(found, "the part"), split.labels, "the part")


def _row(leaf: Any) -> Tensor:
    if not isinstance(leaf, Tensor):
        raise ModelError(f"a part must be given tensors alone, but it is given {a_kind(leaf)}")
    return tensor_of(leaf, "a part must be given tensors")
