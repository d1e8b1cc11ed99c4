"""Splits: taking, subsets in proportion, statistics and digests."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from understudy.core.errors import DataError
from understudy.data import AnySplit, Split, StreamedSplit
from understudy.data.split import digest_of, sample, statistics, stratified


@dataclass(frozen=True)
class Held:
    """Reads examples from a tensor, as if they were files."""

    images: Tensor

    def __call__(self, index: int, /) -> Tensor:
        return self.images[index]


def held(n: int = 20) -> Split:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (n, 3, 4, 5), generator=generator, dtype=torch.uint8)
    return Split(images, torch.arange(n) % 3)


def streamed(split: Split, workers: int = 1) -> StreamedSplit:
    items = torch.arange(len(split))
    return StreamedSplit(Held(split.images), items, split.labels, split.shape, split.dtype, workers)


KINDS = [held, lambda: streamed(held()), lambda: streamed(held(), workers=3)]


@pytest.mark.parametrize("make", KINDS, ids=["held", "streamed", "threads"])
def test_both_kinds_of_split_do_the_same(make: Callable[[], AnySplit], device: torch.device) -> None:
    split, images = make().to(device), held().images
    assert len(split) == 20
    assert (split.shape, split.dtype, split.device.type) == ((3, 4, 5), torch.uint8, device.type)
    indices = torch.tensor([7, 0, 19])
    for some, expected in (
        (split.batch(indices), indices),
        (split.batch(indices.to(device)), indices),
        (split.take(indices).batch(torch.tensor([2, 1])), torch.tensor([19, 0])),
        (split.batch(torch.tensor([], dtype=torch.int64)), torch.tensor([], dtype=torch.int64)),
    ):
        assert some[0].device.type == some[1].device.type == device.type
        assert torch.equal(some[0].cpu(), images[expected])
        assert torch.equal(some[1].cpu(), expected % 3)


@pytest.mark.parametrize("make", KINDS[:2], ids=["held", "streamed"])
def test_subset_is_the_same_for_both_kinds(make: Callable[[], AnySplit]) -> None:
    some = make().subset(9, seed=4)
    assert torch.bincount(some.labels).tolist() == [3, 3, 3]
    assert torch.equal(some.batch(torch.arange(9))[0], held().images[stratified(held().labels, 9, 4)])


@pytest.mark.parametrize("make", KINDS, ids=["held", "streamed", "threads"])
def test_splits_pickle(make: Callable[[], AnySplit]) -> None:
    again = pickle.loads(pickle.dumps(make()))
    assert torch.equal(again.batch(torch.arange(20))[0], held().images)


@given(st.lists(st.integers(0, 4), min_size=1, max_size=60), st.data())
def test_stratified_gives_each_class_its_share(values: list[int], data: st.DataObject) -> None:
    labels = torch.tensor(values)
    count = data.draw(st.integers(0, len(values)))
    chosen = stratified(labels, count, seed=0)
    assert len(chosen) == count
    assert chosen.tolist() == sorted(set(chosen.tolist()))
    sizes = torch.bincount(labels)
    got = torch.bincount(labels[chosen], minlength=len(sizes))
    assert bool(((got - sizes * count / len(values)).abs() < 1).all())


@given(st.lists(st.integers(0, 4), min_size=1, max_size=60), st.data())
def test_stratified_leaves_some_of_each_class(values: list[int], data: st.DataObject) -> None:
    labels = torch.tensor(values)
    spare = int((torch.bincount(labels) - 1).clamp(min=0).sum())
    count = data.draw(st.integers(0, spare))
    chosen = stratified(labels, count, seed=0, leave=1).tolist()
    assert len(chosen) == count
    assert {label for i, label in enumerate(values) if i not in chosen} == set(values)


def test_stratified_depends_on_the_seed_alone() -> None:
    labels = torch.arange(300) % 7
    before = torch.get_rng_state()
    assert torch.equal(stratified(labels, 50, 0), stratified(labels, 50, 0))
    assert not torch.equal(stratified(labels, 50, 0), stratified(labels, 50, 1))
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("count", [-1, 21])
def test_a_subset_cannot_be_larger_than_the_split(count: int) -> None:
    with pytest.raises(DataError, match=rf"must have 0\.\.20 of them, but got {count}"):
        held().subset(count, seed=0)


def test_statistics_are_those_of_the_pixels() -> None:
    images = held(200).images
    mean, std = statistics(images)
    exact = images.double().div(255)
    torch.testing.assert_close(torch.tensor(mean).double(), exact.mean((0, 2, 3)).float().double())
    torch.testing.assert_close(
        torch.tensor(std).double(), exact.transpose(0, 1).flatten(1).std(1, correction=0).float().double()
    )


def test_a_channel_of_one_value_can_be_divided_by_its_deviation() -> None:
    images = torch.full((4, 2, 3, 3), 51, dtype=torch.uint8)
    images[0, 1, 0, 0] = 52
    mean, std = statistics(images)
    assert mean[0] == 51 / 255
    assert std[0] == 1.0
    assert 0 < std[1] < 0.001


def test_float_images_have_no_statistics() -> None:
    assert statistics(torch.rand(4, 3, 2, 2)) == ((0.0,) * 3, (1.0,) * 3)


def test_digest_is_of_sizes_labels_and_every_pixel() -> None:
    split = held(5000)
    images = split.images.clone()
    images[4321, 1, 2, 3] ^= 1
    labels = split.labels.clone()
    labels[4999] = 0
    others = [
        digest_of(Split(images, split.labels)),
        digest_of(Split(split.images, labels)),
        digest_of(Split(split.images.view(5000, 3, 5, 4), split.labels)),
        digest_of(split, None),
        digest_of(split, split),
        digest_of(split, settings=1),
        digest_of(split.take(torch.arange(4999))),
    ]
    assert digest_of(split) == digest_of(held(5000))
    assert len({digest_of(split), *others}) == 8
    assert len(digest_of(split)) == 16


def test_a_streamed_split_is_known_by_a_sample() -> None:
    split = held(2000)
    images = sample(streamed(split))
    assert len(images) == 512
    assert torch.equal(images[0], split.images[0])
    assert torch.equal(images[-1], split.images[-1])
    assert sample(split) is split.images
    assert digest_of(streamed(split)) == digest_of(streamed(held(2000)))
    other = replace(split, images=split.images ^ 1)
    assert digest_of(streamed(split)) != digest_of(streamed(other))
