"""What a network costs on this machine: measured."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from understudy.core.nested import called, first, mapped
from understudy.core.timing import Comparison, Timing
from understudy.graph.copies import copied

_WARMUP = 5
LEAST_MS = 1.0  # of one reading of the clock; shorter networks run several times for one
_MOST_CALLS = 100
PAIRS = (11, 101)  # of times, at least and at most
_NARROW = 0.01  # of the median ratio: a 95% interval of it that needs no more pairs


def compare(
    first: nn.Module,
    second: nn.Module,
    example: Any,
    *,
    device: torch.device | str = "cpu",
    threads: int = 1,
    seconds: float = 1.0,
) -> Comparison:
    """Time the forward passes of two networks in turns, in evaluation mode, float32.

    Each pair of times gives one ratio, and the order changes from pair to pair. There are at least 11 pairs, and more,
    up to 101, until the median ratio is known to a hundredth or `seconds` have gone by. The networks are left as they
    were: copies are timed.

    Args:
        first: a network.
        second: another one.
        example: what both take, such as (1, c, h, w).
        device: where they run; what a GPU was given is waited for.
        threads: of the CPU.
        seconds: to take at most, but for the first pairs.
    """
    times: tuple[list[float], list[float]] = ([], [])
    with _ready((first, second), example, device, threads) as (models, images):
        calls = [_calls(model, images) for model in models]
        round_ms = sum(count * forward_ms(model, images, count) for model, count in zip(models, calls, strict=True))
        least, most = PAIRS
        pairs = min(max(math.ceil(1e3 * seconds / max(round_ms, 1e-6)), least), most)
        for number in range(pairs):
            for which in (0, 1) if number % 2 else (1, 0):
                times[which].append(forward_ms(models[which], images, calls[which]))
            ratios = [a / max(b, 1e-9) for a, b in zip(*times, strict=True)]
            if number + 1 >= least and _is_known(Timing.of(ratios), number + 1):
                break
    where = str(device) if torch.device(device).type != "cpu" else f"{threads} thread{'s' if threads > 1 else ''}"
    return Comparison(where=where, first=Timing.of(times[0]), second=Timing.of(times[1]), ratio=Timing.of(ratios))


def latency(
    model: nn.Module,
    example: Any,
    *,
    device: torch.device | str = "cpu",
    threads: int = 1,
    seconds: float = 1.0,
) -> Timing:
    """Return the times (ms) of one forward pass in evaluation mode, float32; see `compare`."""
    return compare(model, model, example, device=device, threads=threads, seconds=seconds).first


def forward_ms(model: nn.Module, images: Any, calls: int) -> float:
    """Return the milliseconds of one forward pass, in the mean over `calls` without a pause. The only clock here."""
    _wait(images)
    start = time.perf_counter()
    for _ in range(calls):
        called(model, images)
    _wait(images)
    return (time.perf_counter() - start) * 1e3 / calls


def _is_known(ratio: Timing, pairs: int) -> bool:
    """Return whether the median of a ratio is known well: its notch in a box plot (McGill et al., 1978, section 5)."""
    return 1.57 * ratio.spread / math.sqrt(pairs) <= _NARROW * ratio.median


def _calls(model: nn.Module, images: Any) -> int:
    """Return how many forward passes are long enough for the clock; the first ones warm up."""
    for _ in range(_WARMUP):
        forward_ms(model, images, 1)
    return min(max(math.ceil(LEAST_MS / max(forward_ms(model, images, 1), 1e-6)), 1), _MOST_CALLS)


@contextmanager
def _ready(
    models: Sequence[nn.Module], example: Any, device: torch.device | str, threads: int
) -> Iterator[tuple[list[nn.Module], Any]]:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with torch.inference_mode():
            yield (
                [copied(model).to(device).eval() for model in models],
                mapped(example, lambda tensor: tensor.to(device)),
            )
    finally:
        torch.set_num_threads(before)


def _wait(images: Any) -> None:
    """Let the device finish what it was given."""
    device = first(images).device
    if device.type != "cpu":
        torch.accelerator.synchronize(device)  # that one, which need not be the current one of its kind
