"""Where splits come from: folders, arrays, .npz files, datasets. Nothing is cut or normalised here."""

from __future__ import annotations

import zipfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from understudy.core.caller import as_usual
from understudy.core.errors import DataError, a_kind, check_kind, did_you_mean
from understudy.data import images as files
from understudy.data.split import AnySplit, Split, StreamedSplit, tensor_of

Array = NDArray[Any] | Tensor
Pair = tuple[Array, Any]  # images and labels

_VAL_NAMES = ("val", "valid", "validation")


@dataclass(frozen=True)
class Splits:
    """What a source gives: its splits, the names of its classes if it knows them, and where it is from."""

    train: AnySplit
    val: AnySplit | None
    test: AnySplit | None
    classes: tuple[str, ...] | None
    source: str


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How image files and datasets are read."""

    size: int | None = None
    grey: bool | None = None
    cache: Path | None = None
    memory_gb: float = 4.0
    workers: int | None = None
    progress: bool = True

    def __post_init__(self) -> None:
        check_kind(self.memory_gb, int | float, "memory_gb must be a number of gigabytes", DataError)
        for name in ("size", "workers"):
            check_kind(getattr(self, name), int | None, f"{name} must be a whole number", DataError)

    @property
    def threads(self) -> int:
        """How many threads decode files."""
        return self.workers or files.cores()


@as_usual
def from_folder(path: Path, reading: Reading) -> Splits:
    """Read `path/train/<class>/*` and, where they are, `val` and `test` beside it."""
    train, val, test = _list_splits(path)
    listings = [x for x in (train, val, test) if x is not None]
    form = files.find_form(train, grey=reading.grey, size=reading.size)
    needed = sum(len(x.names) for x in listings) * int(np.prod(form.shape)) / 1e9

    def split_of(listing: files.Listing | None) -> AnySplit | None:
        if listing is None:
            return None
        labels = torch.tensor(listing.labels, dtype=torch.int64)
        if needed > reading.memory_gb:
            return StreamedSplit(
                # Read long after this, perhaps from another working folder.
                read=files.FileReader(replace(listing, folder=listing.folder.absolute()), form),
                items=torch.arange(len(labels)),
                labels=labels,
                shape=form.shape,
                dtype=torch.uint8,
                workers=reading.threads,
            )
        pixels = files.cached(
            listing,
            form,
            reading.cache or files.cache_folder(),
            lambda: files.decode(listing, form, workers=reading.threads, progress=reading.progress),
        )
        return Split(torch.from_numpy(pixels), labels)

    first = split_of(train)
    assert first is not None
    return Splits(first, split_of(val), split_of(test), train.classes, str(path))


def _list_splits(path: Path) -> tuple[files.Listing, files.Listing | None, files.Listing | None]:
    if not path.is_dir():
        near = [str(x) for x in path.parent.iterdir() if x.is_dir()] if path.parent.is_dir() else []
        missing = "is none" if path.exists() else f"does not{did_you_mean(str(path), near)}"
        raise DataError(f"a folder of images must exist, but {path} {missing}")
    if not (path / "train").is_dir():
        found = sorted(x.name for x in path.iterdir())[:10]
        raise DataError(f"{path} must hold a folder 'train' with one folder for each class, but it holds {found}")
    val = next((path / name for name in _VAL_NAMES if (path / name).is_dir()), None)
    test = path / "test" if (path / "test").is_dir() else None
    faults: list[str] = []
    listings = [None if x is None else files.list_folder(x, faults) for x in (path / "train", val, test)]
    train = listings[0]
    assert train is not None
    for other in listings[1:]:
        if other is not None and other.classes and other.classes != train.classes:
            lacking = sorted(set(train.classes) - set(other.classes))
            unknown = sorted(set(other.classes) - set(train.classes))
            parts = [f"lacks {lacking}"] * bool(lacking) + [f"has {unknown} besides"] * bool(unknown)
            faults.append(f"the classes of {other.folder} must be those of train, but it {' and '.join(parts)}")
    files.fail("every class of every split must have images", faults)
    return train, listings[1], listings[2]


@as_usual
def from_arrays(train: Pair, val: Pair | None, test: Pair | None, source: str) -> Splits:
    """Take arrays or tensors of images and labels."""
    pairs = (("train", train), ("val", val), ("test", test))
    first, second, third = (None if pair is None else _split_of(pair, name) for name, pair in pairs)
    assert first is not None
    return Splits(first, second, third, None, source)


def _split_of(pair: Pair, name: str) -> Split:
    if not isinstance(pair, tuple | list) or len(pair) != 2:
        raise DataError(f"{name} must be a pair (images, labels), but got {a_kind(pair)}")
    images, labels = as_images(pair[0], name), as_labels(pair[1], name)
    if len(images) != len(labels):
        raise DataError(
            f"{name} must have one label for each image, but got {len(images)} images and {len(labels)} labels"
        )
    return Split(images, labels)


def as_images(images: Array, name: str, *, channels_first: bool = False) -> Tensor:
    """Return images as (n, channels, height, width), uint8 or float32.

    Unless channels are known to come first, the shorter of the second and the last of four axes is
    taken for them.
    """
    given = tensor_of(images, f"images of {name} must be numbers")
    if given.ndim == 3:
        given = given[:, None]
    if given.ndim != 4 or not given.numel():
        raise DataError(
            f"images of {name} must be (n, height, width), (n, height, width, channels) or "
            f"(n, channels, height, width), none of them 0, but got shape {tuple(given.shape)}: give other inputs to "
            "Data.from_inputs(inputs, targets)"
        )
    if not channels_first and given.shape[3] < given.shape[1]:
        given = given.permute(0, 3, 1, 2)
    if given.is_complex():
        raise DataError(f"images of {name} must be real numbers, but are {given.dtype}: give their parts as channels")
    if given.is_floating_point():
        given = given.to(torch.float32)
        if not bool(torch.isfinite(given).all()):
            raise DataError(f"images of {name} must be finite, but hold NaN or infinity")
    elif given.dtype != torch.uint8:
        low, high = int(given.min()), int(given.max())
        if not 0 <= low <= high <= 255:
            raise DataError(f"whole-number pixels of {name} must be in 0..255, but go from {low} to {high}")
        given = given.to(torch.uint8)
    return given.contiguous()


def as_labels(labels: Any, name: str) -> Tensor:
    """Return labels as (n,) int64; a column (n, 1) is taken as well."""
    given = tensor_of(
        labels, f"labels of {name} must be whole numbers (of names: np.unique(names, return_inverse=True)[1])"
    )
    if given.ndim == 2 and given.shape[1] == 1:
        given = given[:, 0]
    if given.ndim != 1:
        raise DataError(
            f"labels of {name} must be one whole number for each image, but got shape {tuple(given.shape)}: give "
            "labels.argmax(1) of one-hot rows, and other targets to Data.from_inputs(images, targets)"
        )
    whole = given.to(torch.int64)
    wrong = torch.nonzero(whole != given).flatten()
    if len(wrong):
        values = given[wrong[:5]].tolist()
        raise DataError(
            f"labels of {name} must be whole numbers, but got {values} at {wrong[:5].tolist()}: give numbers to learn "
            "as the targets of Data.from_inputs(images, targets)"
        )
    if len(whole) and int(whole.min()) < 0:
        raise DataError(
            f"labels of {name} must be classes, counted from 0, but {int((whole < 0).sum())} are below, the first is "
            f"{int(whole[whole < 0][0])}: leave those images out, or give them a class of their own"
        )
    return whole


def from_npz(path: Path) -> Splits:
    """Read the arrays of a .npz file: train_images, train_labels, or x_train, y_train; val and test likewise."""
    try:
        with path.open("rb") as raw:
            file = np.load(raw, allow_pickle=False)
            arrays = {key: file[key] for key in file.files}
    except (OSError, ValueError, AttributeError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(f"{path} must be a .npz file of plain arrays, but cannot be read: {error}") from error
    pairs = {name: _pair_of(arrays, name) for name in ("train", "val", "test")}
    train = pairs["train"]
    if train is None:
        raise DataError(
            f"{path} must hold train_images and train_labels, or x_train and y_train, but it holds {sorted(arrays)}"
        )
    return from_arrays(train, pairs["val"], pairs["test"], str(path))


def _pair_of(arrays: dict[str, Any], name: str) -> Pair | None:
    for images, labels in ((f"{name}_images", f"{name}_labels"), (f"x_{name}", f"y_{name}")):
        if (images in arrays) != (labels in arrays):
            raise DataError(f"a .npz file must hold both {images} and {labels}, but it holds {sorted(arrays)}")
        if images in arrays:
            return arrays[images], arrays[labels]
    return None


def digits() -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Return scikit-learn's 1,797 digits, (n, 8, 8) with 0..255, and their labels."""
    from sklearn.datasets import load_digits  # takes a second to import

    bunch = load_digits()
    return np.rint(bunch.images * 255 / 16).astype(np.uint8), bunch.target.astype(np.int64)
