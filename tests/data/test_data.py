"""Data: the cut of the validation split, normalisation, digest, and what a text opens."""

from __future__ import annotations

import math
import subprocess
import sys
from dataclasses import replace
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from understudy.config.training import Augmentation
from understudy.core.errors import DataError
from understudy.data import Data, Split, Views
from understudy.data.data import _per_channel, first_images


def arrays(n: int = 40, classes: int = 4, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    images = np.random.default_rng(seed).integers(0, 256, (n, 6, 5, 3), dtype=np.uint8)
    return images, np.arange(n) % classes


def pixels(split: object) -> torch.Tensor:
    assert isinstance(split, Split)
    return split.images


def test_validation_is_cut_from_training_in_proportion() -> None:
    images, labels = arrays(60)
    data = Data.from_arrays(images, labels, val_fraction=0.2, seed=3)
    assert torch.bincount(data.val.labels).tolist() == [3, 3, 3, 3]
    assert torch.bincount(data.train.labels).tolist() == [12, 12, 12, 12]
    assert data.test is None
    both = torch.cat([pixels(data.train), pixels(data.val)]).flatten(1).unique(dim=0)
    assert torch.equal(both, torch.from_numpy(images).permute(0, 3, 1, 2).flatten(1).unique(dim=0))


def test_the_cut_depends_on_the_seed_alone() -> None:
    one, same, other = (Data.from_arrays(*arrays(), seed=seed) for seed in (0, 0, 1))
    assert torch.equal(pixels(one.val), pixels(same.val))
    assert not torch.equal(pixels(one.val), pixels(other.val))
    assert one.digest == same.digest != other.digest


def test_a_given_validation_split_is_taken_and_the_test_is_never_touched() -> None:
    train, val, test = arrays(), arrays(12, seed=1), arrays(16, seed=2)
    data = Data.from_arrays(*train, val=val, test=test)
    for split, (images, labels) in ((data.train, train), (data.val, val), (data.test, test)):
        assert torch.equal(pixels(split).permute(0, 2, 3, 1), torch.from_numpy(images))
        assert split is not None
        assert split.labels.tolist() == labels.tolist()
    assert torch.equal(pixels(Data.from_arrays(*train, test=test).test), pixels(data.test))


def test_the_cut_leaves_every_class_something_to_train_on() -> None:
    labels = np.array([0] * 30 + list(range(1, 10)))
    data = Data.from_arrays(arrays(39)[0], labels, val_fraction=0.5)
    assert set(data.train.labels.tolist()) == set(range(10))


def test_one_image_of_each_class_cannot_be_cut() -> None:
    with pytest.raises(DataError, match="as 1 of each class must stay: give more, or a validation split of its own"):
        Data.from_arrays(torch.zeros(10, 8, 8), torch.arange(10))


@pytest.mark.parametrize("share", [0.0, 1.0, -0.1, 0.001])
def test_a_share_that_leaves_nothing_is_refused(share: float) -> None:
    with pytest.raises(DataError, match=f"at least one example to train and one to validate on, but got {share} of 40"):
        Data.from_arrays(*arrays(), val_fraction=share)


OTHER_KINDS = """
import numpy as np
import understudy as us
from understudy.core.errors import DataError

images, labels = np.zeros((40, 6, 5, 3), dtype=np.uint8), np.arange(40) % 4
made = us.Data.from_arrays
data = made(images, labels)
norm = "normalisation must be a mean and a positive deviation for each of 3 channels"
for call, rule in (
    (lambda: made(images, labels, val_fraction="a"), "val_fraction must leave at least one example"),
    (lambda: made(images, labels, seed=1.5), "a seed must be a whole number, but got 1.5"),
    (lambda: made(images, labels, seed=2**70), "a seed must have at most 63 bits"),
    (lambda: made(images, labels, classes=3), "classes must be a list of names, but got an int"),
    (lambda: made(images, labels, val=images), "val must be a pair (images, labels), but got an ndarray"),
    (lambda: made(images, labels, val=(images, labels, 3)), "val must be a pair (images, labels), but got a tuple"),
    (lambda: made(images, labels * 10**9), "with training images of each, but the largest of 40 is 3000000000"),
    (lambda: made(images * 1j, labels), "images of train must be real numbers, but are torch.complex"),
    (lambda: data.with_normalisation(None, None), norm),
    (lambda: data.with_normalisation("abc", "abc"), norm),
    (lambda: data.with_normalisation([None] * 3, [1.0] * 3), norm),
    (lambda: us.Data.from_folder(3), "a folder of images must be a path"),
    (lambda: us.Data.from_datasets([(images[0], 1)], memory_gb="4"), "memory_gb must be a number of gigabytes"),
):
    try:
        call()
    except DataError as error:
        assert rule in str(error), error
    else:
        raise AssertionError(rule)
"""


def test_what_is_of_another_kind_is_refused() -> None:
    # In a process of its own: here the annotations are checked before.
    done = subprocess.run([sys.executable, "-c", OTHER_KINDS], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_arrays_of_any_layout_are_as_good() -> None:
    images, labels = arrays()
    turned = Data.from_arrays(images[::-1].copy()[::-1], labels.astype(">i8"))
    assert turned.digest == Data.from_arrays(images, labels).digest


def test_normalised_training_images_have_mean_zero_and_deviation_one() -> None:
    data = Data.from_arrays(*arrays(400))
    given = pixels(data.train)
    images = data.normalise(given)
    assert images.dtype == torch.float32
    assert images.mean((0, 2, 3)).abs().max() < 1e-5
    assert (images.std((0, 2, 3), correction=0) - 1).abs().max() < 1e-5
    mean, std = (torch.tensor(x).view(3, 1, 1) for x in (data.mean, data.std))
    assert torch.equal(images, (given.float() / 255 - mean) / std)
    assert given.dtype == torch.uint8


def test_normalisation_does_not_hang_on_what_was_the_default_kind_of_numbers_before() -> None:
    data = Data.from_arrays(*arrays()).with_normalisation([0.3, 0.1, 0.7], [0.1, 0.3, 0.7])
    torch.set_default_dtype(torch.float64)
    try:
        odd = data.normalise(data.train.images)
    finally:
        torch.set_default_dtype(torch.float32)
    usual = data.normalise(data.train.images)
    _per_channel.cache_clear()
    assert torch.equal(data.normalise(data.train.images), usual) and torch.equal(odd, usual)


def test_normalisation_can_be_a_teachers_own() -> None:
    data = Data.from_arrays(*arrays())
    other = data.with_normalisation([0.5] * 3, [0.25] * 3)
    assert torch.equal(other.normalise(torch.full((1, 3, 1, 1), 255, dtype=torch.uint8)), torch.full((1, 3, 1, 1), 2.0))
    assert other.digest != data.digest
    assert other.with_normalisation(data.mean, data.std).digest == data.digest
    assert other.train is data.train


@pytest.mark.parametrize(
    ("mean", "std"),
    [([0.5], [0.5]), ([0.5] * 3, [0.5] * 2), ([0.5] * 3, [0.5, 0.0, 0.5]), ([0.5, 0.5, math.nan], [0.5] * 3)],
)
def test_a_normalisation_needs_a_mean_and_a_positive_deviation_per_channel(mean: list[float], std: list[float]) -> None:
    with pytest.raises(DataError, match="a mean and a positive deviation for each of 3 channels"):
        Data.from_arrays(*arrays()).with_normalisation(mean, std)


class Crossings(TorchDispatchMode):
    """Notes each operation that takes a tensor to another device."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        tensors = [x for x in args if isinstance(x, torch.Tensor)]
        if isinstance(out, torch.Tensor) and any(x.device != out.device for x in tensors):
            self.seen.append(str(func))
        return out


def test_a_batch_is_made_where_its_epoch_and_split_are() -> None:
    # The meta device stands for any: a copy to or from it is one that a step would wait for.
    meta = torch.device("meta")
    data = Data.from_arrays(*arrays()).to(meta)
    augmentation = Augmentation(crop=1, flip=True)
    epoch = Views(len(data.train), augmentation, seed=0).epoch(0).to(meta)

    def batch() -> torch.Tensor:
        indices = epoch.order[:8]
        images, _ = data.train.batch(indices)
        return data.normalise(epoch.apply(images, indices))

    batch()  # the constants of the normalisation are made once
    with Crossings() as crossings:
        assert batch().device == meta
        assert crossings.seen == []
        Views(8, augmentation, seed=0).epoch(0).to(meta)
        assert crossings.seen == ["aten._to_copy.default"] * 2


def test_float_images_are_taken_as_normalised() -> None:
    images, labels = arrays()
    data = Data.from_arrays(images.astype(np.float64) / 17, labels)
    assert (data.mean, data.std, data.train.dtype) == ((0.0,) * 3, (1.0,) * 3, torch.float32)
    assert data.normalise(pixels(data.train)) is pixels(data.train)
    with pytest.raises(DataError, match="float images are taken as normalised already"):
        data.with_normalisation([0.0] * 3, [1.0] * 3)


def test_data_moves_to_a_device(device: torch.device) -> None:
    data = Data.from_arrays(*arrays(), test=arrays(8)).to(device)
    for split in (data.train, data.val, data.test):
        assert split is not None
        images, labels = split.batch(torch.tensor([1, 0]))
        assert data.normalise(images).device.type == labels.device.type == device.type
    assert data.with_normalisation(data.mean, data.std).digest == data.digest
    assert data.train.subset(8, seed=0).device.type == device.type


def test_first_images_are_on_the_cpu_as_networks_are_that_they_are_shown_to(device: torch.device) -> None:
    data = Data.from_arrays(*arrays()).to(device)
    assert first_images(data, data.val, 2).device.type == "cpu"
    with torch.no_grad(), FakeTensorMode():  # which knows devices that are not there
        there = Split(torch.zeros(4, 1, 8, 8, dtype=torch.uint8, device="cuda"), torch.zeros(4, device="cuda").long())
        assert first_images(replace(data, val=there, mean=(), std=()), there, 2).device.type == "cpu"


@pytest.mark.parametrize("where", ["nonsense", "cuda:99"])
def test_a_device_that_torch_does_not_find_is_refused(where: str) -> None:
    with pytest.raises(DataError, match="data go to a device that torch finds here, such as cpu or cuda:0, but got"):
        Data.from_arrays(*arrays()).to(where)


def test_data_reaches_another_process_by_shared_memory() -> None:
    data = Data.from_arrays(*arrays(4000))
    assert len(ForkingPickler.dumps(data)) < 5_000


def test_digits_are_split_once_and_for_all() -> None:
    data = Data.digits()
    assert (len(data.train), len(data.val), data.shape, data.source) == (1213, 135, (1, 8, 8), "digits")
    assert data.test is not None and len(data.test) == 449
    assert data.classes == tuple("0123456789")
    other = Data.digits(seed=1)
    assert torch.equal(pixels(data.test), pixels(other.test))
    assert not torch.equal(pixels(data.val), pixels(other.val))
    assert sum(len(x) for x in (data.train, data.val, data.test)) == 1797
    assert set(pixels(data.train).unique().tolist()) == {round(level * 255 / 16) for level in range(17)}


def test_labels_and_shapes_are_checked_all_at_once() -> None:
    images, labels = arrays(40)
    with pytest.raises(DataError) as error:
        Data.from_arrays(
            images,
            np.where(labels == 2, 7, labels),
            val=(images[:, :5], labels),
            test=(images, labels + 1),
            classes=["a", "b", "c", "d"],
        )
    assert str(error.value) == (
        "data must be of one shape, with labels that are classes, counted from 0: 10 labels of train are not in 0..3, "
        "the first is 7; "
        "images of val are torch.uint8 (3, 5, 5) where those of train are torch.uint8 (3, 6, 5); "
        "10 labels of test are not in 0..3, the first is 4; class 'c' has no training images"
    )


def test_classes_are_as_many_as_the_labels_say() -> None:
    images, labels = arrays()
    assert Data.from_arrays(images, labels).classes == ("0", "1", "2", "3")
    assert Data.from_arrays(images, labels, classes=iter("abcd")).classes == ("a", "b", "c", "d")
    with pytest.raises(DataError, match="class '1' has no training images; class '3' has no"):
        Data.from_arrays(images, labels * 2)
    with pytest.raises(DataError, match="at least 2 classes, but got 1"):
        Data.from_arrays(images, labels * 0)
    with pytest.raises(DataError, match=r"10 labels of test are not in 0\.\.3, the first is 4"):
        Data.from_arrays(images, labels, test=(images, labels + 1))


def test_open_reads_what_a_text_names(tmp_path: Path) -> None:
    images, labels = arrays()
    np.savez(tmp_path / "x.npz", train_images=images, train_labels=labels)
    assert Data.open(tmp_path / "x.npz", seed=1).digest == Data.from_arrays(images, labels, seed=1).digest
    assert Data.open("digits", val_fraction=0.2).digest == Data.digits(val_fraction=0.2).digest


def test_open_names_the_nearest(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    for spec, nearest in (("digit", "digits"), (f"{tmp_path}/photo", f"{tmp_path}/photos")):
        for size in (None, 16):
            with pytest.raises(DataError) as error:
                Data.open(spec, size=size)
            assert str(error.value) == (
                f"data must be 'digits', a folder, a .npz file or 'torchvision:<name>', but there is no {spec!r} "
                f"(did you mean {nearest!r}?)"
            )
    with pytest.raises(DataError, match=r"but '.*test_data.py' is another file"):
        Data.open(__file__, size=16)
    with pytest.raises(DataError, match="size and grey are for folders and torchvision, but the data is 'digits'"):
        Data.open("digits", size=16)
