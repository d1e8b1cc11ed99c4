from __future__ import annotations

import pytest
import torch

from tests.support.models import images, macs, parameters
from understudy.core.errors import ConfigError
from understudy.models import zoo

# Millions of parameters as the papers give them: N2N's teachers, DECORE's, and He et al. (2016), table 6.
PUBLISHED = {"vgg13": 9.4, "vgg19": 20.2, "vgg16": 14.98, "resnet18": 11.17, "resnet34": 21.28}
PUBLISHED |= {"resnet20": 0.27, "resnet56": 0.85, "resnet110": 1.72}
# DECORE's; MobileNetV2's 3.50M for ImageNet, less 990 of its 1,000 classes.
PUBLISHED |= {"densenet40": 1.04, "googlenet": 6.15, "mobilenet_v2": 3.504872 - 0.990 * 1.281}
PUBLISHED_MACS = {"resnet56": 125.49, "densenet40": 282.0, "googlenet": 1520.0}


@pytest.mark.parametrize(("name", "millions"), PUBLISHED.items())
def test_has_the_published_number_of_parameters(name: str, millions: float) -> None:
    with torch.device("meta"):
        model = zoo.create(name)
    assert parameters(model) == pytest.approx(millions * 1e6, rel=0.02)


@pytest.mark.parametrize(("name", "millions"), PUBLISHED_MACS.items())
def test_has_the_published_number_of_macs(name: str, millions: float) -> None:
    with torch.device("meta"):
        counted = macs(zoo.create(name).eval(), torch.empty(1, 3, 32, 32))
    assert counted == pytest.approx(millions * 1e6, rel=0.02)


@pytest.mark.parametrize("name", zoo.names())
def test_channels_classes_and_width_are_free(name: str) -> None:
    model = zoo.create(name, input_channels=1, classes=7, width=4)
    assert model(images(2, channels=1, size=28)).shape == (2, 7)


def test_names_what_is_wrong() -> None:
    with pytest.raises(ConfigError, match=r"did you mean 'resnet18'\?"):
        zoo.create("resnet17")
    with pytest.raises(ConfigError, match="width must be at least 1, but got 0"):
        zoo.create("vgg11", width=0)
