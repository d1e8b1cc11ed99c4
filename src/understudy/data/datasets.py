"""Splits out of torch datasets, loaders and torchvision."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader

from understudy.core.caller import as_usual
from understudy.core.errors import DataError, did_you_mean
from understudy.core.extras import optional
from understudy.core.nested import first as first_of
from understudy.data import images as files
from understudy.data.inputs import has_items, item_of, length_of, split_of
from understudy.data.sources import Reading, Splits, as_images, as_labels
from understudy.data.split import AnySplit, Split, StreamedSplit

_CHECKED_TWICE = 8  # items that are read twice, to find random transforms


@dataclass(frozen=True)
class ItemReader:
    """Reads items of a dataset as (channels, height, width) tensors."""

    dataset: Any
    form: files.Form | None  # None: items are arrays or tensors
    name: str

    def __call__(self, index: int, /) -> Tensor:
        """Return one item's image."""
        return self.example(index)[0]

    def example(self, index: int) -> tuple[Tensor, Any]:
        """Return one item's image and label."""
        image, label = _item(self.dataset, index, self.name)
        if self.form is None:
            batch = image[None] if isinstance(image, Tensor) else np.asarray(image)[None]
            return as_images(batch, self.name, channels_first=isinstance(image, Tensor))[0], label
        try:
            return torch.from_numpy(np.array(self.form.apply(image))), label
        except files.Misfit as misfit:
            raise DataError(f"item {index} of {self.name} {misfit}") from misfit


@as_usual
def from_datasets(train: Any, val: Any, test: Any, reading: Reading) -> Splits:
    """Read the items of datasets, or of the datasets of loaders, once."""
    read = partial(_read if _has_pictures(train) else _read_any, reading=reading)
    first = read(train, "train")
    second, third = (None if given is None else read(given, name) for given, name in ((val, "val"), (test, "test")))
    names = getattr(_dataset(train), "classes", None)
    classes = tuple(map(str, names)) if names and isinstance(names, Iterable) else None
    return Splits(first, second, third, classes, type(_dataset(train)).__name__)


def _has_pictures(given: Any) -> bool:
    """Return whether the items of a dataset are images with a number each; others are any inputs with any targets."""
    dataset = _dataset(given)
    if not has_items(dataset) or not length_of(dataset, "train"):
        return True  # and refused as such
    item = item_of(dataset, 0, "train")
    if not isinstance(item, (tuple, list)) or len(item) != 2:
        return True
    image, target = item
    nested = isinstance(image, (Mapping, tuple)) or (isinstance(image, list) and hasattr(first_of(image), "ndim"))
    flat = isinstance(image, (Tensor, np.ndarray)) and image.ndim not in (2, 3)
    several = isinstance(target, (Mapping, tuple, Image.Image)) or getattr(target, "ndim", 0) > 0
    return not (nested or flat or several)


def _dataset(given: Any) -> Any:
    return given.dataset if isinstance(given, DataLoader) else given


def _item(dataset: Any, index: int, name: str) -> tuple[Any, Any]:
    item = item_of(dataset, index, name)
    if not isinstance(item, (tuple, list)) or len(item) < 2:
        raise DataError(f"items of {name} must be (image, label), but item {index} is {_no_pair(item)}")
    image, label = item[:2]
    # A list of plain numbers becomes an array far faster than one of tensors.
    return image, label.item() if isinstance(label, Tensor) and label.numel() == 1 else label


def _read_any(given: Any, name: str, reading: Reading) -> AnySplit:
    """Read inputs with targets that are not images with a number each."""
    return split_of(given, None, name, labelled=True, memory_gb=reading.memory_gb, progress=reading.progress)


def _no_pair(item: Any) -> str:
    """Return what an item is instead of a pair, and how the usual other kind becomes one."""
    if not isinstance(item, Mapping) or len(item) < 2:
        return type(item).__name__
    first, second, *_ = map(repr, item)
    return f"a dict of {', '.join(map(str, item))}: give pairs, such as [(x[{first}], x[{second}]) for x in dataset]"


def _read(given: Any, name: str, reading: Reading) -> AnySplit:
    dataset = _dataset(given)
    if not has_items(dataset):
        raise DataError(
            f"{name} must be a dataset with a length and items, but got {type(dataset).__name__}: collect what can "
            "only be iterated into tensors, for Data.from_arrays(images, labels)"
        )
    count = length_of(dataset, name)
    if not count:
        raise DataError(f"{name} must have at least one item, but the dataset is empty")
    image, _ = _item(dataset, 0, name)
    form = files.Form.of(image, grey=reading.grey, size=reading.size) if isinstance(image, Image.Image) else None
    reader = ItemReader(dataset, form, name)
    _check_same_twice(reader, count)
    first = reader(0)
    if count * first.numel() * first.element_size() / 1e9 <= reading.memory_gb:
        return _held(reader, first, count, reading)
    labels = getattr(dataset, "targets", None)
    if labels is None or len(labels) != count or getattr(dataset, "target_transform", None):
        items = files.shown(range(count), count, f"Reading labels of {name}", reading.progress)
        labels = [_item(dataset, index, name)[1] for index in items]
    channels, height, width = first.shape
    return StreamedSplit(
        read=reader,
        items=torch.arange(count),
        labels=as_labels(labels, name),
        shape=(channels, height, width),
        dtype=first.dtype,
        workers=reading.workers or 1,  # whose code may run in threads, only its owner knows
    )


def _check_same_twice(reader: ItemReader, count: int) -> None:
    for index in range(min(count, _CHECKED_TWICE)):
        if not torch.equal(reader(index), reader(index)):
            raise DataError(
                f"an item must be the same each time, but item {index} of {reader.name} differs when read again: "
                f"give the dataset without random transforms, and augmentation=Augmentation(crop=4, flip=True) instead"
            )


def _held(reader: ItemReader, first: Tensor, count: int, reading: Reading) -> Split:
    images = torch.empty((count, *first.shape), dtype=first.dtype)
    labels, faults = [], []
    for index in files.shown(range(count), count, f"Reading {reader.name}", reading.progress):
        image, label = reader.example(index)
        labels.append(label)
        if image.shape == first.shape and image.dtype == first.dtype:
            images[index] = image
        else:
            faults.append(f"item {index} is {image.dtype} {tuple(image.shape)}")
    files.fail(f"items of {reader.name} must be {first.dtype} {tuple(first.shape)} like the first", faults)
    return Split(images, as_labels(labels, reader.name))


def from_torchvision(name: str, root: Path | None, reading: Reading) -> Splits:
    """Download and read one of torchvision's datasets that have a train and a test part."""
    datasets = optional("torchvision.datasets", extra="vision")
    if not inspect.isclass(getattr(datasets, name, None)):
        raise DataError(f"torchvision has no dataset {name!r}{did_you_mean(name, dir(datasets))}")
    maker: Any = getattr(datasets, name)
    takes = inspect.signature(maker).parameters
    folder = str(root or files.cache_folder() / "torchvision")
    if "train" in takes:
        parts = [maker(folder, train=train, download=True) for train in (True, False)]
    elif "split" in takes:
        parts = [maker(folder, split=split, download=True) for split in ("train", "test")]
    else:
        raise DataError(f"a torchvision dataset must have a train and a test part, but {name} takes {list(takes)}")
    splits = from_datasets(parts[0], None, parts[1], reading)
    return Splits(splits.train, None, splits.test, splits.classes, f"torchvision:{name}")
