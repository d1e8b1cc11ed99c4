from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.support.tiny import Tiny
from understudy.graph.analysis import Analysis, analyse
from understudy.surgery.build import build
from understudy.surgery.shared import SharedWeights, Turns

CPU = torch.device("cpu")


@pytest.fixture
def analysis() -> Analysis:
    torch.manual_seed(0)
    return analyse(Tiny().eval(), torch.zeros(2, 1, 8, 8))


def test_each_call_is_of_the_next_student_and_teaches_its_slice(analysis: Analysis) -> None:
    first, second = analysis.space.groups[:2]
    students = [
        analysis.space.architecture(widths={first.name: 4}),
        analysis.space.architecture(widths={second.name: 6}, removed=["third"]),
    ]
    network, images = Turns(SharedWeights(analysis), students, CPU), torch.randn(4, 1, 8, 8)
    for architecture in students:
        student = build(analysis, architecture).train()
        outputs = network(images)
        assert torch.equal(outputs, student(images))
        network.zero_grad()
        outputs.square().sum().backward()
        told = sum(int((p.grad != 0).sum()) for p in network.parameters() if p.grad is not None)
        own = sum(p.numel() for p in student.parameters())
        assert 0.8 * own < told <= own  # all but weights behind a ReLU that is off
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.zero_()
    assert not network(images).any() and any(p.any() for p in analysis.teacher.parameters())


def test_whose_turn_it_is_is_kept_with_the_weights(analysis: Analysis) -> None:
    name = analysis.space.groups[0].name
    students = [analysis.space.architecture(widths={name: width}) for width in (2, 4, 6)]
    network, images = Turns(SharedWeights(analysis), students, CPU), torch.randn(4, 1, 8, 8)
    network(images)
    again = Turns(SharedWeights(analysis), students, CPU)
    again.load_state_dict(network.state_dict())
    assert torch.equal(again(images), build(analysis, students[1]).train()(images))


def test_students_without_a_layer_share_the_weights_that_read_past_it() -> None:
    torch.manual_seed(0)
    stack = nn.Sequential(*(nn.Conv2d(8, 8, 3, padding=1) for _ in range(3)), nn.Flatten(), nn.Linear(128, 3)).eval()
    analysis = analyse(stack, torch.zeros(2, 8, 4, 4))
    unit = next(unit.name for unit in analysis.space.units if unit.name == "1")
    group = analysis.space.groups[0].name
    students = [analysis.space.architecture(removed=[unit], widths=widths) for widths in ({}, {group: 4})]
    weights = SharedWeights(analysis)
    network = Turns(weights, students, CPU)
    assert len(weights.tensors) == len(dict(stack.named_parameters())) + 1
    whole, narrow = (weights.student(each) for each in students)
    kept = dict(narrow.named_parameters())["2.weight"]
    assert kept.shape[1] == 4 and all(
        any(torch.equal(row, other) for other in dict(whole.named_parameters())["2.weight"].unbind(1))
        for row in kept.unbind(1)
    )
    images = torch.ones(2, 8, 4, 4)
    assert torch.equal(network(images), whole(images))
    kept_so = SharedWeights(analysis, weights.tensors)
    assert torch.equal(kept_so.student(students[1])(images), narrow(images))


class Tied(nn.Module):
    """Tokens in and out by one table."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(11, 8)
        self.between = nn.Sequential(nn.Linear(8, 12), nn.Tanh(), nn.Linear(12, 8))
        self.out = nn.Linear(8, 11, bias=False)
        self.out.weight = self.table.weight

    def forward(self, tokens: Tensor) -> Tensor:
        return self.out(self.between(self.table(tokens)))


class Heads(nn.Module):
    """Attention whose heads are a local number, so that students are plain graphs."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.proj, self.out = nn.Linear(8, 24), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        heads, (b, n, c) = 4, x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, heads, c // heads).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v)
        return self.out(x + self.proj(y.transpose(1, 2).reshape(b, n, c)))


@pytest.mark.parametrize(
    ("made", "example"), [(Tied, torch.arange(10).view(2, 5)), (Heads, torch.randn(2, 5, 8))], ids=["tied", "plain"]
)
def test_students_of_any_kind_learn_in_turn(made: Callable[[], nn.Module], example: Tensor) -> None:
    torch.manual_seed(0)
    analysis = analyse(made().eval(), example)
    space = analysis.space
    students = [space.architecture(widths={g.name: g.width - g.step}) for g in space.groups if g.width > g.step]
    assert students
    weights = SharedWeights(analysis)
    network = Turns(weights, students, CPU)
    learner = torch.optim.SGD(network.parameters(), lr=0.1)
    for architecture in students:
        assert torch.allclose(network(example), weights.student(architecture).train()(example), atol=1e-6)
    before = {key: tensor.clone() for key, tensor in weights.tensors.items()}
    for _ in students:
        learner.zero_grad()
        network(example).square().mean().backward()
        learner.step()
    assert all(not torch.equal(tensor, before[key]) for key, tensor in weights.tensors.items() if tensor.dim() > 1)
