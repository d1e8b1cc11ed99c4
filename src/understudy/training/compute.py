"""Where and how networks are computed: device, precision, memory format, threads, random state."""

from __future__ import annotations

import copy
import itertools
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from statistics import median
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from understudy.config.training import Device
from understudy.core.errors import ConfigError

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
_FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
_TRIAL_SECONDS = 20.0  # most time that choosing a compute may take, once each was tried
_TIE = 1.05  # a combination that takes up to so many times the shortest time is as good


@dataclass(frozen=True, kw_only=True)
class Compute:
    """Where and how networks are computed. `dtype` bfloat16 means autocast: weights stay float32."""

    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    dtype: torch.dtype = torch.float32
    memory_format: torch.memory_format = torch.contiguous_format
    threads: int = 1  # CPU threads, 0: all cores

    @property
    def name(self) -> str:
        """What decides a result, such as "cpu-bf16-channels_last"; threads only move its last bits."""
        precision = _name_of(self.dtype, _DTYPES)
        return f"{self.device.type}-{precision}-{_name_of(self.memory_format, _FORMATS)}"

    @contextmanager
    def scope(self) -> Iterator[None]:
        """Use these threads and deterministic convolutions inside, and what was set before afterwards."""
        before = torch.get_num_threads()
        cudnn = torch.backends.cudnn
        flags = (cudnn.deterministic, cudnn.benchmark)
        torch.set_num_threads(self.threads or cores())
        cudnn.deterministic, cudnn.benchmark = True, False
        try:
            yield
        finally:
            torch.set_num_threads(before)
            cudnn.deterministic, cudnn.benchmark = flags

    def autocast(self) -> torch.autocast:
        """Return the context of one forward pass. Leave it before weights change: it keeps their casts."""
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.dtype == torch.bfloat16)

    def place(self, model: nn.Module) -> nn.Module:
        """Move the model to this device and memory format, in place, and return it."""
        # torch's annotations lack this form of `to`.
        model.to(device=self.device, memory_format=self.memory_format)  # type: ignore[call-overload]
        return model

    def images(self, images: Tensor) -> Tensor:
        """Return images (b, c, h, w) on this device in this memory format, dtype kept."""
        return images.to(self.device, non_blocking=True).contiguous(memory_format=self.memory_format)


def choose_compute(model: nn.Module, images: Float[Tensor, "b c h w"], device: Device) -> Compute:
    """Return how to compute: what the settings pin, and for "auto" the fastest combination here.

    Combinations are timed by forward and backward passes of a copy of the model on the normalised
    images, in turns, and compared by median; where there is hardly a difference the plainer one is
    chosen, so that another run chooses it too. A single combination is not timed. "auto" for the device
    is cuda if there is one, else mps, else cpu.

    Raises:
        ConfigError: torch does not know the device, or the model runs in no combination.
    """
    where = device_named(device.device)
    precisions = tuple(_DTYPES) if device.precision == "auto" else (device.precision,)
    formats = tuple(_FORMATS) if device.memory_format == "auto" else (device.memory_format,)
    choices = [
        Compute(device=where, dtype=_DTYPES[p], memory_format=_FORMATS[f], threads=device.threads)
        for p, f in itertools.product(precisions, formats)
    ]
    if len(choices) == 1:
        return choices[0]
    times: dict[Compute, list[float]] = {compute: [] for compute in choices}
    errors = []
    start = time.perf_counter()
    for trial in range(6):
        for compute in list(times):
            try:
                times[compute].append(_time_step(model, images, compute))
            except RuntimeError as e:  # an operation without a bf16 kernel, too little memory
                errors.append(f"{compute.name}: {e}")
                del times[compute]
        if trial and time.perf_counter() - start > _TRIAL_SECONDS:
            break
    if not times:
        raise ConfigError("the model must run in one of the combinations, but none worked:\n" + "\n".join(errors))
    # The first trial of each also compiles its kernels.
    medians = {compute: median(trials[1:]) for compute, trials in times.items()}
    return next(compute for compute in choices if medians.get(compute, math.inf) <= _TIE * min(medians.values()))


@contextmanager
def seeded(device: torch.device) -> Iterator[Callable[[int], None]]:
    """Give a function that seeds torch's global generators inside, and restore them afterwards.

    Dropout and initialisation draw from them; nothing else here does.
    """
    there = getattr(torch, device.type) if device.type != "cpu" else None
    before, before_there = torch.get_rng_state(), there.get_rng_state() if there else None

    def reseed(seed: int) -> None:
        torch.default_generator.manual_seed(seed)
        if there:
            there.manual_seed(seed)

    try:
        yield reseed
    finally:
        torch.set_rng_state(before)
        if there:
            there.set_rng_state(before_there)


def _time_step(model: nn.Module, images: Tensor, compute: Compute) -> float:
    """Return the seconds of one forward and backward pass of a copy of the model.

    Of one thread, seconds on the CPU: other processes must not decide.
    """
    clock = time.process_time if compute.device.type == "cpu" and compute.threads == 1 else time.perf_counter
    with compute.scope(), seeded(compute.device) as reseed:
        reseed(0)
        trial = compute.place(copy.deepcopy(model)).train()
        batch = compute.images(images)
        _wait(compute.device)
        start = clock()
        with compute.autocast():
            logits = trial(batch)
        logits.float().square().mean().backward()
        _wait(compute.device)
        return clock() - start


def device_named(name: str) -> torch.device:
    """Return the device of that name; "auto" is cuda if there is one, else mps, else cpu.

    Raises:
        ConfigError: torch does not know it.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        return torch.device(name)
    except RuntimeError as e:
        raise ConfigError(f"device must be auto, cpu, cuda, cuda:1 or mps, but got {name!r}") from e


def _wait(device: torch.device) -> None:
    if device.type != "cpu":
        getattr(torch, device.type).synchronize()


def cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _name_of(value: object, names: dict[str, Any]) -> str:
    return next(name for name, known in names.items() if known is value)


def pinned(device: Device, chosen: Mapping[str, str] | None) -> Device:
    """Return the device with what was chosen for it before, so that nothing is timed again."""
    return device if chosen is None else replace(device, **chosen)  # type: ignore[arg-type]


def choice(compute: Compute) -> dict[str, str]:
    """Return what to write down of a chosen compute; `pinned` takes it."""
    precision, memory_format = compute.name.split("-")[-2:]
    return {"device": str(compute.device), "precision": precision, "memory_format": memory_format}
