"""Models that nobody here wrote, with random weights, at image sizes that are small for each.

torchvision's compiled part does not load beside a torch of another origin; its models do not need it, so
the operators that its import asks for are declared, without code behind them.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests.support.fewer_layers import FEWER_LAYERS

_declared: list[torch.library.Library] = []  # what goes out of scope is undeclared


@dataclass(frozen=True)
class Model:
    """A model of a library, by its name there, and the height and width of its test images."""

    library: str
    name: str
    size: int = 64

    def create(self, **arguments: Any) -> nn.Module:
        """Return it in evaluation mode with weights of seed 0."""
        module = library(self.library)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            if self.library == "timm":
                return module.create_model(self.name, pretrained=False, **arguments).eval()
            return module.get_model(self.name, weights=None, **_ARGUMENTS.get(self.name, {}), **arguments).eval()

    def small(self) -> nn.Module:
        """Return it with fewer and narrower layers and ten classes, in evaluation mode with weights of seed 0."""
        library(self.library)
        if self.name not in FEWER_LAYERS:
            return self.create(num_classes=10)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return FEWER_LAYERS[self.name](10).eval()


def need(*packages: str) -> None:
    """Skip the test where a package is not installed; fail where CI is set, as nothing may be missing there."""
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        reason = f"{' and '.join(missing)} must be installed, as `make test` does, but is not"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason, allow_module_level=True)


def library(name: str) -> Any:
    """Import "torchvision" (its models) or "timm", which needs the former as well."""
    need("torchvision", name)
    if "torchvision" not in sys.modules:
        _declare_operators()
    return importlib.import_module("torchvision.models" if name == "torchvision" else name)


def _declare_operators() -> None:
    found = importlib.util.find_spec("torchvision")
    assert found is not None and found.origin is not None
    try:
        torch.ops.load_library(str(next(Path(found.origin).parent.glob("_C*.so"))))
    except (OSError, StopIteration):
        operators = torch.library.Library("torchvision", "FRAGMENT")
        for operator in ("nms", "qnms"):
            operators.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _declared.append(operators)


TORCHVISION = (
    *("resnet18", "resnet50", "resnext50_32x4d", "vgg16_bn", "mobilenet_v2", "mobilenet_v3_small", "densenet121"),
    *("googlenet", "squeezenet1_0", "shufflenet_v2_x1_0", "efficientnet_b0", "regnet_y_400mf", "mnasnet1_0"),
    *("inception_v3", "convnext_tiny", "vit_b_16", "swin_t"),
)
TIMM = (
    *("seresnet50", "mobilenetv3_large_100", "convnext_atto", "regnety_004", "dla34", "res2net50_26w_4s"),
    *("hrnet_w18_small", "vovnet39a", "cspresnet50", "ghostnet_100", "repvgg_a0", "nfnet_f0", "xception41", "dpn68"),
    *("mobileone_s0", "edgenext_xx_small", "darknet53", "fbnetc_100"),
)
# Weights as torchvision draws them for these two take a minute.
_ARGUMENTS: dict[str, dict[str, Any]] = {"vit_b_16": {"image_size": 64}}
_ARGUMENTS |= {"googlenet": {"init_weights": False}, "inception_v3": {"init_weights": False}}
_SIZES = {"inception_v3": 299}  # its second head takes no smaller ones
MODELS = tuple(
    Model(source, name, _SIZES.get(name, 64))
    for source, names in (("torchvision", TORCHVISION), ("timm", TIMM))
    for name in names
)
