"""A network in 8 bits, as ONNX Runtime runs it, with scales from training images."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from understudy.core.nested import mapped
from understudy.data import Data
from understudy.export.onnx import OnnxModel, quantise, to_onnx
from understudy.graph.copies import copied

_EXAMPLES, _BATCH = 256, 32


def calibration(data: Data, examples: int = _EXAMPLES) -> Iterator[Any]:
    """Yield the first training examples' inputs, normalised, in batches."""
    count = min(examples, len(data.train))
    for start in range(0, count, _BATCH):
        images, _ = data.train.batch(torch.arange(start, min(start + _BATCH, count)))
        yield data.normalise(mapped(images, lambda tensor: tensor.cpu()))


def in_eight_bits(network: nn.Module, data: Data, path: Path, *, examples: int = _EXAMPLES) -> OnnxModel:
    """Write a network as ONNX with weights and activations in 8 bits, as `understudy export --to int8` does.

    Args:
        network: it is not touched.
        data: whose training images the scales are from.
        path: of the file.
        examples: training images to see.

    Raises:
        ExportError: an exporter or the quantiser refuses it, or there is nothing to quantise; with the reason.
        ExtraError: the packages of the extra `export` are missing.
    """
    exported, batch = copied(network).cpu().float().eval(), next(calibration(data, max(examples, 2)))
    with tempfile.TemporaryDirectory() as folder:
        floats = Path(folder) / "network.onnx"
        to_onnx(exported, batch, floats, images=data.are_images)
        path.parent.mkdir(parents=True, exist_ok=True)
        quantise(floats, path, calibration(data, examples))
    return OnnxModel(path)
