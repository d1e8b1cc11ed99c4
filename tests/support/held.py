"""Small networks analysed, and all of their students held against the masked network."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tests.support.models import parameters
from understudy.cost.predict import predict
from understudy.graph.analysis import Analysis, analyse
from understudy.surgery.build import build
from understudy.surgery.masked import relative_error


def analysed(model: nn.Module, *shape: int) -> Analysis:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for value in (*model.parameters(), *model.buffers()):
            if value.is_floating_point():
                nn.init.uniform_(value.data, 0.1, 1.0)
        x = torch.randn(*(shape or (2, 3, 4, 4)), dtype=torch.float64)
    return analyse(model.double().eval(), x)


def check(analysis: Analysis) -> set[str]:
    """Compare the students of each group with the masked teacher; return those that are copies of the teacher."""
    x = analysis.trace.example
    assert isinstance(x, Tensor)
    for group in analysis.space.groups:
        for width in {max(group.step, group.least), group.nearest(group.width / 2), group.width - group.step}:
            architecture = analysis.space.full.with_width(group.name, width)
            student = build(analysis, architecture)
            assert parameters(student) == predict(analysis, architecture).parameters
            assert relative_error(analysis, architecture, student.eval(), x) < 1e-12
            student.train()(x)
    for unit in analysis.space.units:
        student = build(analysis, analysis.space.full.without(unit.name))
        student.eval()(x)
        student.train()(x)
    return {group.name for group in analysis.space.groups if not group.plain}


def reason(analysis: Analysis, name: str) -> str:
    """Return why only a plain graph can be narrower, or why nothing can."""
    why = {frozen.name: f"{frozen.source} {frozen.reason}" for frozen in analysis.space.frozen}
    return (why | {group.name: group.plain for group in analysis.space.groups})[name]
