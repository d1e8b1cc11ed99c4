"""A small network for each rule, and for each place where a guess would be wrong."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.support.models import images, macs, parameters, random_widths
from understudy.cost.predict import predict
from understudy.graph.analysis import Analysis, analyse
from understudy.surgery.build import build
from understudy.surgery.masked import Masked
from understudy.surgery.plain import Plain


class Net(nn.Module):
    """A stem and a head around a body that a test writes as a function of (modules, x)."""

    def __init__(self, body, *, after: int = 8, flat: bool = False, **modules: nn.Module) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.parts = nn.ModuleDict(modules)
        self.head = nn.Linear(after, 5) if flat else nn.Conv2d(after, 5, 1)
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(self.parts, torch.relu(self.stem(x))))


_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.GroupNorm, nn.LayerNorm, nn.InstanceNorm2d)


def conv(inputs: int, outputs: int, kernel: int = 3, **more: int) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, **more)


def check(model: nn.Module, *, draws: int = 10, shape: tuple[int, ...] = (3, 8, 8)) -> Analysis:
    """Hold the exact properties on random widths; returns the analysis for what is particular."""
    torch.manual_seed(0)
    for module in model.modules():
        if isinstance(module, _NORMS) and module.weight is not None:
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -1, 1)
    model.eval()
    x, others = torch.randn(2, *shape), torch.randn(3, *shape)
    analysis = analyse(model, x)
    with torch.no_grad():
        teacher = model(x)
        assert torch.equal(build(analysis, analysis.space.full)(x), teacher)
        for seed in range(draws):
            architecture = random_widths(analysis.space, seed)
            student, cost = build(analysis, architecture), predict(analysis, architecture)
            assert cost.parameters == parameters(student)
            assert cost.macs == macs(student, x)
            error = (Masked(analysis, architecture).run(x) - student(x)).abs().max()
            assert error < 1e-5 * teacher.abs().max()
            assert student(others).shape[0] == 3
    return analysis


def widths(analysis: Analysis) -> dict[str, tuple[int, int]]:
    return {group.name: (group.width, group.step) for group in analysis.space.groups}


def reasons(analysis: Analysis) -> dict[str, str]:
    """Why channels stay, or are fewer in a plain graph only."""
    plain = {group.name: group.plain.partition(" (test_")[0] for group in analysis.space.groups if group.plain}
    return {frozen.name: frozen.reason for frozen in analysis.space.frozen} | plain


def test_an_addition_ties() -> None:
    analysis = check(Net(lambda m, x: m["a"](x) + x, a=conv(8, 8)))
    assert widths(analysis) == {"stem": (8, 1)}
    assert analysis.space.groups[0].layers == ("stem", "parts.a", "head")


def test_a_norm_and_an_activation_carry() -> None:
    analysis = check(
        Net(
            lambda m, x: m["c"](m["p"](m["n"](m["a"](x)))),
            a=conv(8, 6),
            n=nn.BatchNorm2d(6),
            p=nn.PReLU(6),
            c=conv(6, 8),
        )
    )
    assert widths(analysis)["parts.a"] == (6, 1)


def test_a_depthwise_convolution_ties_input_to_output() -> None:
    analysis = check(Net(lambda m, x: m["d"](x), d=conv(8, 8, groups=8)))
    assert widths(analysis) == {"stem": (8, 1)}


def test_a_depthwise_convolution_with_a_multiplier() -> None:
    analysis = check(Net(lambda m, x: m["d"](x), d=conv(8, 16, groups=8), after=16))
    assert widths(analysis) == {"stem": (8, 1)}
    half = build(analysis, analysis.space.full.with_width("stem", 4))
    assert (half.parts["d"].groups, half.parts["d"].out_channels) == (4, 8)


def test_a_grouped_convolution_drops_whole_groups() -> None:
    analysis = check(Net(lambda m, x: m["b"](m["a"](x)), a=conv(8, 8, groups=2), b=conv(8, 8, groups=4)))
    # Groups of 4 and of 2 between them: only what is whole in both can go.
    assert widths(analysis) == {"stem": (8, 4)}


def test_group_norm_drops_whole_groups() -> None:
    analysis = check(Net(lambda m, x: m["n"](x), n=nn.GroupNorm(4, 8)))
    assert widths(analysis) == {"stem": (8, 2)}


def test_a_group_norm_of_one_group_takes_its_statistics_over_the_channels_that_stay() -> None:
    analysis = check(Net(lambda m, x: m["n"](x), n=nn.GroupNorm(1, 8)))
    assert widths(analysis) == {"stem": (8, 1)}
    student = build(analysis, analysis.space.architecture(channels={"stem": [0, 3, 4]}))
    assert (student.parts["n"].num_groups, student.parts["n"].num_channels) == (1, 3)


def channels_last(m, x):
    return m["n"](x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def test_a_layer_norm_takes_its_statistics_over_the_channels_that_stay() -> None:
    analysis = check(Net(channels_last, n=nn.LayerNorm(8)))
    assert widths(analysis) == {"stem": (8, 1)}
    teacher, stay = analysis.teacher, [0, 3, 4]
    student = build(analysis, analysis.space.architecture(channels={"stem": stay}))
    assert student.parts["n"].normalized_shape == (3,)
    with torch.no_grad():
        x = torch.relu(teacher.stem(images(2, size=8)))[:, stay]
        x = (x - x.mean(1, keepdim=True)) / (x.var(1, keepdim=True, correction=0) + 1e-5).sqrt()
        x = x * teacher.parts["n"].weight[stay, None, None] + teacher.parts["n"].bias[stay, None, None]
        expected = nn.functional.conv2d(x, teacher.head.weight[:, stay], teacher.head.bias)
        assert torch.allclose(student(images(2, size=8)), expected, atol=1e-5)


def test_a_layer_norm_over_space_keeps_channels() -> None:
    assert widths(check(Net(lambda m, x: m["n"](x), n=nn.LayerNorm((8, 8))))) == {"stem": (8, 1)}


@pytest.mark.parametrize(
    ("body", "norm"),
    [
        (lambda m, x: m["n"](x), nn.LayerNorm((8, 8, 8))),
        (lambda m, x: m["n"](x.mean((2, 3), keepdim=True)), nn.LayerNorm((8, 1, 1))),
        (lambda m, x: m["n"](x), nn.RMSNorm((8, 8, 8))),
        (lambda m, x: nn.functional.layer_norm(x, x.shape[1:], m["n"].weight, m["n"].bias), nn.LayerNorm((8, 8, 8))),
        (lambda m, x: nn.functional.layer_norm(x, (x.size(1), 8, 8)), nn.Identity()),
    ],
)
def test_a_layer_norm_over_channels_and_space_is_over_the_channels_that_stay(body: Any, norm: nn.Module) -> None:
    analysis = check(Net(body, n=norm))
    assert widths(analysis) == {"stem": (8, 1)}
    assert not analysis.space.group("stem").plain
    teacher, stay = analysis.teacher, [0, 3, 4]
    student = build(analysis, analysis.space.architecture(channels={"stem": stay}))
    with torch.no_grad():
        x = torch.relu(teacher.stem(images(2, size=8)))[:, stay]
        x = body(student.parts, x)
        expected = nn.functional.conv2d(x, teacher.head.weight[:, stay], teacher.head.bias)
        assert torch.allclose(student(images(2, size=8)), expected, atol=1e-5)


def test_a_layer_norm_over_channels_behind_space_freezes_with_the_reason() -> None:
    analysis = check(Net(lambda m, x: m["n"](x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2), n=nn.LayerNorm((8, 8, 8))))
    assert reasons(analysis)["stem"] == "layer norm takes statistics over these channels and more"


def test_a_gate_ties_through_broadcasting() -> None:
    def body(m, x):
        return x * torch.sigmoid(m["up"](torch.relu(m["down"](x.mean((2, 3), keepdim=True)))))

    analysis = check(Net(body, down=conv(8, 4, 1), up=conv(4, 8, 1)))
    assert widths(analysis) == {"stem": (8, 1), "parts.down": (4, 1)}


def test_a_gate_of_one_channel_ties_nothing() -> None:
    analysis = check(Net(lambda m, x: x * torch.sigmoid(m["g"](x)), g=conv(8, 1)))
    assert widths(analysis) == {"stem": (8, 1)}


def test_a_gate_from_another_branch() -> None:
    def body(m, x):
        y = m["a"](x)
        return m["b"](x) * m["g"](y.mean((2, 3))).unsqueeze(-1).unsqueeze(-1)

    analysis = check(Net(body, a=conv(8, 6), b=conv(8, 8), g=nn.Linear(6, 8)))
    assert set(widths(analysis)) == {"stem", "parts.a", "parts.b"}


def test_cat_keeps_groups_apart() -> None:
    analysis = check(Net(lambda m, x: torch.cat([x, m["a"](x), m["b"](x)], 1), a=conv(8, 4), b=conv(8, 6), after=18))
    assert widths(analysis) == {"stem": (8, 1), "parts.a": (4, 1), "parts.b": (6, 1)}


def test_cat_of_a_tensor_with_itself() -> None:
    analysis = check(Net(lambda m, x: torch.cat([x, x], dim=1), after=16))
    assert widths(analysis) == {"stem": (8, 1)}
    assert build(analysis, analysis.space.full.with_width("stem", 3)).head.in_channels == 6


def test_cat_along_space_ties() -> None:
    analysis = check(Net(lambda m, x: torch.cat([x, m["a"](x)], dim=2), a=conv(8, 8)))
    assert widths(analysis) == {"stem": (8, 1)}
    analysis = check(Net(lambda m, x: torch.cat([torch.tensor([]), m["a"](x)], dim=1), a=conv(8, 8)))  # torch takes it
    assert widths(analysis) == {"stem": (8, 1), "parts.a": (8, 1)}


def test_flatten_repeats_channels() -> None:
    analysis = check(Net(lambda m, x: torch.flatten(x, 1), after=8 * 64, flat=True))
    assert build(analysis, analysis.space.full.with_width("stem", 3)).head.in_features == 3 * 64


def test_a_view_with_a_computed_size_follows() -> None:
    analysis = check(Net(lambda m, x: x.mean((2, 3)).view(x.size(0), -1), after=8, flat=True))
    assert widths(analysis) == {"stem": (8, 1)}


def test_a_view_with_a_written_size_needs_a_plain_graph() -> None:
    analysis = check(Net(lambda m, x: x.reshape(-1, 8 * 64), after=8 * 64, flat=True))
    assert reasons(analysis)["stem"] == "reshape writes their number as 512"
    assert "x.reshape(-1, 8 * 64)" in analysis.space.group("stem").plain
    assert isinstance(build(analysis, analysis.space.full.with_width("stem", 3)), Plain)


def test_the_number_of_other_channels_does_not_size_theirs() -> None:
    def body(m, x):
        b, c, h, w = x.shape
        return x + torch.cumsum(m["a"](x), 1).flatten(2).reshape(b, c, h, w)

    found = reasons(check(Net(body, a=conv(8, 8))))
    assert found["stem"] == "add joins it with a tensor of fixed size"

    def fine(m, x):
        b, c, h, w = x.shape
        return m["a"](x).flatten(2).reshape(b, c, h, w)

    found = reasons(check(Net(fine, a=conv(8, 8))))
    assert set(found) >= {"stem", "parts.a"}


def test_a_number_of_channels_that_is_computed_with_needs_a_plain_graph() -> None:
    written = "computes with their number"
    assert reasons(check(Net(lambda m, x: x * x.size(1) ** -0.5)))["stem"] == f"mul {written}"
    assert reasons(check(Net(lambda m, x: x / float(x.shape[1]))))["stem"] == f"Python {written}"
    assert reasons(check(Net(lambda m, x: -x if x.shape[1] == 8 else x)))["stem"] == f"Python {written}"
    assert (
        reasons(check(Net(lambda m, x: m["n"](x) / x[0].numel(), n=nn.BatchNorm2d(8))))["stem"]
        == "the number of all elements, those of all examples, is computed with"
    )
    # Those of other dimensions are free.
    assert widths(check(Net(lambda m, x: x / x.shape[2] if x.shape[3] == 8 else x))) == {"stem": (8, 1)}


def test_channel_shuffle_with_computed_sizes() -> None:
    def shuffle(m, x):
        b, c, h, w = x.shape
        return x.view(b, 2, c // 2, h, w).transpose(1, 2).reshape(b, -1, h, w)

    analysis = check(Net(shuffle))
    assert widths(analysis) == {"stem": (8, 2)}


def test_channel_shuffle_with_written_sizes_needs_a_plain_graph() -> None:
    def shuffle(m, x):
        return x.view(-1, 2, 4, 8, 8).transpose(1, 2).reshape(-1, 8, 8, 8)

    analysis = check(Net(shuffle))
    assert "stem" in reasons(analysis)


def test_chunks_stay_equal() -> None:
    def body(m, x):
        a, b = x.chunk(2, dim=1)
        return torch.cat([a, m["a"](b)], 1)

    analysis = check(Net(body, a=conv(4, 4)))
    assert widths(analysis) == {"stem": (8, 2), "parts.a": (4, 1)}


def test_split_and_slices_at_written_places_need_a_plain_graph() -> None:
    assert "stem" in reasons(check(Net(lambda m, x: torch.cat(torch.split(x, [3, 5], dim=1), 1))))
    assert "stem" in reasons(check(Net(lambda m, x: m["a"](x[:, :4]), a=conv(4, 8))))


def test_slices_in_space_are_free() -> None:
    assert widths(check(Net(lambda m, x: x[:, :, ::2, 1:]))) == {"stem": (8, 1)}


def test_a_shared_module_is_cut_once() -> None:
    analysis = check(Net(lambda m, x: m["a"](torch.relu(m["a"](x))), a=conv(8, 8)))
    assert widths(analysis) == {"stem": (8, 1)}
    assert all(unit.name != "parts.a" for unit in analysis.space.units)


def test_a_parameter_in_the_forward_pass_is_cut() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.head = conv(3, 8), conv(8, 5)
            self.gamma = nn.Parameter(torch.linspace(0.5, 2, 8).reshape(1, 8, 1, 1))

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.stem(x) * self.gamma)

    analysis = check(Scaled())
    assert build(analysis, analysis.space.full.with_width("stem", 3)).gamma.shape == (1, 3, 1, 1)


def test_a_transposed_convolution() -> None:
    analysis = check(Net(lambda m, x: m["t"](x), t=nn.ConvTranspose2d(8, 6, 2, stride=2), after=6))
    assert widths(analysis) == {"stem": (8, 1), "parts.t": (6, 1)}


def test_signals() -> None:
    net = nn.Sequential(
        *(nn.Conv1d(2, 8, 5, stride=2), nn.BatchNorm1d(8), nn.ReLU(), nn.MaxPool1d(2)),
        *(nn.Conv1d(8, 8, 3, padding=2, dilation=2, groups=8), nn.Conv1d(8, 12, 1), nn.BatchNorm1d(12), nn.GELU()),
        *(nn.ConvTranspose1d(12, 6, 4, stride=2), nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(6, 3)),
    )
    assert set(widths(check(net, shape=(2, 33))).values()) == {(8, 1), (12, 1), (6, 1)}


def test_volumes() -> None:
    net = nn.Sequential(
        *(nn.Conv3d(1, 8, 3, padding=1), nn.BatchNorm3d(8), nn.PReLU(8), nn.AvgPool3d(2)),
        *(nn.Conv3d(8, 12, 3, padding=2, dilation=2, groups=4), nn.BatchNorm3d(12), nn.ReLU()),
        *(nn.ConvTranspose3d(12, 4, 2, stride=2), nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(4, 3)),
    )
    # The grouped convolution drops two of its inputs and three of its outputs together.
    assert check(net, shape=(1, 6, 8, 4)).space.groups


def test_an_instance_norm_keeps_channels_apart() -> None:
    net = nn.Sequential(
        *(nn.Conv2d(3, 8, 3), nn.InstanceNorm2d(8, affine=True, track_running_stats=True), nn.ReLU()),
        *(nn.Conv2d(8, 6, 3), nn.InstanceNorm2d(6), nn.Flatten(), nn.Linear(96, 3)),
    )
    assert set(widths(check(net)).values()) == {(8, 1), (6, 1)}


def test_an_operation_without_a_rule_freezes_what_it_touches() -> None:
    def body(m, x):
        return m["b"](torch.renorm(m["a"](x), 2, 1, 1.0))

    analysis = check(Net(body, a=conv(8, 6), b=conv(6, 8)))
    assert widths(analysis) == {"stem": (8, 1), "parts.b": (8, 1)}
    frozen = next(f for f in analysis.space.frozen if f.name == "parts.a")
    assert frozen.reason == "no rule for the operation renorm"
    assert frozen.source.endswith('return m["b"](torch.renorm(m["a"](x), 2, 1, 1.0))')


def test_a_module_without_a_rule_freezes_what_it_touches_and_counts_its_macs(monkeypatch: pytest.MonkeyPatch) -> None:
    # torch's flop counter does not see into the fused kernel.
    monkeypatch.setattr(torch.backends.mha, "_is_fastpath_enabled", False)

    def body(m, x):
        tokens = x.flatten(2).transpose(1, 2)
        return m["att"](tokens, tokens, tokens)[0].mean(1)

    analysis = check(Net(body, att=nn.MultiheadAttention(8, 2, batch_first=True, add_zero_attn=True), flat=True))
    assert "MultiheadAttention" in reasons(analysis)["stem"]


def test_a_fixed_input_of_an_addition_freezes() -> None:
    assert "fixed size" in reasons(check(Net(lambda m, x: x + torch.ones(8, 8, 8))))["stem"]


def test_a_buffer_that_is_added_is_cut_where_the_channels_are() -> None:
    class WithBuffer(Net):
        def __init__(self) -> None:
            super().__init__(None)
            self.register_buffer("table", torch.randn(8, 8, 8))

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.stem(x) + self.table)

    analysis = check(WithBuffer())
    assert widths(analysis) == {"stem": (8, 1)}
    assert build(analysis, analysis.space.full.with_width("stem", 3)).table.shape == (3, 8, 8)


@pytest.mark.parametrize("around", [(4, 4), (0, 8)])
def test_channels_of_zeros_go_with_those_that_meet_them(around: tuple[int, int]) -> None:
    """The shortcut of option A (He et al., 2015, section 4.2): no parameters, more channels, half the size."""

    def body(m, x):
        return torch.relu(m["b"](torch.relu(m["a"](x))) + F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, *around)))

    analysis = check(Net(body, a=conv(8, 6, stride=2), b=conv(6, 16), after=16))
    assert widths(analysis) == {"stem": (8, 1), "parts.a": (6, 1), "parts.b": (8, 1)}
    student = build(analysis, analysis.space.full.with_width("stem", 3))
    assert (student.parts["b"].out_channels, student.head.in_channels) == (11, 11) and not isinstance(student, Plain)
    assert reasons(analysis) == {"parts.b": "pad writes how many it adds", "head": "it is an output"}
    student = build(analysis, analysis.space.full.with_width("stem", 3).with_width("parts.b", 2))
    assert (student.parts.b.out_channels, student.head.in_channels) == (5, 5) and isinstance(student, Plain)


@pytest.mark.parametrize("mode", ["circular", "reflect"])
def test_other_padding_along_channels_freezes(mode: str) -> None:
    analysis = check(Net(lambda m, x: F.pad(x.flatten(2).transpose(1, 2), (2, 2), mode)[:, :, 2:10].mean(1), flat=True))
    assert "pad" in reasons(analysis)["stem"]


def test_layers_that_get_their_input_by_name() -> None:
    analysis = check(Net(lambda m, x: m["n"](input=m["a"](input=x)), a=conv(8, 6), n=nn.BatchNorm2d(6), after=6))
    assert widths(analysis) == {"stem": (8, 1), "parts.a": (6, 1)}


def test_a_layer_that_gets_more_than_its_input_freezes() -> None:
    up = nn.ConvTranspose2d(8, 8, 3, stride=2, padding=1)
    analysis = check(Net(lambda m, x: m["up"](x, output_size=(16, 16)), up=up))
    assert reasons(analysis)["stem"] == "the ConvTranspose2d is given more than its input"


@pytest.mark.parametrize("seed", range(12))
def test_random_graphs(seed: int) -> None:
    """Random additions, concatenations, gates, depthwise and grouped convolutions in random order."""
    rng = random.Random(seed)
    steps = [rng.choice(["conv", "add", "cat", "gate", "depthwise", "grouped", "shared"]) for _ in range(6)]
    modules: dict[str, nn.Module] = {}
    channels = 8
    for i, step in enumerate(steps):
        if step in ("conv", "add", "shared"):
            out = channels if step != "conv" else rng.choice([8, 12, 16])
            modules[f"m{i}"] = conv(channels, out)
            channels = out
        elif step == "cat":
            modules[f"m{i}"] = conv(channels, 4)
            channels += 4
        elif step == "gate":
            modules[f"m{i}"] = conv(channels, channels, 1)
        else:
            modules[f"m{i}"] = conv(channels, channels, groups=channels if step == "depthwise" else 4)

    def body(m, x):
        for i, step in enumerate(steps):
            y = m[f"m{i}"](x)
            if step == "add":
                x = x + torch.relu(y)
            elif step == "cat":
                x = torch.cat([x, y], 1)
            elif step == "gate":
                x = x * torch.sigmoid(m[f"m{i}"](x.mean((2, 3), keepdim=True)))
            elif step == "shared":
                x = m[f"m{i}"](torch.relu(y))
            else:
                x = y
        return x

    check(Net(body, after=channels, **modules), draws=5)
