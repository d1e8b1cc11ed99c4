"""A copy of a teacher in which nothing is hidden: double precision, drawn parameters, no dropout, small inputs."""

from __future__ import annotations

import contextlib
import inspect
import itertools
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd
from torch.overrides import TorchFunctionMode

from understudy.graph.analysis import Analysis
from understudy.graph.copies import copied
from understudy.graph.fake import Signature, flat, map_structure
from understudy.graph.seeds import seeded

Inputs = Mapping[str, Any]
_SMALL = (12, 20, 40, 64, 128)  # pixels of a smaller image
_LEFT = 1.25  # times the network's total stride: 40 leave 2 x 2 of one that divides by 32
_WITHOUT_MACS = frozenset(
    (
        *(F.batch_norm, F.layer_norm, F.group_norm, F.relu, torch.relu, F.relu6, F.gelu, F.silu, F.hardswish),
        *(F.hardsigmoid, F.sigmoid, torch.sigmoid, F.tanh, torch.tanh),
    )
)
_RANDOM = (F.dropout, F.dropout1d, F.dropout2d, F.dropout3d, F.alpha_dropout, F.feature_alpha_dropout, torch.dropout)


def shaken(analysis: Analysis, seed: int, *, dtype: torch.dtype, drawn: bool) -> Analysis:
    """Return the analysis of a copy of its teacher whose parameters hide nothing.

    A network may multiply what goes wrong by almost zero: a layer scale of 1e-6, a last norm of scale 0, units that
    never fire. So parameters are drawn anew, in a usual scale. Dropout is off. The Space and the passes over the graph
    are shared.

    Args:
        analysis: of the teacher, which is not touched.
        seed: of what is drawn.
        dtype: of parameters and buffers.
        drawn: draw the parameters; otherwise keep the teacher's but for a factor near 1.
    """
    teacher = copied(analysis.teacher).cpu()
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in teacher.named_parameters():
        if parameter.is_floating_point():
            # Set in place, so that modules that share it go on to.
            parameter.data = _drawn(name, parameter, generator, drawn=drawn)
    for name, plan in analysis.groups.plan.parameters.items():
        channels = any(isinstance(dim, np.ndarray) for dim in plan.dims)
        buffer = dict(teacher.named_buffers()).get(name) if channels else None
        if buffer is not None and buffer.is_floating_point() and bool(buffer.isfinite().all()):
            buffer.data = _another(buffer, generator)
    teacher.double() if dtype == torch.float64 else teacher.float()  # `to` would make complex numbers real
    for module in teacher.modules():
        _calm(module)
    return _of_copy(analysis, teacher)


def _of_copy(analysis: Analysis, teacher: nn.Module) -> Analysis:
    """Return an analysis of a copy of the teacher; what was found out about the structure is shared."""
    shared: dict[int, Any] = {}
    for tensors in (nn.Module.named_parameters, nn.Module.named_buffers):
        pairs = zip(
            tensors(analysis.teacher, remove_duplicate=False), tensors(teacher, remove_duplicate=False), strict=True
        )
        shared |= {id(old): new for (_, old), (_, new) in pairs}
    root = copied(analysis.trace.root, shared)
    for module in root.modules():
        _calm(module)
    # The forward pass may ask for its parameters' type, which stands in the graph; float32 may as well be meant.
    held = {p.dtype for p in analysis.teacher.parameters() if p.dtype in (torch.bfloat16, torch.float16)}
    trace = replace(analysis.trace, teacher=teacher, root=root, cast=dict.fromkeys(held, _dtype(teacher)))
    trace.__dict__["names"] = analysis.trace.names  # a cast parts the buffers that modules share
    ours = replace(analysis, trace=trace, groups=replace(analysis.groups, trace=trace))
    # The passes run on shapes alone, with the types that were recorded, and know the nodes of the same graph.
    ours.__dict__.update(space=analysis.space, _refits=analysis.__dict__.setdefault("_refits", {}))
    return ours


def _drawn(name: str, parameter: Tensor, generator: torch.Generator, *, drawn: bool) -> Tensor:
    plain: Tensor = parameter.detach().clone()
    if not drawn:
        return plain * _near_one(plain, generator) + (plain.abs() < 1e-3) * 0.1 * _near_one(plain, generator)
    wide = [size for size in plain.shape if size > 1]
    if len(wide) > 1:
        spread = (2.0 / max(plain.numel() // plain.shape[0], 1)) ** 0.5
        return torch.randn(plain.shape, generator=generator).to(plain).mul_(spread)
    if name.endswith("bias"):
        return torch.randn(plain.shape, generator=generator).to(plain).mul_(0.3)
    return _near_one(plain, generator)


def _another(buffer: Tensor, generator: torch.Generator) -> Tensor:
    """Return another buffer: a mask stays one, as the forward pass may multiply a weight by it again and again."""
    if bool(((buffer == 0) | (buffer == 1)).all()) and 0 < buffer.count_nonzero() < buffer.numel():
        return (torch.rand(buffer.shape, generator=generator) < 0.7).to(buffer)
    return buffer * _near_one(buffer, generator) + (buffer == 0) * 0.1 * _near_one(buffer, generator)


def _near_one(like: Tensor, generator: torch.Generator) -> Tensor:
    drawn: Tensor = torch.rand(like.shape, generator=generator) + 0.5
    return drawn.to(like)


def _calm(module: nn.Module) -> None:
    """Switch off what training mode draws."""
    if isinstance(module, _DropoutNd):
        module.p = 0.0
    if isinstance(module, nn.MultiheadAttention | nn.RNNBase):
        module.dropout = 0.0


def settle(teacher: nn.Module, inputs: Inputs) -> None:
    """Give batch norms the statistics of what arrives at them for these inputs, in training mode."""
    norms = [m for m in teacher.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    if not norms:
        return
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 1.0
    try:
        call(teacher, inputs, training=True)
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum


class _NoDropout(TorchFunctionMode):
    """Functions that drop at random pass everything."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func in _RANDOM:
            bound = inspect.signature(F.dropout).bind_partial(*args, **kwargs).arguments
            return bound["input"].clone()
        if func is F.scaled_dot_product_attention and "dropout_p" in kwargs:
            kwargs["dropout_p"] = 0.0
        if func is F.multi_head_attention_forward:
            bound = inspect.signature(func).bind(*args, **kwargs).arguments
            args, kwargs = (), {**bound, "dropout_p": 0.0}
        return func(*args, **kwargs)


class OnlyMacs(TorchFunctionMode):
    """Norms and activations pass everything: without values they take most of the time, and they have no MACs."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return args[0] if func in _WITHOUT_MACS and args else func(*args, **(kwargs or {}))


def _calls(training: bool) -> contextlib.AbstractContextManager[object]:
    return _NoDropout() if training else contextlib.nullcontext()  # listening to every function takes its time


@contextlib.contextmanager
def laboratory(dtype: torch.dtype, *, training: bool) -> Iterator[None]:
    """Run what is inside without dropout, in this precision, from one seed; leave no trace of it.

    Networks are recorded from another one, so that a number which Python drew then, and which is a constant of the
    graph since, is not what the module draws here.
    """
    before, fused = torch.get_default_dtype(), torch.backends.mha.get_fastpath_enabled()
    with seeded(1), warnings.catch_warnings(), _calls(training):
        warnings.simplefilter("ignore")
        torch.set_default_dtype(dtype)
        torch.backends.mha.set_fastpath_enabled(False)  # its operations cannot be counted
        try:
            yield
        finally:
            torch.set_default_dtype(before)
            torch.backends.mha.set_fastpath_enabled(fused)


def call(module: nn.Module, inputs: Inputs, *, training: bool, instead: Mapping[str, Tensor] | None = None) -> Any:
    """Return a module's output in a mode; its gradients can be asked for where that is training.

    Tensors by name can stand `instead` of its own parameters and buffers.
    """
    module.train(training)
    kept = _kept(module) if training else contextlib.nullcontext()
    with laboratory(_dtype(module), training=training), torch.set_grad_enabled(training), kept:
        own = map_structure(dict(inputs), _own)
        return module(**own) if instead is None else functional_call(module, dict(instead), (), own)


@contextlib.contextmanager
def _kept(module: nn.Module) -> Iterator[None]:
    """Put tensors back that training mode replaces, such as a running mean: the recorded pass shares the former."""
    every: Any = ((m._parameters, m._buffers) for m in module.modules())
    before = [(held, dict(held)) for pair in every for held in pair]
    try:
        yield
    finally:
        for held, tensors in before:
            held.update(tensors)


def _own(value: Any) -> Any:
    return value.clone() if isinstance(value, Tensor) else value  # the module may write into it


def _dtype(module: nn.Module) -> torch.dtype:
    found = (t.dtype for t in itertools.chain(module.parameters(), module.buffers()) if t.is_floating_point())
    return next(found, torch.float32)


def inputs_like(given: Inputs, batch: int, now: int, dtype: torch.dtype, *, side: float = 1.0) -> Inputs:
    """Return random inputs of another batch size, with images `side` times as high and wide.

    Args:
        given: the example by name; integers in it keep their values.
        batch: its number of examples.
        now: how many there shall be.
        dtype: of what is no integer.
        side: for 4-dimensional tensors, 0..1.
    """
    generator = torch.Generator().manual_seed(now)

    def like(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        value, shape = value.detach().cpu(), list(value.shape)
        if shape and shape[0] == batch and now != batch:
            shape[0] = now
            value = value.repeat(-(-now // batch), *(1 for _ in shape[1:]))[:now]
        if not value.is_floating_point():
            return value
        if len(shape) == 4:
            shape[2:] = [max(round(size * side), 1) for size in shape[2:]]
        return torch.randn(shape, generator=generator).to(dtype)

    return map_structure(dict(given), like)  # type: ignore[no-any-return]


def sides(given: Inputs, graph: fx.Graph) -> list[float]:
    """Return how much smaller images may be made for a quick check, the smallest first, 1 last.

    Args:
        given: the example by name.
        graph: its forward pass: the smallest map in it that is no single pixel says what the network divides by.
    """
    images = [v for v in given.values() if isinstance(v, Tensor) and v.dim() == 4 and v.is_floating_point()]
    least = min((min(v.shape[2:]) for v in images), default=0)
    shapes = (v.shape for node in graph.nodes for v in flat(node.meta["value"]) if isinstance(v, Signature))
    smallest = min((min(shape[2:]) for shape in shapes if len(shape) == 4 and min(shape[2:]) > 1), default=1)
    return [*(pixels / least for pixels in _SMALL if _LEFT * least / smallest <= pixels < least), 1.0]
