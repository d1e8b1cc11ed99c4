"""Architecture -> student: the teacher's own class, smaller, or its recorded forward pass over smaller layers."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from understudy.core.architecture import Architecture
from understudy.core.errors import ConfigError, SurgeryError, check_kind, whole
from understudy.core.parts import UnitKind
from understudy.graph.analysis import Analysis, check_analysis
from understudy.graph.channels import ParameterPlan
from understudy.graph.copies import copied, tensor_at
from understudy.graph.fake import source_line
from understudy.graph.nodes import is_inplace, is_overwritten
from understudy.graph.refit import Refit, same_dims
from understudy.graph.retrace import set_counts
from understudy.graph.seeds import seeded
from understudy.graph.units import emptied_path, emptied_slots, removed_paths, silenced_path
from understudy.surgery.plain import is_plain, plain_student

Mask = npt.NDArray[np.bool_]


def build(
    analysis: Analysis,
    architecture: Architecture,
    *,
    weights: Literal["inherited", "fresh"] = "inherited",
    seed: int = 0,
) -> nn.Module:
    """Return the student of an architecture, in the teacher's mode and on its device.

    It is of the teacher's own class, or a plain graph where that class cannot have such widths (`Group.plain`).

    Args:
        analysis: of the teacher, which is not touched.
        architecture: what stays.
        weights: "inherited" slices the teacher's wherever the channels that arrive are the teacher's, and
            draws the rest anew; "fresh" draws all parameters. A module with `reset_parameters` draws its own; any
            other parameter (a class token, a layer's scale) is drawn from the normal distribution that has the
            mean and the deviation of the teacher's values. Buffers that no module resets are the teacher's.
        seed: of fresh weights.

    Raises:
        ArchitectureError: the architecture was made for another teacher, or is none.
        ConfigError: the analysis is none, or there are no such weights.
        SurgeryError: the architecture cannot be built; names the node and what does not fit.
    """
    check_analysis(analysis)
    if not isinstance(weights, str) or weights not in ("inherited", "fresh"):
        raise ConfigError(f"weights must be one of inherited, fresh, but got {weights!r}")
    seed = whole(seed, "a seed", ConfigError)
    refit = analysis.refit(architecture)
    kept = kept_slots(analysis, architecture)
    _check_meetings(refit, kept)
    before = analysis.groups.plan.parameters
    tensors: dict[str, Tensor] = {}
    fresh: set[str] = set()
    for name, plan in refit.plan.parameters.items():
        cut = _cut(tensor_at(analysis.teacher, name), before[name], plan, kept, architecture)
        tensors[name] = cut[0]
        if cut[1]:
            fresh.add(name)
    student = _copied(analysis, architecture, tensors)
    set_counts(student, refit.plan.attributes, kept)
    for name, kernel in architecture.kernels:
        _shrink_kernel(student.get_submodule(name), kernel)
    everything = {name for name, _ in student.named_parameters()}
    _draw(student, analysis.teacher, everything if weights == "fresh" else fresh, seed)
    return plain_student(analysis, architecture, student, kept) if is_plain(architecture) else student


def rebuild(analysis: Analysis, architecture: Architecture, state: Mapping[str, Tensor]) -> nn.Module:
    """Return the student of an architecture with weights that were saved from one like it.

    Raises:
        SurgeryError: the weights are of another student, or none.
    """
    check_kind(state, Mapping, "weights must be names and tensors, as student.state_dict() gives", SurgeryError)
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
    before = analysis.groups.parameters
    return all(
        same_dims(before[name].dims, plan.dims) for name, plan in analysis.refit(architecture).plan.parameters.items()
    )


def kept_slots(analysis: Analysis, architecture: Architecture) -> Mask:
    """Return which slots stay, (slots + 1,); the last entry, for what is FIXED, is true.

    Where the architecture names only a width, the slots of the largest weights stay.

    Raises:
        ArchitectureError: the architecture was made for another teacher.
    """
    analysis.space.check_own(architecture)
    kept = np.ones(analysis.groups.slots + 1, dtype=bool)
    chosen, widths = dict(architecture.channels), dict(architecture.widths)
    magnitudes = analysis.magnitudes if widths else np.zeros(0)  # asked once: it looks at every weight
    for group, slots in zip(analysis.groups.groups, analysis.groups.slots_of, strict=True):
        width = widths.get(group.name, group.width)  # an architecture of a part of the Space does not have all groups
        if group.name in chosen:
            stay = slots[list(chosen[group.name])]
        elif width < group.width:
            stay = slots[np.argsort(-magnitudes[slots], kind="stable")[: width // group.step]]
        else:
            continue
        kept[slots] = False
        kept[stay] = True
    kept[emptied_slots(analysis.groups, map(analysis.space.unit, architecture.removed))] = False
    return kept


def _check_meetings(refit: Refit, kept: Mask) -> None:
    for a, b, node in refit.met:
        left, right = int(kept[a].sum()), int(kept[b].sum())
        if left != right:
            raise SurgeryError(f"at node {node.name} ({source_line(node)}): {left} and {right} channels meet")


def _cut(
    tensor: Tensor, before: ParameterPlan, plan: ParameterPlan, kept: Mask, architecture: Architecture
) -> tuple[Tensor, bool]:
    """Return a parameter's slice, and whether it must be drawn anew because other channels arrive."""
    if not same_dims(before.dims, plan.dims):
        sizes = [int(kept[d].sum()) if isinstance(d, np.ndarray) else d for d in plan.dims]
        if plan.kernel_of in dict(architecture.kernels):
            spatial = len(sizes) - plan.kernel_from
            sizes[plan.kernel_from :] = [architecture.kernel(str(plan.kernel_of))] * spatial
        return tensor.detach().new_zeros(sizes), True
    return sliced(tensor.detach(), plan, kept, architecture), False


def sliced(tensor: Tensor, plan: ParameterPlan, kept: Mask, architecture: Architecture) -> Tensor:
    """Return a copy of what a student keeps of a parameter whose plan that is."""
    cut = tensor
    for dim, labels in enumerate(plan.dims):
        if isinstance(labels, np.ndarray) and not kept[labels].all():
            index = torch.from_numpy(np.flatnonzero(kept[labels])).to(tensor.device)
            cut = cut.index_select(dim, index)
    if plan.kernel_of in dict(architecture.kernels):
        cut = _centre(cut, plan.kernel_from, architecture.kernel(str(plan.kernel_of)))
    return cut.clone(memory_format=torch.preserve_format)


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
    ends = {silenced_path(unit) or emptied_path(unit): unit.kind for unit in units}
    for path in gone:
        module = teacher.get_submodule(path)
        memo[id(module)] = _stand_in(analysis, path, gone, ends).train(module.training)
    # By all names: a buffer that modules share is one for each when it is cast (`module.double()`) or moved.
    for name, first in analysis.trace.names.items():
        old, cut = tensor_at(teacher, name), tensors.get(first)
        if cut is None or id(old) in memo:
            continue
        memo[id(old)] = nn.Parameter(cut, old.requires_grad) if isinstance(old, nn.Parameter) else cut
    student: nn.Module = copied(teacher, memo)
    # What passes by a removed layer may be needed elsewhere, so nothing may overwrite it; what is to be overwritten is
    # a copy there (`is_overwritten`).
    every = dict(student.named_modules(remove_duplicate=False))
    meant = {id(every[path]) for path in analysis.trace.overwriting & every.keys()}
    for module in every.values() if gone else ():
        if is_inplace(module) and id(module) not in meant:
            setattr(module, "inplace", False)  # noqa: B010  modules declare what they are, not what they have
    return student


class Bypass(nn.Identity):
    """An identity that takes further arguments and leaves them alone: it stands for a module that is given some."""

    def forward(self, input: Any, *rest: Any, **named: Any) -> Any:
        """Return the first argument."""
        return input


class Copy(Bypass):
    """An identity whose result may be overwritten: it stands for a removed layer before an in-place operation."""

    def forward(self, input: Any, *rest: Any, **named: Any) -> Any:
        """Return a copy of the first argument."""
        return input.clone()


class Nothing(Bypass):
    """Stands for the last layer of what was joined to other tensors along `dim`: it has no channels to add."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim

    def forward(self, input: Any, *rest: Any, **named: Any) -> Any:
        """Return the first argument without any of its channels."""
        return input.narrow(self.dim, 0, 0)


class Zeros(Bypass):
    """Stands for the last layer of a removed branch: an addition then passes its other operand on."""

    def forward(self, input: Any, *rest: Any, **named: Any) -> Any:
        """Return zeros like the first argument."""
        return torch.zeros_like(input)


def _stand_in(analysis: Analysis, path: str, gone: set[str], ends: Mapping[str | None, UnitKind]) -> nn.Module:
    if ends.get(path) == "joined":
        (dim,) = analysis.groups.plan.values[analysis.trace.exits(path)[-1]].varying
        return Nothing(dim)
    if ends.get(path) == "branch":
        return Zeros()
    if is_overwritten(analysis.trace, path, gone):
        return Copy()
    return nn.Identity() if all(call.is_plain for call in analysis.trace.calls.get(path, ())) else Bypass()


def _shrink_kernel(module: Any, kernel: int) -> None:
    lost = [d * (k - kernel) // 2 for d, k in zip(module.dilation, module.kernel_size, strict=True)]
    module.padding = tuple(p - less for p, less in zip(module.padding, lost, strict=True))
    module.kernel_size = (kernel,) * len(module.kernel_size)
    # What torch derives from the padding when a convolution is made.
    module._reversed_padding_repeated_twice = [p for p in reversed(module.padding) for _ in range(2)]


def _draw(student: nn.Module, teacher: nn.Module, names: set[str], seed: int) -> None:
    """Draw these parameters anew; the global random state is as before afterwards.

    A module that can reset its parameters resets all that it has. Whole numbers are not learned and stay.
    """
    if not names:
        return
    device = next((p.device for p in student.parameters()), torch.device("cpu"))
    with seeded(seed, device), torch.no_grad():
        for path, module in student.named_modules():
            own = {name: p for name, p in module.named_parameters(path, recurse=False) if name in names}
            reset = getattr(module, "reset_parameters", getattr(module, "_reset_parameters", None))
            if own and callable(reset):
                reset()
            for name, parameter in own.items() if not callable(reset) else ():
                if not (parameter.is_floating_point() or parameter.is_complex()):
                    continue
                values = tensor_at(teacher, name).detach().cpu().double()  # MPS has no doubles
                deviation, mean = torch.std_mean(values, correction=0)
                parameter.normal_(float(mean), float(deviation))
