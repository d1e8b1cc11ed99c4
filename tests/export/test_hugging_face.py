from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from tests.support.cards import card
from tests.support.hugging_face import MODELS, Pretrained
from understudy.core.architecture import Architecture, Space
from understudy.core.errors import ExportError, ExtraError
from understudy.export.certificate import verify
from understudy.export.folder import export_student
from understudy.export.hugging_face import read_pretrained, write_pretrained
from understudy.export.interface import outputs_of
from understudy.graph.analysis import Analysis, analyse
from understudy.surgery.build import build

QUICK = ("BertForSequenceClassification", "LlamaForCausalLM", "ViTForImageClassification")


def by_name(name: str) -> Pretrained:
    return next(model for model in MODELS if model.name == name)


@pytest.fixture(scope="module", params=QUICK)
def analysis(request: pytest.FixtureRequest) -> Analysis:
    model = by_name(request.param)
    return analyse(model.create(), model.inputs())


def name_of(analysis: Analysis) -> str:
    return type(analysis.teacher).__name__


def narrow(space: Space, full: int, to: int) -> Architecture:
    """Return the architecture in which every group of that width has another one."""
    return space.architecture(widths={group.name: to for group in space.groups if group.width == full})


def test_from_pretrained_gives_what_the_student_gives(analysis: Analysis, tmp_path: Path) -> None:
    space, inputs = analysis.space, by_name(name_of(analysis)).inputs()
    layer = next(unit.name for unit in space.units if unit.name.endswith("r.1") or unit.name.endswith("s.1"))
    both = {**dict(narrow(space, 96, 40).widths), **dict(narrow(space, 48, 24).widths)}
    for number, architecture in enumerate(
        (space.full.without(layer), narrow(space, 96, 40), space.architecture(widths=both))
    ):
        student = build(analysis, architecture).eval()
        made = write_pretrained(student, tmp_path / str(number))
        assert type(made) is type(student) and made is not student
        for own, other in zip(outputs_of(student, inputs), outputs_of(made, inputs), strict=True):
            assert torch.equal(own, other)
        said = json.loads((tmp_path / str(number) / "config.json").read_text())
        assert said["num_hidden_layers"] == (2 if number == 0 else 3) and said["architectures"] == [name_of(analysis)]
        assert (said["intermediate_size"], said["hidden_size"]) == ((96, 48), (40, 48), (40, 24))[number]


def test_what_a_configuration_cannot_say(analysis: Analysis, tmp_path: Path) -> None:
    space = analysis.space
    feedforward = next(group.name for group in space.groups if group.width == 96)
    with pytest.raises(ExportError, match=r"Config cannot: intermediate_size is 40, 96 in different places"):
        write_pretrained(build(analysis, space.full.with_width(feedforward, 40)), tmp_path)
    part = next(u.name for u in space.units if u.kind != "layer" and u.name.rpartition(".")[2] in ("mlp", "dense"))
    with pytest.raises(
        ExportError, match=r"must have all parts of each layer that is left, but .* was removed by itself"
    ):
        write_pretrained(build(analysis, space.full.without(part)), tmp_path)
    with pytest.raises(ExportError, match=r"is for models of Hugging Face's transformers"):
        write_pretrained(nn.Linear(2, 2), tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("said", [True, False])
def test_an_export_for_hugging_face(said: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no configuration says the sizes there is plain source code beside the teacher's."""
    model = by_name("ViTForImageClassification").create(num_labels=10)
    analysis = analyse(model, torch.randn(2, 3, 32, 32))
    feedforward = [group.name for group in analysis.space.groups if group.width == 96]
    widths = dict.fromkeys(feedforward if said else feedforward[:1], 40)
    student = build(analysis, analysis.space.architecture(widths=widths)).eval()
    found = export_student(tmp_path, student, card=card(input=(3, 32, 32)), architecture="{}", formats=("hf",))
    assert found.parity["hf"].absolute == 0.0
    files = {file.name for file in (tmp_path / "hf").iterdir()}
    assert files == {"config.json", "model.safetensors", *(() if said else ("model.py",))}
    assert set(verify(tmp_path, trust_code=True).parity) == {"hf"}
    careful = verify(tmp_path)
    assert set(careful.parity) == ({"hf"} if said else set()) and set(careful.not_run) == (set() if said else {"hf"})
    readme = (tmp_path / "README.md").read_text()
    if said:
        assert 'model = ViTForImageClassification.from_pretrained("hf")' in readme
    else:
        assert "ViTConfig cannot: intermediate_size is 40, 96 in different places" in readme
        assert "from hf.model import ViTForImageClassification" in readme
    (tmp_path / "hf" / "config.json").write_text("{}")
    with pytest.raises(ExportError, match=r"but hf/config.json has changed"):
        verify(tmp_path)
    with pytest.raises(ExportError, match=r"must be one that from_pretrained reads"):
        read_pretrained(tmp_path / "hf")
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ExtraError, match=r"pip install 'understudy\[hf\]'"):
        export_student(tmp_path, student, card=card(input=(3, 32, 32)), architecture="{}", formats=("hf",))


def test_what_is_no_model_of_hugging_face_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    with pytest.raises(ExportError, match=r"hf is for models of Hugging Face's transformers in their own class"):
        export_student(tmp_path, nn.Conv2d(1, 10, 8), card=card(), architecture="{}", formats=("hf",))
