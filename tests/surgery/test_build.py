from __future__ import annotations

import copy
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from tests.support.models import images, macs, parameters, random_architecture, random_widths, zoo_analysis
from understudy.core.errors import ArchitectureError, SurgeryError
from understudy.cost.predict import predict
from understudy.graph.analysis import analyse
from understudy.models import zoo
from understudy.surgery.build import build, kept_slots, rebuild
from understudy.surgery.masked import Masked

NAMES = zoo.names()
# The thin and deep ones have the structure of their smaller kin; the slow set holds them to it as well.
QUICK = [name for name in NAMES if name not in ("resnet56", "resnet110", "resnet34", "vgg16", "vgg19", "densenet40")]
AT_NIGHT = ("resnet110",)  # nothing but more blocks than resnet56
SLOW = [
    pytest.param(name, marks=(pytest.mark.slow, pytest.mark.nightly) if name in AT_NIGHT else pytest.mark.slow)
    for name in NAMES
    if name not in QUICK
]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("training", [False, True])
def test_keep_all_is_the_teacher_bit_for_bit(name: str, training: bool) -> None:
    analysis = zoo_analysis(name)
    teacher = copy.deepcopy(analysis.teacher).train(training)
    student = build(analysis, analysis.space.full).train(training)
    assert type(student) is type(teacher)
    assert torch.equal(student(images(4)), teacher(images(4)))


@pytest.mark.parametrize("name", [*QUICK, *SLOW])
@given(seed=st.integers(0, 2**32))
@settings(max_examples=20)
def test_a_student_is_what_was_predicted_and_trains(name: str, seed: int) -> None:
    analysis = zoo_analysis(name)
    architecture = random_architecture(analysis.space, seed)
    cost = predict(analysis, architecture)
    student = build(analysis, architecture)
    state = student.state_dict()
    assert cost.parameters == parameters(student)
    assert cost.macs == macs(student, images(2))
    assert cost.weight_bytes == sum(value.numel() * value.element_size() for value in state.values())
    assert student(images(3)).shape == (3, 10)
    student.train()(images(2)).sum().backward()
    assert all(p.grad is not None and p.grad.shape == p.shape for p in student.parameters())
    again = rebuild(analysis, architecture, state)
    assert all(torch.equal(a, b) for a, b in zip(again.state_dict().values(), state.values(), strict=True))


@pytest.mark.parametrize("name", [*QUICK, *SLOW])
@given(seed=st.integers(0, 2**32))
@settings(max_examples=10)
def test_dropping_channels_is_multiplying_them_by_zero(name: str, seed: int) -> None:
    analysis = zoo_analysis(name)
    architecture = random_widths(analysis.space, seed)
    with torch.no_grad():
        masked = Masked(analysis, architecture).run(images(2))
        sliced = build(analysis, architecture).eval()(images(2))
        scale = analysis.teacher(images(2)).abs().max()
    assert (masked - sliced).abs().max() < 1e-5 * scale


def test_a_mask_does_something() -> None:
    analysis = zoo_analysis("resnet20")
    architecture = analysis.space.full.with_width("stages.0.0.conv1", 1)
    assert not torch.allclose(Masked(analysis, architecture).run(images(2)), analysis.teacher(images(2)))
    fresh = next(unit.name for unit in zoo_analysis("vgg11").space.units if unit.kind == "conv")
    with pytest.raises(ArchitectureError, match="only a student that inherits all of its weights can be masked"):
        Masked(zoo_analysis("vgg11"), zoo_analysis("vgg11").space.full.without(fresh))


def test_removed_blocks_and_smaller_kernels_are_masked_as_well() -> None:
    analysis = zoo_analysis("resnet20")
    architecture = analysis.space.full.without("stages.0.1").with_kernel("conv1", 1).with_width("stages.1.0.conv1", 3)
    masked = Masked(analysis, architecture).run(images(2))
    assert torch.allclose(masked, build(analysis, architecture)(images(2)), atol=1e-5)
    assert not torch.allclose(masked, analysis.teacher(images(2)), atol=1e-2)


def test_leaves_the_teacher_alone() -> None:
    analysis = zoo_analysis("resnet20")
    before = {name: value.clone() for name, value in analysis.teacher.state_dict().items()}
    state = torch.random.get_rng_state()
    student = build(analysis, random_architecture(analysis.space, 1), weights="fresh")
    with torch.no_grad():
        for p in student.parameters():
            p.zero_()
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in analysis.teacher.state_dict().items())


def test_channels_are_inherited_by_index() -> None:
    analysis = zoo_analysis("vgg11")
    student = build(analysis, analysis.space.architecture(channels={"features.0": [1, 4, 6]}))
    teacher = analysis.teacher.get_parameter("features.0.weight")
    assert torch.equal(student.get_parameter("features.0.weight"), teacher[[1, 4, 6]])
    after = analysis.teacher.get_parameter("features.4.weight")
    assert torch.equal(student.get_parameter("features.4.weight"), after[:, [1, 4, 6]])


def test_a_width_keeps_the_channels_of_large_weights() -> None:
    model = nn.Sequential(nn.Conv2d(1, 4, 1, bias=False), nn.Conv2d(4, 2, 1, bias=False))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([0.1, 3.0, 0.2, 2.0]).reshape(4, 1, 1, 1))
        model[1].weight.fill_(1.0)
    analysis = analyse(model, images(1, channels=1, size=4))
    architecture = analysis.space.full.with_width("0", 2)
    assert build(analysis, architecture)[0].weight.flatten().tolist() == [3.0, 2.0]
    assert kept_slots(analysis, architecture).sum() == 2 + 2 + 1  # two of the first layer, the outputs, what is fixed


def test_a_smaller_kernel_is_the_middle_of_the_teachers() -> None:
    analysis = zoo_analysis("vgg11")
    student = build(analysis, analysis.space.full.with_kernel("features.4", 1))
    teacher = analysis.teacher.get_parameter("features.4.weight")
    conv = student.get_submodule("features.4")
    assert torch.equal(conv.weight, teacher[:, :, 1:2, 1:2])
    assert (conv.kernel_size, conv.padding) == ((1, 1), (0, 0))


def test_weights_behind_a_removed_layer_are_fresh_and_others_inherited() -> None:
    analysis = zoo_analysis("vgg11")
    student = build(analysis, analysis.space.full.without("features.8"), seed=3)
    assert isinstance(student.get_submodule("features.8"), nn.Identity)
    same = {n: torch.equal(p, analysis.teacher.get_parameter(n)) for n, p in student.named_parameters() if _fits(p, n)}
    assert same["features.4.weight"] and same["classifier.weight"]
    # features.11 reads 16 channels of features.4 now, not 32 of features.8.
    assert student.get_parameter("features.11.weight").shape[1] == 16


def _fits(parameter: Tensor, name: str) -> bool:
    return parameter.shape == zoo_analysis("vgg11").teacher.get_parameter(name).shape


def test_a_removed_block_is_passed_by_and_the_rest_inherited() -> None:
    analysis = zoo_analysis("resnet20")
    student = build(analysis, analysis.space.full.without("stages.1.1"))
    assert isinstance(student.get_submodule("stages.1.1"), nn.Identity)
    for name, parameter in student.named_parameters():
        assert torch.equal(parameter, analysis.teacher.get_parameter(name))


def test_fresh_weights_come_from_the_seed() -> None:
    analysis = zoo_analysis("resnet20")
    architecture = analysis.space.full.with_width("conv1", 4)
    one, same, other = (build(analysis, architecture, weights="fresh", seed=s).conv1.weight for s in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    assert not torch.equal(one, build(analysis, architecture).conv1.weight)


def test_removing_pools_refits_the_classifier() -> None:
    analysis = zoo_analysis("vgg11")
    pools = [unit.name for unit in analysis.space.units if unit.kind == "pool"]
    student = build(analysis, analysis.space.full.without(*pools[-2:]))
    assert student.classifier.in_features == 64 * 4 * 4
    assert student(images(1)).shape == (1, 10)


def test_what_cannot_fit_names_node_and_shapes() -> None:
    """A single layer of a residual branch can go at full width, but then its neighbours' widths must agree."""
    analysis = zoo_analysis("resnet20")
    without = analysis.space.full.without("layer:stages.0.0.conv2")
    assert build(analysis, without)(images(1)).shape == (1, 10)
    apart = without.with_width("stages.0.0.conv1", 5)
    with pytest.raises(SurgeryError, match=r"at node add \(resnet\.py:\d+: .*\): 5 and 8 channels meet"):
        build(analysis, apart)
    with pytest.raises(SurgeryError, match="5 and 8 channels meet"):
        predict(analysis, apart)


def test_refuses_an_architecture_of_another_teacher() -> None:
    analysis, other = zoo_analysis("vgg11"), zoo_analysis("resnet20")
    for use in (build, predict, kept_slots):
        with pytest.raises(ArchitectureError, match=f"made for Space {other.space.digest}, but this teacher's is"):
            use(analysis, other.space.full)


def test_refuses_weights_of_another_student() -> None:
    analysis = zoo_analysis("vgg11")
    state = build(analysis, analysis.space.full).state_dict()
    with pytest.raises(SurgeryError, match="weights must be of a student of this architecture"):
        rebuild(analysis, analysis.space.full.with_width("features.0", 4), state)


def test_an_analysis_travels_as_its_teacher() -> None:
    analysis = zoo_analysis("vgg11")
    other = pickle.loads(pickle.dumps(analysis))  # our own bytes, made on this line
    assert other.space == analysis.space
    architecture = random_widths(analysis.space, 5)
    assert torch.equal(build(other, architecture)(images(1)), build(analysis, architecture)(images(1)))


class CountsInParameters(nn.Module):
    """Keeps whole numbers among its parameters, as what is quantised by hand does."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(8, 16), nn.Linear(16, 3)
        self.scale = nn.Parameter(torch.ones(16))
        self.steps = nn.Parameter(torch.tensor([7]), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.relu(self.first(x)) * self.scale)


def test_whole_numbers_are_not_drawn_anew() -> None:
    analysis = analyse(CountsInParameters().eval(), torch.randn(4, 8))
    student = build(analysis, analysis.space.full.with_width("first", 8), weights="fresh")
    assert student.steps.tolist() == [7] and student.scale.shape == (8,)
