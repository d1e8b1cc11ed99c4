"""A small network for each way in which a forward pass uses parameters and numbers of modules directly."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.graph.test_rules import Net, check, conv, reasons, widths
from tests.support.models import images
from tests.support.modules import standardised
from understudy.cost.predict import predict
from understudy.graph.analysis import analyse
from understudy.proof.prove import prove
from understudy.surgery.build import build


class OwnConv(nn.Conv2d):
    """Pads by hand, as networks ported from TensorFlow do."""

    def forward(self, x: Tensor) -> Tensor:
        x = F.pad(x, (1, 1, 1, 1))
        return F.conv2d(x, self.weight, self.bias, self.stride, 0, self.dilation, self.groups)


class OwnNorm(nn.BatchNorm2d):
    """A norm that brings its activation."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.act = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(
            F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, self.training, 0.1, self.eps)
        )


class OwnLinear(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias)


class OwnGroupNorm(nn.GroupNorm):
    def forward(self, x: Tensor) -> Tensor:
        return F.group_norm(x, self.num_groups, self.weight, self.bias, self.eps)


class OwnPReLU(nn.PReLU):
    def forward(self, x: Tensor) -> Tensor:
        return F.prelu(x, self.weight)


class Mixing(nn.Conv2d):
    """Computes its weight by what mixes the inputs that it reads."""

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight.softmax(1), self.bias, padding=1)


class Standardised(nn.Conv2d):
    """Standardises its weight by hand."""

    def forward(self, x: Tensor) -> Tensor:
        weight = (self.weight - self.weight.mean((1, 2, 3), keepdim=True)) / self.weight.std((1, 2, 3), keepdim=True)
        return F.conv2d(x, weight, self.bias, padding=1)


def own_conv(inputs: int, outputs: int, groups: int = 1) -> OwnConv:
    return OwnConv(inputs, outputs, 3, groups=groups)


def test_subclasses_of_layers_are_cut_like_their_parents() -> None:
    modules = {"a": own_conv(8, 6), "n": OwnNorm(6), "p": OwnPReLU(6), "b": own_conv(6, 8)}
    analysis = check(Net(lambda m, x: m["b"](m["p"](m["n"](m["a"](x)))), **modules))
    assert widths(analysis) == {"stem": (8, 1), "parts.a": (6, 1), "parts.b": (8, 1)}
    half = build(analysis, analysis.space.full.with_width("parts.a", 3)).parts
    assert (half["a"].out_channels, half["n"].num_features, half["b"].in_channels) == (3, 3, 3)
    assert half["p"].num_parameters == 3 and half["n"].running_mean.shape == (3,)


def test_subclasses_of_layers_are_rows_and_units() -> None:
    modules = {"a": own_conv(8, 8), "n": OwnNorm(8), "b": own_conv(8, 8)}
    analysis = check(Net(lambda m, x: m["b"](m["n"](m["a"](x))), **modules))
    layers = {layer.name: layer for layer in analysis.space.layers}
    assert list(layers) == ["stem", "parts.a", "parts.n", "parts.b", "head"]
    assert (layers["parts.a"].type, layers["parts.a"].outputs, layers["parts.n"].type) == ("conv", 8, "norm")
    assert layers["parts.a"].kernels == ()  # what it does with the padding is its own affair
    assert analysis.space.unit("parts.a").layers == ("parts.a", "parts.n")
    student = build(analysis, without := analysis.space.full.without("parts.a"))
    assert isinstance(student.parts["a"], nn.Identity) and isinstance(student.parts["n"], nn.Identity)
    assert predict(analysis, without).parameters == sum(p.numel() for p in student.parameters())


def test_groups_that_a_module_holds_follow_and_written_ones_need_a_plain_graph() -> None:
    analysis = check(Net(lambda m, x: m["d"](x), d=own_conv(8, 8, groups=8)))
    assert widths(analysis) == {"stem": (8, 1)}
    assert build(analysis, analysis.space.full.with_width("stem", 3)).parts["d"].groups == 3
    analysis = check(Net(lambda m, x: m["g"](x), g=own_conv(8, 12, groups=4), after=12))
    assert widths(analysis) == {"stem": (8, 2)}
    analysis = check(Net(lambda m, x: F.conv2d(x, m["d"].weight, m["d"].bias, 1, 1, 1, 8), d=conv(8, 8, groups=8)))
    assert "writes its groups as 8" in reasons(analysis)["stem"]


def test_linear_and_group_norm_as_functions() -> None:
    def body(m: Any, x: Tensor) -> Tensor:
        return m["l"](m["n"](x).mean((2, 3)))

    analysis = check(Net(body, n=OwnGroupNorm(4, 8), l=OwnLinear(8, 6), after=6, flat=True))
    assert widths(analysis) == {"stem": (8, 2), "parts.l": (6, 1)}
    assert build(analysis, analysis.space.full.with_width("stem", 4)).parts["n"].num_groups == 2


@pytest.mark.parametrize("written", [False, True])
def test_a_group_norm_of_one_group_as_a_function(written: bool) -> None:
    def body(m: Any, x: Tensor) -> Tensor:
        n = m["n"]
        return m["a"](F.group_norm(input=x, num_groups=1, bias=n.bias, weight=n.weight) if written else n(x))

    analysis = check(Net(body, n=OwnGroupNorm(1, 8), a=conv(8, 8)))
    assert widths(analysis)["stem"] == (8, 1) and not reasons(analysis).keys() - {"head"}
    assert build(analysis, analysis.space.full.with_width("stem", 3)).parts["n"].weight.shape == (3,)


def test_a_weight_that_is_computed_freezes_what_it_reads() -> None:
    analysis = check(Net(lambda m, x: m["b"](m["s"](m["a"](x))), a=conv(8, 6), s=Mixing(6, 6, 3), b=conv(6, 8)))
    assert set(widths(analysis)) == {"stem", "parts.b"}
    assert reasons(analysis)["parts.a"] == "conv2d computes its weight"


def test_a_weight_that_is_standardised_by_hand_is_so_over_the_inputs_that_stay() -> None:
    analysis = check(Net(lambda m, x: m["b"](m["s"](m["a"](x))), a=conv(8, 6), s=Standardised(6, 6, 3), b=conv(6, 8)))
    assert widths(analysis) == {"stem": (8, 1), "parts.a": (6, 1), "parts.s": (6, 1), "parts.b": (8, 1)}
    assert reasons(analysis) == {"head": "it is an output"}


class Tokens(nn.Module):
    """Tokens of their own before the image's; rotary frequencies beside queries and keys with biases of theirs."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 8, 4, stride=4)
        self.registers, self.rows, self.before = nn.Parameter(torch.randn(1, 3, 8)), nn.Parameter(torch.randn(2, 4)), 0
        self.periods = nn.Buffer(torch.randn(2), persistent=False)
        self.q, self.k, self.v = (nn.Parameter(torch.randn(8)) for _ in range(3))
        self.qkv, self.out, self.heads, self.head = nn.Linear(8, 24, bias=False), nn.Linear(8, 8), 2, nn.Linear(8, 5)

    def turned(self, x: Tensor) -> Tensor:
        angles = torch.arange(x.shape[2])[:, None] / self.periods[None]
        sin, cos = torch.cat([angles.sin()] * 2, -1), torch.cat([angles.cos()] * 2, -1)
        half = torch.cat([-x[..., x.shape[-1] // 2 :], x[..., : x.shape[-1] // 2]], -1)
        return torch.cat([x[:, :, : self.before], x * cos + half * sin], 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.registers.expand(len(x), -1, -1), x], 1)
        b, n, c = x.shape
        qkv = F.linear(x, self.qkv.weight, torch.cat([self.q, self.k, self.v]))
        q, k, v = qkv.reshape(b, n, 3, self.heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        y = F.scaled_dot_product_attention(self.turned(q), self.turned(k), v)
        return self.head((x + self.out(y.transpose(1, 2).reshape(b, n, c))).mean(1))


def test_several_tokens_rotary_frequencies_and_empty_slices_hold_no_channels() -> None:
    analysis = check(Tokens())
    assert widths(analysis) == {"patches": (8, 1), "q": (8, 4)}
    assert reasons(analysis).keys() == {"head", "patches", "q"}
    assert reasons(analysis)["patches"] == "reshape sizes other channels by their number"


def test_a_size_may_be_that_of_channels_that_are_tied_behind() -> None:
    def body(m: Any, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        return x + torch.addcmul(x, m["a"](x).flatten(2).view(b, c, h, w), m["b"](x))

    analysis = check(Net(body, a=conv(8, 8), b=conv(8, 8)))
    assert widths(analysis) == {"stem": (8, 1)} and reasons(analysis).keys() == {"head"}


def test_the_largest_channel_is_one_of_those_that_stay() -> None:
    analysis = check(Net(lambda m, x: m["a"](x) * torch.sigmoid(x.amax(1, keepdim=True)), a=conv(8, 8)))
    assert widths(analysis) == {"stem": (8, 1), "parts.a": (8, 1)}


MOVES = {
    "cumsum in space": lambda m, x: torch.cumsum(x, 2),
    "einsum of channels": lambda m, x: torch.einsum("bchw,bcwv->bchv", x, m["a"](x)),
    "max in space": lambda m, x: x.max(2, keepdim=True)[0] + x.max(3, keepdim=True).values,
    "larger of two": lambda m, x: torch.max(x, m["a"](x)),
    "where it is positive": lambda m, x: torch.where(x > 0, x, 0.1 * x),
    "sort in space": lambda m, x: torch.sort(x, -1)[0],
    "transform in space": lambda m, x: torch.fft.ifft(torch.fft.fft(x)).real,
    "places in space": lambda m, x: x[:, :, torch.tensor([1, 0, 2, 3])],
    "put in space": lambda m, x: torch.zeros_like(x).index_add(2, torch.arange(x.shape[2]), x),
    "data": lambda m, x: x + x.data.mean((2, 3), keepdim=True),
    "stack": lambda m, x: torch.stack([x, m["a"](x)], 2).sum(2),
    "unbind in space": lambda m, x: torch.unbind(x, 2)[0].unsqueeze(2) + x,
    "expand": lambda m, x: x.mean((2, 3), keepdim=True).expand(-1, -1, 8, 8) + x,
    "expand_as": lambda m, x: x.mean((2, 3), keepdim=True).expand_as(x) * x,
    "repeat in space": lambda m, x: x.mean((2, 3), keepdim=True).repeat(1, 1, 8, 8) + m["a"](x),
    "flip": lambda m, x: torch.flip(m["a"](x), (2,)) + x,
    "roll in space": lambda m, x: torch.roll(x, (1, 2), (2, 3)),
    "movedim": lambda m, x: torch.movedim(torch.movedim(x, 1, -1), -1, 1),
    "view_as": lambda m, x: m["a"](x).flatten(2).view_as(x) + x,
    "standard deviation": lambda m, x: x / (x.std((2, 3), keepdim=True) + 1),
    "interpolate": lambda m, x: F.interpolate(x, scale_factor=2),
    "softmax in space": lambda m, x: x * torch.softmax(x.flatten(2), dim=-1).view_as(x),
    "product in space": lambda m, x: x @ x.transpose(-2, -1),
    "zeros": lambda m, x: x + torch.zeros_like(x),
    "pixel shuffle": lambda m, x: F.interpolate(F.pixel_shuffle(x.repeat_interleave(4, 1), 2), scale_factor=0.5),
    "pixel unshuffle": lambda m, x: (
        F.pixel_unshuffle(x, 2).unflatten(1, (-1, 4)).mean((2, 3, 4), keepdim=True)[:, :, 0] + x
    ),
    "mean over channels": lambda m, x: x * x.mean(1, keepdim=True),
    "rms norm": lambda m, x: x / (x.pow(2).mean(dim=1, keepdim=True) + 1e-3).sqrt(),
    "index": lambda m, x: x[torch.tensor([1, 0])] if len(x) == 2 else x,
}


@pytest.mark.parametrize("name", MOVES)
def test_moves_in_space_keep_channels(name: str) -> None:
    assert widths(check(Net(MOVES[name], a=conv(8, 8)), draws=4))["stem"] == (8, 1)


def test_repeats_along_channels() -> None:
    analysis = check(Net(lambda m, x: x.repeat(1, 2, 1, 1), after=16), draws=4)
    assert widths(analysis) == {"stem": (8, 1)}
    assert widths(check(Net(lambda m, x: x.repeat_interleave(2, dim=1), after=16), draws=4)) == {"stem": (8, 1)}
    assert widths(check(Net(lambda m, x: torch.flip(x, (1,))), draws=4)) == {"stem": (8, 1)}


FREEZES = {
    "unbind": lambda m, x: torch.stack(torch.unbind(x, 1), 1),
    "roll": lambda m, x: torch.roll(x, 1, 1),
    "softmax": lambda m, x: torch.softmax(x, dim=1),
    "cumsum": lambda m, x: torch.cumsum(x, 1),
    "einsum": lambda m, x: torch.einsum("bchw,bdhw->bcd", x, x)[..., None],
    "squeeze": lambda m, x: m["a"](x).mean((2, 3), keepdim=True).squeeze()[:, :, None, None],
}


@pytest.mark.parametrize("name", FREEZES)
def test_what_mixes_or_counts_channels_freezes_them(name: str) -> None:
    analysis = check(Net(FREEZES[name], a=conv(8, 8)), draws=2)
    assert not {"stem", "parts.a"} & set(widths(analysis)) or name == "squeeze"
    assert all(frozen.source for frozen in analysis.space.frozen if frozen.reason != "it is an output")


class Output(NamedTuple):
    logits: Tensor
    extra: Tensor | None


class Auxiliary(nn.Module):
    """A second head that only training reaches, and a named tuple for what comes out."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head, self.aux = conv(3, 8), conv(8, 5), conv(8, 2)

    def forward(self, x: Tensor) -> Output:
        x = self.stem(x)
        return Output(self.head(x), self.aux(x) if self.training else None)


def test_heads_that_only_training_reaches_are_cut_as_well() -> None:
    analysis = analyse(Auxiliary().eval(), images(2, size=8))
    architecture = analysis.space.full.with_width("stem", 3)
    student = build(analysis, architecture)
    assert student.aux.in_channels == 3
    assert student.train()(images(2, size=8)).extra.shape == (2, 2, 8, 8)
    assert predict(analysis, architecture).parameters == sum(p.numel() for p in student.parameters())
    assert predict(analysis, architecture).macs == 64 * 9 * (3 * 3 + 3 * 5)  # not of what evaluation leaves out


def test_what_passes_by_a_removed_layer_is_not_overwritten() -> None:
    class InPlace(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.a, self.b, self.head = conv(3, 8), conv(8, 8), conv(8, 8), conv(8, 5)
            self.act = nn.ReLU(inplace=True)

        def forward(self, x: Tensor) -> Tensor:
            x = torch.sigmoid(self.stem(x))
            y = self.a(x)
            y += 1
            y = self.act(self.b(y))
            return self.head(x * y)

    analysis = analyse(InPlace().eval(), images(2, size=8))
    student = build(analysis, analysis.space.full.without("a", "layer:b"))
    x = images(2, size=8)
    stem = torch.sigmoid(student.stem(x))
    assert torch.equal(student(x), student.head(stem * (stem + 1)))
    student.train()(x).sum().backward()
    assert not student.act.inplace and analysis.teacher.act.inplace


class Varied(nn.Module):
    """Takes the deviation over channels: of a single one there is none."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, width, 1), nn.Conv2d(width + 1, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        return self.last(torch.cat([y, y.std(1, keepdim=True)], 1))


def test_a_variance_takes_two_channels() -> None:
    analysis, proof = prove(analyse(Varied(8), images(2, size=4)))
    (group,) = analysis.space.groups
    assert (group.name, group.least, proof.refused) == ("first", 2, ())
    assert build(analysis, analysis.space.full.with_width("first", 2))(images(1, size=4)).isfinite().all()
    (found,) = (f for f in analyse(Varied(2), images(2, size=4)).space.frozen if f.name == "first")
    assert found.reason == "a variance is taken over these two channels"


def test_a_standardised_kernel_of_one_value_takes_two_channels() -> None:
    (case,) = (case for case in standardised.CASES if case.name == "standardised_residual")
    least = {group.name: group.least for group in analyse(case.network(), torch.randn(case.example)).space.groups}
    assert 2 in least.values()


class MixedLinear(nn.Module):
    """A weight whose rows are mixed, in no module of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(6, 16), nn.Linear(16, 4)
        self.mix = nn.Parameter(torch.randn(16, 16))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.linear(x, self.mix @ self.first.weight.softmax(1), self.first.bias).relu())  # type: ignore[no-any-return]


def test_a_weight_that_the_network_itself_computes_says_why_it_stays() -> None:
    frozen = {found.name: found for found in analyse(MixedLinear(), torch.randn(2, 6)).space.frozen}
    assert frozen["first"].width == 16 and frozen["first"].reason == "linear computes its weight in the forward pass"


def test_the_first_argument_may_be_named() -> None:
    def body(m: nn.ModuleDict, x: Tensor) -> Tensor:
        x = F.conv2d(input=x, weight=m["a"].weight, bias=m["a"].bias)
        x = torch.where(input=x, condition=x > 0, other=torch.zeros_like(input=x))
        return torch.mean(input=F.relu(input=torch.flatten(input=x, start_dim=2)), dim=2)

    assert set(widths(check(Net(body, flat=True, after=6, a=conv(8, 6, 1))))) == {"stem", "parts.a"}


def test_tensors_may_be_named_where_torch_takes_them_by_place() -> None:
    def body(m: nn.ModuleDict, x: Tensor) -> Tensor:
        x = m["a"](x)
        x = torch.where(condition=x > 0, other=torch.zeros_like(x), input=x).flatten(2)
        seen = x.new_zeros(()).baddbmm(batch1=x.transpose(1, 2), batch2=x, beta=0.5, alpha=2.0)  # as Bloom has it
        return torch.bmm(x, mat2=seen.softmax(2)).mean(2)

    assert set(widths(check(Net(body, flat=True, after=6, a=conv(8, 6, 1))))) == {"stem", "parts.a"}


NAMED: dict[str, Any] = {
    "flip": lambda y: torch.flip(y, dims=(1, 2)) + y.flip(dims=[3]),
    "permute": lambda y: torch.permute(input=y, dims=(0, 2, 3, 1)).permute(dims=(0, 3, 1, 2)),
    "transpose": lambda y: torch.transpose(y, dim0=2, dim1=3) + y.transpose(dim0=3, dim1=2),
    "swapaxes": lambda y: torch.swapaxes(y, axis0=2, axis1=3).swapdims(dim0=2, dim1=3),
    "reshape": lambda y: torch.reshape(y, shape=(y.shape[0], y.shape[1], -1, 1)),
    "expand": lambda y: (
        torch.broadcast_to(y[:, :, :1], size=(-1, -1, 4, -1)) + y[:, :, :1].expand(size=(-1, -1, 4, -1))
    ),
    "repeat": lambda y: y.repeat(repeats=(1, 1, 2, 1)) + torch.tile(y, dims=(1, 1, 2, 1)),
    "pixel_unshuffle": lambda y: F.pixel_shuffle(F.pixel_unshuffle(y, downscale_factor=2), upscale_factor=2),
    "zeros": lambda y: torch.cat([y, y.new_zeros(size=(y.shape[0], y.shape[1], 1, y.shape[3]))], 2),
    "full": lambda y: torch.cat([y, torch.full(size=(*y.shape[:3], 1), fill_value=0.5)], 3),
}


@pytest.mark.parametrize("name", NAMED)
def test_sizes_and_dimensions_may_be_named(name: str) -> None:
    assert set(widths(check(Net(lambda m, x: m["a"](NAMED[name](x)), after=6, a=conv(8, 6, 1))))) == {"stem", "parts.a"}


SELDOM: dict[str, Any] = {
    "fliplr": lambda y: torch.fliplr(y) + y.flipud(),
    "vstack": lambda y: torch.vstack([y[:1], y[1:]]),
    "column_stack": lambda y: torch.column_stack([y.mean((2, 3)), y.amax((2, 3))]).chunk(2, 1)[1][..., None, None],
    "split_with_sizes": lambda y: torch.cat(torch.split_with_sizes(y, [3, 5], 1), 1),
    "select": lambda y: y.select(2, 0).unsqueeze(2) + torch.select(y, 3, 1)[..., None],
    "var_mean": lambda y: torch.var_mean(y, dim=(2, 3), keepdim=True)[0] + torch.std_mean(y, (2, 3), False, True)[1],
    "max_pool": lambda y: torch.max_pool2d(y, 2),
    "rsub": lambda y: torch.rsub(y, 1),
    "rot90": lambda y: torch.rot90(y, 1, (2, 3)),
    "tril": lambda y: torch.tril(y) + y.triu(1),
    "nanmean": lambda y: torch.nanmean(y, (2, 3), keepdim=True),
    "fftshift": lambda y: torch.fft.ifftshift(torch.fft.fftshift(y, dim=(2, 3)), (2, 3)),
    "addmm": lambda y: torch.addmm(torch.ones(8), y.mean((2, 3)), torch.eye(8))[..., None, None],
}


@pytest.mark.parametrize("name", SELDOM)
def test_operations_that_are_seldom_met_keep_channels_apart(name: str) -> None:
    analysis = check(Net(lambda m, x: m["a"](SELDOM[name](x)), after=6, a=conv(8, 6, 1)))
    assert "parts.a" in widths(analysis) and ("stem" in widths(analysis)) == (name != "addmm")


def test_a_weight_that_is_turned_and_multiplied_with_a_bias_is_a_linear_layer() -> None:
    def body(m: nn.ModuleDict, x: Tensor) -> Tensor:
        return torch.addmm(m["a"].bias, x.mean((2, 3)), m["a"].weight.t())

    assert set(widths(check(Net(body, flat=True, after=6, a=nn.Linear(8, 6))))) == {"stem", "parts.a"}


@pytest.mark.parametrize("repeated", ["expand", "repeat", "made"])
def test_a_filter_that_is_repeated_for_each_channel_takes_any_number(repeated: str) -> None:
    class Blurred(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.head = conv(3, 8), conv(8, 6), nn.Linear(6, 4)
            self.register_buffer("kernel", torch.tensor([1.0, 2.0, 1.0]).view(1, 1, 3, 1) / 4)

        def forward(self, x: Tensor) -> Tensor:
            x = torch.relu(self.a(x))
            count, kernel = x.shape[1], self.kernel
            if repeated == "made":
                kernel = torch.tensor([[[[-1.0, 0.0, 1.0]]]], dtype=x.dtype)
            kernel = kernel.expand(count, -1, -1, -1) if repeated == "expand" else kernel.repeat(count, 1, 1, 1)
            return self.head(self.b(F.conv2d(x, kernel, padding=1, groups=count)).mean((2, 3)))

    analysis = check(Blurred())
    assert set(widths(analysis)) == {"a", "b"}


@pytest.mark.parametrize(("start", "offered"), [(0, True), (4, False)])
def test_channels_are_not_written_over_others_where_a_layer_goes(start: int, offered: bool) -> None:
    def body(m: nn.ModuleDict, x: Tensor) -> Tensor:
        y = x.clone()
        y[:, start : start + 4] = m["p"](x[:, :4])
        return m["a"](y)

    analysis = check(Net(body, after=6, a=conv(8, 6, 1), p=conv(4, 4, 3)))
    assert {"stem", "parts.a"} <= set(widths(analysis))
    assert ("layer:parts.p" in {unit.name for unit in analysis.space.units}) == offered


def test_numpys_names_are_those_of_torch() -> None:
    def body(m: nn.ModuleDict, x: Tensor) -> Tensor:
        x = torch.cat([x, m["a"](x)], axis=1)  # type: ignore[call-overload]
        return x / (x.square().mean(axis=1, keepdims=True) + 1).sqrt()  # type: ignore[call-overload]

    assert widths(check(Net(body, after=14, a=conv(8, 6, 1)))) == {"stem": (8, 1), "parts.a": (6, 1)}


def test_of_every_second_channel_pairs_go_together() -> None:
    analysis = check(Net(lambda m, x: x[:, ::2] * torch.sigmoid(x[:, 1::2]), after=4))
    assert widths(analysis) == {"stem": (8, 2)}
    assert "stem" in reasons(check(Net(lambda m, x: x[:, ::3], after=3)))


def test_a_weight_may_lose_a_dimension_and_get_it_back() -> None:
    def body(m: nn.ModuleDict, x: Tensor) -> Tensor:  # as Mamba in Hugging Face's reference code
        weight = m["d"].weight.squeeze(1)
        x = F.conv1d(x.flatten(2), weight=weight.unsqueeze(1), bias=m["d"].bias, padding=weight.shape[-1] - 1, groups=8)
        return x[:, :, :64].mean(2)

    analysis = check(Net(body, d=nn.Conv1d(8, 8, 3, groups=8), flat=True))
    (group,) = analysis.space.groups
    assert (group.name, group.width) == ("stem", 8) and group.plain.startswith("conv1d writes its groups as 8")


def test_padding_by_a_layer_may_be_before_the_channels() -> None:
    def body(m: nn.ModuleDict, x: Tensor) -> Tensor:  # tokens are shifted by one, as in RWKV
        x = x.flatten(2).transpose(1, 2)
        return (m["shift"](x) + m["mix"](x)).transpose(1, 2).mean(2)

    parts = {"shift": nn.ZeroPad2d((0, 0, 1, -1)), "mix": nn.Linear(8, 8)}
    assert widths(check(Net(body, flat=True, **parts))) == {"stem": (8, 1)}
    across = check(Net(lambda m, x: m["pad"](x.flatten(2).mean(2)), flat=True, after=10, pad=nn.ConstantPad1d(1, 0.0)))
    assert reasons(across)["stem"] == "parts.pad runs over these channels"
