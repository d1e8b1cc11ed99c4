"""Students that the teacher's class cannot express: the recorded forward pass over smaller layers."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.support.cards import card
from tests.support.models import parameters
from understudy.core.architecture import Architecture, Space
from understudy.cost.predict import predict
from understudy.export.source import source_of
from understudy.graph.analysis import Analysis, analyse
from understudy.models.student import load_student, save_student
from understudy.proof.prove import prove
from understudy.surgery.build import build, inherits_all, rebuild
from understudy.surgery.masked import relative_error
from understudy.surgery.plain import Plain


class Block(nn.Module):
    """Attention whose heads are a local number, and an MLP."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.qkv, self.proj = nn.LayerNorm(8), nn.Linear(8, 24), nn.Linear(8, 8)
        self.up, self.down, self.drop = nn.Linear(8, 12), nn.Linear(12, 8), nn.Dropout(0.1)

    def forward(self, x: Tensor) -> Tensor:
        heads, (b, n, c) = 4, x.shape
        q, k, v = self.qkv(self.norm(x)).reshape(b, n, 3, heads, c // heads).permute(2, 0, 3, 1, 4)
        y = ((q @ k.transpose(-2, -1)) * (c // heads) ** -0.5).softmax(-1) @ v
        x = x + F.dropout(self.proj(y.transpose(1, 2).reshape(b, n, c)), 0.1, self.training)
        return x + self.drop(self.down(F.gelu(self.up(x))))


class Transformer(nn.Module):
    """Patches, a token and positions, two blocks, a head; in training a second head."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 8, 4, stride=4)
        self.token, self.places = nn.Parameter(torch.randn(1, 1, 8)), nn.Parameter(torch.randn(1, 5, 8))
        self.blocks = nn.Sequential(Block(), Block())
        self.head, self.aux = nn.Linear(8, 5), nn.Linear(8, 5)

    def forward(self, x: Tensor, scale: float = 1.0) -> Any:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = self.blocks(torch.cat([self.token.expand(len(x), -1, -1), x], 1) + self.places)
        return (self.head(x[:, 0]), self.aux(x.mean(1))) if self.training else self.head(x[:, 0]) * scale


@pytest.fixture(scope="module")
def analysis() -> Analysis:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return analyse(Transformer().double().eval(), torch.randn(2, 3, 8, 8, dtype=torch.float64))


def narrow(space: Space) -> Architecture:
    return space.architecture(widths={"patches": 5, "blocks.0.qkv": 12, "blocks.1.qkv": 6, "blocks.1.up": 7})


def test_heads_and_the_width_of_the_trunk_go_apart_where_one_is_computed_from_the_other(analysis: Analysis) -> None:
    groups = {group.name: (group.width, group.step) for group in analysis.space.groups}
    assert groups == {
        "patches": (8, 1),
        "blocks.0.qkv": (24, 6),
        "blocks.1.qkv": (24, 6),
        "blocks.0.up": (12, 1),
        "blocks.1.up": (12, 1),
    }
    plain = {group.name: group.plain for group in analysis.space.groups if group.plain}
    assert set(plain) == {"patches", "blocks.0.qkv", "blocks.1.qkv"}
    assert "mul computes with their number" in plain["patches"] and "test_plain.py:" in plain["patches"]
    assert [frozen.name for frozen in analysis.space.frozen] == ["head", "aux"] and analysis.shrinkable > 0.99


def test_a_plain_student_computes_what_the_masked_teacher_does(analysis: Analysis) -> None:
    x, architecture = analysis.trace.example, narrow(analysis.space)
    student = build(analysis, architecture)
    assert isinstance(student, Plain) and not student.training and type(student).__name__ == "Transformer"
    assert predict(analysis, architecture).parameters == parameters(student)
    assert relative_error(analysis, architecture, student, x) < 1e-12  # type: ignore[arg-type]
    assert student(torch.randn(7, 3, 8, 8, dtype=torch.float64)).shape == (7, 5)
    assert [tuple(t.shape) for t in student.train()(x)] == [(2, 5), (2, 5)]
    assert not torch.equal(student(x)[0], student(x)[0])  # dropout, that of the function as well
    student.eval()
    assert torch.equal(student(x), student(x))


def test_what_the_class_can_have_is_a_copy_of_it(analysis: Analysis) -> None:
    assert type(build(analysis, analysis.space.full.with_width("blocks.0.up", 5))) is Transformer
    assert type(build(analysis, analysis.space.full)) is Transformer


def test_every_decision_about_it_holds(analysis: Analysis) -> None:
    _, proof = prove(analysis)
    assert proof.refused == () and proof.largest < 1e-9


def test_units_go_from_plain_students_as_well(analysis: Analysis) -> None:
    x, space = analysis.trace.example, analysis.space
    units = [unit for unit in space.units if unit.kind != "layer"]
    assert {"block", "branch", "linear"} >= {unit.kind for unit in units} and len(units) >= 4
    for unit in units:
        architecture = narrow(space).without(unit.name)
        student = build(analysis, architecture)
        assert predict(analysis, architecture).parameters == parameters(student)
        assert student(x).shape == (2, 5) and len(student.train()(x)) == 2
        if inherits_all(analysis, architecture):
            assert relative_error(analysis, architecture, student.eval(), x) < 1e-12  # type: ignore[arg-type]


def test_a_plain_student_has_the_names_of_the_teachers_weights_and_is_built_again(analysis: Analysis) -> None:
    student = build(analysis, narrow(analysis.space))
    assert set(student.state_dict()) == set(analysis.teacher.state_dict())
    again = rebuild(analysis, narrow(analysis.space), student.state_dict())
    assert torch.equal(again(analysis.trace.example), student(analysis.trace.example))


def test_copies_and_pickles_are_whole_and_apart(analysis: Analysis) -> None:
    x = analysis.trace.example
    student = build(analysis, narrow(analysis.space))
    for again in (copy.deepcopy(student), pickle.loads(pickle.dumps(student))):
        assert torch.equal(again(x), student(x)) and isinstance(again, Plain)
        again.head.weight.data.zero_()
        assert not torch.equal(again(x), student(x))
        assert len(again.train()(x)) == 2


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_a_plain_student_of_two_modes_can_be_scripted() -> None:
    class Attention(Block):
        def forward(self, x: Tensor, *, shift: Tensor) -> Tensor:
            return super().forward(x) + shift

    with torch.random.fork_rng():
        torch.manual_seed(0)
        traced = analyse(Attention().eval(), {"x": torch.randn(2, 5, 8), "shift": torch.randn(2, 5, 8)})
    student = build(traced, traced.space.architecture(widths={"qkv": 12})).eval()
    assert isinstance(student, Plain) and student.code.training != student.code.evaluation
    inputs = {"x": torch.randn(3, 5, 8), "shift": torch.randn(3, 5, 8)}
    scripted = torch.jit.script(student)
    assert torch.equal(scripted(**inputs), student(**inputs))
    assert not torch.equal(scripted.train()(**inputs), student(**inputs))  # it drops


def test_a_plain_student_learns(analysis: Analysis) -> None:
    x = analysis.trace.example
    student = build(analysis, narrow(analysis.space)).train()
    optimiser = torch.optim.SGD(student.parameters(), lr=0.1)
    before = {name: p.detach().clone() for name, p in student.named_parameters()}
    sum(t.square().mean() for t in student(x)).backward()
    optimiser.step()
    assert not any(
        torch.equal(p, before[name]) for name, p in student.named_parameters() if name != "blocks.1.qkv.bias"
    )


def test_a_plain_student_is_a_teacher_again(analysis: Analysis) -> None:
    student = build(analysis, narrow(analysis.space))
    again = analyse(student, analysis.trace.example)
    groups = {group.name: (group.width, group.step) for group in again.space.groups}
    assert groups["patches"] == (5, 1) and groups["blocks.0.qkv"] == (12, 6)
    architecture = again.space.architecture(widths={"patches": 2, "blocks.0.qkv": 6})
    smaller = build(again, architecture)
    assert relative_error(again, architecture, smaller, analysis.trace.example) < 1e-12  # type: ignore[arg-type]


def test_it_is_saved_without_code_and_loaded_from_the_teachers_class(analysis: Analysis, tmp_path: Path) -> None:
    architecture = narrow(analysis.space)
    student = build(analysis, architecture).float()
    save_student(tmp_path, student, architecture, card(input=(3, 8, 8), name=architecture.digest))
    assert not list(tmp_path.rglob("*.py"))
    again = load_student(tmp_path, teacher=Transformer())
    x = torch.randn(3, 3, 8, 8)
    assert isinstance(again, Plain) and torch.equal(again(x), student(x))


def test_it_is_written_as_source_code(analysis: Analysis) -> None:
    student = build(analysis, narrow(analysis.space))
    source = source_of(student, analysis.trace.example)
    assert source.name == "Transformer"
    assert torch.equal(source.build()(analysis.trace.example), student(analysis.trace.example))


def test_a_network_of_any_depth_is_a_plain_student() -> None:
    class Deep(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(4, 8), nn.Linear(8, 2)

        def forward(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
            x = self.first(x).view(-1, 2, 4).view(-1, 8)
            for _ in range(1100):  # more than Python's functions can call one another
                x = x.relu()
            return self.last(x)

    analysis = analyse(Deep().eval(), torch.randn(2, 4))
    student = build(analysis, analysis.space.full.with_width("first", 4))
    assert isinstance(student, Plain) and student(torch.randn(3, 4)).shape == (3, 2)


class Drawing(nn.Module):
    """What no graph repeats: a random number, or a value that is stored."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.a, self.b, self.how, self.calls = nn.Linear(6, 8), nn.Linear(8, 3), how, 0

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x) * self.a.out_features
        if self.how == "drawn":
            return self.b(y * torch.rand(1).double())
        self.calls += 1
        return self.b(y) * self.calls


@pytest.mark.parametrize("how", ["drawn", "stored"])
def test_what_no_graph_repeats_stays_as_it_is(how: str) -> None:
    space = analyse(Drawing(how).double().eval(), torch.randn(2, 6, dtype=torch.float64)).space
    assert space.groups == () and "computes with a.out_features" in space.frozen[0].reason


class Shortcuts(nn.Module):
    """Blocks with shortcuts of option A (He et al., 2016, section 4.2): every second pixel, channels of zeros."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.a, self.b = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 16, 3, 2, 1), nn.Conv2d(16, 16, 3, 1, 1)
        self.head = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        x = torch.relu(self.b(torch.relu(self.a(x))) + F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 4, 4)))
        return self.head(x.mean((2, 3)))


def test_shortcuts_without_parameters_lose_channels_in_a_plain_graph() -> None:
    analysis = analyse(Shortcuts().double().eval(), torch.randn(2, 3, 8, 8, dtype=torch.float64))
    assert {group.name: group.width for group in analysis.space.groups} == {"stem": 8, "a": 16, "b": 8}
    proven, proof = prove(analysis)
    assert proof.refused == () and proven.shrinkable > 0.99
    student = build(analysis, analysis.space.architecture(widths={"stem": 3, "b": 2}))
    assert (student.b.out_channels, student.head.in_features) == (5, 5)
