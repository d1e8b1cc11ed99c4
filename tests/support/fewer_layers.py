"""Models of torchvision and timm with fewer and narrower layers, by the constructors of their own classes.

What is hard about a model is its code, and that is the library's; how often it repeats a block is not. All kinds of
blocks stay, and of a repeated one two in a row, the first of another width or resolution than the second.
"""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable
from typing import Any

from torch import nn


def _torchvision(module: str, kind: str, *arguments: Any, **named: Any) -> nn.Module:
    made: nn.Module = getattr(importlib.import_module(f"torchvision.models.{module}"), kind)(*arguments, **named)
    return made


def _resnet(block: str, classes: int, **named: Any) -> nn.Module:
    module = importlib.import_module("torchvision.models.resnet")
    return _torchvision("resnet", "ResNet", getattr(module, block), [2, 1, 1, 1], num_classes=classes, **named)


def _vgg16_bn(classes: int) -> nn.Module:
    """All layers of it, a quarter as wide; those of the head, which the class fixes at 4096, are put in its place."""
    module = importlib.import_module("torchvision.models.vgg")
    widths = [width if width == "M" else width // 4 for width in module.cfgs["D"]]
    features = module.make_layers(widths, batch_norm=True)
    made: nn.Module = module.VGG(nn.Identity(), num_classes=classes, init_weights=False).to("meta")
    first, second, last = (nn.Linear(128 * 7 * 7, 96), nn.Linear(96, 96), nn.Linear(96, classes))
    made.features = features
    made.classifier[0], made.classifier[3], made.classifier[6] = first, second, last  # type: ignore[index,operator]
    return made


def _efficientnet_b0(classes: int) -> nn.Module:
    stage = importlib.import_module("torchvision.models.efficientnet").MBConvConfig
    stages = [
        stage(1, 3, 1, 32, 16, 1),
        stage(6, 3, 2, 16, 24, 2),
        stage(6, 5, 2, 24, 40, 2),
        stage(6, 3, 1, 40, 80, 1),
    ]
    return _torchvision("efficientnet", "EfficientNet", stages, 0.2, num_classes=classes)


def _regnet_y_400mf(classes: int) -> nn.Module:
    blocks = importlib.import_module("torchvision.models.regnet").BlockParams
    params = blocks.from_init_params(depth=6, w_0=16, w_a=16.0, w_m=2.0, group_width=8, se_ratio=0.25)
    return _torchvision("regnet", "RegNet", params, num_classes=classes)


def _convnext_tiny(classes: int) -> nn.Module:
    stage = importlib.import_module("torchvision.models.convnext").CNBlockConfig
    stages = [stage(24, 48, 1), stage(48, 96, 2), stage(96, 192, 1), stage(192, None, 1)]
    return _torchvision("convnext", "ConvNeXt", stages, 0.1, num_classes=classes)


def _vit_b_16(classes: int) -> nn.Module:
    return _torchvision("vision_transformer", "VisionTransformer", 64, 16, 2, 4, 96, 192, num_classes=classes)


def _swin_t(classes: int) -> nn.Module:
    """Windows that are shifted, and those of the last stage, which are as large as its images."""
    sizes: dict[str, Any] = {"embed_dim": 24, "depths": [2, 2, 1], "num_heads": [2, 4, 4], "window_size": [7, 7]}
    return _torchvision("swin_transformer", "SwinTransformer", [4, 4], **sizes, num_classes=classes)


def _timm(name: str, classes: int, **named: Any) -> nn.Module:
    made: nn.Module = importlib.import_module("timm").create_model(name, pretrained=False, num_classes=classes, **named)
    return made


def _timm_by_cfg(module: str, kind: str, name: str, changed: Callable[[Any], Any], classes: int) -> nn.Module:
    """Return a model of timm of a class that takes its configuration as a value."""
    home = importlib.import_module(f"timm.models.{module}")
    known = home.model_cfgs if hasattr(home, "model_cfgs") else home.cfg_cls
    made: nn.Module = getattr(home, kind)(changed(known[name]), num_classes=classes)
    return made


def _staged(cfg: Any, **named: Any) -> Any:
    return dataclasses.replace(cfg, stages=dataclasses.replace(cfg.stages, **named))


def _two_of_each(cfg: Any) -> Any:
    """Return a configuration of `ByobNet` with two blocks a stage at most, a third as wide."""

    def cut(stage: Any) -> Any:
        blocks = list(stage) if isinstance(stage, list | tuple) else [stage]
        return tuple(
            dataclasses.replace(block, d=min(block.d, 2), c=block.c // 3) for block in blocks[:4]
        )  # MobileOne's are of two

    return dataclasses.replace(cfg, blocks=tuple(map(cut, cfg.blocks)), stem_chs=cfg.stem_chs // 3)


def _fewer_branches(cfg: dict[str, Any]) -> dict[str, Any]:
    stages = {name: {**cfg[name], "num_blocks": tuple(1 for _ in cfg[name]["num_blocks"])} for name in _STAGES}
    return {**cfg, **stages, "stem_width": 16}


_STAGES = ("stage1", "stage2", "stage3", "stage4")
_XCEPTION = [
    {"in_chs": 64, "out_chs": 64, "stride": 2},
    {"in_chs": 64, "out_chs": 96, "stride": 2},
    {"in_chs": 96, "out_chs": 96, "stride": 1},
    {"in_chs": 96, "out_chs": (96, 128, 128), "stride": 2},
    {"in_chs": 128, "out_chs": (160, 160, 192), "stride": 1, "no_skip": True, "start_with_relu": False},
]
_VOVNET = {"stem_chs": [16, 16, 32], "stage_conv_chs": [32, 40, 48, 56], "stage_out_chs": [64, 96, 128, 160]}
_VOVNET |= {"layer_per_block": 3, "block_per_stage": [1, 1, 2, 1]}

# Those that are missing are small as they are, or have no arguments that would make them smaller.
FEWER_LAYERS: dict[str, Callable[[int], nn.Module]] = {
    "resnet18": lambda n: _resnet("BasicBlock", n),
    "resnet50": lambda n: _resnet("Bottleneck", n),
    "resnext50_32x4d": lambda n: _resnet("Bottleneck", n, groups=32, width_per_group=4),
    "vgg16_bn": _vgg16_bn,
    "mobilenet_v2": lambda n: _torchvision(
        "mobilenetv2",
        "MobileNetV2",
        num_classes=n,
        inverted_residual_setting=[[1, 16, 1, 1], [6, 24, 2, 2], [6, 32, 2, 2], [6, 64, 1, 1]],
    ),
    "densenet121": lambda n: _torchvision("densenet", "DenseNet", 16, (2, 3, 4, 2), 32, num_classes=n),
    "shufflenet_v2_x1_0": lambda n: _torchvision(
        "shufflenetv2", "ShuffleNetV2", [2, 2, 2], [24, 48, 96, 192, 256], num_classes=n
    ),
    "efficientnet_b0": _efficientnet_b0,
    "regnet_y_400mf": _regnet_y_400mf,
    "mnasnet1_0": lambda n: _torchvision("mnasnet", "MNASNet", 0.5, num_classes=n),
    "convnext_tiny": _convnext_tiny,
    "vit_b_16": _vit_b_16,
    "swin_t": _swin_t,
    "seresnet50": lambda n: _timm("seresnet50", n, layers=(2, 1, 1, 1)),
    "convnext_atto": lambda n: _timm("convnext_atto", n, depths=(1, 2, 1, 1)),
    "regnety_004": lambda n: _timm_by_cfg(
        "regnet", "RegNet", "regnety_004", lambda cfg: dataclasses.replace(cfg, depth=6, w0=16, wa=16.0, wm=2.0), n
    ),
    "dla34": lambda n: _timm("dla34", n, levels=[1, 1, 1, 2, 1, 1], channels=[16, 16, 32, 48, 64, 96]),
    "res2net50_26w_4s": lambda n: _timm("res2net50_26w_4s", n, layers=(2, 1, 1, 1)),
    "hrnet_w18_small": lambda n: _timm_by_cfg("hrnet", "HighResolutionNet", "hrnet_w18_small", _fewer_branches, n),
    "vovnet39a": lambda n: _timm_by_cfg("vovnet", "VovNet", "vovnet39a", lambda cfg: {**cfg, **_VOVNET}, n),
    "cspresnet50": lambda n: _timm_by_cfg(
        "cspnet", "CspNet", "cspresnet50", lambda cfg: _staged(cfg, depth=(1, 2, 1, 1), out_chs=(64, 96, 128, 160)), n
    ),
    "repvgg_a0": lambda n: _timm_by_cfg("byobnet", "ByobNet", "repvgg_a0", _two_of_each, n),
    "nfnet_f0": lambda n: _timm_by_cfg(
        "nfnet",
        "NormFreeNet",
        "nfnet_f0",
        lambda cfg: dataclasses.replace(cfg, depths=(1, 2, 1, 1), channels=(64, 128, 128, 128), group_size=16),
        n,
    ),
    "xception41": lambda n: _timm("xception41", n, block_cfg=_XCEPTION),
    "dpn68": lambda n: _timm("dpn68", n, k_sec=(2, 1, 2, 1)),
    "mobileone_s0": lambda n: _timm_by_cfg("byobnet", "ByobNet", "mobileone_s0", _two_of_each, n),
    "edgenext_xx_small": lambda n: _timm("edgenext_xx_small", n, depths=(1, 2, 2, 2)),
    "darknet53": lambda n: _timm_by_cfg(
        "cspnet", "CspNet", "darknet53", lambda cfg: _staged(cfg, depth=(1, 2, 1, 1), out_chs=(32, 64, 96, 128)), n
    ),
}
