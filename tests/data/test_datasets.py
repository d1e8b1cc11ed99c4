"""Torch datasets, loaders and torchvision."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from operator import itemgetter
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset, TensorDataset

from understudy.core.errors import DataError
from understudy.core.nested import mapped
from understudy.data import Data, Split, StreamedSplit

RNG = np.random.default_rng(0)
COLOUR = RNG.integers(0, 256, (12, 6, 5, 3), dtype=np.uint8)
LABELS = [i % 3 for i in range(12)]
FIRST = torch.from_numpy(COLOUR).permute(0, 3, 1, 2)


class Pictures(Dataset[tuple[Any, int]]):
    """A dataset as torchvision makes them: PIL images with labels, and names of classes."""

    def __init__(self, root: str = "", train: bool = True, download: bool = False) -> None:
        self.arguments = (root, train, download)
        self.classes = ["a", "b", "c"]

    def __len__(self) -> int:
        return 12

    def __getitem__(self, index: int) -> tuple[Any, int]:
        return Image.fromarray(COLOUR[index]), LABELS[index]


def read(train: Any, test: Any = None, val: Any = None, **settings: Any) -> Data:
    return Data.from_datasets(train, test, val, progress=False, **settings)


@pytest.mark.parametrize(
    "dataset",
    [
        Pictures(),
        TensorDataset(FIRST, torch.tensor(LABELS)),
        list(zip(COLOUR, LABELS, strict=True)),
        DataLoader(TensorDataset(FIRST, torch.tensor(LABELS)), batch_size=5, shuffle=True),
    ],
    ids=["pil", "tensors", "arrays", "loader"],
)
def test_datasets_and_loaders_of_pixels_are_as_their_arrays(dataset: Any) -> None:
    data = read(dataset, Subset(Pictures(), [5, 7]))
    expected = Data.from_arrays(COLOUR, LABELS, test=(COLOUR[[5, 7]], [LABELS[5], LABELS[7]]))
    assert data.digest == expected.digest
    assert data.classes == (("a", "b", "c") if isinstance(dataset, Pictures) else ("0", "1", "2"))
    assert data.source == type(getattr(dataset, "dataset", dataset)).__name__


def test_float_items_are_taken_as_normalised_channels_first() -> None:
    images = torch.randn(12, 3, 2, 2)
    data = read(TensorDataset(images, torch.tensor(LABELS)), val=TensorDataset(images, torch.tensor(LABELS)))
    assert isinstance(data.train, Split)
    assert torch.equal(data.train.images, images)
    assert data.mean == (0.0,) * 3


def test_datasets_too_large_to_hold_are_streamed() -> None:
    held, streamed = read(Pictures()), read(Pictures(), memory_gb=0.0)
    assert isinstance(streamed.train, StreamedSplit)
    images, labels = streamed.train.batch(torch.arange(len(streamed.train)))
    assert isinstance(held.train, Split)
    assert torch.equal(images, held.train.images)
    assert torch.equal(labels, held.train.labels)


def test_labels_of_a_streamed_dataset_come_from_its_targets() -> None:
    dataset = Pictures()
    dataset.targets = [2 - label for label in LABELS]  # type: ignore[attr-defined]
    for turned in (True, False):
        train = read(dataset, memory_gb=0.0).train
        assert isinstance(train, StreamedSplit)
        expected = [dataset.targets[i] if turned else LABELS[i] for i in train.items.tolist()]  # type: ignore[attr-defined]
        assert train.labels.tolist() == expected
        dataset.target_transform = abs  # type: ignore[attr-defined]  # now only the items know


def test_size_and_grey_are_for_pil_images() -> None:
    assert read(Pictures(), size=4, grey=True).shape == (1, 4, 4)


def test_random_transforms_are_refused() -> None:
    class Flipped(Pictures):
        def __getitem__(self, index: int) -> tuple[Any, int]:
            image, label = super().__getitem__(index)
            return torch.from_numpy(np.array(image)).permute(2, 0, 1) + torch.randint(9, ()).to(torch.uint8), label

    torch.manual_seed(0)
    with pytest.raises(DataError, match=r"item . of train differs when read again: .* augmentation=Augmentation"):
        read(Flipped())


def test_items_of_different_sizes() -> None:
    def cut(image: Any, i: int) -> Any:
        return image if i < 9 else image[:4]

    items = [(cut(image, i), i % 3) for i, image in enumerate(COLOUR)]
    with pytest.raises(
        DataError, match=r"items of train must be torch.uint8 \(3, 6, 5\).*: item 9 is torch.uint8 \(3, 4, 5\)"
    ):
        read(items)
    pictures = [(Image.fromarray(image), label) for image, label in items]
    with pytest.raises(DataError, match="item 9 of train has 5x4 pixels where the first has 5x6: give size="):
        read(pictures)
    assert read(pictures, size=4).shape == (3, 4, 4)


@pytest.mark.parametrize("memory_gb", [4.0, 0.0])
def test_inputs_that_are_no_images_may_have_labels(memory_gb: float) -> None:
    one, two, tokens = torch.randn(12, 4), torch.randn(12, 3), torch.arange(60).reshape(12, 5)
    for inputs in ((one, two), {"x": one, "y": two}, one, tokens, torch.randn(12, 3, 2, 4, 4)):
        items = [(mapped(inputs, itemgetter(i)), LABELS[i]) for i in range(12)]
        data = read(items, items[:3], memory_gb=memory_gb)
        assert data.classes == ("0", "1", "2")
        expected = Data.from_inputs(
            inputs, torch.tensor(LABELS), test=(mapped(inputs, itemgetter(slice(3))), torch.tensor(LABELS[:3]))
        )
        assert data.digest == expected.digest
        named = read(items, memory_gb=memory_gb, classes=["a", "b", "c"])
        assert named.classes == ("a", "b", "c")


def test_classes_are_of_labels() -> None:
    masks = [(image, torch.zeros(6, 5, dtype=torch.int64)) for image in FIRST]
    with pytest.raises(DataError, match="classes are the names of labels, a whole number for each example"):
        read(masks, classes=["a", "b"])


def test_code_of_a_dataset_that_fails_is_named() -> None:
    class Failing(Pictures):
        def __getitem__(self, index: int) -> tuple[Any, int]:
            raise KeyError(index)

    class Unknown(Pictures):
        def __len__(self) -> int:
            raise NotImplementedError

    class Asked(Pictures):  # names of classes that are a method
        def __init__(self) -> None:
            pass

        def classes(self) -> int:
            return 3

    with pytest.raises(DataError, match="item 0 of train cannot be read: KeyError: 0"):
        read(Failing())
    with pytest.raises(DataError, match="train must know how many items it has, but: NotImplementedError"):
        read(Unknown())
    assert read(Asked()).classes == ("0", "1", "2")


def test_items_that_are_no_examples() -> None:
    class Endless(IterableDataset[int]):
        def __iter__(self) -> Iterator[int]:
            return iter(range(9))

        def __len__(self) -> int:
            return 9

    for dataset, message in (
        ([], "train must have at least one item"),
        ([3, 4], r"items of train must be \(image, label\), but item 0 is int"),
        ([("a", 0), ("b", 1)], "images of train must be numbers"),
        (None, "train must be a dataset with a length and items, but got NoneType"),
        (
            [{"image": 0, "label": 1}],
            r"item 0 is a dict of image, label: give pairs, such as \[\(x\['image'\], x\['label'\]\) for x in",
        ),
        ([(image, 0.5) for image in COLOUR], "give numbers to learn as the targets of Data.from_inputs"),
        (Endless(), "train must be a dataset with a length and items, but got Endless"),
        (7, "train must be a dataset with a length and items, but got int"),
        ([(image, "cat") for image in COLOUR], "labels of train must be whole numbers .*, but got"),
    ):
        with pytest.raises(DataError, match=message):
            read(dataset)


class Splits(Pictures):
    """Torchvision's other way to name the parts."""

    def __init__(self, root: str, split: str = "train", download: bool = False) -> None:
        super().__init__(root, split == "train", download)


class NoTest(Pictures):
    """A dataset with no parts."""

    def __init__(self, root: str) -> None:
        super().__init__(root)


@pytest.fixture
def torchvision(monkeypatch: pytest.MonkeyPatch) -> None:
    package, datasets = ModuleType("torchvision"), ModuleType("torchvision.datasets")
    package.datasets = datasets  # type: ignore[attr-defined]
    datasets.CIFAR10, datasets.SVHN, datasets.FakeData = Pictures, Splits, NoTest  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torchvision", package)
    monkeypatch.setitem(sys.modules, "torchvision.datasets", datasets)


@pytest.mark.usefixtures("torchvision")
@pytest.mark.parametrize("name", ["CIFAR10", "SVHN"])
def test_torchvision_gives_train_and_test(name: str, tmp_path: Any) -> None:
    data = Data.from_torchvision(name, tmp_path, progress=False)
    assert data.digest == read(Pictures(), Pictures()).digest
    assert (data.source, data.classes) == (f"torchvision:{name}", ("a", "b", "c"))
    assert Data.open(f"torchvision:{name}", cache=tmp_path, progress=False).digest == data.digest


@pytest.mark.usefixtures("torchvision")
def test_torchvision_names_are_checked() -> None:
    with pytest.raises(DataError, match=r"no dataset 'CIFAR' \(did you mean 'CIFAR10'\?\)"):
        Data.open("torchvision:CIFAR")
    with pytest.raises(DataError, match=r"must have a train and a test part, but FakeData takes \['root'\]"):
        Data.open("torchvision:FakeData")
