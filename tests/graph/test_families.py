"""Small networks of many families, as engineers write them: what can shrink does, and no student is wrong."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.ao.nn import quantized

from understudy.graph.analysis import Analysis, analyse
from understudy.proof.prove import prove
from understudy.proof.trial import Trials

Step = Callable[["Parts", Any], Any]


class Parts(nn.Module):
    """Layers by name, and a forward pass over them."""

    def __init__(self, forward: Step, **layers: Any) -> None:
        super().__init__()
        self.step = forward
        for name, layer in layers.items():
            setattr(self, name, layer)

    def forward(self, x: Tensor, more: Tensor | None = None) -> Any:
        return self.step(self, x) if more is None else self.step(self, (x, more))


def held(network: nn.Module, example: Any, draws: int = 2) -> Analysis:
    """Return the analysis with what holds; groups that are offered do, and students of random widths are right."""
    analysis, proof = prove(analyse(network.eval(), example))
    assert [found for found in proof.refused if found.kind == "group"] == []
    space, trials, rng = analysis.space, Trials(analysis, 1), random.Random(0)
    for _ in range(draws):
        channels = {g.name: rng.sample(range(g.width // g.step), rng.randint(g.least, g.width) // g.step or 1)
                    for g in space.groups}  # fmt: skip
        outcome = trials.judge(space.architecture(channels=channels), thorough=True)
        assert outcome.status != "fails", outcome.reason
    return analysis


def tokens(channels: int = 6) -> Tensor:
    return torch.randn(2, 5, channels, generator=torch.Generator().manual_seed(0))


def mask() -> Tensor:
    return torch.rand(2, 5, generator=torch.Generator().manual_seed(0)) > 0.5


def three(**more: Any) -> dict[str, Any]:
    torch.manual_seed(0)
    return {"a": nn.Linear(6, 12), "b": nn.Linear(12, 12), "c": nn.Linear(12, 4), **more}


@pytest.mark.parametrize(
    ("repeated", "plain"),
    [
        (lambda m, h: m.unsqueeze(-1).expand_as(h), False),
        (lambda m, h: m.unsqueeze(-1).expand(h.shape), False),
        (lambda m, h: m.unsqueeze(-1).repeat(1, 1, h.size(-1)), False),
        (lambda m, h: m[:, :, None].expand(-1, -1, 12), True),
        (lambda m, h: m.unsqueeze(-1).expand(2, 5, 12).expand_as(h), True),
    ],
)
def test_a_mask_that_is_repeated_for_each_channel_has_as_many(repeated: Any, plain: bool) -> None:
    def forward(n: Any, given: Any) -> Tensor:
        x, m = given
        h = torch.relu(n.a(x))
        h = torch.relu(n.b(h.masked_fill(repeated(m, h), 0.0)))
        return n.c((h * repeated(m, h).float()).sum(1))  # type: ignore[no-any-return]

    analysis = held(Parts(forward, **three()), (tokens(), mask()))
    assert {group.name: bool(group.plain) for group in analysis.space.groups} == {"a": plain, "b": plain}


def test_a_mask_that_is_repeated_for_one_tensor_and_meets_another_of_fixed_size_holds_it() -> None:
    def forward(n: Any, given: Any) -> Tensor:
        x, m = given
        h = n.a(x)
        return n.c(torch.relu(n.b(h))) + x.masked_fill(m[..., None].expand_as(h), 0.0).mean()  # type: ignore[no-any-return]

    analysis = held(Parts(forward, **three(a=nn.Linear(12, 12))), (tokens(12), mask()))
    assert [group.name for group in analysis.space.groups] == ["b"]


def test_a_mask_that_is_repeated_over_space_leaves_channels_free() -> None:
    def forward(n: Any, x: Tensor) -> Tensor:
        y = torch.relu(n.a(x))
        y = y * y.mean((1, 2, 3), keepdim=True).expand(-1, -1, 6, 6)
        return n.c(torch.relu(n.b(y)).mean((2, 3)))  # type: ignore[no-any-return]

    torch.manual_seed(0)
    layers = {"a": nn.Conv2d(3, 5, 3, padding=1), "b": nn.Conv2d(5, 8, 1), "c": nn.Linear(8, 3)}
    analysis = held(Parts(forward, **layers), torch.randn(2, 3, 6, 6))
    assert analysis.shrinkable > 0.95 and not any(group.plain for group in analysis.space.groups)


def test_what_stands_for_additions_in_networks_to_be_quantised_adds() -> None:
    def forward(n: Any, x: Tensor) -> Tensor:
        h = n.add.add_relu(n.a(x), n.b(n.a(x)))
        return n.c(n.mul.mul_scalar(n.join.cat([h, n.mul.mul(h, h)], -1), 2.0))  # type: ignore[no-any-return]

    stands = {name: quantized.FloatFunctional() for name in ("add", "mul", "join")}
    analysis = held(Parts(forward, **three(c=nn.Linear(24, 4), **stands)), tokens())
    assert analysis.shrinkable > 0.95


def test_a_mask_that_the_forward_pass_makes_goes_into_a_layer_of_a_transformer() -> None:
    def forward(n: Any, x: Tensor) -> Tensor:
        causal = torch.triu(torch.full((x.size(1), x.size(1)), float("-inf")), 1)
        return n.c(n.b(n.layer(n.a(x), src_mask=causal)))  # type: ignore[no-any-return]

    layer = nn.TransformerEncoderLayer(12, 2, 16, batch_first=True, norm_first=True)
    assert held(Parts(forward, **three(layer=layer)), tokens()).shrinkable > 0.95


def test_a_module_that_unflattens_says_how_many_channels_there_are() -> None:
    def forward(n: Any, x: Tensor) -> Tensor:
        return n.c(torch.relu(n.open(torch.relu(n.a(x)))))  # type: ignore[no-any-return]

    opens = nn.Unflatten(-1, [3, 2, -1])  # type: ignore[arg-type]
    layers = {"a": nn.Linear(6, 12), "open": opens, "c": nn.Conv2d(3, 4, 1)}
    analysis = held(Parts(forward, **layers), torch.randn(2, 6))
    assert [(g.name, g.width, g.plain) for g in analysis.space.groups] == [("a", 12, "")]


def test_rows_of_a_table_that_are_joined_to_others_have_its_channels() -> None:
    def forward(n: Any, x: Tensor) -> Tensor:
        bias = torch.cat([torch.zeros(1, n.table.shape[1]), n.table])
        return n.c(torch.relu(n.b(n.a(x) + bias[None])))  # type: ignore[no-any-return]

    analysis = held(Parts(forward, **three(table=nn.Parameter(torch.randn(4, 12)))), tokens())
    assert [(g.name, g.plain) for g in analysis.space.groups] == [("table", ""), ("b", "")]


@pytest.mark.parametrize("repeat", [lambda i, m: i[:, None].expand_as(m), lambda i, m: i[:, None].repeat(1, 12)])
def test_messages_along_edges_are_added_up_by_a_scatter(repeat: Any) -> None:
    def forward(n: Any, given: Any) -> Tensor:
        x, edges = given
        h = torch.relu(n.a(x))
        message = torch.relu(n.b(h[edges[0]]))
        total = torch.zeros(x.size(0), message.size(-1)).scatter_add_(0, repeat(edges[1], message), message)
        return n.c(h + total)  # type: ignore[no-any-return]

    edges = torch.randint(0, 5, (2, 9), generator=torch.Generator().manual_seed(0))
    analysis = held(Parts(forward, **three()), (torch.randn(5, 6), edges))
    assert analysis.shrinkable > 0.95


def test_rows_that_are_scattered_by_a_mask_have_the_channels_of_what_they_go_to() -> None:
    def forward(n: Any, given: Any) -> Tensor:
        ids, images = given
        text = n.table(ids)
        places = (ids == 0).unsqueeze(-1).expand_as(text).to(text.device)
        return n.c(torch.relu(n.b(text.masked_scatter(places, n.a(images)))))  # type: ignore[no-any-return]

    ids = torch.tensor([[0, 1, 2, 0], [0, 3, 4, 0]])
    analysis = held(Parts(forward, **three(table=nn.Embedding(6, 12))), (ids, torch.randn(9, 6)))
    assert [(g.name, g.plain) for g in analysis.space.groups] == [("table", ""), ("b", "")]


def test_a_scatter_whose_mask_is_not_of_whole_rows_holds_channels() -> None:
    def forward(n: Any, x: Tensor) -> Tensor:
        h = n.a(x)
        return n.c(torch.relu(n.b(h.masked_scatter(h > 0, n.b(h)))))  # type: ignore[no-any-return]

    assert not held(Parts(forward, **three()), tokens()).space.groups


def test_attention_as_a_function_of_the_weights_of_other_layers() -> None:
    def forward(n: Any, x: Tensor) -> Tensor:
        y = n.a(x).transpose(0, 1)
        bias = torch.cat([n.q.bias, n.k.bias, n.v.bias])
        weights = {f"{name}_proj_weight": getattr(n, name).weight for name in "qkv"}
        y, _ = nn.functional.multi_head_attention_forward(
            y.mean(0, keepdim=True), y, y, y.shape[-1], 4, None, bias, None, None, False, 0.1, n.b.weight, n.b.bias,
            training=n.training, use_separate_proj_weight=True, need_weights=False, **weights,
        )  # fmt: skip
        return n.c(y[0])  # type: ignore[no-any-return]

    projections = {name: nn.Linear(12, 12) for name in "qkv"}
    analysis = held(Parts(forward, **three(**projections)), tokens())
    assert analysis.shrinkable > 0.95 and len(analysis.space.groups) == 3


def test_attention_to_inputs_of_another_width() -> None:
    def forward(n: Any, x: Tensor) -> Tensor:
        return n.c(n.b(n.att(n.a(x), n.k(x), x)[0]))  # type: ignore[no-any-return]

    attention = nn.MultiheadAttention(12, 3, kdim=10, vdim=6, batch_first=True)
    analysis = held(Parts(forward, **three(att=attention, k=nn.Linear(6, 10))), tokens())
    assert analysis.shrinkable > 0.95


def test_maps_are_unpooled_to_where_their_largest_values_were() -> None:
    def forward(n: Any, x: Tensor) -> Tensor:
        y = torch.relu(n.a(x))
        small, places = n.pool(y)
        smaller, others = nn.functional.max_pool2d(torch.relu(n.b(small)), 2, return_indices=True)
        back = nn.functional.max_unpool2d(torch.relu(n.b(smaller)), others, 2, output_size=small.size())
        return n.c(n.back(back, places, output_size=y.size()))  # type: ignore[no-any-return]

    torch.manual_seed(0)
    layers = {"a": nn.Conv2d(3, 8, 1), "b": nn.Conv2d(8, 8, 1), "c": nn.Conv2d(8, 2, 1)}
    pools = {"pool": nn.MaxPool2d(2, return_indices=True), "back": nn.MaxUnpool2d(2)}
    analysis = held(Parts(forward, **layers, **pools), torch.randn(2, 3, 9, 9))
    assert [(g.name, g.width, g.plain) for g in analysis.space.groups] == [("a", 8, "")]


def test_a_vector_scores_what_comes_and_norms_have_several_names() -> None:
    def forward(n: Any, x: Tensor) -> Tensor:
        h = torch.special.expit(n.norm(n.pad(n.a(x.transpose(1, 2)))))
        h = nn.functional.lp_pool1d(h, 2, 2).swapdims(1, 2)
        h = (h * torch.softmax(torch.tanh(n.b(h)) @ n.vector, -1)[..., None]).sum(1)
        return n.c(h / torch.linalg.norm(h, dim=-1, keepdim=True))  # type: ignore[no-any-return]

    layers = {"a": nn.Conv1d(6, 12, 1), "norm": nn.SyncBatchNorm(12), "pad": nn.CircularPad1d(1)}
    network = Parts(forward, **{**three(vector=nn.Parameter(torch.randn(12))), **layers})
    assert held(network, tokens()).shrinkable > 0.95
