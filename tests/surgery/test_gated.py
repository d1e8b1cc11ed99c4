from __future__ import annotations

import copy
from functools import cache

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from tests.support.models import images, random_widths, zoo_analysis
from tests.support.modules import layers, odd_python, odd_tensors
from tests.surgery.test_build import QUICK, SLOW
from understudy.graph.analysis import Analysis, analyse
from understudy.models import zoo
from understudy.surgery.build import build, kept_slots
from understudy.surgery.gated import Gated
from understudy.surgery.masked import Masked


@cache
def lively(name: str) -> Analysis:
    """A network of the zoo whose norms know its activations: fresh deep ones answer every image alike."""
    network = copy.deepcopy(zoo_analysis(name).teacher).train()
    with torch.no_grad():
        for seed in range(20):
            network(images(16, seed=seed))
    return analyse(network.eval(), images(2))


def kept(analysis: Analysis, seed: int) -> Tensor:
    """Return the slots that a random architecture keeps, (S,)."""
    return torch.from_numpy(kept_slots(analysis, random_widths(analysis.space, seed)))[:-1].float()


@pytest.mark.parametrize("name", zoo.names())
def test_open_gates_change_nothing(name: str) -> None:
    analysis = zoo_analysis(name)
    gated = Gated(analysis, analysis.teacher).eval()
    assert torch.equal(gated(images(3)), analysis.teacher(images(3)))
    gated.mask(torch.ones(1, analysis.groups.slots))
    assert torch.equal(gated(images(3)), analysis.teacher(images(3)))


@pytest.mark.parametrize("name", [*QUICK, *SLOW])
@given(seed=st.integers(0, 2**32))
@settings(max_examples=5)
def test_closed_gates_are_missing_channels(name: str, seed: int) -> None:
    analysis = lively(name)
    architecture = random_widths(analysis.space, seed)
    gated = Gated(analysis, analysis.teacher).eval()
    gated.mask(torch.from_numpy(kept_slots(analysis, architecture))[None, :-1].float())
    with torch.no_grad():
        scale = analysis.teacher(images(2)).abs().max()
        out = gated(images(2))
        assert (out - build(analysis, architecture).eval()(images(2))).abs().max() < 1e-5 * scale
        assert (out - Masked(analysis, architecture).run(images(2))).abs().max() < 1e-5 * scale


@pytest.mark.parametrize("name", ["resnet20", "vgg11", "mobilenet_v2"])
def test_each_example_has_its_own_mask(name: str) -> None:
    analysis = lively(name)
    gated, x = Gated(analysis, analysis.teacher).eval(), images(3)
    masks = torch.stack([kept(analysis, seed) for seed in range(3)])
    with torch.no_grad():
        gated.mask(masks)
        together = gated(x)
        for i in range(3):
            gated.mask(masks[i : i + 1])
            assert torch.allclose(together[i], gated(x)[i], rtol=1e-3, atol=1e-4)
        assert (together - analysis.teacher(x)).abs().max() > 0.01


class Attentive(nn.Module):
    """Its attention to channels is computed under no_grad: by a function, a layer and operations in place."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.gate, self.b = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 16, 1), nn.Conv2d(16, 8, 3)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.a(x))
        with torch.no_grad():
            attention = torch.sigmoid(self.gate(x.mean((2, 3), keepdim=True)))
        x = x * attention
        with torch.no_grad():
            x.clamp_(max=0.4)
            x *= 3.0
            torch.mul(x, 0.5, out=x)
        return self.head(self.b(x).mean((2, 3)))


def test_no_gradient_comes_through_what_no_grad_holds() -> None:
    network, other = Attentive(), Attentive()
    other.load_state_dict(network.state_dict())
    analysis = analyse(other, images(2))
    assert len(analysis.space.groups) == 2
    gated = Gated(analysis, other)
    gated.mask(torch.ones(1, analysis.groups.slots))
    for model in (network, gated):
        model(images(3)).square().sum().backward()
    assert network.gate.weight.grad is None and other.gate.weight.grad is None
    for wanted, got in ((network.a, other.a), (network.b, other.b)):
        assert wanted.weight.grad is not None and got.weight.grad is not None
        torch.testing.assert_close(got.weight.grad, wanted.weight.grad)


def test_gradients_are_those_of_the_sliced_network() -> None:
    # Also through the gate that is a ReLU at the same time.
    analysis = zoo_analysis("resnet20")
    network = copy.deepcopy(analysis.teacher).train()
    trained = analyse(network, analysis.trace.example)
    architecture = random_widths(trained.space, 1)
    student = build(trained, architecture).train()
    gated = Gated(trained, network).train()
    assert any(gate.relu for gate in gated.gates.values())
    stays = torch.from_numpy(kept_slots(trained, architecture))
    gated.mask(stays[None, :-1].float())
    gated(images(4)).square().sum().backward()
    student(images(4)).square().sum().backward()
    labels = torch.from_numpy(trained.groups.plan.parameters["classifier.weight"].dims[1])
    whole, own = network.get_parameter("classifier.weight").grad, student.get_parameter("classifier.weight").grad
    assert whole is not None and own is not None
    assert torch.allclose(whole[:, stays[labels]], own, rtol=1e-3, atol=1e-4)
    assert whole[:, ~stays[labels]].abs().max() == 0
    first, cut = network.get_parameter("conv1.weight").grad, student.get_parameter("conv1.weight").grad
    emitted = torch.from_numpy(trained.groups.emitted["conv1"])
    assert first is not None and cut is not None
    assert torch.allclose(first[stays[emitted]], cut, rtol=1e-2, atol=1e-3 * float(cut.abs().max()))


class Preserved(nn.Module):
    """What a ReLU overwrites in place is used again after it."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 6, 1), nn.Conv2d(6, 2, 1)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, 2, H - 2, W - 2) of x (B, 3, H, W)."""
        x = self.first(x)
        y = self.second(self.relu(x))
        return self.third(y + x)


def test_a_relu_whose_input_is_used_elsewhere_stays() -> None:
    model = Preserved().eval()
    analysis = analyse(model, images(2, size=8))
    gated = Gated(analysis, model).eval()
    assert not any(gate.relu for gate in gated.gates.values())
    architecture = random_widths(analysis.space, 2)
    gated.mask(torch.from_numpy(kept_slots(analysis, architecture))[None, :-1].float())
    assert torch.allclose(gated(images(2, size=8)), build(analysis, architecture)(images(2, size=8)), atol=1e-5)


class Folded(nn.Module):
    """Examples and positions share a dimension where the second layer reads."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 6, 3), nn.Linear(6, 5)
        self.last = nn.Linear(5, 4)

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, 4) of x (B, 3, H, W)."""
        x = self.first(x).permute(0, 2, 3, 1)
        rows = self.second(x.reshape(-1, x.shape[-1]))
        return self.last(rows.reshape(x.shape[0], -1, 5).mean(1))


def test_where_examples_cannot_be_told_apart_is_said() -> None:
    model = Folded()
    analysis = analyse(model, images(2, size=8))
    names = [g.name for g in analysis.space.groups]
    gated = Gated(analysis, model)
    slots_of = dict(zip(names, analysis.groups.slots_of, strict=True))
    unmasked = {name for name, slots in slots_of.items() if gated.unmasked.keys() & {*slots.tolist()}}
    assert "first" in names and unmasked == {"first"}
    assert "examples cannot be told apart" in gated.unmasked[int(slots_of["first"][0])]


class NormedOverChannels(nn.Module):
    """A group norm of one group over maps, then a layer norm and an RMS norm over tokens: layers or functions."""

    def __init__(self, *, functions: bool) -> None:
        super().__init__()
        self.a, self.b, self.c, self.head = nn.Conv2d(3, 10, 1), nn.Conv2d(10, 8, 1), nn.Linear(8, 6), nn.Linear(6, 4)
        self.maps, self.tokens, self.root = nn.GroupNorm(1, 10), nn.LayerNorm(8), nn.RMSNorm(6)
        self.whole, self.functions = nn.LayerNorm([10, 4, 4]), functions

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, 4) of x (B, 3, H, W)."""
        x = torch.relu(self.whole(torch.relu(self.maps(self.a(x)))))
        x = self.b(x).flatten(2).transpose(1, 2)
        x = F.layer_norm(x, x.shape[-1:], bias=self.tokens.bias) if self.functions else self.tokens(x)
        x = self.c(torch.relu(x))
        x = F.rms_norm(x, (x.shape[-1],), self.root.weight) if self.functions else self.root(x)
        return self.head(torch.relu(x).mean(1))


@pytest.mark.parametrize("functions", [False, True])
def test_norms_over_channels_take_their_statistics_over_those_that_pass(functions: bool) -> None:
    model, x = NormedOverChannels(functions=functions).double().eval(), images(3, size=4).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)).double() / 4)
    analysis = analyse(model, x)
    gated = Gated(analysis, model).eval()
    assert gated.unmasked == {} and len(analysis.space.groups) == 3
    assert {id(p) for p in gated.parameters()} <= {id(p) for p in model.parameters()}  # training it trains the network
    masks = torch.stack([kept(analysis, seed) for seed in range(3)]).double()
    with torch.no_grad():
        assert torch.equal(gated(x), model(x))
        gated.mask(masks)
        for place, out in enumerate(gated(x)):
            student = build(analysis, random_widths(analysis.space, place))
            torch.testing.assert_close(out, student(x)[place], rtol=1e-9, atol=1e-9)
        gated.mask(torch.zeros(1, analysis.groups.slots).double())
        assert bool(gated(x).isfinite().all())  # though no channel is left to take a mean over


MADE = ("tensor_made", "tensor_attribute", "py_from_numpy", "py_closure_over_tensor", "odd_triangle")


@pytest.mark.parametrize("name", MADE)
def test_tensors_that_the_forward_pass_makes_are_there(name: str) -> None:
    case = next(case for case in (*layers.CASES, *odd_python.CASES, *odd_tensors.CASES) if case.name == name)
    analysis, x = analyse(case.network(), case.input()), case.input()
    gated = Gated(analysis, analysis.teacher).eval()
    with torch.no_grad():
        assert torch.equal(gated(x), analysis.teacher(x))
        architecture = random_widths(analysis.space, 1)
        gated.mask(kept(analysis, 1).expand(len(x), -1))
        torch.testing.assert_close(gated(x), Masked(analysis, architecture).run(x))
