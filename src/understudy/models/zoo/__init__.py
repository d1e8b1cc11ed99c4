"""Teachers for CIFAR-sized images, by name: `create("resnet18", classes=10, width=16)`."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import nn

from understudy.core.errors import ConfigError, did_you_mean
from understudy.models.zoo.densenet import densenet
from understudy.models.zoo.googlenet import googlenet
from understudy.models.zoo.mobilenet import mobilenet_v2
from understudy.models.zoo.resnet import resnet, resnet_thin
from understudy.models.zoo.vgg import vgg

_MODELS: dict[str, Callable[..., nn.Module]] = {
    **{f"vgg{depth}": partial(vgg, depth) for depth in (11, 13, 16, 19)},
    **{f"resnet{depth}": partial(resnet, depth) for depth in (18, 34)},
    **{f"resnet{depth}": partial(resnet_thin, depth) for depth in (20, 56, 110)},
    "densenet40": partial(densenet, 40),
    "googlenet": googlenet,
    "mobilenet_v2": mobilenet_v2,
}


def names() -> tuple[str, ...]:
    """Return the names that `create` knows."""
    return tuple(_MODELS)


def create(name: str, *, input_channels: int = 3, classes: int = 10, width: int | None = None) -> nn.Module:
    """Return an untrained network of the zoo.

    Args:
        name: one of `names()`.
        input_channels: channels of an input image.
        classes: number of logits.
        width: channels of the first stage; None for the published width.

    Raises:
        ConfigError: the name is unknown, or a number is under 1.
    """
    if name not in _MODELS:
        raise ConfigError(f"the zoo has {', '.join(_MODELS)}, but not {name!r}{did_you_mean(name, _MODELS)}")
    for what, number in (("input_channels", input_channels), ("classes", classes), ("width", width)):
        if number is not None and number < 1:
            raise ConfigError(f"{what} must be at least 1, but got {number}")
    chosen = {} if width is None else {"width": width}
    return _MODELS[name](input_channels=input_channels, classes=classes, **chosen)
