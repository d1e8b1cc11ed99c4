from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from tests.support.models import images, macs, parameters, zoo_analysis
from understudy.cost.predict import per_layer, predict
from understudy.graph.analysis import analyse
from understudy.surgery.build import build
from understudy.surgery.masked import relative_error


def kinds(name: str, kind: str) -> list[str]:
    return [unit.name for unit in zoo_analysis(name).space.units if unit.kind == kind]


def test_vgg_offers_all_but_the_first_convolution_and_its_pools() -> None:
    space = zoo_analysis("vgg11").space
    assert kinds("vgg11", "conv") == [f"features.{i}" for i in (4, 8, 11, 15, 18, 22, 25)]
    assert kinds("vgg11", "pool") == [f"features.{i}" for i in (3, 7, 14, 21, 28)]
    assert space.unit("features.4").layers == ("features.4", "features.5", "features.6")


def test_resnet_offers_blocks_that_keep_their_shape_and_what_can_go_inside() -> None:
    blocks = ["stages.0", *(f"stages.{name}" for name in ("0.0", "0.1", "0.2", "1.1", "1.2", "2.1", "2.2"))]
    assert sorted(kinds("resnet20", "block")) == blocks
    # The second convolution of a branch meets the shortcut, and strided ones stay.
    assert all(name.endswith("conv1") for name in kinds("resnet20", "conv"))
    assert not any(name.startswith(("stages.1.0", "stages.2.0")) for name in kinds("resnet20", "conv"))


def test_single_layers_are_offered_as_well() -> None:
    singles = kinds("vgg11", "layer")
    assert "layer:features.5" in singles and "layer:features.6" in singles and "layer:features.3" in singles
    assert not {"layer:features.0", "layer:features.1", "layer:features.2", "layer:classifier"} & set(singles)


@pytest.mark.parametrize("name", ["vgg11", "resnet20"])
@given(data=st.data())
def test_any_set_of_units_can_go(name: str, data: st.DataObject) -> None:
    """Units are legal together: whatever a search draws can be built."""
    analysis = zoo_analysis(name)
    units = [unit.name for unit in analysis.space.units if unit.kind != "layer"]
    removed = data.draw(st.sets(st.sampled_from(units)))
    architecture = analysis.space.architecture(removed=removed)
    student = build(analysis, architecture)
    assert student(images(1)).shape == (1, 10)
    # It may be larger than the teacher: without pools a classifier reads more positions.
    assert predict(analysis, architecture).parameters == parameters(student)


def test_rows_describe_the_layers_in_order() -> None:
    layers = zoo_analysis("resnet20").space.layers
    assert [layer.name for layer in layers[:4]] == ["conv1", "bn1", "stages.0.0.conv1", "stages.0.0.bn1"]
    strided = next(layer for layer in layers if layer.name == "stages.1.0.conv1")
    assert (strided.type, strided.kernel, strided.stride, strided.padding, strided.outputs) == ("conv", 3, 2, 1, 16)
    assert strided.parameters == 8 * 16 * 9
    assert strided.kernels == (1, 3)
    assert layers[-1].type == "linear"


def test_rows_know_the_skip_around_them() -> None:
    layers = {layer.name: layer for layer in zoo_analysis("resnet20").space.layers}
    # A branch of four layers: its first one is one layer behind the fork and four before the addition.
    inner = [layers[f"stages.0.1.{name}"] for name in ("conv1", "bn1", "conv2", "bn2")]
    assert [(layer.skip_start, layer.skip_end) for layer in inner] == [(1, 4), (2, 3), (3, 2), (4, 1)]
    assert (layers["conv1"].skip_start, layers["conv1"].skip_end) == (0, 0)


def test_units_of_pre_activation_take_the_norm_in_front() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        *(nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1)),
        nn.Conv2d(8, 2, 1),
    )
    units = {unit.name: unit for unit in analyse(model, images(1)).space.units}
    assert units["3"].layers == ("1", "2", "3")


class Residual(nn.Module):
    """Adds branches in its own forward pass, where no module holds one of them."""

    def __init__(self, *, scaled: bool = False, sigmoid: bool = False, inplace: bool = False) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(8, 4)
        self.a, self.norm, self.b = nn.Conv2d(8, 12, 3, padding=1), nn.BatchNorm2d(12), nn.Conv2d(12, 8, 3, padding=1)
        self.drop = nn.Dropout(0.5)
        self.gamma = nn.Parameter(torch.full((8, 1, 1), 0.5))
        self.scaled, self.sigmoid, self.inplace = scaled, sigmoid, inplace

    def branch(self, x: Tensor) -> Tensor:
        y = self.drop(self.b(torch.relu(self.norm(self.a(x)))))
        y = torch.sigmoid(y) if self.sigmoid else y
        return self.gamma * y if self.scaled else y

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.branch(x)
        if self.inplace:
            y += x
            return self.head(y.mean((2, 3)))
        return self.head((x + y).mean((2, 3)))


@pytest.mark.parametrize("options", [{}, {"scaled": True}, {"inplace": True}])
@pytest.mark.parametrize("training", [False, True])
def test_a_branch_that_is_no_module_can_go(options: dict[str, bool], training: bool) -> None:
    model = Residual(**options).train(training)
    analysis = analyse(model, images(2))
    unit = next(u for u in analysis.space.units if u.kind == "branch")
    assert unit.layers == ("a", "norm", "b")
    architecture = analysis.space.full.without(unit.name)
    student = build(analysis, architecture)
    with torch.no_grad():
        assert torch.equal(student(images(2)), model.head(model.stem(images(2)).mean((2, 3))))
    cost = predict(analysis, architecture)
    assert (cost.parameters, cost.macs) == (parameters(student), macs(student, images(2)))
    narrow = build(analysis, architecture.with_width("stem", 3))
    assert narrow(images(2)).shape == (2, 4) and narrow.stem.out_channels == 3


def test_a_branch_that_is_not_zero_behind_its_last_layer_stays() -> None:
    assert not [u for u in analyse(Residual(sigmoid=True), images(2)).space.units if u.kind == "branch"]


def test_a_branch_that_others_read_stays() -> None:
    class Read(Residual):
        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x)
            y = self.branch(x)
            return self.head((x + y).mean((2, 3))) + self.head(y.mean((2, 3)))

    assert not [u for u in analyse(Read(), images(2)).space.units if u.kind == "branch"]


def test_a_block_is_not_offered_again_as_its_branch() -> None:
    assert kinds("resnet20", "branch") == []


def test_layers_of_a_classifier_can_go() -> None:
    model = nn.Sequential(
        *(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten()),
        *(nn.Linear(32, 16), nn.ReLU(), nn.Dropout(), nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 4)),
    ).eval()
    analysis = analyse(model, images(2))
    units = {unit.name: unit.layers for unit in analysis.space.units if unit.kind == "linear"}
    assert units == {"4": ("4", "5"), "7": ("7", "8")}
    architecture = analysis.space.full.without("4", "7").with_width("0", 3)
    student = build(analysis, architecture)
    assert student[9].in_features == 3 * 4 and student(images(3)).shape == (3, 4)
    assert predict(analysis, architecture).parameters == parameters(student) == 3 * 27 + 3 + 12 * 4 + 4


def test_kernels_shrink_only_where_the_size_of_the_output_stays() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 8, 5, padding=2), nn.Conv2d(8, 8, 5, padding=1), nn.Conv2d(8, 8, 3), nn.Conv2d(8, 8, (1, 3)),
        nn.Conv2d(8, 8, 3, padding=2, dilation=2), nn.Conv2d(8, 8, 4, padding=1), nn.Conv2d(8, 8, 3, padding="same"),
    )  # fmt: skip
    layers = analyse(model, images(1)).space.layers
    assert [layer.kernels for layer in layers] == [(1, 3, 5), (3, 5), (), (), (1, 3), (), ()]
    student = build(analysis := analyse(model, images(1)), analysis.space.full.with_kernel("4", 1))
    assert student(images(1)).shape == model(images(1)).shape
    assert torch.is_tensor(student[4].weight) and student[4].weight.shape[-1] == 1


def test_a_module_that_gives_more_than_one_tensor_stays() -> None:
    """The tensors are counted where they are unpacked, and what an identity gives might be unpacked as well."""

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            x = torch.relu(self.a(x))
            return self.b(x), x

    class Blocks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.head = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 5, 3)
            self.first, self.second = Block(), Block()

        def forward(self, x: Tensor) -> Tensor:
            x, _ = self.first(self.stem(x))
            x, between = self.second(x)
            return self.head(x + between)

    offered = [unit.name for unit in analyse(Blocks().eval(), images(2)).space.units]
    assert "first.a" in offered and not {"first", "second"} & set(offered)


class Bottleneck(nn.Module):
    """Few channels of many, then a wide kernel over them; and the other way round."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.squeeze, self.wide = nn.Conv2d(3, 32, 1), nn.Conv2d(32, 4, 1), nn.Conv2d(4, 32, 3, padding=1)
        self.widen, self.last = nn.Conv2d(32, 48, 3, padding=1), nn.Conv2d(48, 8, 1)
        self.head = nn.Conv2d(8 + 48, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.widen(self.wide(self.squeeze(self.stem(x))))
        return self.head(torch.cat([x, self.last(x)], 1))


def test_what_leaves_a_larger_network_behind_is_not_offered() -> None:
    """Without `squeeze` what follows reads 8 times as many channels."""
    space = analyse(Bottleneck(), images(2, size=6)).space
    offered = {unit.name for unit in space.units}
    assert not {"squeeze", "layer:squeeze"} & offered and {"wide", "widen", "last"} <= offered


class Joined(nn.Module):
    """Joins what it reads to one chain of layers or two, and has places for what keeps a chain from going."""

    def __init__(self, forward: Callable[[Any, Tensor], Tensor], out: int = 16) -> None:
        super().__init__()
        self.run = forward
        self.stem, self.head = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(out, 3)
        self.deep = nn.Sequential(
            *(nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 12, 1), nn.ReLU(), nn.Conv2d(12, 8, 3, padding=1)),
            *(nn.BatchNorm2d(8), nn.Dropout(0.5)),
        )
        self.flat, self.down = (nn.Conv2d(8, 8, 1, stride=s) for s in (1, 2))
        self.last = nn.Conv2d(16, 16, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.run(self, torch.relu(self.stem(x))).mean((2, 3)))


def _dense(net: Any, x: Tensor) -> Tensor:
    x = torch.cat([x, net.deep(x)], 1)
    return torch.cat([torch.relu(net.last(x)), x], 1)


def _inception(net: Any, x: Tensor) -> Tensor:
    return net.last(torch.cat([torch.relu(net.flat(x)), F.gelu(net.deep(x))], 1))


@pytest.mark.parametrize(("forward", "out"), [(_dense, 32), (_inception, 16)])
@pytest.mark.parametrize("training", [False, True])
def test_what_is_joined_can_go_and_adds_no_channels(forward: Any, out: int, training: bool) -> None:
    """As in DenseNet and in Inception, where one of the branches of a block stays."""
    model = Joined(forward, out).train(training)
    x = images(2, size=6)
    analysis = analyse(model, x)
    found = {u.name: u.layers for u in analysis.space.units if u.kind == "joined"}
    deep = ("deep.0", "deep.1", "deep.2", "deep.3", "deep.4", "deep.5")
    assert found == {"joined:deep.0": deep, **({"joined:last": ("last",)} if forward is _dense else {})}
    architecture = analysis.space.full.without("joined:deep.0").with_width("stem", 3)
    student, cost = build(analysis, architecture), predict(analysis, architecture)
    assert student.last.in_channels == (3 if forward is _dense else 8) and "deep.0.weight" not in student.state_dict()
    assert (cost.parameters, cost.macs) == (parameters(student), macs(student, x))
    assert per_layer(analysis, architecture)["deep.4"].parameters == 0
    assert student(images(5, size=6)).shape == (5, 3)


@pytest.mark.parametrize(("forward", "out"), [(_dense, 32), (_inception, 16)])
def test_without_what_is_joined_it_computes_what_the_teacher_does_without_those_channels(
    forward: Any, out: int
) -> None:
    model, x = Joined(forward, out).double().eval(), images(2, size=6).double()
    analysis = analyse(model, x)
    gone = [unit.name for unit in analysis.space.units if unit.kind == "joined"]
    narrow = analysis.space.architecture(removed=gone, widths={g.name: 5 for g in analysis.space.groups if g.width > 5})
    student = build(analysis, narrow)
    assert relative_error(analysis, narrow, student, x) < 1e-12
    again = analyse(student, x)  # a student can be the teacher of the next
    assert [frozen.name for frozen in again.space.frozen] == ["head"] and len(again.space.groups) >= 1


@pytest.mark.parametrize(
    "forward",
    [
        lambda net, x: torch.cat([net.flat(x), net.deep(x)], 2).repeat(1, 2, 1, 1),  # joined along space
        lambda net, x: torch.cat([net.down(x), net.down(net.deep(x))], 1),  # has another size than what it reads
        lambda net, x: torch.cat([y := net.deep(x), x], 1) + y.mean(),  # read by others
        lambda net, x: (z := torch.cat([x, net.deep(x)], 1)) + net.last(z),  # tied to what another layer emits
        lambda net, x: torch.cat([x, net.deep(x).view(-1, 8, 6, 6)], 1),  # of no channels there are no such parts
    ],
)
def test_what_is_not_only_joined_stays(forward: Any) -> None:
    units = analyse(Joined(forward), images(2, size=6)).space.units
    assert not [unit for unit in units if unit.kind == "joined"]


def test_the_layers_of_a_densenet_can_go() -> None:
    layers = [unit.layers for unit in zoo_analysis("densenet40").space.units if unit.kind == "joined"]
    assert layers == [(f"stages.{s}.{i}.norm", f"stages.{s}.{i}.conv") for s in (0, 2, 4) for i in range(12)]
