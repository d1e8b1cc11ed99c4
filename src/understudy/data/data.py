"""Data: the splits that a teacher and its students are trained and judged on."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float32
from torch import Tensor, nn

from understudy.core.caller import as_usual
from understudy.core.errors import DataError, check_kind, did_you_mean
from understudy.core.files import path_of
from understudy.core.nested import leaves, mapped
from understudy.data import datasets, sources
from understudy.data.images import fail
from understudy.data.inputs import inputs_of_part, split_of
from understudy.data.sources import Array, Pair, Reading, Splits
from understudy.data.split import (
    AnySplit,
    Inputs,
    Shape,
    are_classes,
    digest_of,
    held_out,
    numbered,
    refuse_absent,
    sample,
    statistics,
    stratified,
)


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Data:
    """Training, validation and test split of one task. Make one with a `from_` method or `open`.

    Where no validation split is given, one is cut from the training data, stratified, by `seed`; the
    test split is never touched. Processes that are sent a Data share its tensors.
    """

    train: AnySplit
    val: AnySplit
    test: AnySplit | None
    classes: tuple[str, ...]  # none where targets are no classes
    mean: tuple[float, ...]  # per channel of the training split, 0..1; zeros for float images, () for others
    std: tuple[float, ...]  # likewise; ones for float images
    shape: Shape  # channels, height and width of one image; of other lone tensors their own, () of a nesting
    digest: str  # 16 hexadecimal digits of sizes, labels, pixels and normalisation, whatever they came from
    source: str
    val_from_train: bool = False  # whether the validation split was cut from the training data

    def __repr__(self) -> str:
        test = "no" if self.test is None else f"{len(self.test):,}"
        what = "images" if self.are_images else "examples"
        of = f" of {' x '.join(map(str, self.shape))}" if self.shape else ""
        classes = f"{len(self.classes)} classes" if self.classes else "targets" if self.has_targets else "no targets"
        return (
            f"Data({self.source}: {len(self.train):,} training, {len(self.val):,} validation and {test} test {what}"
            f"{of}, {classes})"
        )

    @property
    def splits(self) -> list[tuple[str, AnySplit]]:
        """The splits that there are, by name."""
        return [(name, split) for name in ("train", "val", "test") if (split := getattr(self, name)) is not None]

    @property
    def are_images(self) -> bool:
        """Whether inputs are images, (n, c, h, w), which can be varied and, as pixels, normalised."""
        return bool(self.mean)

    @property
    def has_targets(self) -> bool:
        """Whether there is something to learn besides what a teacher says."""
        return self.train.labels is not None

    def normalise(self, images: Inputs) -> Inputs:
        """Return uint8 images (n, c, h, w) as `(x / 255 - mean) / std`, float images and other inputs as they are."""
        if not self.mean or images.dtype != torch.uint8:
            return images
        mean, std = _per_channel(self.mean, images.device), _per_channel(self.std, images.device)
        return images.to(torch.float32).div_(255).sub_(mean).div_(std)

    def with_normalisation(self, mean: Sequence[float], std: Sequence[float]) -> Data:
        """Return this data with another mean and deviation per channel (0..1), those of a ready teacher.

        Raises:
            DataError: there is not one for each channel, a deviation is not positive, or images are float.
        """
        channels = self.shape[0]
        if not self.are_images or self.train.dtype != torch.uint8:
            raise DataError("float images are taken as normalised already, so they have no normalisation to change")
        try:
            settings = tuple(map(float, mean)), tuple(map(float, std))
        except (TypeError, ValueError):
            settings = (), ()
        finite = all(map(math.isfinite, (*settings[0], *settings[1])))
        if [len(numbers) for numbers in settings] != [channels] * 2 or not finite or min(settings[1]) <= 0:
            raise DataError(
                f"normalisation must be a mean and a positive deviation for each of {channels} channels, "
                f"but got {mean!r} and {std!r}"
            )
        digest = digest_of(self.train, self.val, self.test, settings=settings)
        return replace(self, mean=settings[0], std=settings[1], digest=digest)

    def to(self, device: torch.device | str) -> Data:
        """Return this data with its splits on another device.

        Raises:
            DataError: torch does not know it, or does not find it here.
        """
        refuse_absent(device)
        test = None if self.test is None else self.test.to(device)
        return replace(self, train=self.train.to(device), val=self.val.to(device), test=test)

    @classmethod
    def from_folder(
        cls,
        path: str | Path,
        *,
        size: int | None = None,
        grey: bool | None = None,
        val_fraction: float = 0.1,
        seed: int = 0,
        cache: str | Path | None = None,
        memory_gb: float = 4.0,
        workers: int | None = None,
        progress: bool = True,
    ) -> Data:
        """Return the images of `path/train/<class>/*`, with `val` and `test` beside `train` if there are any.

        Decoded once, in threads, and cached in `cache` (default: `understudy` in the user's cache folder).

        Args:
            path: the folder that holds `train`.
            size: height and width in pixels to bring all images to: shorter side scaled, middle cut out.
            grey: one channel or three; None: grey if the files are.
            val_fraction: share of the training images to cut for validation, in 0..1.
            seed: decides which ones.
            cache: folder for decoded images.
            memory_gb: more decoded gigabytes (10^9) than this are not held but decoded at each use.
            workers: decoding threads; None: one for each core.
            progress: show a bar.

        Raises:
            DataError: folders or images that cannot be used, the first of them named.
        """
        reading = Reading(
            size=size,
            grey=grey,
            cache=None if cache is None else Path(cache),
            memory_gb=memory_gb,
            workers=workers,
            progress=progress,
        )
        return cls._made(
            sources.from_folder(path_of(path, "a folder of images", DataError), reading), None, val_fraction, seed
        )

    @classmethod
    def from_arrays(
        cls,
        images: Array,
        labels: Any,
        *,
        val: Pair | None = None,
        test: Pair | None = None,
        classes: Iterable[str] | None = None,
        val_fraction: float = 0.1,
        seed: int = 0,
        source: str = "arrays",
    ) -> Data:
        """Return arrays or tensors as data; `val` and `test` are pairs of images and labels.

        Images are (n, h, w), (n, h, w, c) or (n, c, h, w), whole numbers 0..255, or floats that are
        normalised already. Labels are (n,), whole numbers from 0. `classes` names them.

        Raises:
            DataError: shapes, pixels or labels that cannot be used.
        """
        splits = sources.from_arrays((images, labels), val, test, source)
        return cls._made(splits, classes, val_fraction, seed)

    @classmethod
    def from_inputs(
        cls,
        inputs: Any,
        targets: Any = None,
        *,
        val: Any = None,
        test: Any = None,
        part: nn.Module | None = None,
        of: nn.Module | None = None,
        val_fraction: float = 0.1,
        seed: int = 0,
        source: str = "inputs",
        memory_gb: float = 4.0,
        progress: bool = True,
    ) -> Data:
        """Return any inputs as data, with targets or without: a heap of inputs is enough to compress a trained module.

        A tensor is a module's one input, a tuple its inputs one after the other, a dict those by name. All tensors
        are (n, ...), float or whole numbers such as tokens; uint8 (n, c, h, w) are pixels, normalised as in
        `from_folder`. Targets (n,) of whole numbers from 0 are classes.

        Args:
            inputs: tensors or arrays; or a dataset or loader of such, whose items are inputs and nothing else.
            targets: tensors or arrays (n, ...), any nesting of them; None: a student learns to agree with its teacher.
            val: inputs to compare students on, a pair (inputs, targets) where there are targets.
            test: inputs for the final figure, likewise.
            part: a module inside `of`, to compress on its own: the data become what it is given there.
            of: the model that runs on `inputs`.
            val_fraction: share of the examples to cut for validation where `val` is not given.
            seed: decides which ones.
            source: a name for the data.
            memory_gb: a dataset of more gigabytes (10^9) is read at each use.
            progress: show a bar.

        Raises:
            DataError: sizes, structures or numbers that cannot be used.
            ModelError: the part is not called exactly once.
        """
        if (part is None) != (of is None):
            raise DataError("the inputs of a part are recorded while its model runs, so part and of are given together")

        def read(given: Any, name: str) -> AnySplit | None:
            if given is None and name != "train":
                return None
            pair = (given, targets) if name == "train" else given if targets is not None else (given, None)
            if not isinstance(pair, tuple) or len(pair) != 2:
                raise DataError(f"{name} must be a pair (inputs, targets), as there are targets to train on")
            split = split_of(pair[0], pair[1], name, labelled=False, memory_gb=memory_gb, progress=progress)
            return split if part is None or of is None else inputs_of_part(part, of, split)

        train = read(inputs, "train")
        assert train is not None
        return cls._made(Splits(train, read(val, "val"), read(test, "test"), None, source), None, val_fraction, seed)

    @classmethod
    def from_npz(
        cls,
        path: str | Path,
        *,
        classes: Iterable[str] | None = None,
        val_fraction: float = 0.1,
        seed: int = 0,
    ) -> Data:
        """Return the arrays of a .npz file: train_images, train_labels (or x_train, y_train), val and test likewise.

        Raises:
            DataError: the file cannot be read or lacks keys, or its arrays cannot be used.
        """
        return cls._made(sources.from_npz(path_of(path, "a .npz file", DataError)), classes, val_fraction, seed)

    @classmethod
    def from_datasets(
        cls,
        train: Any,
        test: Any = None,
        val: Any = None,
        *,
        size: int | None = None,
        grey: bool | None = None,
        classes: Iterable[str] | None = None,
        val_fraction: float = 0.1,
        seed: int = 0,
        memory_gb: float = 4.0,
        workers: int | None = None,
        progress: bool = True,
    ) -> Data:
        """Return the items of torch datasets, or of the datasets of loaders, read once.

        Items are (image, label), the image a PIL image, an array or a tensor; float tensors are taken as
        normalised already. `size` and `grey` are for PIL images; the rest is as in `from_folder`, but
        that items too many to hold are read in one thread unless `workers` says more. Where inputs are no images, or
        targets more than a number, such as masks, both may be any nesting of tensors, as in `from_inputs`.

        Raises:
            DataError: items that cannot be used, or that differ when read again (random transforms).
        """
        reading = Reading(size=size, grey=grey, memory_gb=memory_gb, workers=workers, progress=progress)
        return cls._made(datasets.from_datasets(train, val, test, reading), classes, val_fraction, seed)

    @classmethod
    def from_torchvision(
        cls,
        name: str,
        root: str | Path | None = None,
        *,
        size: int | None = None,
        grey: bool | None = None,
        val_fraction: float = 0.1,
        seed: int = 0,
        memory_gb: float = 4.0,
        workers: int | None = None,
        progress: bool = True,
    ) -> Data:
        """Return a dataset of torchvision, downloaded to `root` (default: in the user's cache folder).

        Raises:
            DataError: torchvision is not installed, or has no such dataset with a train and a test part.
        """
        reading = Reading(size=size, grey=grey, memory_gb=memory_gb, workers=workers, progress=progress)
        splits = datasets.from_torchvision(name, None if root is None else Path(root), reading)
        return cls._made(splits, None, val_fraction, seed)

    @classmethod
    def digits(cls, *, val_fraction: float = 0.1, seed: int = 0) -> Data:
        """Return scikit-learn's 1,797 handwritten digits, 8x8 and grey; the same quarter of them is always the test."""
        images, labels = sources.digits()
        test = stratified(torch.from_numpy(labels), round(len(labels) / 4), seed=0).numpy()
        rest = sorted(set(range(len(labels))) - set(test.tolist()))
        return cls.from_arrays(
            images[rest],
            labels[rest],
            test=(images[test], labels[test]),
            val_fraction=val_fraction,
            seed=seed,
            source="digits",
        )

    @classmethod
    def open(
        cls,
        spec: str | Path,
        *,
        size: int | None = None,
        grey: bool | None = None,
        val_fraction: float = 0.1,
        seed: int = 0,
        cache: str | Path | None = None,
        memory_gb: float = 4.0,
        workers: int | None = None,
        progress: bool = True,
    ) -> Data:
        """Return the data that a text names: "digits", a folder, a .npz file or "torchvision:CIFAR10".

        `size` and `grey` are for folders and torchvision, which is downloaded to `cache`.

        Raises:
            DataError: it names nothing, or the data cannot be used.
        """
        cut: dict[str, Any] = {"val_fraction": val_fraction, "seed": seed}
        reading: dict[str, Any] = {
            "size": size,
            "grey": grey,
            "memory_gb": memory_gb,
            "workers": workers,
            "progress": progress,
        }
        spec = str(path_of(spec, "data", DataError))
        if spec.startswith("torchvision:"):
            return cls.from_torchvision(spec.removeprefix("torchvision:"), cache, **reading, **cut)
        if Path(spec).is_dir() and spec != "digits":
            return cls.from_folder(spec, cache=cache, **reading, **cut)
        if spec != "digits" and not (spec.endswith(".npz") and Path(spec).is_file()):
            found = f"{spec!r} is another file" if Path(spec).exists() else f"there is no {spec!r}{_nearest(spec)}"
            raise DataError(f"data must be 'digits', a folder, a .npz file or 'torchvision:<name>', but {found}")
        if size is not None or grey is not None:
            raise DataError(f"size and grey are for folders and torchvision, but the data is {spec!r}")
        return cls.digits(**cut) if spec == "digits" else cls.from_npz(spec, **cut)

    @classmethod
    @as_usual
    def _made(cls, splits: Splits, classes: Iterable[str] | None, val_fraction: float, seed: int) -> Data:
        check_kind(classes, Iterable | None, "classes must be a list of names", DataError)
        names = splits.classes if classes is None else tuple(map(str, classes))
        if not are_classes(splits.train.labels):
            if classes is not None:
                raise DataError("classes are the names of labels, a whole number for each example: leave them out here")
            names = ()
        elif names is None:
            names = numbered(splits.train)
        _check(splits, names)
        train, val = splits.train, splits.val
        if val is None:
            train, val = held_out(train, val_fraction, seed)
        mean, std = statistics(sample(train))
        return cls(
            train=train,
            val=val,
            test=splits.test,
            classes=names,
            mean=mean,
            std=std,
            shape=train.shape,
            digest=digest_of(train, val, splits.test, settings=(mean, std)),
            source=splits.source,
            val_from_train=splits.val is None,
        )


@lru_cache(maxsize=64)
def _per_channel(values: tuple[float, ...], device: torch.device) -> Float32[Tensor, "c 1 1"]:
    """Return a constant for each channel; kept, so that no step waits until it is on the device."""
    with torch.inference_mode(False):
        return torch.tensor(values, dtype=torch.float32, device=device).view(-1, 1, 1)


def _check(splits: Splits, classes: tuple[str, ...]) -> None:
    faults = []
    first = splits.train
    for name, split in (("train", first), ("val", splits.val), ("test", splits.test)):
        if split is None:
            continue
        if classes:
            wrong = split.labels[(split.labels < 0) | (split.labels >= len(classes))]
            if len(wrong):
                faults.append(
                    f"{len(wrong)} labels of {name} are not in 0..{len(classes) - 1}, the first is {int(wrong[0])}"
                )
        if (form := _form(split)) != _form(first):
            faults.append(f"images of {name} are {form} where those of train are {_form(first)}")
    if classes:
        present = set(first.labels.tolist())
        faults += [f"class {name!r} has no training images" for i, name in enumerate(classes) if i not in present]
        if len(classes) < 2:
            faults.append(f"there must be at least 2 classes, but got {len(classes)}")
    fail(
        "data must be of one shape, with labels that are classes, counted from 0"
        if classes
        else "data must be of one shape",
        faults,
    )


def _form(split: AnySplit) -> str:
    """Return types and shapes of a split's inputs in words."""
    if split.shape:
        return f"{split.dtype} {split.shape}"
    parts = leaves(split.batch(torch.arange(1))[0])
    return ", ".join(f"{name} {tensor.dtype} {tuple(tensor.shape[1:])}" for name, tensor in parts)


def _nearest(spec: str) -> str:
    path = Path(spec)
    beside = [str(path.parent / x.name) for x in path.parent.iterdir()] if path.parent.is_dir() else []
    return did_you_mean(spec, ["digits", "torchvision:CIFAR10", "torchvision:MNIST", *beside])


def first_images(data: Data, split: AnySplit, count: int) -> Inputs:
    """Return the first inputs of a split, images normalised: (count, c, h, w), float32; on the CPU, as teachers are."""
    images, _ = split.batch(torch.arange(min(count, len(split)), device=split.indexed_on))
    return data.normalise(mapped(images, lambda tensor: tensor.cpu()))
