"""Rounding that a network blows up is no fault of a student; a wrong weight still is."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from benchmarks.random_networks import tried
from tests.support.models import images
from tests.support.modules.drawn import Drawn
from understudy.core.architecture import Architecture
from understudy.graph.analysis import Analysis, analyse
from understudy.proof import rounded, trial
from understudy.proof.trial import Trials
from understudy.surgery.build import build


class Centred(nn.Module):
    """Takes from channels their mean, and makes what is left as large as anything: of one channel nothing is left."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.norm, self.last = nn.InstanceNorm2d(4, affine=True, eps=1e-40), nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.second(self.first(x).relu())
        return self.last(self.norm(x / 3.0 - (x / 3.0 * 0.7).mean(1, keepdim=True) / 0.7))  # type: ignore[no-any-return]


def one_channel() -> tuple[Analysis, Architecture]:
    torch.manual_seed(0)
    analysis = analyse(Centred().eval(), images(2, size=6))
    return analysis, analysis.space.full.with_width("second", 1).with_width("first", 2)


def harm(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    def harmed(*arguments: Any) -> nn.Module:
        student = build(*arguments)
        with torch.no_grad():
            student.get_parameter(name).view(-1)[0].add_(0.01)
        return student

    monkeypatch.setattr(trial, "build", harmed)


def test_what_is_all_rounding_is_no_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    analysis, architecture = one_channel()
    trials = Trials(analysis)
    assert trials.judge(architecture, thorough=True).status == "holds"
    assert trials.largest < 1e-12  # rounding that was blown up is not counted as what students differ by
    monkeypatch.setattr(rounded, "_UNITS", 0)
    assert "differs from the masked network" in trials.judge(architecture, thorough=True).reason


@pytest.mark.parametrize("name", ["first.weight", "second.weight"])
def test_a_wrong_weight_before_it_is_found(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    analysis, architecture = one_channel()
    harm(monkeypatch, name)
    outcome = Trials(analysis).judge(architecture)
    assert (
        outcome.reason.endswith("of the largest value") and f" at {name.removesuffix('.weight')}: by " in outcome.reason
    )


def test_a_wrong_weight_behind_it_is_found_at_other_widths(monkeypatch: pytest.MonkeyPatch) -> None:
    analysis, _ = one_channel()
    harm(monkeypatch, "norm.weight")
    outcome = Trials(analysis).judge(analysis.space.full.with_width("second", 2))
    assert " at norm: by " in outcome.reason


def test_the_random_network_that_was_called_wrong() -> None:
    assert tried(20556, draws=5).wrong == ""


@pytest.mark.parametrize("seed", range(6))
def test_a_wrong_weight_of_a_random_network_is_found_as_before(monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        analysis = analyse(Drawn(seed).eval(), torch.randn(2, 3, 6, 6))
    architecture = analysis.space.architecture(channels={g.name: [0] for g in analysis.space.groups})
    trials, found = Trials(analysis), dict[int, list[str]]()
    assert trials.judge(architecture).status == "holds"
    for units in (4, 0):  # with none, every difference counts
        monkeypatch.setattr(rounded, "_UNITS", units)
        found[units] = []
        for name, _ in build(analysis, architecture).named_parameters():
            harm(monkeypatch, name)
            found[units] += [name] if trials.judge(architecture).status == "fails" else []
    assert found[4] == found[0] and len(found[4]) > 3
