"""A network in 8 bits, as ONNX Runtime runs it, with scales from training images."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from understudy.data import Data
from understudy.export.onnx import OnnxModel, quantise, write_onnx
from understudy.export.pt2 import program_of
from understudy.graph.copies import copied
from understudy.surgery.masked import tensors_of

_EXAMPLES, _BATCH = 256, 32


def calibration(data: Data, examples: int = _EXAMPLES) -> Iterator[Tensor]:
    """Yield the first training images, normalised, in batches."""
    count = min(examples, len(data.train))
    for start in range(0, count, _BATCH):
        images, _ = data.train.batch(torch.arange(start, min(start + _BATCH, count)))
        yield data.normalise(images)


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
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        floats = Path(folder) / "network.onnx"
        outputs = sum(1 for _ in tensors_of(exported(batch)))
        write_onnx(program_of(exported, batch), floats, outputs=outputs, metadata={})
        path.parent.mkdir(parents=True, exist_ok=True)
        quantise(floats, path, calibration(data, examples))
    return OnnxModel(path)
