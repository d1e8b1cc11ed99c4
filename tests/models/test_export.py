"""Students are plain modules: torch.export and ONNX take them as they take any other, and give what they give."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.support.models import images, random_architecture, zoo_analysis
from tests.support.third_party import MODELS, Model, need
from understudy.graph.analysis import Analysis, analyse
from understudy.surgery.build import build
from understudy.surgery.masked import tensors_of

BATCH = {0: torch.export.Dim("batch", min=2)}
# One of each family: the zoo's in every run, what it lacks in the slow set.
ZOO = ("vgg11", "resnet20", "densenet40", "googlenet", "mobilenet_v2")
FAMILIES = ("resnext50_32x4d", "efficientnet_b0", "regnet_y_400mf", "convnext_atto", "seresnet50")
EACH = [pytest.param(name, id=name) for name in ZOO]
EACH += [pytest.param(m, id=m.name, marks=pytest.mark.slow) for m in MODELS if m.name in FAMILIES]


def analysed(model: str | Model) -> Analysis:
    return zoo_analysis(model) if isinstance(model, str) else analyse(model.small(), images(2, size=model.size))


@pytest.fixture(scope="module", params=EACH)
def exported(request: pytest.FixtureRequest) -> tuple[nn.Module, Tensor, torch.export.ExportedProgram]:
    """A student of random widths without some units, an image batch, and its program for any batch size."""
    analysis = analysed(request.param)
    student = build(analysis, random_architecture(analysis.space, 1)).eval()
    example = analysis.trace.example
    assert isinstance(example, Tensor)
    return student, example, torch.export.export(student, (example,), dynamic_shapes=(BATCH,), strict=False)


def agree(student: nn.Module, other: Callable[[Tensor], list[Tensor]], size: int) -> None:
    for batch in (2, 5):
        x = images(batch, size=size, seed=batch)
        with torch.no_grad():
            expected, found = list(tensors_of(student(x))), other(x)
        scale = max(float(t.abs().max()) for t in expected)
        for mine, theirs in zip(expected, found, strict=True):
            assert mine.shape == theirs.shape
            assert float((mine - theirs).abs().max()) <= 1e-5 * scale


def test_torch_export_gives_the_same(exported: tuple[nn.Module, Tensor, torch.export.ExportedProgram]) -> None:
    student, example, program = exported
    module = program.module()
    agree(student, lambda x: list(tensors_of(module(x))), example.shape[-1])


def test_onnx_gives_the_same(exported: tuple[nn.Module, Tensor, torch.export.ExportedProgram], tmp_path: Path) -> None:
    need("onnx", "onnxscript", "onnxruntime")
    import onnxruntime

    student, example, program = exported
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own, about its own
        torch.onnx.export(program, (), tmp_path / "student.onnx", dynamo=True, verbose=False)
    session = onnxruntime.InferenceSession(tmp_path / "student.onnx", providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name

    def run(x: Tensor) -> list[Tensor]:
        return [torch.from_numpy(np.asarray(out)) for out in session.run(None, {name: x.numpy()})]

    agree(student, run, example.shape[-1])
