"""What the benchmark of ways to evaluate builds upon: elastic weights, rank correlation, successive halving."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from benchmarks.elastic import Elastic
from benchmarks.search_speed import Bench, Reading, climbed, tau
from tests.support.tiny import Tiny
from understudy.graph.analysis import Analysis, analyse
from understudy.surgery.build import build


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
    network, images = Elastic(analysis, students), torch.randn(4, 1, 8, 8)
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


def test_students_without_a_layer_share_the_weights_that_read_past_it() -> None:
    torch.manual_seed(0)
    stack = nn.Sequential(*(nn.Conv2d(8, 8, 3, padding=1) for _ in range(3)), nn.Flatten(), nn.Linear(128, 3)).eval()
    analysis = analyse(stack, torch.zeros(2, 8, 4, 4))
    unit = next(unit.name for unit in analysis.space.units if unit.name == "1")
    group = analysis.space.groups[0].name
    students = [analysis.space.architecture(removed=[unit], widths=widths) for widths in ({}, {group: 4})]
    network = Elastic(analysis, students)
    assert len(network.shared) == len(dict(stack.named_parameters())) + 1
    whole, narrow = (network.student(each) for each in students)
    kept = dict(narrow.named_parameters())["2.weight"]
    assert kept.shape[1] == 4 and all(
        any(torch.equal(row, other) for other in dict(whole.named_parameters())["2.weight"].unbind(1))
        for row in kept.unbind(1)
    )
    assert torch.equal(network(torch.ones(2, 8, 4, 4)), whole(torch.ones(2, 8, 4, 4)))


def test_a_way_that_is_left_out_can_still_score_shared_weights(tmp_path: Path) -> None:
    unused: Any = None
    bench = Bench(
        task=unused, evaluator=unused, students=[], examples=100, long=1, long_examples=100, starts=("compensated",),
        without=("inherited, not trained",), elastic=0, folder=tmp_path,
    )  # fmt: skip
    assert bench.ways.keys() - bench.candidates.keys() == {"inherited, not trained"}
    assert len(bench.rungs(4)) == 3
    assert not replace(bench, without=("compensated, 5 epochs of 100",)).rungs(4)


def test_who_is_left_after_rungs_and_what_they_took() -> None:
    cheap = [Reading(score=score, seconds=1.0) for score in (0.1, 0.4, 0.3, 0.2)]
    dear = [Reading(score=score, seconds=10.0) for score in (0.9, 0.5, 0.6, 0.7)]
    assert climbed([0, 1, 2, 3], [(cheap, 1)]) == (1, 4.0)
    assert climbed([0, 1, 2, 3], [(cheap, 2), (dear, 1)]) == (2, 24.0)
    assert climbed([0, 3], [(dear, 1)]) == (0, 20.0)


def test_tau() -> None:
    assert tau([1, 2, 3], [10, 20, 30]) == 1.0 and tau([1, 2, 3], [3, 2, 1]) == -1.0
    assert tau([1, 1, 1], [1, 2, 3]) == 0.0
