"""How long each layer of two networks takes, and why fewer MACs may not mean less time."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from understudy.core.timing import Timing
from understudy.graph.flops import counting

_WARMUP = 3
_WORTH = 1.25  # fewer MACs by this factor should show
_LANES = 8  # numbers of 32 bits that a processor computes at once, and that its kernels are written for
REASONS = {
    "launch-bound": "operations are so small that starting them takes the time",
    "memory-bound": "reading and writing takes the time, not computing",
    "odd width": f"widths are no multiples of {_LANES}, which kernels are written for",
    "other": "kernels are slower for fewer channels",
}


@dataclass(frozen=True, kw_only=True)
class Layer:
    """A layer of one network: what it does for a batch, and how long that takes."""

    macs: int
    memory_bytes: int  # of weights, and of what goes in and comes out
    width: int | None  # of its output
    time: Timing | None  # ms; None where the runtime does not tell


@dataclass(frozen=True, kw_only=True)
class Pair:
    """A layer in both networks; None where it was removed."""

    path: str
    first: Layer
    second: Layer | None

    @property
    def fewer(self) -> float:
        """How many times fewer MACs the second has; 1 where one of both has none."""
        return self.first.macs / self.second.macs if self.second is not None and self.second.macs else 1.0

    @property
    def faster(self) -> float:
        """How many times faster the second is; 1 where that was not measured."""
        if self.second is None or self.second.time is None or self.first.time is None:
            return 1.0
        return self.first.time.median / max(self.second.time.median, 1e-9)

    def reason(self, floor_ms: float) -> str:
        """Return one of REASONS where the layer is not half as much faster as it has fewer MACs, else "".

        Args:
            floor_ms: what an operation takes in the second network that has next to nothing to do.
        """
        second = self.second
        if second is None or second.time is None or not falls_short(self.fewer, self.faster):
            return ""
        if second.time.median < 3 * floor_ms:
            return "launch-bound"
        if second.macs < second.memory_bytes:
            return "memory-bound"
        return "odd width" if second.width is not None and second.width % _LANES else "other"


def falls_short(fewer: float, faster: float) -> bool:
    """Return whether time fell by less than half the factor by which MACs did."""
    return fewer >= _WORTH and faster < max(fewer / 2, 1.0)


def pairs(first: dict[str, Layer], second: dict[str, Layer]) -> list[Pair]:
    """Return the layers of the first network that compute or take time, each beside what it is in the second."""
    return [
        Pair(path=path, first=layer, second=second.get(path))
        for path, layer in first.items()
        if layer.macs or (layer.time is not None and layer.time.median > 0.0)
    ]


def layers_of(model: nn.Module, images: Tensor, times: dict[str, list[float]]) -> tuple[dict[str, Layer], int]:
    """Return the layers by path, modules without members, with the times measured of them; and the network's MACs."""
    seen: dict[str, tuple[int, int | None]] = {}

    def note(path: str, module: nn.Module, inputs: tuple[object, ...], output: object) -> None:
        tensors = [t for t in (*inputs, output, *module.parameters()) if isinstance(t, Tensor)]
        width = output.shape[1] if isinstance(output, Tensor) and output.dim() > 1 else None
        seen[path] = seen.get(path, (0, None))[0] + sum(t.numel() * t.element_size() for t in tensors), width

    handles = [
        module.register_forward_hook(lambda m, i, o, path=path: note(path, m, i, o)) for path, module in _leaves(model)
    ]
    try:
        with torch.no_grad(), counting() as counter:
            model(images)
    finally:
        for handle in handles:
            handle.remove()
    macs = {name.partition(".")[2]: sum(found.values()) // 2 for name, found in counter.get_flop_counts().items()}
    layers = {
        path: Layer(
            macs=macs.get(path, 0),
            memory_bytes=size,
            width=width,
            time=Timing.of(times[path]) if len(times.get(path, ())) > 1 else None,
        )
        for path, (size, width) in seen.items()
    }
    return layers, counter.get_total_flops() // 2


def layer_times(
    models: Sequence[nn.Module], images: Tensor, *, repeats: int, threads: int = 1
) -> list[dict[str, list[float]]]:
    """Return the milliseconds that each layer of each network took in each run; the networks run in turns."""
    found: list[dict[str, list[float]]] = [{} for _ in models]
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with torch.inference_mode():
            for number in range(_WARMUP + repeats):
                for model, times in zip(models, found, strict=True):
                    with _timed(model, times if number >= _WARMUP else {}):
                        model(images)
    finally:
        torch.set_num_threads(before)
    return found


@contextmanager
def _timed(model: nn.Module, times: dict[str, list[float]]) -> Iterator[None]:
    started: dict[str, float] = {}
    run: dict[str, float] = {}

    def start(path: str) -> None:
        started[path] = time.perf_counter()

    def stop(path: str) -> None:
        run[path] = run.get(path, 0.0) + (time.perf_counter() - started[path]) * 1e3

    handles = []
    for path, module in _leaves(model):
        handles.append(module.register_forward_pre_hook(lambda m, i, path=path: start(path)))
        handles.append(module.register_forward_hook(lambda m, i, o, path=path: stop(path)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
    for path, milliseconds in run.items():
        times.setdefault(path, []).append(milliseconds)


def _leaves(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield the layers: modules without members that are not there in the place of a removed one."""
    for path, module in model.named_modules():
        if not isinstance(module, nn.Identity) and (not any(True for _ in module.children())):
            yield path, module
