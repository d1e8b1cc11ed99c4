"""Inherited weights that make up for what was cut: each layer is solved anew to give what it gave in the teacher."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from understudy.core.architecture import Architecture
from understudy.core.nested import called, chunks, first
from understudy.graph.analysis import Analysis
from understudy.graph.copies import copied
from understudy.graph.refit import same_dims
from understudy.surgery.build import kept_slots

_LAYERS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
PLACES = 16
"""Places of one example that a layer is solved on, at most."""
_RIDGE = 0.03  # penalty on the change of a weight, in units of the mean square of what arrives
_BLOCK = 128  # columns that x^T x is multiplied by at a time
_CHUNK = 128  # examples of one pass of the teacher


@dataclass(frozen=True, eq=False)
class _Heard:
    """What one layer gives for the inputs: its shape without examples and channels, and values at some places."""

    shape: tuple[int, ...]
    places: Tensor  # (n, p): flat indices into `shape`
    values: Tensor  # (n * p, c)


@dataclass(frozen=True, eq=False)
class Recording:
    """What a teacher's convolutions and linear layers give for some inputs; made once, for all students.

    `inputs` (n, ...) are normalised. `centred` names the layers whose mean does not matter, because batch norm reads
    them.
    """

    inputs: Any
    layers: dict[str, _Heard]
    centred: frozenset[str]


_MULTIPLYING = (F.linear, F.conv1d, F.conv2d, F.conv3d)


def record(analysis: Analysis, inputs: Any, places: int = PLACES) -> Recording:
    """Run the teacher on inputs (n, ...), normalised, and return what its layers give at so many places of each.

    Layers that are called more than once, or share their weights, are left out.
    """
    teacher = copied(analysis.teacher).eval().to(first(inputs).device)
    owners: dict[int, int] = {}
    for module in teacher.modules():
        for parameter in module.parameters(recurse=False):
            owners[id(parameter)] = owners.get(id(parameter), 0) + 1
    parts: dict[str, list[_Heard]] = {}
    centred, last = set[str](), list[tuple[Tensor, int, str]]()
    direct = analysis.trace.graph.find_nodes(
        op="get_attr"
    )  # weights that a forward pass masks, say, before it uses them
    computed = {str(n.target) for n in direct if not all(user.target in _MULTIPLYING for user in n.users)}
    numbers = torch.Generator().manual_seed(0)

    def heard(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, arguments: Any, output: Tensor) -> None:
            # Held, as a later tensor may have the address of one that is gone; overwritten it is another one.
            last[:] = [(output, output._version, name)]
            if _is_batch(module, output):
                parts.setdefault(name, []).append(_sampled(module, output, places, numbers))

        return hook

    def normed(module: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        for given, version, name in last:
            if arguments and arguments[0] is given and given._version == version:
                centred.add(name)

    for name, module in teacher.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.register_forward_pre_hook(normed)
        elif _is_solvable(module) and owners[id(module.weight)] == 1 and f"{name}.weight" not in computed:
            module.register_forward_hook(heard(name))
    pieces = list(chunks(inputs, _CHUNK))
    with torch.no_grad():
        for piece in pieces:
            called(teacher, piece)
    once = {name: found for name, found in parts.items() if len(found) == len(pieces)}
    layers = {
        name: _Heard(found[0].shape, torch.cat([f.places for f in found]), torch.cat([f.values for f in found]))
        for name, found in once.items()
    }
    return Recording(inputs, layers, frozenset(centred))


def compensate(student: nn.Module, analysis: Analysis, architecture: Architecture, recording: Recording) -> None:
    """Solve the layers of a student anew, in place and in the order of execution.

    Each layer is the ridge regression of what it gave in the teacher on what now arrives, held to the inherited
    weights; the batch norms behind it take the statistics of what it then gives. So a layer makes up for channels,
    units and kernels that went, and for what the layers before it could not make up for (He, Zhang, Sun, ICCV 2017,
    section 3.1: "reconstruction", with its inputs from the compressed network).

    Args:
        student: that `build` made of the architecture, with inherited weights, on the recording's device.
        analysis: of the teacher.
        architecture: of the student.
        recording: of the teacher.
    """
    kept, before = kept_slots(analysis, architecture), analysis.groups.parameters
    plans = analysis.refit(architecture).plan.parameters
    hooks = []

    def solve(name: str, fresh: bool, outputs: Tensor) -> Callable[..., None]:
        def hook(module: Any, arguments: tuple[Tensor, ...]) -> None:
            heard = recording.layers[name]
            # What does not hang on the examples, such as a table of positions, arrives once for all of them.
            fits = bool(arguments) and _is_batch(module, arguments[0]) and len(arguments[0]) == len(heard.places)
            if fits and _shape_of(module, arguments[0]) == heard.shape:
                _solve(module, arguments[0], heard, outputs, fresh=fresh, centred=name in recording.centred)

        return hook

    for name, module in student.named_modules():
        weight = f"{name}.weight"
        if name in recording.layers and _is_solvable(module) and weight in plans:
            plan = plans[weight]
            index = kept[plan.dims[0]] if isinstance(plan.dims[0], np.ndarray) else np.ones(plan.dims[0], dtype=bool)
            fresh = not same_dims(before[weight].dims, plan.dims)
            outputs = torch.from_numpy(np.flatnonzero(index)).to(first(recording.inputs).device)
            if len(index) == recording.layers[name].values.shape[1]:
                hooks.append(module.register_forward_pre_hook(solve(name, fresh, outputs)))
    norms = [m for m in student.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.track_running_stats]
    modes = [(module, module.training) for module in student.modules()]
    momenta = [norm.momentum for norm in norms]
    student.eval()
    try:
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # torch's name for the cumulative average
            norm.train()
        with torch.no_grad():
            called(student, recording.inputs)
    finally:
        for handle in hooks:
            handle.remove()
        for module, mode in modes:
            module.training = mode
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum


def _is_solvable(module: nn.Module) -> bool:
    return (
        isinstance(module, _LAYERS)
        and getattr(module, "groups", 1) == 1
        and isinstance(module._parameters.get("weight"), nn.Parameter)
    )


def _is_batch(module: Any, tensor: Tensor) -> bool:
    """Return whether a tensor that a layer takes or gives has a dimension of examples."""
    return tensor.dim() >= 2 if isinstance(module, nn.Linear) else tensor.dim() == module.weight.dim()


def _solve(module: Any, arriving: Tensor, heard: _Heard, outputs: Tensor, *, fresh: bool, centred: bool) -> None:
    """Set the weights of a layer to the ridge regression of what it should give on what arrives.

    R rows, D numbers that each is computed from, C channels. Weights stay as they are where that is not finite.
    """
    x_RD, y_RC = _rows(module, arriving, heard.places), heard.values[:, outputs]
    has_bias = module.bias is not None
    if centred or has_bias:
        mean_D, mean_C = x_RD.mean(0), y_RC.mean(0)
        x_RD -= mean_D
        y_RC = y_RC - mean_C
    apart = module.weight.movedim(1, -1)  # (c, offsets, d), as rows are
    start_CD = torch.zeros_like(apart.flatten(1)) if fresh else apart.flatten(1)
    weight_CD = start_CD + _ridge(x_RD, y_RC, start_CD.T).T
    if not bool(weight_CD.isfinite().all()):
        return
    module.weight.copy_(weight_CD.view(apart.shape).movedim(-1, 1))
    if has_bias:
        module.bias.copy_(mean_C - weight_CD @ mean_D)


def _ridge(x_RD: Tensor, y_RC: Tensor, start_DC: Tensor) -> Tensor:
    """Return what ridge regression adds to coefficients (d, c) for what they leave of y; NaN where there is nothing.

    Solved in double precision on the CPU, which every device has, by whichever of the two forms is smaller.
    """
    rows, columns = x_RD.shape
    wide = columns > rows
    gram = _gram(x_RD.T if wide else x_RD).cpu().double()
    if wide:
        moment = (y_RC - x_RD @ start_DC).cpu().double()
    else:  # the same, times x^T
        moment = (x_RD.T @ y_RC).cpu().double() - gram @ start_DC.cpu().double()
    penalty = _RIDGE * float(gram.trace()) / columns
    gram.diagonal().add_(max(penalty, torch.finfo(torch.float32).tiny))
    factor, failed = torch.linalg.cholesky_ex(gram)
    if int(failed):
        return torch.full_like(start_DC, float("nan"))
    solved = torch.cholesky_solve(moment, factor).to(x_RD)
    return x_RD.T @ solved if wide else solved


def _gram(x_RD: Tensor) -> Tensor:
    """Return x^T x (d, d), of which only one half is multiplied: two thirds of the time."""
    half = x_RD.new_zeros(x_RD.shape[1], x_RD.shape[1])
    for start in range(0, len(half), _BLOCK):
        end = start + _BLOCK
        half[start:end, :end] = x_RD[:, start:end].T @ x_RD[:, :end]
    return half.tril() + half.tril(-1).T


def _rows(module: Any, arriving: Tensor, places: Tensor) -> Tensor:
    """Return what a layer reads for its outputs at these places (n, p) as rows (n * p, offsets * d), a new tensor."""
    if isinstance(module, nn.Linear):
        flat = arriving.reshape(len(arriving), -1, arriving.shape[-1])
        return flat.gather(1, places[:, :, None].expand(-1, -1, flat.shape[-1])).flatten(0, 1)
    padded, kernel = _padded(module, arriving), module.kernel_size
    sizes = padded.shape[2:]
    steps = [math.prod(sizes[i + 1 :]) for i in range(len(sizes))]  # places from one to the next along each dimension
    corners = torch.unravel_index(places, _shape_of(module, arriving))
    first_NP = sum(c * s * step for c, s, step in zip(corners, module.stride, steps, strict=True))
    first_NP = first_NP + torch.arange(len(arriving), device=arriving.device)[:, None] * math.prod(sizes)
    offsets = torch.cartesian_prod(*(torch.arange(k) for k in kernel)).view(-1, len(sizes))
    offset_O = (offsets * torch.tensor(module.dilation) * torch.tensor(steps)).sum(1).to(arriving.device)
    read = (first_NP[:, :, None] + offset_O).flatten()
    return padded.movedim(1, -1).flatten(0, -2).index_select(0, read).view(places.numel(), -1)


def _padded(module: Any, arriving: Tensor) -> Tensor:
    mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
    return F.pad(arriving, tuple(module._reversed_padding_repeated_twice), mode=mode)


def _shape_of(module: Any, arriving: Tensor) -> tuple[int, ...]:
    """Return the shape of what a layer gives, without examples and channels."""
    if isinstance(module, nn.Linear):
        return tuple(arriving.shape[1:-1])
    around = module._reversed_padding_repeated_twice
    sizes = [
        size + around[2 * i] + around[2 * i + 1]
        for size, i in zip(arriving.shape[2:], range(arriving.dim() - 3, -1, -1), strict=True)
    ]
    spans = [d * (k - 1) + 1 for d, k in zip(module.dilation, module.kernel_size, strict=True)]
    return tuple((size - span) // s + 1 for size, span, s in zip(sizes, spans, module.stride, strict=True))


def _sampled(module: Any, output: Tensor, most: int, numbers: torch.Generator) -> _Heard:
    """Return some places of what a layer gave, drawn for each example."""
    last = isinstance(module, nn.Linear)
    shape = tuple(output.shape[1:-1] if last else output.shape[2:])
    flat = output.reshape(len(output), -1, output.shape[-1]) if last else output.flatten(2).movedim(1, -1)
    count = min(flat.shape[1], most)
    places = torch.rand(len(output), flat.shape[1], generator=numbers).argsort(1)[:, :count].to(output.device)
    values = flat.gather(1, places[:, :, None].expand(-1, -1, flat.shape[-1])).flatten(0, 1)
    return _Heard(shape, places, values)
