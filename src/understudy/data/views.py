"""The augmented views of a split, the same for teacher and student, whatever the batches or the device."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float32, Int, Int64
from torch import Tensor
from torch.nn import functional as F

from understudy.config.training import Augmentation
from understudy.core.errors import ConfigError
from understudy.data.split import Images, Inputs

if TYPE_CHECKING:
    from understudy.data.data import Data

_DRAWS = 3  # uniform numbers of one view: crop's row and column, flip


def check_augmentation(how: Augmentation, data: Data) -> None:
    """Refuse to vary what cannot be varied so.

    Raises:
        ConfigError: inputs are no images, targets no classes, or the padding is as wide as an image.
    """
    if how == Augmentation():
        return
    if not (data.are_images and (data.classes or not data.has_targets)):
        raise ConfigError(
            "augmentation varies images and leaves their labels as they are, so inputs must be images, and targets "
            "classes or none; vary the data yourself where targets must vary along"
        )
    if how.crop >= min(data.shape[1:]):
        raise ConfigError(
            f"augmentation.crop is pixels of padding, fewer than an image has in height and width, else nothing of it "
            f"may be left, but it is {how.crop} for images of {' x '.join(map(str, data.shape[1:]))}"
        )


@dataclass(frozen=True)
class Views:
    """How the `n` examples of a split look in each epoch.

    What an example looks like depends on the seed, the epoch and its index alone. All numbers of an
    epoch are drawn at once on the CPU, so they are the same for every batch size, order and device.
    With a `cycle` there are only so many looks, used in turn; the order is always a new one.
    """

    n: int
    augmentation: Augmentation
    seed: int
    cycle: int = 0

    def look(self, number: int) -> int:
        """Return the first epoch in which every example looks as in this one."""
        if self.augmentation == Augmentation():
            return 0
        return number % self.cycle if self.cycle else number

    def epoch(self, number: int) -> Epoch:
        """Return the order and the views of one epoch."""
        # Drawn whatever is switched on: a flip stays the same flip when a crop joins it.
        draws = torch.rand((self.n, _DRAWS), generator=self._generator("views", self.look(number)))
        order = torch.randperm(self.n, generator=self._generator("order", number))
        return Epoch(order=order, augmentation=self.augmentation, draws=draws)

    def _generator(self, purpose: str, number: int) -> torch.Generator:
        key = hashlib.sha256(f"{purpose} {self.seed} {number}".encode()).digest()
        return torch.Generator().manual_seed(int.from_bytes(key[:7], "big"))


@dataclass(frozen=True, eq=False)
class Epoch:
    """One epoch's order of the examples, a permutation (n,), and what is done to each of them."""

    order: Int64[Tensor, " n"]
    augmentation: Augmentation
    draws: Float32[Tensor, "n 3"]  # uniform in 0..1

    def to(self, device: torch.device) -> Epoch:
        """Return this epoch with its numbers on another device, where `apply` then copies none from elsewhere."""
        return replace(self, order=self.order.to(device), draws=self.draws.to(device))

    def apply(self, images: Inputs, indices: Int[Tensor, " n"]) -> Inputs:
        """Return the images (b, c, h, w) varied: crop of the zero-padded image, then flip.

        `indices` (b,) are the images' places in the split. Device and dtype are kept. Other inputs are not varied.
        """
        how = self.augmentation
        if not (how.crop or how.flip):
            return images
        draws = self.draws[indices.to(self.draws.device)].to(images.device)
        return _cropped(images, draws, how.crop, how.flip)


def _cropped(images: Images, draws: Float32[Tensor, "n 3"], crop: int, flip: bool) -> Images:
    height, width = images.shape[2:]
    down, right = _whole(draws[:, :2], 2 * crop + 1).unbind(1)
    rows = torch.arange(height, device=images.device) + down[:, None]
    columns = torch.arange(width, device=images.device).expand(len(images), -1)
    if flip:
        columns = torch.where(draws[:, 2:3] < 0.5, columns.flip(1), columns)
    columns = columns + right[:, None]
    padded = F.pad(images, (crop, crop, crop, crop)) if crop else images
    places = rows[:, :, None] * padded.shape[3] + columns[:, None, :]  # (b, h, w), into the flattened image
    places = places.flatten(1)[:, None].expand(-1, images.shape[1], -1)
    return padded.flatten(2).gather(2, places).view(images.shape)


def _whole(draws: Tensor, end: int) -> Tensor:
    """Return uniform numbers of 0..1 as whole ones of 0..end-1; the product may round up to `end`."""
    return (draws * end).long().clamp(max=end - 1)
