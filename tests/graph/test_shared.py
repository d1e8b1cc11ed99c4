"""Weights, modules and kernels that several places use: they are cut once, and stay where others would miss them."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.support.held import analysed, check
from tests.support.models import parameters
from understudy.cost.predict import predict
from understudy.graph.analysis import analyse
from understudy.proof.prove import prove
from understudy.surgery.build import build
from understudy.surgery.masked import relative_error


class Tied(nn.Module):
    """Layers that share their weight: the same one twice, two names of one, or one that lies in another's memory."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.stem, self.p, self.out = nn.Linear(5, 8), nn.Linear(8, 8), nn.Linear(8, 3)
        self.q = self.p if how == "module" else nn.Linear(8, 8)
        if how == "weight":
            self.q.weight = self.p.weight
        if how == "memory":
            self.q.weight = nn.Parameter(self.p.weight.data.t())

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.relu(self.q(torch.relu(self.p(torch.relu(self.stem(x)))))))


@pytest.mark.parametrize(("how", "free"), [("weight", {"stem"}), ("module", {"stem"}), ("memory", set())])
def test_shared_weights_are_cut_once(how: str, free: set[str]) -> None:
    torch.set_default_dtype(torch.float64)  # a cast would part memory that is shared
    try:
        analysis = analyse(Tied(how).eval(), torch.randn(2, 5))
    finally:
        torch.set_default_dtype(torch.float32)
    groups = {group.name for group in analysis.space.groups}
    assert groups == free
    for group in analysis.space.groups:
        architecture = analysis.space.full.with_width(group.name, 3)
        student = build(analysis, architecture)
        assert parameters(student) == predict(analysis, architecture).parameters
        assert relative_error(analysis, architecture, student, analysis.trace.example) < 1e-12  # type: ignore[arg-type]
        assert student.q.weight is student.p.weight


def test_an_embedding_and_the_layer_that_shares_its_weight_are_cut_alike() -> None:
    class Words(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words, self.inner, self.out = nn.Embedding(7, 6), nn.Linear(6, 6), nn.Linear(6, 7, bias=False)
            self.out.weight = self.words.weight

        def forward(self, x: Tensor) -> Tensor:
            return self.out(torch.relu(self.inner(self.words(x))))

    analysis = analyse(Words().eval(), torch.zeros(2, 3, dtype=torch.long))
    assert [(group.name, group.width) for group in analysis.space.groups] == [("words", 6)]
    student = build(analysis, analysis.space.full.with_width("words", 4))
    assert student.out.weight is student.words.weight and student.words.weight.shape == (7, 4)
    assert student.words.embedding_dim == student.inner.out_features == 4


class Parts(nn.Module):
    """Modules that are called, read and looked at in the ways that `how` names."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.stem, self.conv, self.last, self.head = (
            nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1), nn.Linear(8, 4)
        )  # fmt: skip
        self.block, self.blocks, self.pool = Scaled(), nn.Sequential(Scaled(), Scaled()), nn.MaxPool2d(2)
        self.how = how

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.stem(x))
        match self.how:
            case "attribute":
                y = self.block(self.conv(y) * self.conv.stride[0]) * self.block.number
            case "index":
                y = self.blocks(self.blocks[0](y))
            case "length":
                y = self.blocks(y) * len(self.blocks)
            case "class":
                y = self.conv(y) if isinstance(self.conv, nn.Conv2d) else y * 3
            case "keyword":
                y = self.block(y, scale=2.0)
            case "several":
                y = self.block(y, 2.0, shift=1)
            case "keyword first":
                y = self.block(scale=2.0, x=y)
            case "resolutions":
                y = torch.cat([self.pool(self.conv(y)), F.avg_pool2d(y, 2)], 1)
                y = sum(y.chunk(2, 1))
            case "kernel":
                y = self.conv(F.pad(y, (0, self.conv.kernel_size[0] - 3)))
            case "training":
                if self.training:
                    return self.head(self.conv(y).mean((2, 3)))
        return self.head(self.last(y).mean((2, 3)))


class Scaled(nn.Module):
    number = 3

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1)

    def forward(self, x: Tensor, scale: float = 1.0, *, shift: float = 0.0) -> Tensor:
        return x + self.two(torch.relu(self.one(x))) * scale + shift


@pytest.mark.parametrize(
    ("how", "stays", "goes"),
    [
        ("attribute", {"conv", "block"}, {"last", "block.one"}),
        ("index", {"blocks"}, {"last", "blocks.1"}),
        ("length", {"blocks"}, {"last", "blocks.0", "blocks.1"}),
        ("class", {"conv"}, {"last"}),
        ("keyword", set(), {"block", "block.one", "last"}),
        ("several", set(), {"block", "block.one", "last"}),
        ("keyword first", {"block"}, {"block.one", "last"}),
        ("resolutions", {"pool"}, {"last"}),
        ("kernel", {"conv"}, {"last"}),
        ("training", set(), {"layer:last"}),
    ],
)
def test_units_whose_absence_others_would_notice_stay(how: str, stays: set[str], goes: set[str]) -> None:
    analysis = analysed(Parts(how), 2, 3, 8, 8)
    check(analysis)
    units = {unit.name for unit in analysis.space.units}
    assert goes <= units and not stays & units


def test_a_kernel_whose_size_is_read_stays() -> None:
    kernels = {layer.name: layer.kernels for layer in analysed(Parts("kernel"), 2, 3, 8, 8).space.layers}
    assert kernels["last"] == (1, 3) and kernels["conv"] == ()


def test_a_bypassed_block_passes_its_first_argument_on() -> None:
    analysis = analysed(Parts("several"), 2, 3, 8, 8)
    student, model, x = build(analysis, analysis.space.full.without("block")), analysis.teacher, analysis.trace.example
    assert torch.equal(student(x), model.head(model.last(torch.relu(model.stem(x))).mean((2, 3))))


class Gated(nn.Module):
    """A layer that several of them share, as in TabNet, and a norm of its own."""

    def __init__(self, shared: nn.Module) -> None:
        super().__init__()
        self.shared, self.norm = shared, nn.BatchNorm2d(8)

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.relu(self.norm(self.shared(x)))


class Activated(nn.Module):
    """A layer and a norm of its own, and an activation that blocks may share."""

    def __init__(self, activation: nn.Module) -> None:
        super().__init__()
        self.layer, self.norm, self.activation = nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8), activation

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.activation(self.norm(self.layer(x)))
        return out


def test_blocks_that_share_an_activation_go_one_by_one() -> None:
    activation = nn.ReLU()
    blocks = [Activated(activation) for _ in range(2)]
    net = nn.Sequential(nn.Conv2d(3, 8, 3), *blocks, nn.Conv2d(8, 8, 1), nn.Flatten(), nn.Linear(8 * 36, 4))
    analysis = analysed(net, 2, 3, 8, 8)
    check(analysis)
    assert prove(analysis)[1].refused == ()
    assert {"1", "2"} <= {unit.name for unit in analysis.space.units}


@pytest.mark.parametrize("several", [True, False])
def test_a_block_stays_whose_layer_another_one_needs(several: bool) -> None:
    blocks = [Gated(nn.Conv2d(8, 8, 1)) for _ in range(2)]
    if several:
        blocks[1].shared = blocks[0].shared
    net = nn.Sequential(nn.Conv2d(3, 8, 3), *blocks, nn.Conv2d(8, 8, 1), nn.Flatten(), nn.Linear(8 * 36, 4))
    analysis = analysed(net, 2, 3, 8, 8)
    check(analysis)
    assert prove(analysis)[1].refused == ()
    assert ("1" in {unit.name for unit in analysis.space.units}) is not several
