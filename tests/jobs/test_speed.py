from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.cards import card
from tests.support.models import images
from understudy.cli import main
from understudy.core.errors import ModelError
from understudy.core.files import read_json, write_json
from understudy.graph.analysis import analyse
from understudy.jobs.speed import speed
from understudy.models.spec import ModelSpec
from understudy.models.student import save_student
from understudy.surgery.build import build


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A VGG-11 of a quarter of the widths, without one layer."""
    spec = ModelSpec(name="zoo:vgg11", arguments={"width": 16})
    analysis = analyse(spec.build().eval(), images(2))
    widths = {group.name: max(1, group.width // 4) for group in analysis.space.groups}
    architecture = analysis.space.architecture(widths=widths).without("features.8")
    folder = tmp_path_factory.mktemp("student")
    made_by = card(input=(3, 32, 32), model=spec.name, name=architecture.digest, **spec.arguments)
    save_student(folder, build(analysis, architecture), architecture, made_by)
    return folder


def test_every_layer_has_its_time_in_torch(student: Path) -> None:
    one, two = speed(student, batches=(1, 2))
    assert (one.batch, two.batch) == (1, 2) and one.macs == two.macs and one.macs[0] > 8 * one.macs[1]
    layers = {pair.path: pair for pair in one.layers}
    assert layers["features.8"].second is None and layers["features.0"].fewer == 4.0
    assert all(pair.first.time is not None and pair.first.time.median > 0 for pair in one.layers)
    assert f"{one.macs[0] / one.macs[1]:.3g}x fewer MACs: " in one.sentence


@pytest.mark.slow
def test_every_convolution_has_its_time_in_onnxruntime(student: Path) -> None:
    (found,) = speed(student, runtime="onnxruntime")
    timed = {pair.path for pair in found.layers if pair.first.time is not None}
    assert {"features.0", "features.4", "features.8", "classifier"} <= timed
    assert found.total.first.median > 0


def test_the_command(student: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["latency", str(student)]) == 0
    text = capsys.readouterr().out
    assert "features.8" in text and "removed" in text and "one image, torch, 1 thread: teacher" in text
    assert main(["latency", str(student), "--batch", "0"]) == 2
    assert "batch must be sizes of at least 1, but got (0,)" in capsys.readouterr().err


def test_a_teacher_that_only_python_can_make(student: Path, tmp_path: Path) -> None:
    for file in student.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    write_json(tmp_path / "model.json", {**read_json(student / "model.json", ModelError), "model": None})
    with pytest.raises(ModelError, match="so only Python can compare them: give --model"):
        speed(tmp_path)
