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


class Splitting(nn.Module):
    """Cuts at numbers that it holds, as Res2Net and dual path networks do."""

    def __init__(self, first: int, *, equal: bool = False, spoil: bool = False) -> None:
        super().__init__()
        self.first, self.equal, self.spoil = first, equal, spoil

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        if self.equal:
            return torch.split(x, self.first, 1)
        return x[:, : self.first // 1 if self.spoil else self.first], x[:, self.first :]


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


def test_rows_of_a_parameter_that_are_taken_one_by_one_have_channels() -> None:
    class Gates(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gates, self.a = nn.Parameter(torch.randn(3, 8)), conv(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            gates = torch.sigmoid(self.gates).view(3, -1, 1, 1)
            return x * gates[0] + self.a(x) * gates[2]

    analysis = check(Net(lambda m, x: m["g"](x), g=Gates()))
    assert widths(analysis) == {"stem": (8, 1)} and reasons(analysis).keys() == {"head"}
    assert build(analysis, analysis.space.full.with_width("stem", 3)).parts["g"].gates.shape == (3, 3)


def test_the_largest_channel_is_one_of_those_that_stay() -> None:
    analysis = check(Net(lambda m, x: m["a"](x) * torch.sigmoid(x.amax(1, keepdim=True)), a=conv(8, 8)))
    assert widths(analysis) == {"stem": (8, 1), "parts.a": (8, 1)}


class ChannelsFirst(nn.LayerNorm):
    """A layer norm over dimension 1, as ConvNeXt has it."""

    def forward(self, x: Tensor) -> Tensor:
        x = F.layer_norm(x.permute(0, 2, 3, 1), self.normalized_shape, self.weight, self.bias, self.eps)
        return x.permute(0, 3, 1, 2)


def test_a_layer_norm_as_a_function_is_cut_where_its_module_holds_the_number() -> None:
    analysis = check(Net(lambda m, x: m["n"](x), n=ChannelsFirst(8)))
    assert widths(analysis) == {"stem": (8, 1)}
    assert build(analysis, analysis.space.full.with_width("stem", 3)).parts["n"].normalized_shape == (3,)


def test_a_layer_norm_of_a_written_number_needs_a_plain_graph() -> None:
    class Written(ChannelsFirst):
        def forward(self, x: Tensor) -> Tensor:
            return F.layer_norm(x.permute(0, 2, 3, 1), (8,), self.weight, self.bias).permute(0, 3, 1, 2)

    analysis = check(Net(lambda m, x: m["n"](x), n=Written(8)))
    assert reasons(analysis)["stem"] == "layer norm writes their number as 8"


def test_a_layer_norm_whose_number_is_used_otherwise_needs_a_plain_graph() -> None:
    class Scaled(ChannelsFirst):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) * self.normalized_shape[0] ** -0.5

    analysis = check(Net(lambda m, x: m["n"](x), n=Scaled(8)))
    assert reasons(analysis)["stem"] == "the forward pass computes with parts.n.normalized_shape"


def test_parts_of_a_size_that_a_module_holds_shrink_together() -> None:
    def body(m: Any, x: Tensor) -> Tensor:
        a, b = m["s"](x)
        return torch.cat([a, m["c"](b)], 1)

    analysis = check(Net(body, s=Splitting(4, equal=True), c=conv(4, 4)))
    assert widths(analysis) == {"stem": (8, 2), "parts.c": (4, 1)}
    assert build(analysis, analysis.space.full.with_width("stem", 4)).parts["s"].first == 2


def test_a_slice_at_a_number_that_a_module_holds_follows() -> None:
    def body(m: Any, x: Tensor) -> Tensor:
        a, b = m["s"](x)
        return torch.cat([m["c"](a), b], 1)

    analysis = check(Net(body, s=Splitting(3), c=conv(3, 4), after=9))
    assert widths(analysis) == {"stem": (3, 1), "stem#2": (5, 1), "parts.c": (4, 1)}
    assert build(analysis, analysis.space.full.with_width("stem", 2)).parts["s"].first == 2


def test_a_number_that_is_computed_with_as_well_needs_a_plain_graph() -> None:
    analysis = check(Net(lambda m, x: torch.cat(m["s"](x), 1), s=Splitting(3, spoil=True)))
    assert "stem" in reasons(analysis)


def test_a_number_that_counts_two_things_freezes() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.n = 4

        def forward(self, x: Tensor) -> Tensor:
            return x[:, : self.n].reshape(-1, self.n, 8, 8) + x[:, :, :4].sum(2, keepdim=True)[:, : self.n]

    analysis = check(Net(lambda m, x: m["t"](x), t=Twice(), after=4))
    # All three uses count the same channels, so they follow; the rest of the stem is free.
    assert widths(analysis) == {"stem": (4, 1), "stem#2": (4, 1)}

    class Apart(Twice):
        def forward(self, x: Tensor) -> Tensor:
            return torch.cat([x[:, : self.n], x[:, : self.n] * self.n], 1)

    assert "computes with parts.t.n" in reasons(check(Net(lambda m, x: m["t"](x), t=Apart())))["stem"]


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


class Positions(nn.Module):
    """A table of more positions than tokens came, of which the first are added."""

    def __init__(self, batched: bool) -> None:
        super().__init__()
        self.tokens, self.batched = nn.Embedding(30, 16), batched
        self.table = nn.Parameter(torch.randn(1, 12, 16) if batched else torch.randn(12, 16))
        self.hidden, self.head = nn.Linear(16, 24), nn.Linear(24, 4)

    def forward(self, tokens: Tensor) -> Tensor:
        length = tokens.size(1)
        x = self.tokens(tokens) + (self.table[:, :length] if self.batched else self.table[:length])
        return self.head(self.hidden(x).relu().mean(1))  # type: ignore[no-any-return]


class Bag(nn.Module):
    """Rows of a table, averaged."""

    def __init__(self) -> None:
        super().__init__()
        self.bag, self.hidden, self.head = nn.EmbeddingBag(30, 16), nn.Linear(16, 24), nn.Linear(24, 4)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.hidden(self.bag(tokens)).relu())  # type: ignore[no-any-return]


class Generator(nn.Module):
    """A linear layer makes a small map, whose channels are the first of its three dimensions."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Embedding(30, 12), nn.BatchNorm2d(12)
        self.map, self.up = nn.Linear(12 * 7, 12 * 4), nn.ConvTranspose2d(12, 3, 2, 2)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.map(self.first(tokens).flatten(1)).view(tokens.size(0), 12, 2, 2)
        return self.up(self.norm(x).relu())  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("network", "names"),
    [
        (lambda: Positions(True), {"tokens", "hidden"}),
        (lambda: Positions(False), {"tokens", "hidden"}),
        (Bag, {"bag", "hidden"}),
        (Generator, {"first", "map"}),
    ],
    ids=["positions", "positions of one dimension less", "bag", "generator"],
)
def test_tables_of_which_rows_are_taken_and_maps_that_are_made(network: Any, names: set[str]) -> None:
    torch.manual_seed(0)
    analysis, proof = prove(analyse(network(), torch.randint(0, 30, (2, 7))))
    assert proof.refused == () and {group.name for group in analysis.space.groups} == names
    assert analysis.shrinkable > 0.95


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


def _last(m: Any, x: Tensor, by: str) -> Tensor:
    """Take one place of each row, for all channels of it; `by` says how the index gets as many."""
    x = m["norm"](x).flatten(2).transpose(1, 2)
    index = x.new_zeros((x.size(0), 1, 1), dtype=torch.long) + 3
    repeated = {
        "size": lambda: index.expand(-1, -1, x.size(2)),
        "shape": lambda: index.repeat(1, 1, x.shape[-1]),
        "number": lambda: index.expand(x.size(0), 1, m["norm"].num_features),
        "written": lambda: index.repeat(1, 1, 8),
    }
    return x.gather(1, repeated[by]()).transpose(1, 2).unsqueeze(-1)


@pytest.mark.parametrize("by", ["size", "shape", "number", "written"])
def test_an_index_of_gather_is_repeated_for_as_many_channels_as_there_are(by: str) -> None:
    analysis = check(Net(lambda m, x: _last(m, x, by), norm=nn.BatchNorm2d(8)))
    assert widths(analysis)["stem"] == (8, 1)
    plain = next(group.plain for group in analysis.space.groups if group.name == "stem")
    assert ("repeat writes their number as 8" in plain) if by == "written" else not plain


def test_the_first_argument_may_be_named() -> None:
    def body(m: nn.ModuleDict, x: Tensor) -> Tensor:
        x = F.conv2d(input=x, weight=m["a"].weight, bias=m["a"].bias)
        x = torch.where(input=x, condition=x > 0, other=torch.zeros_like(input=x))
        return torch.mean(input=F.relu(input=torch.flatten(input=x, start_dim=2)), dim=2)

    assert set(widths(check(Net(body, flat=True, after=6, a=conv(8, 6, 1))))) == {"stem", "parts.a"}
