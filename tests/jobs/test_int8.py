from __future__ import annotations

import json
import sys
from dataclasses import asdict, replace
from pathlib import Path

import onnx
import pytest
import torch
from torch import Tensor, nn

import understudy as us
from tests.support.tiny import squeeze, teach_tiny
from understudy.core.errors import ExportError, ExtraError, GoalError
from understudy.core.evaluation import Cost
from understudy.core.int8 import FileSizes
from understudy.core.summary import Summary
from understudy.data import Data
from understudy.export.int8 import in_eight_bits
from understudy.export.interface import Interface
from understudy.export.modelcard import readme
from understudy.export.onnx import OnnxModel
from understudy.report.facts import Facts
from understudy.report.html import write_report
from understudy.runs.folder import Run
from understudy.testing.landscapes import toy_space
from understudy.training.compute import Compute
from understudy.training.scoring import scored

GOAL = us.Goal(params="2x", size_mb="2.2x", score_drop=0.5, runtime="onnxruntime", int8=True)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> us.Result:
    return teach_tiny(tmp_path_factory.mktemp("teacher"))


@pytest.fixture(scope="module")
def result(teacher: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> us.Result:
    return squeeze(teacher, tmp_path_factory.mktemp("runs") / "run", goal=GOAL)


def file_of(result: us.Result) -> Path:
    return result.run / "students" / f"{result.summary.name}.int8.onnx"


@pytest.mark.slow
def test_the_student_in_8_bits_counts(result: us.Result) -> None:
    found, data = result.summary.int8, Data.digits()
    assert found is not None
    size = file_of(result).stat().st_size
    assert found.network.cost.weight_bytes == size and result.summary.student.cost.size_mb != size / 1e6
    model = OnnxModel(file_of(result))
    for split, score in ((data.val, found.network.val), (data.test, found.network.test)):
        assert score.value == scored(model, split, normalise=data.normalise, compute=Compute())
    obtained = {budget.name: (budget.obtained, budget.int8) for budget in result.summary.goal}
    assert obtained["params"] == (result.summary.student.cost.parameters, False)
    assert obtained["size_mb"] == (size / 1e6, True)
    assert obtained["score_drop"] == (found.network.val.value, True)
    assert result.evaluation.score == result.summary.student.val.value  # of the student that is handed out, in floats
    assert found.latency.where == "1 thread, ONNX Runtime"


@pytest.mark.slow
def test_it_is_what_an_export_gives(result: us.Result, tmp_path: Path) -> None:
    result.export(tmp_path / "student", ("int8",))
    exported, kept = (onnx.load(path) for path in (tmp_path / "student" / "model.int8.onnx", file_of(result)))
    images = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(OnnxModel(file_of(result))(images), OnnxModel(tmp_path / "student" / "model.int8.onnx")(images))
    assert [node.op_type for node in exported.graph.node] == [node.op_type for node in kept.graph.node]


@pytest.mark.slow
def test_table_summary_and_page_show_it(result: us.Result, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")  # times of a busy machine are long; no row is folded
    assert Summary.from_json(json.loads(json.dumps(result.summary.to_json()))) == result.summary
    lines = [" ".join(line.replace("│", " ").split()) for line in str(result.table).splitlines()]
    assert any(line.startswith("in 8 bits (int8) teacher int8") for line in lines)
    assert any(line.startswith("size_mb (int8) 2.2x") for line in lines)
    final = next(e for e in Facts.read(result.run).finals if e.architecture == result.architecture)
    assert final.cost.weight_bytes == file_of(result).stat().st_size  # as the students of the search beside it
    assert "| size_mb 2.2x (in 8 bits) |" in readme(
        result._card, {"formats": {}, "skipped": {}, "int8": None, "inputs": ""}, None, Interface()
    )
    page = write_report(result.run, tmp_path / "page.html").read_text()
    assert "in 8 bits: MB of the file" in page and "MB of weights in 8 bits" in page


@pytest.mark.slow
def test_a_search_sees_the_bytes_of_files(result: us.Result) -> None:
    run = Run(result.run)
    sizes = FileSizes.from_json(run.recall("int8"))
    found = run.evaluations()
    assert found and all(e.cost == sizes.cost(e.cost, e.architecture) for e in found)
    final = result.summary.int8.network.cost
    assert final.size_mb <= sizes.cost(final, result.architecture).size_mb <= 1.1 * final.size_mb


@pytest.mark.slow
def test_the_better_one_in_8_bits_wins(result: us.Result, teacher: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was measured is not measured again, and the better student in 8 bits wins, whatever it is in floats."""
    run, loser = Run(result.run), next(f for f in result.summary.finals if f.name != result.summary.name)
    known = run.recall("int8")
    known["students"][result.summary.name]["score"] -= 0.2
    run.remember("int8", known)
    (run.folder / "summary.json").unlink()
    monkeypatch.setattr("understudy.jobs.int8.in_eight_bits", None)
    again = squeeze(teacher, result.run, goal=GOAL)
    assert again.summary.name == loser.name and again.summary.int8.network.val.value == loser.int8
    assert [final.val for final in again.summary.finals] == [final.val for final in result.summary.finals]


def test_bytes_of_files() -> None:
    sizes = FileSizes(start=100.0, per_layer=10.0, per_parameter=1.5)
    space = toy_space()
    cost = Cost(parameters=600, macs=7, weight_bytes=2400)
    layers = sum(layer.type in ("conv", "linear") for layer in space.layers)
    assert sizes.cost(cost, space.full) == replace(cost, weight_bytes=round(1.05 * (1000 + 10 * layers)))
    assert FileSizes.from_json({**asdict(sizes), "students": {}}) == sizes


def test_what_the_door_refuses(teacher: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(GoalError, match=r"goal 'runtime' is 'torch': give runtime='onnxruntime'"):
        us.Goal(params="2x", int8=True)
    with pytest.raises(GoalError, match=r"size_mb asks for 0\.001 MB, and the file of the smallest one in 8 bits has"):
        squeeze(teacher, tmp_path / "run", goal=us.Goal(size_mb="0.001", runtime="onnxruntime", int8=True))
    monkeypatch.setattr("understudy.export.onnx._refuse_floats", _refused)
    with pytest.raises(GoalError, match=r"needs a network that can be quantised: .* found none in this network"):
        squeeze(teacher, tmp_path / "run", goal=GOAL)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(
        ExtraError, match=r"onnxruntime must be installed, but is not: pip install 'understudy\[export\]'"
    ):
        squeeze(teacher, tmp_path / "run", goal=GOAL)
    assert not (tmp_path / "run").exists()


def _refused(path: Path) -> None:
    raise ExportError("it found none in this network")


class Scaled(nn.Module):
    """Nothing in it is a convolution or a product."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1, 8, 8))

    def forward(self, images: Tensor) -> Tensor:
        return (images - self.scale).sin().flatten(1)[:, :10]


def test_a_network_without_weights_to_quantise_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"but it found none in this network"):
        in_eight_bits(Scaled(), Data.digits(), tmp_path / "model.onnx")
    assert not (tmp_path / "model.onnx").exists()
