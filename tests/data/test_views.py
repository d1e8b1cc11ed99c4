"""Views: what an example looks like depends on the seed, the epoch and its index alone."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from understudy.config.training import Augmentation
from understudy.core.errors import ConfigError
from understudy.data import Data, Epoch, Views
from understudy.data.views import check_augmentation

ALL = Augmentation(crop=2, flip=True)


def pixels(n: int = 24, channels: int = 3, height: int = 6, width: int = 5) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(1, 256, (n, channels, height, width), generator=generator, dtype=torch.uint8)


def whole(draw: Tensor, end: int) -> int:
    return min(int(draw * end), end - 1)


def one_by_one(epoch: Epoch, images: Tensor, indices: Tensor) -> Tensor:
    """The plain reading of what `apply` says, an example at a time."""
    how, out = epoch.augmentation, []
    height, width = images.shape[2:]
    for image, index in zip(images, indices, strict=True):
        down, right, mirror = epoch.draws[index]
        top, left = whole(down, 2 * how.crop + 1), whole(right, 2 * how.crop + 1)
        padded = F.pad(image, (how.crop,) * 4)
        view = padded[:, top : top + height, left : left + width].clone()
        if how.flip and mirror < 0.5:
            view = view.flip(2)
        out.append(view)
    return torch.stack(out)


@given(st.integers(0, 3), st.booleans(), st.integers(0, 9))
def test_apply_is_crop_then_flip(crop: int, flip: bool, number: int) -> None:
    images = pixels()
    epoch = Views(len(images), Augmentation(crop=crop, flip=flip), seed=1).epoch(number)
    torch.testing.assert_close(
        epoch.apply(images[epoch.order], epoch.order),
        one_by_one(epoch, images[epoch.order], epoch.order),
        rtol=0,
        atol=0,
    )


def test_views_do_not_depend_on_batches_or_order() -> None:
    images = pixels()
    epoch = Views(len(images), ALL, seed=3).epoch(2)
    at_once = epoch.apply(images, torch.arange(len(images)))
    for batch in epoch.order.split(7):
        assert torch.equal(epoch.apply(images[batch], batch), at_once[batch])


def test_views_do_not_depend_on_the_number_of_examples_or_on_what_else_is_switched_on() -> None:
    few, many = Views(5, ALL, seed=0).epoch(4), Views(5000, Augmentation(flip=True), seed=0).epoch(4)
    assert torch.equal(few.draws, many.draws[:5])


def test_views_are_the_same_on_the_device(device: torch.device) -> None:
    images = pixels()
    indices = torch.arange(len(images))
    epoch = Views(len(images), ALL, seed=0).epoch(0)
    there = epoch.apply(images.to(device), indices.to(device))
    assert there.device.type == device.type
    assert torch.equal(there.cpu(), epoch.apply(images, indices))


def test_each_seed_and_epoch_has_its_own_views_and_order() -> None:
    epochs = [Views(50, ALL, seed).epoch(number) for seed in (0, 1) for number in (0, 1, 10)]
    for i, epoch in enumerate(epochs):
        assert torch.equal(epoch.order.sort().values, torch.arange(50))
        for other in epochs[:i]:
            assert not torch.equal(epoch.order, other.order)
            assert not torch.equal(epoch.draws, other.draws)
    again = Views(50, ALL, 1).epoch(10)
    assert torch.equal(again.order, epochs[-1].order)
    assert torch.equal(again.draws, epochs[-1].draws)


def test_views_leave_the_global_generator_alone() -> None:
    before = torch.get_rng_state()
    epoch = Views(8, ALL, seed=0).epoch(0)
    epoch.apply(pixels(8), epoch.order)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_dtype_and_given_images_are_kept(dtype: torch.dtype) -> None:
    images = pixels().to(dtype)
    before = images.clone()
    indices = torch.arange(len(images))
    assert Views(len(images), ALL, seed=0).epoch(0).apply(images, indices).dtype == dtype
    assert torch.equal(images, before)


def test_nothing_switched_on_changes_nothing() -> None:
    images = pixels()
    indices = torch.arange(len(images))
    assert Views(len(images), Augmentation(), seed=0).epoch(0).apply(images, indices) is images


def test_crops_and_flips_are_drawn_evenly() -> None:
    images = torch.arange(1, 10, dtype=torch.uint8).view(1, 1, 3, 3).expand(9000, -1, -1, -1)
    indices = torch.arange(9000)
    crops = Views(9000, Augmentation(crop=1), seed=0).epoch(0).apply(images, indices)[:, 0, 1, 1]
    assert torch.bincount(crops, minlength=10)[1:].sub(1000).abs().max() < 150  # 5 deviations
    flips = Views(9000, Augmentation(flip=True), seed=0).epoch(0).apply(images, indices)[:, 0, 0, 0]
    assert set(flips.tolist()) == {1, 3}
    assert abs(int((flips == 3).sum()) - 4500) < 240


def test_a_cycle_repeats_looks_in_a_new_order() -> None:
    views = Views(50, Augmentation(crop=2, flip=True), 3, cycle=2)
    first, second, third = (views.epoch(number) for number in range(3))
    assert torch.equal(first.draws, third.draws) and not torch.equal(first.draws, second.draws)
    assert not torch.equal(first.order, third.order)
    assert [views.look(number) for number in range(4)] == [0, 1, 0, 1]
    assert Views(50, Augmentation(), 3).look(7) == 0


def test_padding_as_wide_as_an_image_is_refused() -> None:
    data = Data.from_arrays(pixels(), torch.arange(24) % 2)  # 6 x 5
    check_augmentation(Augmentation(crop=4, flip=True), data)
    with pytest.raises(ConfigError, match=r"fewer than an image has .* but it is 5 for images of 6 x 5"):
        check_augmentation(Augmentation(crop=5), data)
    with pytest.raises(ConfigError, match="inputs must be images"):
        check_augmentation(Augmentation(flip=True), Data.from_inputs(torch.randn(24, 3), torch.arange(24) % 2))
