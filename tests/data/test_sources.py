"""Arrays and .npz files: layouts, types, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from understudy.core.errors import DataError
from understudy.data import Data, Split
from understudy.data.sources import as_images, as_labels

RNG = np.random.default_rng(0)
COLOUR = RNG.integers(0, 256, (12, 6, 5, 3), dtype=np.uint8)
GREY = RNG.integers(0, 256, (12, 6, 5), dtype=np.uint8)
LABELS = np.arange(12) % 3


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (COLOUR, COLOUR.transpose(0, 3, 1, 2)),
        (COLOUR.transpose(0, 3, 1, 2), COLOUR.transpose(0, 3, 1, 2)),
        (torch.from_numpy(COLOUR), COLOUR.transpose(0, 3, 1, 2)),
        (GREY, GREY[:, None]),
        (GREY[..., None], GREY[:, None]),
        (GREY[:, None].astype(np.int64), GREY[:, None]),
        (GREY.astype(np.uint16), GREY[:, None]),
        (torch.from_numpy(GREY).to(torch.int32), GREY[:, None]),
        (COLOUR.astype(np.float64), COLOUR.transpose(0, 3, 1, 2).astype(np.float32)),
        (torch.from_numpy(GREY).half(), GREY[:, None].astype(np.float32)),
    ],
)
def test_images_come_out_channels_first(given: Any, expected: np.ndarray) -> None:
    images = as_images(given, "train")
    assert images.is_contiguous()
    assert images.dtype == (torch.float32 if expected.dtype.kind == "f" else torch.uint8)
    assert np.array_equal(images.numpy(), expected)


def test_channels_known_to_come_first_are_not_guessed() -> None:
    assert as_images(torch.zeros(1, 3, 2, 2), "train", channels_first=True).shape == (1, 3, 2, 2)
    assert as_images(torch.zeros(1, 3, 2, 2), "train").shape == (1, 2, 3, 2)


def test_read_only_arrays_are_copied() -> None:
    given = GREY.copy()
    given.flags.writeable = False
    images = as_images(given, "train")
    images += 1
    assert np.array_equal(given, GREY)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (np.zeros((3, 4), np.uint8), r"images of train must be \(n, height, width\), .*, but got shape \(3, 4\)"),
        (np.zeros((0, 4, 4), np.uint8), r"none of them 0, but got shape \(0, 1, 4, 4\)"),
        (torch.zeros(3, 4), r"but got shape \(3, 4\): give other inputs to Data\.from_inputs"),
        (np.full((2, 4, 4), 256), r"pixels of train must be in 0\.\.255, but go from 256 to 256"),
        (np.full((2, 4, 4), -1), "but go from -1 to -1"),
        (np.full((2, 4, 4), np.nan), "images of train must be finite"),
        (np.array(["a", "b"]), r"images of train must be numbers, but got .* of type ndarray"),
    ],
)
def test_images_that_cannot_be_used(given: np.ndarray, message: str) -> None:
    with pytest.raises(DataError, match=message):
        as_images(given, "train")


@pytest.mark.parametrize(
    "given",
    [[0, 2, 1], (0.0, 2.0, 1.0), np.array([[0], [2], [1]], np.uint16), torch.tensor([0, 2, 1], dtype=torch.uint8)],
)
def test_labels_come_out_as_whole_numbers(given: Any) -> None:
    labels = as_labels(given, "train")
    assert labels.dtype == torch.int64
    assert labels.tolist() == [0, 2, 1]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([0, 1.5, 2, 0.25], r"labels of train must be whole numbers, but got \[1\.5, 0\.25\] at \[1, 3\]"),
        ([0.0, float("nan")], r"must be whole numbers, but got \[nan\] at \[1\]"),
        ([0, -1, 1, -1], "must be classes, counted from 0, but 2 are below, the first is -1: leave those images out"),
        (np.eye(3), r"one whole number for each image, but got shape \(3, 3\)"),
        (["cat", "dog"], r"must be whole numbers .*np.unique.*, but got .*cat"),
        ([[0], [1, 2]], "must be whole numbers .*, but got"),
        (None, "must be whole numbers .*, but got 'None' of type NoneType"),
    ],
)
def test_labels_that_cannot_be_used(given: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        as_labels(given, "train")


def test_images_and_labels_must_be_as_many() -> None:
    with pytest.raises(DataError, match="test must have one label for each image, but got 12 images and 11 labels"):
        Data.from_arrays(GREY, LABELS, test=(GREY, LABELS[:11]))


@pytest.mark.parametrize("style", ["{}_images {}_labels", "x_{} y_{}"])
def test_npz_in_both_namings(tmp_path: Path, style: str) -> None:
    names = {part: style.format(part, part).split() for part in ("train", "val", "test")}
    arrays = {names[part][0]: GREY + i for i, part in enumerate(names)}
    np.savez_compressed(tmp_path / "x.npz", **arrays, **{names[part][1]: LABELS[:, None] for part in names})
    data = Data.from_npz(tmp_path / "x.npz", classes=["a", "b", "c"])
    assert (data.classes, data.source) == (("a", "b", "c"), str(tmp_path / "x.npz"))
    for i, split in enumerate((data.train, data.val, data.test)):
        assert isinstance(split, Split)
        assert np.array_equal(split.images.numpy()[:, 0], GREY + i)
        assert split.labels.tolist() == LABELS.tolist()


def test_npz_lacking_keys_lists_those_found(tmp_path: Path) -> None:
    np.savez(tmp_path / "none.npz", images=GREY, labels=LABELS)
    with pytest.raises(DataError, match=r"x_train and y_train, but it holds \['images', 'labels'\]"):
        Data.from_npz(tmp_path / "none.npz")
    np.savez(tmp_path / "half.npz", train_images=GREY, train_labels=LABELS, test_images=GREY)
    with pytest.raises(DataError, match=r"both test_images and test_labels, but it holds \['test_images', 'train_"):
        Data.from_npz(tmp_path / "half.npz")


def test_npz_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "text.npz").write_text("not a zip")
    (tmp_path / "zip.npz").write_bytes(b"PK\x03\x04 cut short")
    np.save(tmp_path / "x.npy", GREY)
    (tmp_path / "x.npy").rename(tmp_path / "one.npz")
    np.savez(tmp_path / "objects.npz", train_images=np.array([{}, 1], dtype=object), train_labels=LABELS)
    for name in ("text", "zip", "one", "objects", "missing"):
        with pytest.raises(DataError, match=rf"{name}\.npz must be a \.npz file of plain arrays, but cannot be read"):
            Data.from_npz(tmp_path / f"{name}.npz")
