"""Weights that lie in one parameter, of which the forward pass takes one after the other: `self.weight[i]`."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.support.held import analysed, check
from understudy.graph.analysis import analyse
from understudy.proof.prove import prove


class Members(nn.Module):
    """A layer, what a test does with the members, and a head."""

    def __init__(self, forward: Callable[..., Tensor], head: int, **shapes: tuple[int, ...]) -> None:
        super().__init__()
        self.first, self.last, self.does = nn.Linear(6, 12), nn.Linear(head, 3), forward
        for name, shape in shapes.items():
            setattr(self, name, nn.Parameter(torch.randn(shape)))

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.does(self, torch.relu(self.first(x))))  # type: ignore[no-any-return]


def in_a_row(net: Members, x: Tensor) -> Tensor:
    for i in range(3):
        x = torch.relu(F.linear(x, net.w[i], net.b[i]))
    return x


def up_and_down(net: Members, x: Tensor) -> Tensor:
    for i in range(2):
        x = x + torch.tanh(x @ net.w[i] + net.b[i]) @ net.v[i]
    return x


def there_and_back(net: Members, x: Tensor) -> Tensor:
    for i in range(2):
        x = F.linear(torch.tanh(F.linear(x, net.w[i])), net.w[i].t())
    return x


def of_several_experts(net: Members, x: Tensor) -> Tensor:
    for i in range(2):
        x = sum(torch.einsum("bo,oi->bi", torch.tanh(x @ net.w[i][j].T), net.w[i, j]) for j in range(3))
    return x


def kernels(net: Members, x: Tensor) -> Tensor:
    x = x.unsqueeze(-1)
    for i in range(2):
        x = F.conv1d(F.conv1d(x, net.w[i], padding=1, groups=x.shape[1]), net.v[i], net.b[i])
    return x.mean(-1)


KINDS: dict[str, Members] = {
    "in a row": Members(in_a_row, 12, w=(3, 12, 12), b=(3, 12)),
    "up and down": Members(up_and_down, 12, w=(2, 12, 20), b=(2, 20), v=(2, 20, 12)),
    "there and back": Members(there_and_back, 12, w=(2, 20, 12)),
    "of several experts": Members(of_several_experts, 12, w=(2, 3, 20, 12)),
    "kernels": Members(kernels, 12, w=(2, 12, 1, 3), v=(2, 12, 12, 1), b=(2, 12)),
}


@pytest.mark.parametrize("kind", KINDS)
def test_members_are_cut_alike(kind: str) -> None:
    analysis = analysed(KINDS[kind], 5, 6)
    check(analysis)
    proved, proof = prove(analysis)
    assert not proof.refused
    assert proved.shrinkable > 0.95


def test_members_of_what_is_read_whole_stay_with_the_reason() -> None:
    net = Members(lambda net, x: F.linear(x, net.w[0]) * net.w.square().mean(), 20, w=(2, 20, 12))
    analysis = analyse(net.eval(), torch.randn(5, 6))
    assert not analysis.space.groups
    assert {found.reason for found in analysis.space.frozen} == {
        "a parameter is shared with a place of fixed size",
        "it is an output",
    }
