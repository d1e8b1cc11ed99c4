"""What a network costs on this machine: measured."""

from __future__ import annotations

import statistics
import time

import torch
from torch import Tensor, nn


def latency(
    model: nn.Module, example: Tensor, *, threads: int = 1, warmup: int = 5, repeats: int = 30
) -> tuple[float, float]:
    """Return median and interquartile range, in ms, of one forward pass in evaluation mode."""
    training, before = model.training, torch.get_num_threads()
    torch.set_num_threads(threads)
    model.eval()
    try:
        with torch.inference_mode():
            for _ in range(warmup):
                model(example)
            times = [_timed(model, example) for _ in range(repeats)]
    finally:
        model.train(training)
        torch.set_num_threads(before)
    low, median, high = statistics.quantiles(times, n=4)
    return median, high - low


def _wait(example: Tensor) -> None:
    """Let the device finish what it was given."""
    if example.is_cuda:
        torch.cuda.synchronize()


def _timed(model: nn.Module, example: Tensor) -> float:
    _wait(example)
    start = time.perf_counter()
    model(example)
    _wait(example)
    return (time.perf_counter() - start) * 1e3
