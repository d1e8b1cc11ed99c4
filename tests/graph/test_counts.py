"""Forward passes that read how many channels there are: students do what the masked teacher does, or they stay."""

from __future__ import annotations

import math
import types
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import prune

from tests.support.held import analysed, check, reason
from understudy.graph.analysis import analyse
from understudy.surgery.build import build

Reading = Callable[["Net", Tensor], Any]


class Net(nn.Module):
    """Two convolutions, a grouped one, norms and a head in double precision; `middle` stands between the first two."""

    def __init__(self, middle: Reading = lambda net, y: y) -> None:
        super().__init__()
        self.a, self.norm, self.b = nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.Conv2d(8, 12, 1)
        self.gn, self.grouped = nn.GroupNorm(3, 12), nn.Conv2d(12, 12, 1, groups=3)
        self.ln, self.head = nn.LayerNorm(12), nn.Linear(12, 4)
        self.middle = middle

    def forward(self, x: Tensor) -> Tensor:
        y = self.middle(self, torch.relu(self.norm(self.a(x))))
        y = self.grouped(torch.relu(self.gn(self.b(y))))
        return self.head(self.ln(y.mean((2, 3))))


def branch(which: Any, y: Tensor) -> Tensor:
    return y * 2 if which else y - 1


# What each reading does to the channels of `a`; all of them name the module and the line that they are read on.
COMPUTED: dict[str, Reading] = {
    "out_channels": lambda net, y: y / net.a.out_channels,
    "in_channels": lambda net, y: y * math.sqrt(net.b.in_channels),
    "num_features": lambda net, y: branch(net.norm.num_features > 4, y),
    "sqrt": lambda net, y: y / math.sqrt(net.a.out_channels),
    "float": lambda net, y: y * float(net.a.out_channels),
    "int": lambda net, y: y * int(net.a.out_channels),
    "bool": lambda net, y: branch(net.a.out_channels, y),
    "equal": lambda net, y: branch(net.a.out_channels == 8, y),
    "at least": lambda net, y: branch(net.a.out_channels >= 6, y),
    "shift": lambda net, y: y * (net.a.out_channels >> 1),
    "shifted": lambda net, y: y * ((1 << net.a.out_channels) / 100),
    "floordiv": lambda net, y: y * (net.a.out_channels // 3),
    "mod": lambda net, y: branch(net.a.out_channels % 4 == 0, y),
    "divmod": lambda net, y: y * divmod(net.a.out_channels, 3)[1],
    "power": lambda net, y: y * net.a.out_channels**-0.5,
    "round": lambda net, y: y * round(net.a.out_channels, -1),
    "ceil": lambda net, y: y * math.ceil(net.a.out_channels / 3),
    "text": lambda net, y: branch(f"{net.a.out_channels}" == "8", y),
    "min": lambda net, y: y * min(net.a.out_channels, 5),
    "sum": lambda net, y: y * sum([net.a.out_channels]),
    "getattr": lambda net, y: y * getattr(net.a, "out_channels"),  # noqa: B009
    "tensor": lambda net, y: y * torch.tensor(float(net.a.out_channels)),
    "repeated": lambda net, y: y * len([0] * net.a.out_channels),
}
# Ways past what a number can notice: a second recording of a narrower copy finds them.
UNSEEN: dict[str, Reading] = {
    "log2": lambda net, y: y / math.log2(net.a.out_channels),
    "isqrt": lambda net, y: y * math.isqrt(net.a.out_channels),
    "gcd": lambda net, y: branch(math.gcd(net.a.out_channels, 4) == 4, y),
    "range": lambda net, y: y * sum(range(net.a.out_channels)),
    "loop": lambda net, y: [y := torch.tanh(y) for _ in range(net.a.out_channels)][-1],
    "index": lambda net, y: y * list(range(9))[net.a.out_channels],
    "numpy": lambda net, y: y * float(np.ones(net.a.out_channels).sum()),
    "tensor": lambda net, y: y * torch.tensor(net.a.out_channels),
    "vars": lambda net, y: branch(vars(net.a)["out_channels"] > 4, y),
    "parameters": lambda net, y: y * sum(p.numel() for p in net.a.parameters()),
    "state": lambda net, y: y * net.a.state_dict()["weight"].shape[0],
}
SHAPES: dict[str, Reading] = {
    "weight.shape": lambda net, y: y * net.a.weight.shape[0],
    "weight.shape before its layer runs": lambda net, y: y * net.b.weight.shape[1],
    "weight.size()": lambda net, y: y * net.b.weight.size()[1],
    "weight.size(1)": lambda net, y: y * net.b.weight.size(1),
    "len(weight)": lambda net, y: y * len(net.a.weight),
    "weight.numel": lambda net, y: y * net.a.weight.numel(),
    "weight.nelement": lambda net, y: y * net.a.weight.nelement(),
    "len(bias)": lambda net, y: y * len(net.a.bias),
    "buffer.shape": lambda net, y: y * net.norm.running_mean.shape[0],
    "weight as a value": lambda net, y: y * net.a.weight.pow(2).sum(),
    "shape": lambda net, y: y * y.shape[1],
    "sqrt of shape": lambda net, y: y * math.sqrt(y.shape[1]),
    "numpy of shape": lambda net, y: y * float(np.sqrt(y.shape[1])),
    "text of shape": lambda net, y: branch(f"{y.shape[1]}" == "8", y),
    "round of shape": lambda net, y: y * round(y.shape[1] / 3),
    "divmod of shape": lambda net, y: y * divmod(y.shape[1], 3)[1],
    "range of shape": lambda net, y: y * sum(range(y.shape[1])),
    "len of a tensor": lambda net, y: y * len(y.transpose(0, 1)),
    "numel": lambda net, y: y / y.numel(),
    "numel of shape": lambda net, y: y / y.shape[1:].numel(),
    "nbytes": lambda net, y: y * y.nbytes,
    "stride": lambda net, y: y * y.stride(0),
    "zeros": lambda net, y: y + torch.zeros(1, 8, 1, 1) + 1,
    "full": lambda net, y: y * torch.full((1, net.a.out_channels, 1, 1), 2.0),
    "arange of shape": lambda net, y: y * torch.arange(y.shape[1]).view(1, -1, 1, 1),
    "new_full": lambda net, y: y * y.new_full((1,), y.shape[1]),
    "pooling along channels": lambda net, y: F.avg_pool2d(y.transpose(1, 3), 3, 1, 1).transpose(1, 3),
    "pooling of another rank": lambda net, y: F.avg_pool3d(y, 3, 1, 1),
    "padding along channels": lambda net, y: F.pad(y, (0, 0, 0, 0, 1, 1))[:, 1:-1],
    "in training": lambda net, y: y.softmax(1) if net.training else y,
    "number in training": lambda net, y: y * net.a.out_channels if net.training else y,
}
FOLLOWED: dict[str, Reading] = {
    "view": lambda net, y: y.view(-1, net.a.out_channels, *y.shape[2:]),
    "view by a weight": lambda net, y: y.view(len(y), net.a.weight.shape[0], -1).view(y.shape),
    "kernel": lambda net, y: y * net.b.weight.shape[2],
    "numel of space": lambda net, y: y / y.shape[2:].numel() + y.size()[-2:].numel(),
    "scalar": lambda net, y: y * torch.tensor(2.0),
    "ones of shape": lambda net, y: y * torch.ones(y.shape[1], 1, 1),
    "full of shape": lambda net, y: y * torch.full(y.shape, 2.0),
    "new_zeros": lambda net, y: y + y.new_zeros(y.shape) + 1,
    "ones of size": lambda net, y: y * torch.ones(y.size()),
    "another layer": lambda net, y: y / net.head.out_features,
    "cast": lambda net, y: y.type_as(net.b.weight).to(net.b.weight) * 2,
    "instance norm": lambda net, y: F.instance_norm(y),
    "chunk": lambda net, y: torch.cat([part * 2 for part in y.chunk(2, 1)], 1),
    "dropout in training": lambda net, y: F.dropout(y, 0.1, net.training),
}


@pytest.mark.parametrize("name", COMPUTED)
def test_a_number_that_is_computed_with_keeps_what_it_counts(name: str) -> None:
    analysis = analysed(Net(COMPUTED[name]))
    assert check(analysis) == {"b"}
    assert "the forward pass computes with" in reason(analysis, "a")
    assert "test_counts.py:" in reason(analysis, "a")


@pytest.mark.parametrize("name", UNSEEN)
def test_what_python_does_unseen_is_found_in_a_narrower_copy(name: str) -> None:
    analysis = analysed(Net(UNSEEN[name]))
    assert check(analysis) == {"b"}
    assert "test_counts.py:" in reason(analysis, "a")


@pytest.mark.parametrize("name", SHAPES)
def test_shapes_that_are_computed_with_keep_the_channels(name: str) -> None:
    analysis = analysed(Net(SHAPES[name]))
    assert check(analysis) == {"b"}
    assert "test_counts.py:" in reason(analysis, "a")


@pytest.mark.parametrize("name", FOLLOWED)
def test_what_follows_the_width_can_shrink(name: str) -> None:
    assert check(analysed(Net(FOLLOWED[name]))) == {"a", "b"}


@pytest.mark.parametrize(
    ("reading", "number"),
    [
        (lambda net, y: y * net.grouped.groups, "grouped.groups"),
        (lambda net, y: y * net.gn.num_groups, "gn.num_groups"),
        (lambda net, y: y * net.ln.normalized_shape[0], "ln.normalized_shape"),
        (lambda net, y: y * math.prod(net.ln.normalized_shape), "ln.normalized_shape"),
        (lambda net, y: y * net.head.in_features**-0.5, "head.in_features"),
    ],
)
def test_other_counts_of_layers_keep_their_channels(reading: Reading, number: str) -> None:
    analysis = analysed(Net(reading))
    assert check(analysis) == {"a"}
    assert f"computes with {number}" in reason(analysis, "b")


def hooked(net: Net) -> None:
    net.b.register_forward_hook(lambda module, inputs, output: output * module.in_channels)


def hooked_before(net: Net) -> None:
    net.b.register_forward_pre_hook(lambda module, inputs: (inputs[0] / module.in_channels,))


def replaced(net: Net) -> None:
    def forward(self: nn.Conv2d, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight, self.bias) * self.in_channels

    net.b.forward = types.MethodType(forward, net.b)  # type: ignore[method-assign]


def old_norm(net: Net, kind: Callable[..., Any]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        kind(net.b)


CHANGED: dict[str, tuple[Callable[[Net], Any], str]] = {
    "forward hook": (hooked, "the module Conv2d has hooks"),
    "hook before": (hooked_before, "the module Conv2d has hooks"),
    "forward": (replaced, "the forward of the module Conv2d was replaced"),
}


@pytest.mark.parametrize("name", CHANGED)
def test_layers_that_do_not_run_as_their_class_keep_their_channels(name: str) -> None:
    change, why = CHANGED[name]
    net = Net()
    change(net)
    analysis = analyse(net.double().eval(), torch.randn(2, 3, 4, 4, dtype=torch.float64))
    assert check(analysis) == set()
    assert why in reason(analysis, "a")


FOLDED: dict[str, Callable[[Net], Any]] = {
    "weight norm": lambda net: nn.utils.parametrizations.weight_norm(net.b),
    "spectral norm": lambda net: nn.utils.parametrizations.spectral_norm(net.b),
    "weight norm by hooks": lambda net: old_norm(net, nn.utils.weight_norm),
    "spectral norm by hooks": lambda net: old_norm(net, nn.utils.spectral_norm),
    "pruned": lambda net: prune.l1_unstructured(net.b, "weight", 0.5),
}


@pytest.mark.parametrize("name", FOLDED)
def test_layers_that_compute_their_weights_shrink_as_plain_ones(name: str) -> None:
    net = Net()
    FOLDED[name](net)
    analysis = analyse(net.double().eval(), torch.randn(2, 3, 4, 4, dtype=torch.float64))
    assert check(analysis) == {"a", "b"}


def test_a_forward_that_was_replaced_in_the_teacher_is_the_one_that_is_traced() -> None:
    def forward(self: Net, x: Tensor) -> Tensor:
        return Net.forward(self, x) * self.a.out_channels

    net = Net()
    net.forward = types.MethodType(forward, net)  # type: ignore[method-assign]
    analysis = analysed(net)
    assert check(analysis) == {"b"} and "a.out_channels" in reason(analysis, "a")


def test_hooks_of_the_teacher_freeze_all() -> None:
    net = Net()
    net.register_forward_hook(lambda module, inputs, output: output * module.a.out_channels)
    analysis = analysed(net)
    assert check(analysis) == set() and reason(analysis, "a").endswith("has forward hooks, which are not traced")


def test_training_that_cannot_be_traced_freezes_all_and_says_where() -> None:
    def skipped(net: Net, y: Tensor) -> Tensor:
        return y * 2 if net.training and y.mean() > 0 else y

    analysis = analysed(Net(skipped))
    assert check(analysis) == set()
    assert "in training mode cannot be traced: the forward pass must not branch" in reason(analysis, "a")
    assert "if net.training and y.mean() > 0" in reason(analysis, "a")


class Ranks(nn.Module):
    """A layer after a linear one, whose features lie in the last dimension."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.first, self.layer, self.second = nn.Linear(6, 8), layer, nn.LazyLinear(3)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.layer(torch.relu(self.first(x))))


@pytest.mark.parametrize(
    "layer",
    [
        *(nn.MaxPool1d(2), nn.MaxPool2d(2), nn.AvgPool1d(2), nn.AdaptiveAvgPool2d(4), nn.AdaptiveMaxPool1d(4)),
        *(nn.ZeroPad2d(1), nn.ConstantPad1d(1, 0.0), nn.ReflectionPad2d(1), nn.Upsample(scale_factor=2)),
        *(nn.Conv1d(5, 7, 3), nn.Conv2d(2, 7, 1), nn.InstanceNorm1d(5), nn.InstanceNorm2d(2), nn.GroupNorm(1, 5)),
        *(nn.BatchNorm1d(5), nn.PReLU(5), nn.Softmax(2)),
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_layers_on_inputs_of_another_rank_keep_the_channels_that_they_run_over(layer: nn.Module) -> None:
    model = Ranks(layer).double()
    x = torch.randn(2, 5, 6, dtype=torch.float64)
    model(x)
    analysis = analyse(model.eval(), x)
    assert "first" not in check(analysis)


def test_layers_on_inputs_of_another_rank_can_keep_channels_apart() -> None:
    class Turned(Ranks):
        def forward(self, x: Tensor) -> Tensor:
            y = torch.relu(self.first(x)).transpose(1, 2)
            return self.second(self.layer(y).transpose(1, 2))

    x = torch.randn(2, 6, 6, dtype=torch.float64)
    for layer in (nn.MaxPool1d(2), nn.ConstantPad1d(1, 0.0), nn.InstanceNorm1d(8), nn.Upsample(scale_factor=2)):
        model = Turned(layer).double()
        model(x)
        assert "first" in check(analyse(model.eval(), x))


@pytest.mark.parametrize("layer", [nn.Conv1d(5, 7, 1), nn.Sequential(nn.Flatten(2), nn.Conv1d(5, 7, 1))], ids=str)
def test_features_go_through_a_layer_along_another_dimension(layer: nn.Module) -> None:
    model, x = Ranks(layer).double(), torch.randn(2, 5, 6, dtype=torch.float64)
    model(x)
    assert check(analyse(model.eval(), x)) == {"first"}


def test_a_rule_that_fails_freezes_what_it_touches() -> None:
    class Named(Net):
        def forward(self, x: Tensor) -> Tensor:
            y = torch.relu(self.a(x))
            return self.head(torch.relu(self.b(torch.cat((y, y), 2, out=None))).mean((2, 3)))

    analysis = analysed(Named())
    assert check(analysis) == {"b"}
    assert "the rule for cat failed: " in reason(analysis, "a")


class Token(nn.Module):
    """A parameter that no module resets."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.token = nn.Linear(5, 4), nn.Parameter(torch.arange(4.0) + 100)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x) + self.token


def test_fresh_weights_are_fresh_for_parameters_that_no_module_resets() -> None:
    analysis = analyse(Token(), torch.randn(2, 5))
    one, again, other = (build(analysis, analysis.space.full, weights="fresh", seed=seed) for seed in (0, 0, 1))
    assert torch.equal(one.token, again.token) and not torch.equal(one.token, other.token)
    assert not torch.isin(one.token, analysis.teacher.token).any() and 90 < one.token.mean() < 110
    assert torch.equal(build(analysis, analysis.space.full).token, analysis.teacher.token)


def test_magnitudes_are_of_the_weights_as_they_are_now() -> None:
    model = nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 2))
    analysis = analyse(model, torch.randn(2, 5))
    before = analysis.magnitudes
    assert analysis.magnitudes is before
    model[0].weight.data[1] *= 10
    assert analysis.magnitudes.argmax() == analysis.groups.emitted["0"][1]
