from __future__ import annotations

import warnings
from collections.abc import Iterator
from itertools import count
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from understudy.core.errors import DataError, ModelError
from understudy.data import Data, Split, StreamedSplit

TOKENS = torch.arange(60).view(20, 3)


class Items(Dataset[Any]):
    """Items that any function makes of a number."""

    def __init__(self, make: Any, count: int = 20) -> None:
        self.make, self.count = make, count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Any:
        return self.make(index)


def make_dict(index: int) -> dict[str, Any]:
    return {"ids": TOKENS[index], "mask": torch.ones(3), "two": (float(index), np.float32(index))}


def test_tensors_alone_in_tuples_and_in_dicts() -> None:
    for inputs in (TOKENS, (TOKENS, TOKENS.float()), {"ids": TOKENS.numpy(), "more": (TOKENS.double(),)}):
        data = Data.from_inputs(inputs)
        assert (len(data.train), len(data.val), data.test) == (18, 2, None)
        assert not data.has_targets and not data.are_images and data.classes == ()
    assert repr(data) == "Data(inputs: 18 training, 2 validation and no test examples, no targets)"
    batch, targets = data.train.batch(torch.tensor([0, 1]))
    assert targets is None and batch["ids"].dtype == torch.int64 and batch["more"][0].dtype == torch.float32
    assert data.normalise(batch) is batch


def test_images_are_normalised_and_labels_are_classes() -> None:
    pixels = torch.randint(0, 256, (20, 1, 4, 4), dtype=torch.uint8)
    data = Data.from_inputs(pixels, torch.arange(20) % 2)
    assert data.are_images and data.classes == ("0", "1") and data.shape == (1, 4, 4)
    assert data.normalise(data.train.batch(torch.arange(18))[0]).mean().abs() < 1e-5
    same = Data.from_arrays(pixels, torch.arange(20) % 2)
    assert same.digest == data.digest


def test_loaders_and_datasets_are_read_in_order_whatever_they_shuffle() -> None:
    data = Data.from_inputs(DataLoader(TensorDataset(TOKENS), batch_size=7, shuffle=True))
    assert data.digest == Data.from_inputs(TOKENS).digest
    again = Data.from_inputs(Items(make_dict), progress=False)
    batch, _ = again.train.batch(torch.arange(18))
    assert batch["two"][0].dtype == torch.float32 and batch["ids"].shape == (18, 3)
    batches = Data.from_inputs(iter([{"ids": TOKENS[:9]}, {"ids": TOKENS[9:]}]))
    assert len(batches.train) == 18


def test_what_is_too_large_is_read_at_each_use() -> None:
    held, streamed = (Data.from_inputs(Items(make_dict), memory_gb=gb, progress=False) for gb in (1.0, 1e-9))
    assert isinstance(streamed.train, StreamedSplit)
    for one, other in zip(held.train.batch(torch.arange(5)), streamed.train.batch(torch.arange(5)), strict=True):
        assert str(one) == str(other)


def test_a_validation_split_and_targets_of_any_structure() -> None:
    targets = {"angle": torch.rand(20), "mask": torch.zeros(20, 3, 3, dtype=torch.uint8)}
    data = Data.from_inputs(TOKENS, targets, val=(TOKENS[:4], {name: t[:4] for name, t in targets.items()}))
    assert data.has_targets and len(data.train) == 20 and len(data.val) == 4 and not data.val_from_train
    assert data.val.labels["mask"].dtype == torch.int64
    with pytest.raises(DataError, match=r"val must be a pair \(inputs, targets\)"):
        Data.from_inputs(TOKENS, torch.rand(20), val=TOKENS)


def test_datasets_whose_targets_are_more_than_a_number() -> None:
    pixels = torch.randint(0, 256, (20, 1, 4, 4), dtype=torch.uint8)
    masks = (pixels[:, 0] > 100).long()
    data = Data.from_datasets(TensorDataset(pixels, masks), test=TensorDataset(pixels[:5], masks[:5]), progress=False)
    assert data.are_images and data.classes == () and data.has_targets
    assert torch.equal(data.test.labels, masks[:5]) and data.train.labels.shape == (18, 4, 4)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (Items(lambda i: torch.zeros(3 + i % 2)), "must be of one size and structure"),
        (Items(lambda i: {"a" if i % 2 else "b": torch.zeros(3)}), "size and structure, but: not all have 'b'"),
        (Items(lambda i: torch.rand(3)), "must be the same each time, but item 0 of train differs"),
        (Items(lambda i: torch.zeros(3), 0), "at least one item"),
        ([TOKENS[0], TOKENS[1, :2]], "must be of one size and structure"),
        ({"a": TOKENS, "b": TOKENS[:5]}, r"20 as the first, and at least one: input b is \(5, 3\)"),
        (torch.full((20, 2), float("nan")), "must be finite"),
        ({"a": object()}, "must be tensors or arrays"),
        (torch.zeros(20, 3, device="meta"), "on the meta device, which has no values"),
        (
            torch.nested.as_nested_tensor([torch.zeros(3), torch.zeros(2)], layout=torch.jagged),
            "but got a nested tensor: pad it",
        ),
        (5, "train must hold inputs, but got int"),
        ({}, "there are none"),
    ],
)
def test_bad_inputs_are_one_error(inputs: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        Data.from_inputs(inputs, progress=False)


def test_what_has_no_end_is_not_read_for_ever() -> None:
    with pytest.raises(DataError, match=r"must fit memory_gb = 1e-05 gigabytes, but there are more: give a dataset"):
        Data.from_inputs((torch.zeros(2, 3) for _ in count()), memory_gb=1e-5, progress=False)


def test_arrays_of_any_layout_are_taken() -> None:
    tokens = TOKENS.numpy()
    for given in (tokens[::-1].copy()[::-1], tokens.astype(">i8"), tokens.astype(np.uint16)):
        read = Data.from_inputs(given, progress=False)
        assert torch.equal(read.train.images, Data.from_inputs(TOKENS, progress=False).train.images)
    floats = torch.rand(20, 3)
    assert torch.equal(Data.from_inputs(floats.to_sparse()).train.images, Data.from_inputs(floats).train.images)
    with warnings.catch_warnings(action="ignore"):  # of torch, which has something newer
        eighths = torch.quantize_per_tensor(TOKENS / 8, 0.125, 0, torch.quint8)
    assert torch.equal(Data.from_inputs(eighths).train.images, Data.from_inputs(TOKENS / 8).train.images)


def test_what_is_iterated_item_by_item_is_no_batch() -> None:
    class Once(IterableDataset[Tensor]):
        def __iter__(self) -> Iterator[Tensor]:
            return iter(TOKENS)

    alone, loaded = (Data.from_inputs(given, progress=False) for given in (Once(), DataLoader(Once(), batch_size=6)))
    assert alone.digest == loaded.digest == Data.from_inputs(TOKENS, progress=False).digest


class Twice(nn.Module):
    def __init__(self, times: int) -> None:
        super().__init__()
        self.first, self.part, self.times = nn.Linear(3, 4), nn.Linear(4, 4), times

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for _ in range(self.times):
            x = self.part(x)
        return x


def test_the_inputs_of_a_part_are_recorded() -> None:
    model = Twice(1).train()
    data = Data.from_inputs(TOKENS.float(), part=model.part, of=model)
    wanted = model.first(TOKENS.float())
    rows = torch.cat([data.train.images, data.val.images])
    assert torch.allclose(rows.sum(0), wanted.sum(0), atol=1e-4) and rows.shape == (20, 4)
    assert model.training and not model.part._forward_pre_hooks


def test_a_part_that_is_called_twice_is_refused() -> None:
    model = Twice(2)
    with pytest.raises(ModelError, match="called once in a forward pass, but this one is called 2 times"):
        Data.from_inputs(TOKENS.float(), part=model.part, of=model)
    with pytest.raises(ModelError, match="not in it"):
        Data.from_inputs(TOKENS.float(), part=nn.Linear(3, 3), of=model)
    with pytest.raises(DataError, match="given together"):
        Data.from_inputs(TOKENS.float(), part=model.part)


def test_what_inference_mode_made_can_be_learned_from() -> None:
    with torch.inference_mode():
        features, labels = torch.randn(20, 3), torch.arange(20) % 2
    for data in (Data.from_inputs(features, labels), Data.from_arrays(features.view(20, 1, 1, 3), labels)):
        assert isinstance(data.train, Split)
        assert not data.train.images.is_inference() and not data.train.labels.is_inference()


class Broken(Dataset[Any]):
    """Three items, and one that cannot be read."""

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> Any:
        if index == 3:
            raise ZeroDivisionError("no such scan")
        return torch.full((1, 2, 2), float(index)), index % 2


@pytest.mark.parametrize("read", [Data.from_datasets, Data.from_inputs])
def test_an_item_that_cannot_be_read_is_named(read: Any) -> None:
    with pytest.raises(DataError, match="item 3 of train cannot be read: ZeroDivisionError: no such scan"):
        read(Broken(), progress=False)


def test_an_iteration_that_fails_is_one_error() -> None:
    def batches() -> Iterator[Tensor]:
        yield torch.rand(4, 3)
        raise OSError("the stream broke")

    with pytest.raises(DataError, match=r"^batch 1 of train cannot be read: OSError: the stream broke$"):
        Data.from_inputs(batches())
