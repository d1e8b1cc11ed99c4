"""Architecture -> student: the teacher's own class, smaller."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from understudy.core.architecture import Architecture
from understudy.core.errors import SurgeryError
from understudy.graph.analysis import Analysis
from understudy.graph.channels import FIXED, Labels, ParameterPlan
from understudy.graph.refit import Refit
from understudy.graph.trace import source_line
from understudy.graph.units import removed_paths, silenced_path
from understudy.graph.walk import VIEWS, describe, inside, is_in_place

Mask = npt.NDArray[np.bool_]


def build(
    analysis: Analysis,
    architecture: Architecture,
    *,
    weights: Literal["inherited", "fresh"] = "inherited",
    seed: int = 0,
) -> nn.Module:
    """Return the student of an architecture, in the teacher's mode and on its device.

    Args:
        analysis: of the teacher, which is not touched.
        architecture: what stays.
        weights: "inherited" slices the teacher's wherever the channels that arrive are the teacher's, and
            draws the rest anew; "fresh" draws all.
        seed: of fresh weights.

    Raises:
        ArchitectureError: the architecture was made for another teacher.
        SurgeryError: the architecture cannot be built; names the node and what does not fit.
    """
    refit = analysis.refit(architecture)
    kept = kept_slots(analysis, architecture)
    _check_meetings(refit, kept)
    before = analysis.groups.plan.parameters
    tensors: dict[str, Tensor] = {}
    fresh: set[str] = set()
    for name, plan in refit.plan.parameters.items():
        cut = _cut(_tensor(analysis.teacher, name), before[name], plan, kept, architecture)
        tensors[name] = cut[0]
        if cut[1]:
            fresh.add(name.rpartition(".")[0])
    student = _copied(analysis, architecture, tensors)
    for attribute in refit.plan.attributes:
        number = int(kept[attribute.labels].sum()) // attribute.per
        module = student.get_submodule(attribute.module)
        single = isinstance(getattr(module, attribute.name), tuple)
        setattr(module, attribute.name, (number,) if single else number)
    for name, kernel in architecture.kernels:
        _shrink_kernel(student.get_submodule(name), kernel)
    everything = {path for path, _ in student.named_modules()}
    _draw(student, everything if weights == "fresh" else fresh, seed)
    return student


def rebuild(analysis: Analysis, architecture: Architecture, state: Mapping[str, Tensor]) -> nn.Module:
    """Return the student of an architecture with weights that were saved from one like it.

    Raises:
        SurgeryError: the weights are of another student.
    """
    student = build(analysis, architecture)
    # Versions of modules stand beside the tensors, and files of tensors do not have them.
    tensors = OrderedDict(state)
    setattr(tensors, "_metadata", getattr(student.state_dict(), "_metadata", {}))  # noqa: B010
    try:
        student.load_state_dict(tensors)
    except RuntimeError as error:
        raise SurgeryError(f"weights must be of a student of this architecture: {error}") from error
    return student


def inherits_all(analysis: Analysis, architecture: Architecture) -> bool:
    """Return whether all weights of an architecture's student are slices of the teacher's.

    Raises:
        ArchitectureError, SurgeryError: as `build`.
    """
    before = analysis.groups.plan.parameters
    return all(
        all(_same_dim(a, b) for a, b in zip(before[name].dims, plan.dims, strict=True))
        for name, plan in analysis.refit(architecture).plan.parameters.items()
    )


def kept_slots(analysis: Analysis, architecture: Architecture) -> Mask:
    """Return which slots stay, (slots + 1,); the last entry, for what is FIXED, is true.

    Where the architecture names only a width, the slots of the largest weights stay.

    Raises:
        ArchitectureError: the architecture was made for another teacher.
    """
    architecture.check_belongs(analysis.space)
    kept = np.ones(analysis.groups.slots + 1, dtype=bool)
    chosen, widths = dict(architecture.channels), dict(architecture.widths)
    for group, slots in zip(analysis.groups.groups, analysis.groups.slots_of, strict=True):
        width = widths.get(group.name, group.width)  # an architecture of a part of the Space does not have all groups
        if group.name in chosen:
            stay = slots[list(chosen[group.name])]
        elif width < group.width:
            magnitude = slot_magnitudes(analysis)[slots]
            stay = slots[np.argsort(-magnitude, kind="stable")[: width // group.step]]
        else:
            continue
        kept[slots] = False
        kept[stay] = True
    return kept


def slot_magnitudes(analysis: Analysis) -> npt.NDArray[np.float64]:
    """Return the mean squared weight of each slot, (slots,), each parameter scaled to a mean of 1.

    All parameters that have a slot count alike: the filters that emit it, its norm's scale, the filters
    that read it (the group magnitude of Fang et al., 2023).
    """
    known = analysis.__dict__.get("_magnitudes")
    if known is not None:
        return known  # type: ignore[no-any-return]
    total = np.zeros(analysis.groups.slots)
    for name, plan in analysis.groups.plan.parameters.items():
        tensor = _tensor(analysis.teacher, name)
        if name.endswith(("running_mean", "running_var", "bias")):
            continue
        squared = tensor.detach().double().square().cpu()
        for dim, labels in enumerate(plan.dims):
            if isinstance(labels, np.ndarray):
                others = [d for d in range(squared.dim()) if d != dim]
                means = (squared.mean(others) if others else squared).numpy()
                means = means / max(means.mean(), 1e-12)
                known_slots = labels != FIXED
                np.add.at(total, labels[known_slots], means[known_slots])
    analysis.__dict__["_magnitudes"] = total
    return total


def _check_meetings(refit: Refit, kept: Mask) -> None:
    for a, b, node in refit.met:
        left, right = int(kept[a].sum()), int(kept[b].sum())
        if left != right:
            raise SurgeryError(f"at node {node.name} ({source_line(node)}): {left} and {right} channels meet")


def _tensor(root: nn.Module, name: str) -> Tensor:
    path, _, leaf = name.rpartition(".")
    return getattr(root.get_submodule(path), leaf)  # type: ignore[no-any-return]


def _cut(
    tensor: Tensor, before: ParameterPlan, plan: ParameterPlan, kept: Mask, architecture: Architecture
) -> tuple[Tensor, bool]:
    """Return a parameter's slice, and whether it must be drawn anew because other channels arrive."""
    known = all(_same_dim(a, b) for a, b in zip(before.dims, plan.dims, strict=True))
    if not known:
        sizes = [int(kept[d].sum()) if isinstance(d, np.ndarray) else d for d in plan.dims]
        if plan.kernel_of in dict(architecture.kernels):
            spatial = len(sizes) - plan.kernel_from
            sizes[plan.kernel_from :] = [architecture.kernel(str(plan.kernel_of))] * spatial
        return tensor.detach().new_zeros(sizes), True
    cut = tensor.detach()
    for dim, labels in enumerate(plan.dims):
        if isinstance(labels, np.ndarray) and not kept[labels].all():
            index = torch.from_numpy(np.flatnonzero(kept[labels])).to(tensor.device)
            cut = cut.index_select(dim, index)
    if plan.kernel_of in dict(architecture.kernels):
        cut = _centre(cut, plan.kernel_from, architecture.kernel(str(plan.kernel_of)))
    return cut.clone(memory_format=torch.preserve_format), False


def _same_dim(a: Labels | int, b: Labels | int) -> bool:
    if isinstance(a, np.ndarray) and isinstance(b, np.ndarray):
        return a is b or np.array_equal(a, b)
    return not isinstance(a, np.ndarray) and not isinstance(b, np.ndarray) and a == b


def _centre(tensor: Tensor, first: int, kernel: int) -> Tensor:
    for dim in range(first, tensor.dim()):
        tensor = tensor.narrow(dim, (tensor.shape[dim] - kernel) // 2, kernel)
    return tensor


def _copied(analysis: Analysis, architecture: Architecture, tensors: Mapping[str, Tensor]) -> nn.Module:
    """Deep-copy the teacher with these tensors in place of its own and identities or zeros for removed modules."""
    teacher = analysis.teacher
    memo: dict[int, Any] = {}
    units = [analysis.space.unit(name) for name in architecture.removed]
    gone = {path for unit in units for path in removed_paths(unit)}
    silenced = {silenced_path(unit) for unit in units}
    for path in gone:
        identity = Copy() if _is_overwritten(analysis, path, gone) else nn.Identity()
        module = teacher.get_submodule(path)
        memo[id(module)] = (Zeros() if path in silenced else identity).train(module.training)
    for name, cut in tensors.items():
        old = _tensor(teacher, name)
        memo[id(old)] = nn.Parameter(cut, old.requires_grad) if isinstance(old, nn.Parameter) else cut
    student = copy.deepcopy(teacher, memo)
    # What passes by a removed layer may be needed elsewhere, so nothing may overwrite it.
    for module in student.modules() if gone else ():
        if getattr(module, "inplace", False) is True:
            setattr(module, "inplace", False)  # noqa: B010  modules declare what they are, not what they have
    return student


class Copy(nn.Identity):
    """An identity whose result may be overwritten: it stands for a removed layer before an in-place operation."""

    def forward(self, input: Tensor) -> Tensor:
        """Return a copy of the input."""
        return input.clone()


class Zeros(nn.Identity):
    """Stands for the last layer of a removed branch: an addition then passes its other operand on."""

    def forward(self, input: Tensor) -> Tensor:
        """Return zeros like the input."""
        return torch.zeros_like(input)


def _is_overwritten(analysis: Analysis, path: str, gone: set[str]) -> bool:
    """Return whether the forward pass itself writes in place into what passes by a module."""
    inner = set(analysis.trace.members[path])
    waiting, seen = [user for node in inner for user in node.users if user not in inner], set(inner)
    while waiting:
        node = waiting.pop()
        if is_in_place(node):
            return True
        passes = any(inside(node, other) for other in gone) or describe(node) in VIEWS
        if node not in seen and passes:
            waiting.extend(node.users)
        seen.add(node)
    return False


def _shrink_kernel(module: Any, kernel: int) -> None:
    lost = [d * (k - kernel) // 2 for d, k in zip(module.dilation, module.kernel_size, strict=True)]
    module.padding = tuple(p - less for p, less in zip(module.padding, lost, strict=True))
    module.kernel_size = (kernel,) * len(module.kernel_size)
    # What torch derives from the padding when a convolution is made.
    module._reversed_padding_repeated_twice = [p for p in reversed(module.padding) for _ in range(2)]


def _draw(student: nn.Module, paths: set[str], seed: int) -> None:
    """Draw the weights of these modules anew; the global random state is as before afterwards."""
    device = next((p.device for p in student.parameters()), torch.device("cpu"))
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        for path, module in student.named_modules():
            reset = getattr(module, "reset_parameters", None)
            if path in paths and callable(reset):
                reset()
