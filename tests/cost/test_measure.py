from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from understudy.cost import measure
from understudy.cost.measure import compare, latency


def model(width: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, width, 3), nn.BatchNorm2d(width)).train()


PAIRS, LEAST_MS = measure.PAIRS, measure.LEAST_MS  # before any test runs, which all others do in haste


@pytest.fixture(autouse=True)
def _at_leisure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "PAIRS", PAIRS)
    monkeypatch.setattr(measure, "LEAST_MS", LEAST_MS)


IMAGES = torch.zeros(1, 3, 8, 8)


def test_measuring_leaves_no_trace() -> None:
    network, threads = model(8), torch.get_num_threads()
    found = latency(network, IMAGES, seconds=0.01)
    assert 0 < found.low <= found.median <= found.high
    assert network.training and torch.get_num_threads() == threads
    assert network[1].num_batches_tracked == 0  # type: ignore[index]


def test_a_gpu_that_is_not_the_current_one_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[torch.device] = []
    monkeypatch.setattr(torch.accelerator, "synchronize", waited.append)
    measure._wait(SimpleNamespace(device=torch.device("cuda:1")))
    assert waited == [torch.device("cuda:1")]


def test_two_networks_are_timed_in_turns_and_ratios_taken_of_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    # A machine that gets slower all the time: only neighbouring times can be compared.
    readings: list[int] = []

    def forward_ms(network: nn.Module, images: Tensor, calls: int) -> float:
        width = network[0].out_channels  # type: ignore[index]
        readings.append(int(width))
        return 0.01 * width * 1.05 ** (len(readings) // 2)

    monkeypatch.setattr(measure, "forward_ms", forward_ms)
    found = compare(model(16), model(4), IMAGES, seconds=0.0)
    assert found.where == "1 thread" and str(found).endswith("x faster")
    assert found.ratio.median == pytest.approx(4.0, rel=0.06) and found.first.spread > 0.2 * found.first.median
    timed = readings[-22:]
    assert timed == [4, 16, 16, 4] * 5 + [4, 16]
    assert compare(model(4), model(16), IMAGES, threads=2, seconds=0.0).where == "2 threads"


def test_short_networks_run_several_times_for_one_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    calls_of: dict[int, set[int]] = {2: set(), 400: set()}

    def forward_ms(network: nn.Module, images: Tensor, calls: int) -> float:
        width = int(network[0].out_channels)  # type: ignore[index]
        calls_of[width].add(calls)
        return 0.01 * width

    monkeypatch.setattr(measure, "forward_ms", forward_ms)
    compare(model(2), model(400), IMAGES)
    assert calls_of == {2: {1, 50}, 400: {1}}


def test_more_pairs_are_timed_only_where_ratios_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    def pairs(noise: float) -> int:
        readings: list[float] = []

        def forward_ms(network: nn.Module, images: Tensor, calls: int) -> float:
            readings.append(1.0 + noise * (len(readings) % 3))
            return readings[-1]

        monkeypatch.setattr(measure, "forward_ms", forward_ms)
        before = len(readings)
        compare(model(4), model(4), IMAGES)
        return (len(readings) - before - 14) // 2  # but for 5 calls that warm up, and 2 that count, of each

    assert (pairs(0.0), pairs(0.5)) == (11, 101)
    assert 11 < pairs(0.02) < 101
