"""Export of students that are no classifiers of images: tokens, several inputs, any outputs."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import understudy as us
from tests.support.alone import run_alone
from tests.support.cards import card
from understudy.core.errors import ConfigError, ExportError
from understudy.core.files import write_json
from understudy.export.certificate import verify
from understudy.export.folder import Exported, export_student
from understudy.models.inputs import inputs_spec

COUNT = 12


@dataclass
class Output:
    last: Tensor
    pooled: Tensor
    cache: object = None


class Tokens(nn.Module):
    """Tokens and a mask by name, one that is left out, and a dataclass of outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.up, self.down = nn.Embedding(20, 8), nn.Linear(8, 16), nn.Linear(16, 8)

    def forward(self, ids: Tensor, mask: Tensor, extra: Tensor | None = None) -> Output:
        x = self.table(ids)
        x = x + self.down(torch.relu(self.up(x)))
        if extra is not None:
            x = x + extra
        weights = mask.unsqueeze(-1).float()
        return Output(last=x, pooled=(x * weights).sum(1) / weights.sum(1))


class Two(nn.Module):
    """Two inputs one after the other, two outputs in a tuple."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.out = nn.Linear(4, 8), nn.Linear(3, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        hidden = torch.relu(self.first(x) + self.second(y))
        return self.out(hidden), hidden


class Pooled(nn.Module):
    """One input and a dict of outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(2, 4, 3, padding=1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        found = self.conv(x)
        return {"features": found, "pooled": found.mean(2)}


def drawn(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def tokens() -> dict[str, Tensor]:
    ids = torch.randint(0, 20, (COUNT, 6), generator=torch.Generator().manual_seed(0))
    return {"ids": ids, "mask": (ids > 2).long()}


def numbers() -> nn.Module:
    return nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 1))


def places() -> nn.Module:
    return nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 3, 1))


# How a network and its inputs are made, what it is for, and what comes out for three examples.
CASES: dict[str, tuple[Any, Any, str, dict[str, str]]] = {
    "tokens": (Tokens, tokens, "own", {"last": "[3, 6, 8]", "pooled": "[3, 8]"}),
    "two": (Two, lambda: (drawn(COUNT, 4), drawn(COUNT, 3)), "own", {"output_0": "[3, 2]", "output_1": "[3, 8]"}),
    "dict": (Pooled, lambda: drawn(COUNT, 2, 8), "own", {"features": "[3, 4, 8]", "pooled": "[3, 4]"}),
    "numbers": (numbers, lambda: drawn(COUNT, 5), "regression", {"output": "[3, 1]"}),
    "places": (places, lambda: drawn(COUNT, 2, 6, 6), "segmentation", {"logits": "[3, 3, 6, 6]"}),
}


def exported(name: str, folder: Path, *formats: str, with_data: bool = True) -> tuple[Exported, Any]:
    make, draw, objective, _ = CASES[name]
    torch.manual_seed(0)
    network, inputs = make().eval(), draw()
    spec = inputs_spec(inputs)
    spec = tuple(spec) if isinstance(spec, list) else spec
    given = us.Data.from_inputs(inputs, source="examples") if with_data else None
    if given is not None and given.are_images:
        spec = tuple(given.shape)
    mean = {"mean": given.mean, "std": given.std} if given is not None and given.are_images else {"mean": (), "std": ()}
    known = replace(card(), input=spec, classes=(), objective=objective, metric="agreement", **mean)
    return export_student(folder, network, card=known, architecture="{}", formats=formats, data=given), inputs


def variables(inputs: dict[str, Tensor], library: str) -> str:
    """Return the code that makes the variables of a README's blocks."""
    kinds = {torch.int64: "int64", torch.float32: "float32"}
    made = (
        f"{name} = {library}.ones({[3, *tensor.shape[1:]]}, dtype={library}.{kinds[tensor.dtype]})"
        for name, tensor in inputs.items()
    )
    return "\n".join([f"import {library}", *made])


@pytest.mark.parametrize("name", CASES)
def test_every_format_gives_what_the_student_gives(name: str, tmp_path: Path) -> None:
    found, inputs = exported(name, tmp_path, "source", "onnx", "pt2")
    assert found.skipped == {} and found.parity["source"].absolute == 0.0
    assert all(found.parity[each].relative < 1e-5 for each in ("onnx", "pt2"))
    assert (found.parity["onnx"].agreement is None) == (name != "places")
    checked = verify(tmp_path, trust_code=True)
    assert set(checked.parity) == {"source", "onnx", "pt2"} and checked.parity["source"].absolute == 0.0
    described = json.loads((tmp_path / "input.json").read_text())
    if name != "places":
        assert list(described["outputs"]) == list(CASES[name][3])
    readme = (tmp_path / "README.md").read_text()
    assert "agreement on validation" in readme and "classifier" not in readme
    if name == "tokens":
        run_alone(as_the_readme_says(readme, inputs, CASES[name][3]), tmp_path)


def as_the_readme_says(readme: str, inputs: dict[str, Tensor], outputs: dict[str, str]) -> str:
    """Return the blocks of a README as one program that checks what comes out."""
    code = 'import sys; sys.path.insert(0, ".")\n'
    blocks = [part.split("```")[0] for part in readme.split("```python\n")[1:]]
    for block, library in zip(blocks, ("torch", "numpy", "torch"), strict=True):
        code += f"{variables(inputs, library)}\n{block}\n"
        code += "outputs = list(getattr(outputs, 'values', lambda: outputs)())\n"
        code += f"assert [list(one.shape) for one in outputs] == [{', '.join(outputs.values())}]\n"
    return code


def test_without_data_tokens_are_those_that_every_table_has(tmp_path: Path) -> None:
    found, _ = exported("tokens", tmp_path, "source", with_data=False)
    assert found.parity["source"].absolute == 0.0 and verify(tmp_path, trust_code=True).not_run == {}


def test_int8_of_tokens_and_of_places(tmp_path: Path) -> None:
    found, _ = exported("places", tmp_path / "places", "int8")
    assert found.int8 is not None and 0.0 < found.int8["relative_error"] < 0.2
    assert "| distance of the outputs, root mean square | 0 |" in (tmp_path / "places" / "README.md").read_text()
    found, _ = exported("tokens", tmp_path / "tokens", "int8")
    assert found.int8 is not None and 0.0 < found.int8["relative_error"] < 0.2
    assert set(verify(tmp_path / "tokens").parity) == {"int8"}


def test_data_of_another_kind_are_refused(tmp_path: Path) -> None:
    make, draw, objective, _ = CASES["two"]
    known = replace(card(), input=(4,), classes=(), objective=objective, mean=(), std=())
    with pytest.raises(ConfigError, match=r"data must hold what the student takes, \(4,\), but hold \{'parts'"):
        export_student(
            tmp_path, make(), card=known, architecture="{}", formats=("source",), data=us.Data.from_inputs(draw())
        )
    assert list(tmp_path.iterdir()) == []


def test_inputs_to_check_with_must_be_whole(tmp_path: Path) -> None:
    exported("tokens", tmp_path, "source", with_data=False)
    certificate = json.loads((tmp_path / "certificate.json").read_text())
    certificate["input"]["named"]["other"] = [3]
    write_json(tmp_path / "certificate.json", certificate)
    with pytest.raises(ExportError, match=r"inputs to check with must be whole, but 'inputs\.1\.other' is missing"):
        verify(tmp_path, trust_code=True)
