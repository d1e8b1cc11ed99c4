from __future__ import annotations

import copy
import os
import pickle
import subprocess
import sys
import time
from dataclasses import replace
from typing import Any, Literal

import pytest
import torch
from torch import Tensor, nn

from understudy.config.training import Device
from understudy.core.errors import ConfigError
from understudy.training.compute import Compute, choose_compute, told

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


def test_what_is_pinned_is_not_tried(device: torch.device) -> None:
    class Untouchable(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            raise AssertionError

    pinned = Device(device=str(device), precision="bf16", memory_format="channels_last", threads=3)
    chosen = choose_compute(Untouchable(), IMAGES, pinned)
    assert chosen == Compute(device=device, dtype=torch.bfloat16, memory_format=torch.channels_last, threads=3)
    assert told(chosen, pinned) == f"computing on {device} in bf16, channels_last, 3 threads"


def processor(monkeypatch: pytest.MonkeyPatch, *, bf16: bool, amx: bool = False) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: bf16)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)


@pytest.mark.parametrize(
    ("bf16", "amx", "dtype", "why"),
    [
        (False, False, torch.float32, "fp32, channels_last (this processor has no bf16 instructions)"),
        (True, False, torch.bfloat16, "bf16, channels_last (this processor has bf16 instructions)"),
        (False, True, torch.bfloat16, "bf16, channels_last (this processor has bf16 instructions)"),
    ],
)
def test_the_kind_of_processor_decides_not_a_stopwatch(
    bf16: bool, amx: bool, dtype: torch.dtype, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ticking() -> float:
        raise AssertionError("nothing is timed")

    for clock in ("perf_counter", "process_time", "monotonic"):
        monkeypatch.setattr(time, clock, ticking)
    processor(monkeypatch, bf16=bf16, amx=amx)
    chosen = choose_compute(network(), IMAGES, Device(device="cpu"))
    assert chosen == Compute(dtype=dtype, memory_format=torch.channels_last, threads=1)
    assert told(chosen, Device(device="cpu")) == f"computing on cpu in {why}"


def test_a_choice_leaves_the_model_and_the_random_state_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    processor(monkeypatch, bf16=True)
    model = network()
    before, modes, state = copy.deepcopy(model), [m.training for m in model.modules()], torch.get_rng_state()
    choose_compute(model, IMAGES, Device(device="cpu"))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(map(torch.equal, model.state_dict().values(), before.state_dict().values()))
    assert [m.training for m in model.modules()] == modes


class Choosy(nn.Module):
    """Runs in one precision only."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.conv, self.dtype = nn.Conv2d(2, 2, 1), dtype

    def forward(self, images: Tensor) -> Tensor:
        out = self.conv(images)
        if out.dtype != self.dtype:
            raise RuntimeError("no such kernel")
        return out.flatten(1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_precision_that_does_not_run_is_passed_over(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    processor(monkeypatch, bf16=True)
    chosen = choose_compute(Choosy(dtype), IMAGES, Device(device="cpu"))
    assert chosen == Compute(dtype=dtype, memory_format=torch.channels_last)
    assert ("does not run in bf16" in told(chosen, Device(device="cpu"))) is (dtype == torch.float32)


class Viewed(nn.Module):
    """Flattens by a view, as LeNet and VGG often do, which takes contiguous maps alone."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 4, 1)

    def forward(self, images: Tensor) -> Tensor:
        out = self.conv(images)
        return out.view(out.size(0), -1)


@pytest.mark.parametrize("precision", ["auto", "fp32", "bf16"])
@pytest.mark.parametrize("bf16", [True, False])
def test_a_format_that_does_not_run_is_passed_over(
    precision: Literal["auto", "fp32", "bf16"], bf16: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    processor(monkeypatch, bf16=bf16)
    chosen = choose_compute(Viewed(), IMAGES, Device(device="cpu", precision=precision))
    dtype = torch.bfloat16 if precision == "bf16" or (precision == "auto" and bf16) else torch.float32
    assert chosen == Compute(dtype=dtype, memory_format=torch.contiguous_format)


def test_a_pinned_format_is_kept_while_the_precision_is_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    processor(monkeypatch, bf16=False)
    chosen = choose_compute(network(), IMAGES, Device(device="cpu", memory_format="contiguous"))
    assert chosen == Compute(dtype=torch.float32, memory_format=torch.contiguous_format)


def test_a_model_that_runs_nowhere_is_an_error(device: torch.device) -> None:
    with pytest.raises(ConfigError, match=r"must run in one of the precisions, but none worked:\n.*mat1 and mat2"):
        choose_compute(Misfit(), IMAGES, Device(device=str(device)))


class Functional(nn.Module):
    """A strided 1x1 convolution whose weight is a bare parameter."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(8, channels, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        return nn.functional.conv2d(images, self.weight, stride=2).flatten(1)


@pytest.mark.parametrize(
    ("layer", "hazard"),
    [
        (nn.Conv2d(4, 8, 1, stride=2), True),
        (nn.Conv2d(7, 8, 1, stride=(2, 1)), True),
        (nn.Conv2d(16, 8, 1, stride=2, groups=8), True),
        (Functional(2), True),
        (nn.Conv2d(8, 8, 1, stride=2), False),
        (nn.Conv2d(2, 8, 1), False),
        (nn.Conv2d(2, 8, 3, stride=2), False),
        (Functional(8), False),
        (nn.Linear(4, 8), False),
    ],
)
def test_what_corrupts_memory_in_channels_last_is_never_computed_in_it(layer: nn.Module, hazard: bool) -> None:
    model = nn.Sequential(nn.ReLU(), layer)
    wanted = Compute(memory_format=torch.channels_last)
    layout = torch.contiguous_format if hazard else torch.channels_last
    assert wanted.suited(model) == Compute(memory_format=layout)
    assert Compute().suited(model) == Compute()
    for other in (replace(wanted, device=torch.device("cuda")), replace(wanted, dtype=torch.bfloat16)):
        assert other.suited(model) == other


@pytest.mark.parametrize("memory_format", ["auto", "channels_last"])
def test_a_layout_that_corrupts_memory_is_not_chosen(memory_format: Any) -> None:
    model = nn.Sequential(nn.Conv2d(2, 8, 1, stride=2), nn.Flatten())
    device = Device(device="cpu", precision="fp32", memory_format=memory_format)
    assert choose_compute(model, IMAGES, device) == Compute(memory_format=torch.contiguous_format)


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


def test_a_scope_draws_the_same_numbers_each_time_and_restores_the_callers() -> None:
    before = torch.get_rng_state()
    drawn = []
    for _ in range(2):
        with Compute().scope() as reseed:
            drawn.append(torch.rand(3).tolist())
            reseed(0)
            drawn.append(torch.rand(3).tolist())
    assert drawn == drawn[:1] * 4
    assert torch.equal(torch.get_rng_state(), before)


def test_a_scope_computes_float32_in_float32_and_restores_the_callers_choice() -> None:
    cudnn = torch.backends.cudnn
    before = torch.get_float32_matmul_precision(), cudnn.allow_tf32
    try:
        torch.set_float32_matmul_precision("medium")
        cudnn.allow_tf32 = True
        with Compute().scope():
            assert (torch.get_float32_matmul_precision(), cudnn.allow_tf32) == ("highest", False)
        assert (torch.get_float32_matmul_precision(), cudnn.allow_tf32) == ("medium", True)
    finally:
        torch.set_float32_matmul_precision(before[0])
        cudnn.allow_tf32 = before[1]


@pytest.mark.skipif(not hasattr(torch.backends, "fp32_precision"), reason="torch has it from 2.9 on")
def test_a_scope_computes_float32_in_float32_where_the_caller_set_torchs_newer_flags() -> None:
    # What is set once cannot be unset in this process.
    code = """
import torch
from understudy.training.compute import Compute

backends, cpu = torch.backends, torch.backends.mkldnn
for place in (cpu.matmul, cpu.conv, backends.cuda.matmul, backends.cudnn.conv, backends):
    place.fp32_precision = "tf32"
    with Compute().scope():
        assert cpu.matmul.fp32_precision == cpu.conv.fp32_precision == "ieee"
    assert place.fp32_precision == "tf32"
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_scope_on_cuda_is_deterministic_and_restores_what_was_set(monkeypatch: pytest.MonkeyPatch) -> None:
    # The switches can be set without a GPU, so what the scope promises is tested everywhere.
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    cudnn = torch.backends.cudnn
    before = torch.are_deterministic_algorithms_enabled(), cudnn.deterministic, cudnn.benchmark
    with Compute(device=torch.device("cuda")).scope():
        assert torch.are_deterministic_algorithms_enabled() and torch.is_deterministic_algorithms_warn_only_enabled()
        assert (cudnn.deterministic, cudnn.benchmark) == (True, False)
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    assert (torch.are_deterministic_algorithms_enabled(), cudnn.deterministic, cudnn.benchmark) == before


def test_placing_a_model_gives_its_filters_the_memory_format(device: torch.device) -> None:
    compute = Compute(device=device, memory_format=torch.channels_last)
    model = compute.place(network())
    assert model[0].weight.is_contiguous(memory_format=torch.channels_last)
    assert compute.images(IMAGES).is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(compute.images(IMAGES).cpu(), IMAGES)


def test_the_device_is_found_by_name(device: torch.device) -> None:
    pinned = Device(device="auto", precision="fp32", memory_format="contiguous", threads=1)
    best = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    assert choose_compute(network(), IMAGES, pinned).device.type == best
    assert choose_compute(network(), IMAGES, replace(pinned, device=str(device))).device == device


def test_a_device_that_is_not_here_is_refused() -> None:
    with pytest.raises(ConfigError, match="one that torch finds on this machine, but there is no 'cuda:99'"):
        choose_compute(network(), IMAGES, Device(device="cuda:99"))


def test_it_is_pickled_without_the_users_script() -> None:
    # What imports multiprocessing first is found first by the pickles of torch's memory formats.
    lines = (
        "import multiprocessing, pickle, sys, torch",
        "from understudy.training.compute import Compute",
        "sys.stdout.buffer.write(pickle.dumps(Compute(memory_format=torch.channels_last)))",
    )
    content = subprocess.run([sys.executable, "-c", "\n".join(lines)], check=True, capture_output=True).stdout
    assert b"main__" not in content
    assert pickle.loads(content) == Compute(memory_format=torch.channels_last)
    assert copy.deepcopy(torch.channels_last) is torch.channels_last
