"""Where and how networks are computed: device, precision, memory format, threads."""

from __future__ import annotations

import copyreg
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from understudy.config.training import Device
from understudy.core.errors import ConfigError, MachineError, ModelError
from understudy.core.memory import enough_memory
from understudy.core.nested import called, leaves, mapped
from understudy.data.split import sent
from understudy.graph.copies import copied
from understudy.graph.seeds import seeded

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
_FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
_TRIAL = 8  # images of the step that shows whether a network runs in a precision
_NARROW = 8  # channels, below which the backward pass of a strided 1x1 convolution may write past its memory
_SMALLER = "use a machine with more memory, or smaller inputs"
_CUBLAS = ":4096:8"  # workspace with which cuBLAS is deterministic
_MULTIPLYING: list[Any] = [  # where float32 may be computed in less; none before torch 2.9
    place
    for backend in (torch.backends.cuda, torch.backends.cudnn, torch.backends.mkldnn)
    for name in ("matmul", "conv", "rnn")
    if hasattr(place := getattr(backend, name, None), "fp32_precision")
]
_Flag = TypeVar("_Flag")


def _format_of(name: str) -> torch.memory_format:
    return getattr(torch, name)  # type: ignore[no-any-return]


# Their own way of being pickled names any module that has an attribute `torch`, and that may be the user's script,
# which a worker does not import where it is not needed.
copyreg.pickle(torch.memory_format, lambda chosen: (_format_of, (str(chosen).removeprefix("torch."),)))


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
    def scope(self) -> Iterator[Callable[[int], None]]:
        """Inside, use these threads, full float32 (no TF32) and deterministic algorithms; restore all afterwards.

        What a network draws is the same each time, in evaluation mode as well, whoever has drawn before in this
        process. The function that it gives seeds that anew.
        On CUDA an operation without a deterministic algorithm warns.
        """
        threads = torch.get_num_threads()
        torch.set_num_threads(self.threads or cores())
        try:
            with _full_float32(), _deterministic(self.device), seeded(device=self.device) as reseed:
                yield reseed
        finally:
            torch.set_num_threads(threads)

    def autocast(self) -> torch.autocast:
        """Return the context of one forward pass. Leave it before weights change: it keeps their casts."""
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.dtype == torch.bfloat16)

    def suited(self, model: nn.Module) -> Compute:
        """Return how to compute this model: as this says, but never in a layout that corrupts memory.

        On a CPU the float32 backward pass of a 1x1 convolution with a stride and fewer than 8 input channels writes
        past its workspace in channels_last (oneDNN issue 6035: wrong gradients, hangs and crashes in its kernel for
        AVX2; the kernels for bf16 are others). Such a model is contiguous.
        """
        exposed = (
            self.device.type == "cpu" and self.dtype == torch.float32 and self.memory_format == torch.channels_last
        )
        if not exposed or not _is_hazard(model):
            return self
        return replace(self, memory_format=torch.contiguous_format)

    def place(self, model: nn.Module) -> nn.Module:
        """Move the model to this device and memory format, in place, and return it."""
        # torch's annotations lack this form of `to`.
        model.to(device=self.device, memory_format=self.memory_format)  # type: ignore[call-overload]
        return model

    def images(self, images: Any) -> Any:
        """Return images (b, c, h, w) on this device in this memory format, dtype kept; other inputs on the device."""
        return mapped(images, self._placed)

    def _placed(self, tensor: Tensor) -> Tensor:
        there = sent(tensor, self.device)
        return there.contiguous(memory_format=self.memory_format if there.ndim == 4 else torch.contiguous_format)


def choose_compute(model: nn.Module, images: Any, device: Device) -> Compute:
    """Return how to compute: what the settings pin, and for "auto" what suits this kind of processor.

    Nothing is timed, so every run on machines of one kind chooses the same, however busy they are. "auto" means

    - for the device: cuda if there is one, else mps, else cpu;
    - for the precision: bf16 where the processor has instructions for it (AVX512-BF16, AMX; CUDA from compute
      capability 8.0 on) and a step of the model on a few of the images works in it, else fp32;
    - for the memory format: channels_last on a CPU and for bf16 on CUDA where that step works in it, else contiguous;
      see `Compute.suited`.

    Raises:
        ConfigError: torch does not know the device, or the model runs in no precision.
        MachineError: memory ran out.
    """
    where = device_named(device.device)
    precisions = [device.precision]
    if device.precision == "auto":
        precisions = ["bf16", "fp32"] if _multiplies_bf16(where) else ["fp32"]
    choices: list[Compute] = []
    for precision in precisions:
        for layout in _layouts(where, precision) if device.memory_format == "auto" else (device.memory_format,):
            chosen: Any = {"dtype": _DTYPES[precision], "memory_format": _FORMATS[layout], "threads": device.threads}
            choices.append(Compute(device=where, **chosen).suited(model))
    if len(choices) == 1:
        return choices[0]
    errors = []
    for compute in dict.fromkeys(choices):
        try:
            with enough_memory(f"in a training step on {_TRIAL} examples", _SMALLER):
                _step(model, mapped(images, lambda tensor: tensor[:_TRIAL]), compute)
            return compute
        except RuntimeError as e:  # no kernel for bf16, or x.view(len(x), -1), which takes one layout
            errors.append(f"{compute.name}: {e}")
    raise ConfigError("the model must run in one of the precisions, but none worked:\n" + "\n".join(errors))


def _layouts(where: torch.device, precision: str) -> tuple[str, ...]:
    """Return memory formats, the faster one first."""
    faster = where.type == "cpu" or (where.type, precision) == ("cuda", "bf16")
    return ("channels_last", "contiguous") if faster else ("contiguous",)


def refuse_untrainable(model: nn.Module, inputs: Any, device: Device) -> None:
    """Try a step on a few examples in float32, before a run folder is made for students that could never learn.

    Raises:
        ModelError: it fails in training mode, or no gradient comes out of it.
        MachineError: memory ran out.
    """
    compute = Compute(device=device_named(device.device), threads=device.threads)
    try:
        with enough_memory("in a training step on a few examples", _SMALLER):
            _step(model, inputs, compute)
    except MachineError:
        raise
    except Exception as e:  # whatever the forward pass raises
        hint = ". Write y = torch.mul(a, b) in place of torch.mul(a, b, out=y)" if "out=" in str(e) else ""
        said = str(e).rstrip(".")
        raise ModelError(
            f"a network must learn by gradients in training mode, but a step of it failed: {said}{hint}"
        ) from e


def told(compute: Compute, device: Device) -> str:
    """Return in one line how is computed and, where the settings left it open, why."""
    precision, layout = compute.name.split("-")[-2:]
    threads = f", {compute.threads or cores()} threads" if compute.threads != 1 else ""
    line = f"computing on {compute.device} in {precision}, {layout}{threads}"
    if device.precision != "auto":
        return line
    if precision == "bf16":
        return f"{line} (this processor has bf16 instructions)"
    reason = (
        "the network does not run in bf16"
        if _multiplies_bf16(compute.device)
        else "this processor has no bf16 instructions"
    )
    return f"{line} ({reason})"


def _step(model: nn.Module, images: Any, compute: Compute) -> None:
    """Run a forward and a backward pass of a copy of the model, to see whether it works."""
    with compute.scope():
        trial = compute.place(copied(model)).train()
        with compute.autocast():
            given = called(trial, compute.images(images))
        found = [leaf for _, leaf in leaves(given) if isinstance(leaf, Tensor) and leaf.requires_grad]
        if not found:
            raise RuntimeError(
                "none of its outputs has a gradient; is the forward pass in torch.no_grad(), or detached?"
            )
        found[0].float().square().mean().backward()


def _multiplies_bf16(device: torch.device) -> bool:
    """Return whether the processor has instructions for products of bf16; where they are emulated, fp32 is faster."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    # Arm processors with bf16 are left in fp32: nobody has measured them here.
    cpu = torch.cpu
    return (
        device.type == "cpu"
        and torch.backends.mkldnn.is_available()
        and (cpu._is_avx512_bf16_supported() or cpu._is_amx_tile_supported())
    )


def _is_hazard(model: nn.Module) -> bool:
    """Return whether the model has a layer whose backward pass corrupts memory in channels_last; see `suited`.

    Weights of the shape that no convolution module owns count as well: their stride is not known.
    """
    for module in model.modules():
        strided = not isinstance(module, nn.Conv2d) or max(module.stride) > 1
        for weight in module.parameters(recurse=False):
            if strided and weight.ndim == 4 and weight.shape[1] < _NARROW and tuple(weight.shape[2:]) == (1, 1):
                return True
    return False


@contextmanager
def _full_float32() -> Iterator[None]:
    """Compute float32 in float32 inside, so that "fp32" names a result: neither TF32 nor bf16 in disguise."""
    cudnn, legacy = torch.backends.cudnn, _unless_mixed(torch.get_float32_matmul_precision)
    tf32, precisions = _unless_mixed(lambda: cudnn.allow_tf32), [place.fp32_precision for place in _MULTIPLYING]
    torch.set_float32_matmul_precision("highest")
    cudnn.allow_tf32 = False
    for place in _MULTIPLYING:
        place.fp32_precision = "ieee"
    try:
        yield
    finally:
        if legacy is not None:
            torch.set_float32_matmul_precision(legacy)
        if tf32 is not None:
            cudnn.allow_tf32 = tf32
        for place, precision in zip(_MULTIPLYING, precisions, strict=True):
            place.fp32_precision = "none"  # what it inherits
            if place.fp32_precision != precision:
                place.fp32_precision = precision


def _unless_mixed(ask: Callable[[], _Flag]) -> _Flag | None:
    """Return one of torch's older flags; None where the caller set newer ones, after which it cannot be read."""
    try:
        return ask()
    except RuntimeError:
        return None


@contextmanager
def _deterministic(device: torch.device) -> Iterator[None]:
    """Use deterministic algorithms inside; elsewhere than on CUDA all that is used here is so anyway."""
    if device.type != "cuda":
        yield
        return
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", _CUBLAS)
    cudnn = torch.backends.cudnn
    filled: Any = torch.utils.deterministic  # its attribute is a debugging aid that costs time
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    flags = cudnn.deterministic, cudnn.benchmark, filled.fill_uninitialized_memory
    # What has no deterministic algorithm warns: a network is not refused for it.
    torch.use_deterministic_algorithms(True, warn_only=True)
    cudnn.deterministic, cudnn.benchmark, filled.fill_uninitialized_memory = True, False, False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        cudnn.deterministic, cudnn.benchmark, filled.fill_uninitialized_memory = flags


def device_named(name: str) -> torch.device:
    """Return the device of that name; "auto" is cuda if there is one, else mps, else cpu.

    Raises:
        ConfigError: torch does not know it, or does not find it here.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as e:
        raise ConfigError(f"device must be auto, cpu, cuda, cuda:1 or mps, but got {name!r}") from e
    count = torch.cuda.device_count() if device.type == "cuda" else int(torch.backends.mps.is_available())
    if device.type in ("cuda", "mps") and (device.index or 0) >= count:
        raise ConfigError(
            f"device must be one that torch finds on this machine, but there is no {name!r}: see auto, cpu"
        )
    return device


def cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _name_of(value: object, names: dict[str, Any]) -> str:
    return next(name for name, known in names.items() if known is value)


def pinned(device: Device, chosen: Mapping[str, str] | None) -> Device:
    """Return the device with what was chosen for it before, which holds wherever a run goes on."""
    return device if chosen is None else replace(device, **chosen)  # type: ignore[arg-type]


def choice(compute: Compute) -> dict[str, str]:
    """Return what to write down of a chosen compute; `pinned` takes it."""
    precision, memory_format = compute.name.split("-")[-2:]
    return {"device": str(compute.device), "precision": precision, "memory_format": memory_format}
