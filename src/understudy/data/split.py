"""Splits: examples held as tensors, or decoded when they are asked for."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import numpy as np
import torch
from jaxtyping import Float32, Int, Int64, UInt8
from torch import Tensor

from understudy.core.caller import as_usual
from understudy.core.errors import DataError, whole
from understudy.core.nested import first, leaves, mapped, zipped

Images = UInt8[Tensor, "n c h w"] | Float32[Tensor, "n c h w"]
Inputs = Any
"""What a network takes for n examples: images, or any nesting of tensors (n, ...); see `core.nested.called`."""
Targets = Any
"""Labels (n,), int64, or any nesting of tensors (n, ...), or None."""
Shape = tuple[int, ...]  # of an image: channels, height, width; of another lone tensor its own; () of a nesting

_In = TypeVar("_In")
_Out = TypeVar("_Out")
_SAMPLE = 512  # examples of a streamed split that stand for all of it


@dataclass(frozen=True, eq=False)
class Split:
    """Examples in memory, all of one size.

    `images` are (n, channels, height, width), uint8 pixels or float32 that is normalised already, or other inputs;
    `labels` are (n,), int64, or other targets, or None. Batches come out on the device that the split lies on.
    """

    images: Inputs
    labels: Targets

    def __len__(self) -> int:
        return len(first(self.images))

    @property
    def shape(self) -> Shape:
        """The shape of one image, or of another lone tensor; () of a nesting."""
        return tuple(self.images.shape[1:]) if isinstance(self.images, Tensor) else ()

    @property
    def dtype(self) -> torch.dtype:
        """torch.uint8, or torch.float32 for images that are normalised already; in a nesting that of the first."""
        return first(self.images).dtype  # type: ignore[no-any-return]

    @property
    def device(self) -> torch.device:
        """Where batches come out."""
        return first(self.images).device  # type: ignore[no-any-return]

    @property
    def indexed_on(self) -> torch.device:
        """Where `batch` takes indices from without a copy between devices."""
        return self.device

    def batch(self, indices: Int[Tensor, " b"]) -> tuple[Inputs, Targets]:
        """Return inputs and targets of those examples, on the split's device."""
        indices = sent(indices, self.device)
        return picked(self.images, indices), picked(self.labels, indices)

    def take(self, indices: Int[Tensor, " b"]) -> Split:
        """Return the split of those examples only, in that order."""
        return Split(*self.batch(indices))

    def subset(self, n: int, seed: int) -> Split:
        """Return `n` examples with the classes in proportion, drawn by `seed`, in the split's order."""
        return self.take(drawn(self, n, seed))

    def to(self, device: torch.device | str) -> Split:
        """Return this split on another device."""
        return Split(*(mapped(part, lambda tensor: tensor.to(device)) for part in (self.images, self.labels)))


@dataclass(frozen=True, eq=False)
class StreamedSplit:
    """Examples that are too large to hold: decoded in threads when a batch is asked for.

    It does what a `Split` does but for the attribute `images`.
    """

    read: Callable[[int], Inputs]  # the inputs of an index, as (c, h, w), always the same ones; picklable
    items: Int64[Tensor, " n"]  # the reader's index of each example
    labels: Targets
    shape: Shape  # channels, height and width of one image, or that of another lone tensor
    dtype: torch.dtype
    workers: int = 1  # decoding threads
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    def __len__(self) -> int:
        return len(self.items)

    @property
    def indexed_on(self) -> torch.device:
        """Where `batch` takes indices from without a copy between devices: they say what to read."""
        return torch.device("cpu")

    def batch(self, indices: Int[Tensor, " b"]) -> tuple[Inputs, Targets]:
        """Return inputs and targets of those examples, on the split's device.

        Raises:
            DataError: an example cannot be read; the message names it.
        """
        indices = indices.cpu()
        labels = mapped(picked(self.labels, indices), lambda tensor: sent(tensor, self.device))
        if not len(indices):
            none = zipped([self.read(int(self.items[0]))], lambda parts: torch.stack(parts)[:0])
            return mapped(none, lambda tensor: tensor.to(self.device)), labels
        found = in_threads(self.read, self.items[indices].tolist(), self.workers)
        return mapped(zipped(found, torch.stack), lambda tensor: sent(tensor, self.device)), labels

    def take(self, indices: Int[Tensor, " b"]) -> StreamedSplit:
        """Return the split of those examples only, in that order."""
        indices = indices.cpu()
        return replace(self, items=self.items[indices], labels=picked(self.labels, indices))

    def subset(self, n: int, seed: int) -> StreamedSplit:
        """Return `n` examples with the classes in proportion, drawn by `seed`, in the split's order."""
        return self.take(drawn(self, n, seed))

    def to(self, device: torch.device | str) -> StreamedSplit:
        """Return this split with its batches on another device."""
        return replace(self, device=torch.device(device))


AnySplit = Split | StreamedSplit


def refuse_absent(device: torch.device | str) -> None:
    """Refuse a device that torch does not know, or does not find here.

    Raises:
        DataError: it is one.
    """
    try:
        torch.empty(0, device=device)
    except (RuntimeError, TypeError, AssertionError) as e:  # torch without CUDA asserts that it has it
        raise DataError(f"data go to a device that torch finds here, such as cpu or cuda:0, but got {device!r}") from e


def picked(value: Any, indices: Tensor) -> Any:
    """Return those rows of every tensor of a nesting."""
    return mapped(value, lambda tensor: tensor.index_select(0, indices))


def are_classes(labels: Targets) -> bool:
    """Return whether targets are one class of each example: (n,), whole numbers from 0."""
    return isinstance(labels, Tensor) and labels.ndim == 1 and labels.dtype == torch.int64 and bool((labels >= 0).all())


def numbered(split: AnySplit) -> tuple[str, ...]:
    """Return the names of classes that only have numbers, up to the largest.

    Raises:
        DataError: some of them can have no example.
    """
    largest = int(split.labels.max())
    if largest >= len(split):
        raise DataError(
            "labels must be classes, counted from 0, with training images of each, but the largest of "
            f"{len(split)} is {largest}: number them anew"
        )
    return tuple(str(number) for number in range(largest + 1))


def held_out(split: AnySplit, share: float, seed: int) -> tuple[AnySplit, AnySplit]:
    """Return a split without a share of it, and that share, drawn by `seed`.

    Raises:
        DataError: the share leaves none to train or to validate on, or is no number; the seed is none.
    """
    number = share if isinstance(share, int | float) else math.nan
    count = round(len(split) * number) if 0.0 < number < 1.0 else 0
    if not 0 < count < len(split):
        raise DataError(
            f"val_fraction must leave at least one example to train and one to validate on, but got {share} of "
            f"{len(split)} examples: give another share, or examples of their own (val=)"
        )
    chosen = drawn(split, count, checked_seed(seed), leave=1)
    rest = torch.ones(len(split), dtype=torch.bool)
    rest[chosen] = False
    return split.take(rest.nonzero().flatten()), split.take(chosen)


def checked_seed(seed: Any) -> int:
    """Return a seed that torch takes, or raise DataError."""
    number = whole(seed, "a seed", DataError)
    if not -(2**63) <= number < 2**63:
        raise DataError(f"a seed must have at most 63 bits, but got {number}")
    return number


def tensor_of(given: Any, rule: str) -> Tensor:
    """Return what students can learn from, on the CPU, of a tensor, or of what makes an array.

    Raises:
        DataError: it is none, after that rule, or holds no values.
    """
    if isinstance(given, Tensor):
        if given.is_meta:
            raise DataError(f"{rule}, but got a tensor on the meta device, which has no values")
        if given.is_nested:
            raise DataError(f"{rule}, but got a nested tensor: pad it, x.to_padded_tensor(0.0)")
        found = given.detach().cpu()
        found = found.dequantize() if found.is_quantized else found
        found = found if found.layout is torch.strided else found.to_dense()
        return found.clone() if found.is_inference() else found  # what inference mode made has no place in autograd
    try:
        array = np.asarray(given)
        kind = array.dtype.newbyteorder("=")
        if array.dtype.kind == "u" and array.dtype != np.uint8:  # which torch can hardly calculate with
            kind = np.dtype(np.int64)
        # A read-only array would make a tensor that can be written all the same; of steps backwards torch knows none.
        ready = (
            array.dtype == kind
            and array.dtype.isnative
            and array.flags.writeable
            and min(array.strides, default=0) >= 0
        )
        return torch.from_numpy(array if ready else np.array(array, dtype=kind, order="C"))
    except (TypeError, ValueError) as error:
        raise DataError(f"{rule}, but got {str(given)[:60]!r} of type {type(given).__name__}") from error


def sent(tensor: Tensor, device: torch.device) -> Tensor:
    """Return a tensor on another device; one of the CPU goes to a GPU by way of pinned memory, so that nobody waits.

    Any other copy is waited for: MPS would read memory that is free again (pytorch issue 189690), and the CPU what has
    not arrived from a GPU yet.
    """
    if device.type != "cuda" or tensor.device.type != "cpu":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def in_threads(work: Callable[[_In], _Out], items: list[_In], workers: int) -> list[_Out]:
    """Return `work` of each item, in order, done by that many threads."""
    if workers <= 1:
        return [work(item) for item in items]
    # A pool for each call costs under a millisecond and keeps splits free of state, so they pickle.
    with ThreadPoolExecutor(workers) as pool:
        return list(pool.map(work, items))


@as_usual
def stratified(labels: Int64[Tensor, " n"], count: int, seed: int, *, leave: int = 0) -> Int64[Tensor, " m"]:
    """Return `count` indices, ascending, with the classes in proportion, drawn by `seed`.

    Each class gives its share rounded down; what is missing comes from those that lost most by it.
    At least `leave` examples of each class are not drawn.

    Raises:
        DataError: there are not that many examples.
    """
    labels = labels.cpu()
    sizes = (torch.bincount(labels) - leave).clamp(min=0)
    total = int(sizes.sum())
    if not 0 <= count <= total:
        stay = f", as {leave} of each class must stay: give more, or a validation split of its own" if leave else ""
        raise DataError(f"a subset of these examples must have 0..{total} of them, but got {count}{stay}")
    # Whole numbers all the way: the shares must not hang on rounding.
    shares = sizes * count // max(total, 1)
    lost = sizes * count % max(total, 1)
    more = torch.argsort(lost, descending=True, stable=True)[: count - int(shares.sum())]
    shares[more] += 1
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.zeros(len(labels), dtype=torch.bool)
    for label, share in enumerate(shares.tolist()):
        members = torch.nonzero(labels == label).flatten()
        chosen[members[torch.randperm(len(members), generator=generator)[:share]]] = True
    return chosen.nonzero().flatten()


def drawn(split: AnySplit, count: int, seed: int, *, leave: int = 0) -> Int64[Tensor, " m"]:
    """Return `count` indices, ascending, drawn by `seed`: with the classes in proportion where there are any.

    Raises:
        DataError: there are not that many examples.
    """
    labels = split.labels if are_classes(split.labels) else torch.zeros(len(split), dtype=torch.int64)
    return stratified(labels, count, seed, leave=leave)


def sample(split: AnySplit) -> Inputs:
    """Return inputs that stand for the split: all of it in memory, else some hundred evenly spaced."""
    if isinstance(split, Split):
        return split.images
    count = min(len(split), _SAMPLE)
    return split.batch(torch.linspace(0, len(split) - 1, count).long())[0]


def statistics(images: Inputs) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation per channel in units of 0..1: zeros and ones for float images, () for others.

    A channel of one value has the deviation 1, so that it can be divided by.
    """
    if not isinstance(images, Tensor) or images.ndim != 4:
        return (), ()
    channels = images.shape[1]
    if images.dtype != torch.uint8:
        return (0.0,) * channels, (1.0,) * channels
    levels = torch.arange(256, dtype=torch.float64) / 255
    means, deviations = [], []
    for channel in range(channels):
        # Counts of the 256 levels are exact, whatever the number of images.
        counts = torch.bincount(images[:, channel].reshape(-1), minlength=256).cpu().double()
        mean = (counts * levels).sum() / counts.sum()
        deviation = ((counts * (levels - mean) ** 2).sum() / counts.sum()).sqrt()
        means.append(float(mean))
        deviations.append(float(deviation) if torch.count_nonzero(counts) > 1 else 1.0)
    return tuple(means), tuple(deviations)


def update_digest(digest: Any, split: AnySplit | None) -> None:
    """Feed a hashlib object sizes, labels and pixels: all of them in memory, else of a sample."""
    if split is None:
        digest.update(b"none")
        return
    images = sample(split)
    digest.update(repr((len(split), split.shape, str(split.dtype))).encode())
    for name, tensor in leaves(split.labels):
        digest.update(name.encode() + tensor.cpu().contiguous().numpy().tobytes())
    for name, tensor in leaves(images):
        digest.update(name.encode())
        for chunk in tensor.split(4096):
            digest.update(chunk.cpu().contiguous().numpy().data)


def digest_of(*splits: AnySplit | None, settings: object = ()) -> str:
    """Return 16 hexadecimal digits of what the splits hold and of `settings`."""
    digest = hashlib.sha256(repr(settings).encode())
    for split in splits:
        update_digest(digest, split)
    return digest.hexdigest()[:16]
