"""Compensated weights: what they leave alone, what they make up for, and what they never touch."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from tests.support.models import images, random_architecture, zoo_analysis
from understudy.core.architecture import Architecture
from understudy.graph.analysis import Analysis, analyse
from understudy.surgery.build import build
from understudy.surgery.compensated import _RIDGE, _ridge, _rows, compensate, record

DEEPER = ("mobilenet_v2", "googlenet", "densenet40")


def compensated(analysis: Analysis, architecture: Architecture, inputs: Tensor) -> nn.Module:
    student = build(analysis, architecture)
    compensate(student, analysis, architecture, record(analysis, inputs))
    return student


def error(student: nn.Module, analysis: Analysis, inputs: Tensor) -> float:
    """The mean squared difference of the outputs, in units of the variance of the teacher's."""
    with torch.no_grad():
        given, wanted = student.eval()(inputs), analysis.teacher(inputs)
    return float((given - wanted).square().mean() / (wanted - wanted.mean(0)).square().mean())


def seeded(model: type[nn.Module]) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return model().eval()


class Doubled(nn.Module):
    """Its second half of channels is a mixture of the first, so half of them can go and nothing is lost."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 16, 3, padding=1)
        self.second = nn.Conv2d(16, 12, 3, padding=1)
        self.last = nn.Linear(12, 10)
        with torch.no_grad():
            mixed = torch.randn(8, 8) / 16  # small, so that the first half is what stays
            self.first.weight[8:] = torch.einsum("oi,ichw->ochw", mixed, self.first.weight[:8])
            self.first.bias[8:] = mixed @ self.first.bias[:8] + 1.0

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.relu(self.second(self.first(x))).mean((2, 3)))


class Odd(nn.Module):
    """Convolutions of every kind of padding, stride and dilation, and linear layers on the last of many dimensions."""

    def __init__(self) -> None:
        super().__init__()
        self.reflected = nn.Conv2d(3, 4, (3, 5), padding=(1, 2), padding_mode="reflect")
        self.same = nn.Conv2d(4, 6, (1, 3), dilation=(1, 2), padding="same")
        self.strided = nn.Conv2d(6, 8, 3, stride=(2, 3), padding=(2, 1), dilation=2)
        self.tokens = nn.Linear(8, 6)
        self.along = nn.Conv1d(6, 8, 3, stride=2, padding=1, padding_mode="circular")
        self.wide = nn.Linear(8 * 20, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.strided(torch.tanh(self.same(self.reflected(x)))))
        x = self.tokens(x.flatten(2).transpose(1, 2)).transpose(1, 2)
        return self.wide(self.along(x)[:, :, :20].flatten(1))


class Apart(nn.Module):
    """Layers that are left alone: grouped, called twice, and with weights that are another layer's."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.grouped = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.twice = nn.Conv2d(8, 8, 1)
        self.one = nn.Linear(8, 8)
        self.other = nn.Linear(8, 8)
        self.other.weight = self.one.weight
        self.last = nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.twice(torch.relu(self.twice(self.grouped(self.first(x)))))
        return self.last(torch.relu(self.other(torch.relu(self.one(x.mean((2, 3)))))))


def test_channels_that_others_can_stand_for_are_not_missed() -> None:
    analysis = analyse(seeded(Doubled), images(2, size=8))
    architecture = analysis.space.full.with_width("first", 8)
    inputs, others = images(64, size=8), images(32, size=8, seed=1)
    sliced = error(build(analysis, architecture), analysis, others)
    assert sliced > 0.3
    assert error(compensated(analysis, architecture, inputs), analysis, others) < sliced / 50


def test_a_layer_that_gets_what_it_got_stays_as_it_is() -> None:
    """The change is a regression on what is missing, which is nothing: rows are what each layer really reads."""
    analysis = analyse(seeded(Odd), images(2, size=16))
    student = compensated(analysis, analysis.space.full, images(24, size=16))
    for name, parameter in analysis.teacher.named_parameters():
        torch.testing.assert_close(student.get_parameter(name), parameter, atol=1e-5, rtol=1e-4)


def test_what_cannot_be_solved_alone_is_sliced() -> None:
    analysis = analyse(seeded(Apart), images(2, size=8))
    architecture = analysis.space.full.with_width("first", 4)
    sliced, student = build(analysis, architecture), compensated(analysis, architecture, images(32, size=8))
    changed = {n for n, p in student.named_parameters() if not torch.equal(p, sliced.get_parameter(n))}
    assert {name.partition(".")[0] for name in changed} <= {"first", "last"}
    assert "last.weight" in changed


@pytest.mark.parametrize(
    ("name", "seed"), [("resnet20", 0), ("vgg11", 1), *(pytest.param(n, 0, marks=pytest.mark.slow) for n in DEEPER)]
)
def test_students_come_nearer_to_the_teacher(name: str, seed: int) -> None:
    """Of any architecture, fresh layers and removed units among them, and on inputs that they were not solved on."""
    analysis = zoo_analysis(name)
    architecture = random_architecture(analysis.space, seed, remove=0.1)
    before = copy.deepcopy(analysis.teacher)
    inputs, others = images(32), images(32, seed=1)
    student = compensated(analysis, architecture, inputs)
    sliced = build(analysis, architecture).train()
    with torch.no_grad():  # statistics of its own, as the compensated one has
        for module in sliced.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = None
                module.reset_running_stats()
        sliced(inputs)
    assert error(student, analysis, others) < 0.9 * error(sliced, analysis, others)
    assert all(
        torch.equal(a, b)
        for a, b in zip(before.state_dict().values(), analysis.teacher.state_dict().values(), strict=True)
    )
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in student.modules())
    assert {m.momentum for m in student.modules() if isinstance(m, nn.BatchNorm2d)} <= {0.1}
    assert all(parameter.requires_grad for parameter in student.parameters())
    twin = compensated(analysis, architecture, inputs)
    assert all(
        torch.equal(a, b) for a, b in zip(twin.state_dict().values(), student.state_dict().values(), strict=True)
    )


@pytest.mark.parametrize("rows", [2000, 40])  # more than there are columns, and fewer
@pytest.mark.parametrize("columns", [30, 300])  # in one block, and in several
def test_coefficients_are_those_of_ridge_regression(rows: int, columns: int) -> None:
    x, y, start = (torch.randn(*shape, dtype=torch.float64) for shape in ((rows, columns), (rows, 4), (columns, 4)))
    penalty = _RIDGE * float(x.square().sum()) / columns
    found = _ridge(x, y, start)
    wanted = torch.linalg.solve(x.T @ x + penalty * torch.eye(columns, dtype=torch.float64), x.T @ (y - x @ start))
    torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("settings", [{"stride": 2, "padding": 1}, {"dilation": 2}, {"padding": (0, 2)}])
def test_rows_are_what_a_convolution_reads(settings: dict[str, Any]) -> None:
    layer, images = nn.Conv2d(3, 5, (3, 2), bias=False, **settings), torch.randn(4, 3, 9, 8)
    given = layer(images)
    places = torch.stack([torch.randperm(given[0, 0].numel())[:6] for _ in images])
    rows = _rows(layer, images, places)
    wanted = given.flatten(2).movedim(1, -1).gather(1, places[:, :, None].expand(-1, -1, 5)).flatten(0, 1)
    torch.testing.assert_close(rows @ layer.weight.movedim(1, -1).flatten(1).T, wanted)


def test_nothing_finite_to_solve_leaves_the_slices() -> None:
    analysis = analyse(seeded(Doubled), images(2, size=8))
    architecture = analysis.space.full.with_width("first", 8)
    sliced = build(analysis, architecture)
    student = compensated(analysis, architecture, torch.full((4, 3, 8, 8), float("nan")))
    assert all(torch.equal(p, sliced.get_parameter(n)) for n, p in student.named_parameters())
    still = compensated(analysis, architecture, torch.zeros(4, 3, 8, 8))
    assert all(bool(p.isfinite().all()) for p in still.parameters())


class Tables(nn.Module):
    """Layers that run on parameters, once for all examples, and one that takes a single image at a time."""

    def __init__(self) -> None:
        super().__init__()
        self.places, self.code = nn.Parameter(torch.randn(9, 4)), nn.Parameter(torch.randn(4))
        self.up, self.down, self.gain = nn.Linear(4, 8), nn.Linear(8, 16), nn.Linear(4, 16)
        self.first, self.alone, self.last = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 16, 3), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        table = self.down(torch.relu(self.up(self.places)))
        y = (
            torch.stack([self.alone(image) for image in torch.relu(self.first(x)).unbind(0)])
            * self.gain(self.code)[:, None, None]
        )
        return self.last(y.mean((2, 3)) + table.mean(0))


def test_layers_that_do_not_run_on_a_batch_are_left_as_they_are() -> None:
    analysis = analyse(seeded(Tables), images(2, size=8))
    architecture = analysis.space.architecture(widths={"up": 4})
    sliced, student = build(analysis, architecture), compensated(analysis, architecture, images(300, size=8))
    same = {name for name, weight in sliced.state_dict().items() if torch.equal(weight, student.state_dict()[name])}
    assert {"up.weight", "down.weight", "gain.weight", "alone.weight"} <= same and "last.weight" not in same


class Between(nn.Module):
    """Layers before batch norms, with something in between but once: what overwrites, and what makes other tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3, bias=False), nn.Conv2d(8, 8, 3, bias=False)
        self.third = nn.Conv2d(8, 8, 3, bias=False)
        self.relu = nn.ReLU(inplace=True)
        self.norms = nn.ModuleList(nn.BatchNorm2d(8) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        x = self.norms[0](self.relu(self.first(x)))
        x = self.second(x)
        x = functional.max_pool2d(x, 2)
        x = functional.relu(x)  # may lie where the result of the layer lay, which is gone
        return self.norms[2](self.third(self.norms[1](x)))


def test_only_what_a_batch_norm_reads_itself_has_a_mean_that_does_not_matter() -> None:
    inputs = images(4, size=16)
    assert record(analyse(seeded(Between), inputs), inputs).centred == {"third"}
