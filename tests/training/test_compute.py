from __future__ import annotations

import copy
import pickle
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from understudy.config.training import Device
from understudy.core.errors import ConfigError
from understudy.training import compute as module
from understudy.training.compute import Compute, choose_compute, seeded

COMPUTES = [
    Compute(dtype=dtype, memory_format=memory_format)
    for dtype in (torch.float32, torch.bfloat16)
    for memory_format in (torch.contiguous_format, torch.channels_last)
]
IMAGES = torch.randn(4, 2, 8, 8, generator=torch.Generator().manual_seed(0))


def network() -> nn.Module:
    return nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.Dropout(), nn.Flatten(), nn.Linear(144, 3))


class Misfit(nn.Linear):
    """Does not fit its input."""

    def __init__(self) -> None:
        super().__init__(5, 3)


@pytest.mark.parametrize("compute", COMPUTES, ids=lambda c: c.name)
def test_a_compute_can_be_sent_and_has_a_name(compute: Compute) -> None:
    assert pickle.loads(pickle.dumps(compute)) == compute
    precision = "bf16" if compute.dtype == torch.bfloat16 else "fp32"
    layout = "channels_last" if compute.memory_format == torch.channels_last else "contiguous"
    assert compute.name == f"cpu-{precision}-{layout}"


def test_what_is_pinned_is_not_timed(device: torch.device) -> None:
    class Untouchable(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            raise AssertionError

    pinned = Device(device=str(device), precision="bf16", memory_format="channels_last", threads=3)
    chosen = choose_compute(Untouchable(), IMAGES, pinned)
    assert chosen == Compute(device=device, dtype=torch.bfloat16, memory_format=torch.channels_last, threads=3)


def test_a_pinned_precision_is_kept_while_the_format_is_timed(device: torch.device) -> None:
    model = network()
    before, modes, state = copy.deepcopy(model), [m.training for m in model.modules()], torch.get_rng_state()
    chosen = choose_compute(model, IMAGES, Device(device=str(device), precision="bf16"))
    assert chosen.dtype == torch.bfloat16
    assert torch.equal(torch.get_rng_state(), state)
    assert all(map(torch.equal, model.state_dict().values(), before.state_dict().values()))
    assert [m.training for m in model.modules()] == modes


@pytest.mark.parametrize(
    ("seconds", "chosen"),
    [((4.0, 3.0, 2.0, 1.0), 3), ((1.0, 3.0, 2.0, 4.0), 0), ((1.2, 1.04, 1.0, 1.0), 1), ((1.2, 1.06, 1.0, 0.99), 2)],
)
def test_the_fastest_is_chosen_and_the_plainer_of_two_alike(
    seconds: tuple[float, ...], chosen: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    trials: list[Compute] = []

    def timed(model: nn.Module, images: Tensor, compute: Compute) -> float:
        trials.append(compute)
        first = trials.count(compute) == 1  # it also compiles kernels, so it takes any time
        return 0.0 if first else seconds[COMPUTES.index(replace(compute, threads=1))]

    monkeypatch.setattr(module, "_time_step", timed)
    found = choose_compute(network(), IMAGES, Device(device="cpu", threads=2))
    assert found == replace(COMPUTES[chosen], threads=2)
    assert trials == [replace(compute, threads=2) for compute in COMPUTES] * 6


class Choosy(nn.Module):
    """Runs in bfloat16 only, and there in one memory format only."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 2, 1)

    def forward(self, images: Tensor) -> Tensor:
        out = self.conv(images)
        if out.dtype != torch.bfloat16 or not images.is_contiguous():
            raise RuntimeError("no such kernel")
        return out.flatten(1)


def test_combinations_that_do_not_run_are_passed_over(device: torch.device) -> None:
    chosen = choose_compute(Choosy(), IMAGES, Device(device=str(device)))
    assert chosen == Compute(device=device, dtype=torch.bfloat16, memory_format=torch.contiguous_format, threads=1)


def test_a_model_that_runs_nowhere_is_an_error(device: torch.device) -> None:
    with pytest.raises(ConfigError, match=r"must run in one of the combinations, but none worked:\n.*mat1 and mat2"):
        choose_compute(Misfit(), IMAGES, Device(device=str(device)))


def test_an_unknown_device_is_an_error() -> None:
    with pytest.raises(ConfigError, match="device must be auto, cpu, cuda, cuda:1 or mps, but got 'gpu'"):
        choose_compute(network(), IMAGES, Device(device="gpu"))


def test_a_scope_sets_the_threads_and_restores_them() -> None:
    before = torch.get_num_threads()
    with Compute(threads=before + 1).scope():
        assert torch.get_num_threads() == before + 1
        with Compute(threads=0).scope():
            assert torch.get_num_threads() >= 1
        assert torch.get_num_threads() == before + 1
    assert torch.get_num_threads() == before


def test_placing_a_model_gives_its_filters_the_memory_format(device: torch.device) -> None:
    compute = Compute(device=device, memory_format=torch.channels_last)
    model = compute.place(network())
    assert model[0].weight.is_contiguous(memory_format=torch.channels_last)
    assert compute.images(IMAGES).is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(compute.images(IMAGES).cpu(), IMAGES)


def test_seeding_gives_the_same_numbers_and_restores_the_state(device: torch.device) -> None:
    before, drawn = torch.get_rng_state(), []
    with seeded(device) as reseed:
        for _ in range(2):
            reseed(7)
            drawn.append((torch.rand(3), torch.rand(3, device=device)))
    assert torch.equal(drawn[0][0], drawn[1][0])
    assert torch.equal(drawn[0][1], drawn[1][1])
    assert torch.equal(torch.get_rng_state(), before)


def test_the_device_is_found_by_name(device: torch.device) -> None:
    pinned = Device(device="auto", precision="fp32", memory_format="contiguous", threads=1)
    best = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    assert choose_compute(network(), IMAGES, pinned).device.type == best
    assert choose_compute(network(), IMAGES, replace(pinned, device=str(device))).device == device
