"""How much faster a student is than its teacher, layer by layer, in the runtime that will be used."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from understudy.core.errors import ModelError
from understudy.core.extras import optional
from understudy.core.figures import digits
from understudy.core.timing import Comparison
from understudy.cost.layers import REASONS, Pair, falls_short, layer_times, layers_of, pairs
from understudy.cost.measure import compare
from understudy.export.onnx import OnnxModel, to_onnx
from understudy.models.card import StudentCard
from understudy.models.code import allowed
from understudy.models.spec import ModelSpec
from understudy.models.student import load_student

Runtime = Literal["torch", "compile", "onnxruntime"]
_RUNS, _WARMUP = 30, 3  # of each network, for its layers


@dataclass(frozen=True, kw_only=True)
class Speed:
    """A student beside its teacher, for one size of batch."""

    runtime: Runtime
    batch: int
    total: Comparison  # teacher, student
    macs: tuple[int, int]  # of one image, likewise
    layers: tuple[Pair, ...]  # empty where the runtime has no layers any more

    @property
    def floor_ms(self) -> float:
        """What an operation of the student takes that has next to nothing to do."""
        return floor_ms(self.layers)

    @property
    def sentence(self) -> str:
        """What fewer MACs bring here, and why not more."""
        fewer, faster = self.macs[0] / max(self.macs[1], 1), self.total.ratio.median
        said = f"{digits(fewer)}x fewer MACs: {self.total}"
        if not falls_short(fewer, faster):
            return said
        lost = dict.fromkeys(REASONS, 0.0)
        for pair in self.layers:
            reason = pair.reason(self.floor_ms)
            if reason and pair.second is not None and pair.second.time is not None:
                lost[reason] += pair.second.time.median
        largest = max(lost, key=lambda name: lost[name])
        if not lost[largest]:
            return f"{said}, less than MACs promise"
        return f"{said}, less than MACs promise, mostly because {REASONS[largest]} ({largest})"


def speed(
    student: str | Path,
    *,
    runtime: Runtime = "torch",
    batches: Sequence[int] = (1,),
    trust_code: bool = False,
    model: str | None = None,
) -> list[Speed]:
    """Time the student of a folder beside its teacher, in turns, on the CPU with one thread.

    Args:
        student: folder of the student.
        runtime: what runs both; "compile" is torch.compile, which has no layers to time.
        batches: sizes of the batch.
        trust_code: as of `load_student`.
        model: likewise.

    Raises:
        ModelError: as `load_student`, or the teacher was made in Python.
        ExtraError: onnx, onnxscript or onnxruntime is missing.
        ExportError: the ONNX exporter refuses one of both.
    """
    folder = Path(student)
    card = StudentCard.read(folder)
    if runtime == "onnxruntime":
        for package in ("onnx", "onnxscript", "onnxruntime"):
            optional(package, extra="export")
    if not isinstance(card.input, tuple):
        raise ModelError(f"latency is compared on one tensor, but {folder} takes several, or whole numbers")
    if card.model is None and model is None:
        raise ModelError(
            f"the teacher of {folder} was made in Python, so only Python can compare them: give --model FILE.py:FACTORY"
        )
    name = allowed(folder, card.model or "", trust_code=trust_code, model=model)
    teacher = ModelSpec(name=name, arguments=card.arguments).build().eval()
    both = teacher, load_student(folder, trust_code=trust_code, model=model).eval()
    return [_speed(both, torch.randn(batch, *card.input), runtime) for batch in batches]


def layers_beside(
    both: tuple[nn.Module, nn.Module], images: Tensor, runtime: Runtime, *, repeats: int = _RUNS
) -> tuple[Pair, ...]:
    """Time each layer of two networks in turns, on the CPU with one thread.

    Args:
        both: in evaluation mode, on the CPU.
        images: their input.
        runtime: torch or onnxruntime.
        repeats: runs of each network.
    """
    if runtime == "onnxruntime":
        with tempfile.TemporaryDirectory() as made, torch.no_grad():
            times = _profiled(_written(both, images, Path(made)), images, Path(made), repeats)
    else:
        times = layer_times(both, images, repeats=repeats)
    first, second = (layers_of(network, images, measured) for network, measured in zip(both, times, strict=True))
    return tuple(pairs(first[0], second[0]))


def floor_ms(layers: Sequence[Pair]) -> float:
    """Return what an operation of the second network takes that has next to nothing to do: its quickest layer."""
    times = [p.second.time.median for p in layers if p.second is not None and p.second.time is not None]
    return min(times, default=0.0)


def _speed(both: tuple[nn.Module, nn.Module], images: Tensor, runtime: Runtime) -> Speed:
    if runtime == "onnxruntime":
        total, times = _in_onnxruntime(both, images)
    elif runtime == "compile":
        compiled = [torch.compile(network) for network in both]
        with torch.inference_mode():
            for network in compiled:
                network(images)
        total, times = compare(_Called(compiled[0]), _Called(compiled[1]), images), None
    else:
        total, times = compare(*both, images), layer_times(both, images, repeats=_RUNS)
    known = times or [{}, {}]
    first, second = (layers_of(network, images, measured) for network, measured in zip(both, known, strict=True))
    batch = len(images)
    found = tuple(pairs(first[0], second[0])) if times is not None else ()
    return Speed(runtime=runtime, batch=batch, total=total, macs=(first[1] // batch, second[1] // batch), layers=found)


class _Called(nn.Module):
    """A compiled network that is not copied, which would compile it anew."""

    def __init__(self, network: Callable[[Tensor], object]) -> None:
        super().__init__()
        self._network = [network]

    def forward(self, images: Tensor) -> object:
        """Return what the network gives."""
        return self._network[0](images)

    def __deepcopy__(self, memo: object) -> _Called:
        return self


def _in_onnxruntime(
    both: tuple[nn.Module, nn.Module], images: Tensor
) -> tuple[Comparison, list[dict[str, list[float]]]]:
    with tempfile.TemporaryDirectory() as made, torch.no_grad():
        paths = _written(both, images, Path(made))
        total = compare(OnnxModel(paths[0]), OnnxModel(paths[1]), images)
        return total, _profiled(paths, images, Path(made), _RUNS)


def _written(both: tuple[nn.Module, nn.Module], images: Tensor, folder: Path) -> list[Path]:
    paths = [folder / "teacher.onnx", folder / "student.onnx"]
    for network, path in zip(both, paths, strict=True):
        to_onnx(network, images, path)
    return paths


def _profiled(paths: Sequence[Path], images: Tensor, folder: Path, runs: int) -> list[dict[str, list[float]]]:
    profiled = [OnnxModel(path, profile=folder) for path in paths]
    for _ in range(_WARMUP + runs):
        for network in profiled:
            network(images)
    return [{path: times[_WARMUP:] for path, times in network.layer_times().items()} for network in profiled]
