"""Memory that runs out while a network is analysed is no property of the network."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from understudy.core.errors import MachineError, TraceError
from understudy.graph import groups
from understudy.graph.analysis import analyse
from understudy.graph.record import record

IMAGES = torch.randn(2, 3, 8, 8)


class Hungry(nn.Module):
    """Two convolutions that need more memory than there is where `when` says so."""

    def __init__(self, when: Callable[[Any, Any], bool], error: str = "DefaultCPUAllocator: can't allocate memory"):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3)
        self.when, self.error = when, error

    def forward(self, x: Tensor) -> Tensor:
        if self.when(self, x):
            raise RuntimeError(self.error)
        return self.second(self.first(x).relu())


def runs_again(module: Hungry, x: Any) -> bool:
    module.__dict__.setdefault("seen", x)  # what stores something is run for real, and recorded once more
    return isinstance(x, Tensor)


CASES: dict[str, Callable[[Any, Any], bool]] = {
    "always": lambda module, x: True,
    "in training mode": lambda module, x: module.training,
    "once it has run": runs_again,
    "with fewer channels": lambda module, x: len(range(module.first.out_channels)) < 8,
    "where layers are of another class": lambda module, x: not isinstance(module.first, nn.Conv2d),
}


@pytest.mark.parametrize("when", CASES.values(), ids=CASES)
def test_it_is_the_machines_error(when: Callable[[Any, Any], bool]) -> None:
    with pytest.raises(MachineError, match=r"^memory ran out while the network was analysed; free some, or give a "):
        _ = analyse(Hungry(when), IMAGES).space


@pytest.mark.parametrize("when", CASES.values(), ids=CASES)
def test_other_errors_are_the_networks(when: Callable[[Any, Any], bool]) -> None:
    network = Hungry(when, "no such kernel")
    if when is CASES["always"]:
        with pytest.raises(TraceError, match="no such kernel"):
            analyse(network, IMAGES)
    else:
        assert analyse(network, IMAGES).space.frozen


def test_a_rule_that_lacks_memory_freezes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def tie(*_: Any) -> Any:
        raise MemoryError

    monkeypatch.setattr(groups._Joiner, "tie", tie)
    with pytest.raises(MachineError, match=r"^memory ran out while the network was analysed"):
        analyse(nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 4, 3)), IMAGES)


def test_a_recording_for_export_tells_it_too() -> None:
    with pytest.raises(MachineError, match=r"^memory ran out while the forward pass was recorded"):
        record(Hungry(CASES["always"]), IMAGES, training=False)
