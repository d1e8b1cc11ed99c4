from __future__ import annotations

import io
import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import Tensor, nn

from tests.support.models import images, zoo_analysis
from tests.support.tiny import FACTORY, teach_tiny
from understudy.cli import main
from understudy.core.architecture import Architecture
from understudy.core.errors import TraceError
from understudy.cost.predict import per_layer, predict
from understudy.graph.analysis import Analysis, analyse
from understudy.jobs import inspect as inspecting
from understudy.proof import trial

ARGUMENTS = ["zoo:resnet20", "--arguments", "width=4"]


def test_prints_what_can_go_what_cannot_and_what_it_costs(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", *ARGUMENTS, "--check"]) == 0
    out = capsys.readouterr().out
    for title in (
        "Layers, in order",
        "Units that can be removed",
        "Groups of channels that can shrink",
        "Channels that keep",
    ):
        assert title in out
    assert "it is an output" in out
    assert re.search(r"within reach, with single channels: [\d.]+ to [\d.]+K parameters", out)
    assert re.search(r"\d+ students checked against the masked network: all agree", out)


def test_json_is_for_machines(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", *ARGUMENTS, "--json", "--check"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["input"] == [3, 32, 32]
    assert found["fewest_parameters"]["parameters"] < found["cost"]["parameters"]
    assert {layer["name"] for layer in found["layers"]} == set(found["costs"])
    assert found["proof"]["refused"] == [] and found["proof"]["students"] > 10
    assert 0 < found["proof"]["largest"] < 1e-12 and found["proof"]["dtype"] == "float64"


def test_a_teacher_folder_says_all_that_is_needed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    teach_tiny(tmp_path)
    assert main(["inspect", str(tmp_path)]) == 2
    assert "--trust-code" in capsys.readouterr().err
    assert main(["inspect", str(tmp_path), "--trust-code"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "on images of 1 x 8 x 8: " in out and f"compress {tmp_path} --trust-code --data" in out
    assert main(["inspect", str(tmp_path), "--trust-code", "--weights", "w.pt"]) == 2
    assert "a teacher folder says all that itself" in capsys.readouterr().err


def test_a_factory_gets_the_channels_that_are_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", FACTORY, "--size", "8", "--channels", "2", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["input"] == [2, 8, 8]


def test_what_fails_is_shown_with_its_reason(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The first build of a student with a narrower first layer goes wrong, so that group is left as it is."""
    built = trial.build

    def break_first(analysis: Analysis, architecture: Architecture, **options: Any) -> nn.Module:
        student = built(analysis, architecture, **options)
        if architecture.width("conv1") < 4:
            with torch.no_grad():
                student.get_parameter("conv1.weight").neg_()
        return student

    monkeypatch.setattr(trial, "build", break_first)
    assert main(["inspect", *ARGUMENTS, "--check"]) == 1
    out = " ".join(capsys.readouterr().out.split())
    assert "not offered, because students were wrong: 1 group" in out
    assert "conv1" in out.partition("Left as it is, because students were wrong")[2]


def test_costs_of_layers_add_up() -> None:
    analysis = zoo_analysis("resnet20")
    unit = next(u for u in analysis.space.units if u.kind == "block")
    for architecture in (
        analysis.space.full,
        analysis.space.full.with_width("conv1", 3).with_kernel("conv1", 1),
        analysis.space.full.without(unit.name),
    ):
        cost, layers = predict(analysis, architecture), per_layer(analysis, architecture)
        assert sum(layer.macs for layer in layers.values()) == cost.macs
        assert sum(layer.parameters for layer in layers.values()) == cost.parameters
        assert max(layer.activation_bytes for layer in layers.values()) <= cost.peak_activation_bytes
    assert layers[unit.layers[0]].parameters == layers[unit.layers[0]].activation_bytes == 0


def test_frozen_channels_have_a_reason_and_a_line() -> None:
    class Written(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.head = nn.Conv2d(3, 8, 1), nn.Linear(8 * 16, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.conv(x).cumsum(1).view(-1, 8 * 16))

    found = inspecting.inspect_analysis(analyse(Written(), images(2, size=4)), name="written")
    frozen = {f.name: f for f in found.space.frozen}["conv"]
    assert frozen.reason == "cumsum runs over these channels"
    assert frozen.source.endswith("return self.head(self.conv(x).cumsum(1).view(-1, 8 * 16))")
    assert found.shrinkable == 0


def test_groups_say_why_their_students_are_plain_graphs() -> None:
    class Written(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.head = nn.Conv2d(3, 8, 1), nn.Linear(8 * 16, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.conv(x).view(-1, 8 * 16))

    found = inspecting.inspect_analysis(analyse(Written(), images(2, size=4)), name="written")
    assert found.space.group("conv").plain.startswith("view writes their number as 128 (test_inspect.py:")
    shown = io.StringIO()
    Console(file=shown, width=200).print(inspecting.inspection_tables(found))
    assert "plain graph: view writes their number as 128" in " ".join(shown.getvalue().split())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["zoo:resnet21"], "the zoo has .*did you mean 'resnet20'"),
        (["resnet20"], "a model must be zoo:NAME"),
        (["zoo:resnet20", "--channels", "1", "--arguments", "input_channels=3"], "must accept the example .*1, 32, 32"),
        (["zoo:resnet20", "--size", "0"], "an image must have pixels and channels, but got size 0"),
        (["zoo:resnet20", "--arguments", "depth=3"], r"is called with \(input_channels=3, depth=3\), but"),
        (["zoo:resnet20", "--weights", "none.safetensors"], "a weights file must be readable"),
    ],
)
def test_mistakes_get_one_clear_error(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", *arguments]) == 2
    error = capsys.readouterr().err
    assert re.search(message, error) and error.startswith("error: ")


@pytest.mark.parametrize("package", ["timm", "torchvision"])
def test_a_missing_extra_is_named(
    package: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in (package, f"{package}.models"):
        monkeypatch.setitem(sys.modules, name, None)  # as if it were not installed
    assert main(["inspect", f"{package}:resnet18"]) == 2
    assert capsys.readouterr().err.startswith(
        f"error: {package} must be installed, but is not: pip install 'understudy[vision]'"
    )


def test_weights_of_another_model_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save(nn.Linear(2, 2).state_dict(), tmp_path / "other.pt")
    assert main(["inspect", *ARGUMENTS, "--weights", str(tmp_path / "other.pt")]) == 2
    assert "weights must fit the model" in capsys.readouterr().err


def test_a_model_that_cannot_be_traced_names_the_line() -> None:
    class Branching(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x if x.sum() > 0 else -x

    with pytest.raises(TraceError, match="must not branch on the values"):
        analyse(Branching(), images(1))


def test_weights_that_are_computed_are_told_in_one_line() -> None:
    layers = [nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 8, 3)), nn.Flatten(), nn.Linear(8 * 16, 4)]
    found = inspecting.inspect_analysis(analyse(nn.Sequential(*layers), images(2, size=6)), name="net")
    assert found.computed == ("0.weight",) and json.loads(found.to_json())["computed"] == ["0.weight"]
    console = Console(file=io.StringIO(), width=200)
    console.print(inspecting.inspection_tables(found))
    assert "the teacher computes 1 of its tensors (0.weight): students have them as plain weights" in (
        console.file.getvalue()  # type: ignore[attr-defined]
    )
