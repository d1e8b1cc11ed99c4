"""The teacher with channels multiplied by zero: the reference that a sliced student must agree with."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.func import functional_call

from understudy.core.architecture import Architecture
from understudy.core.errors import ArchitectureError
from understudy.core.nested import leaves
from understudy.graph.analysis import Analysis
from understudy.graph.channels import Labelled, Labels, Part, Standardised
from understudy.graph.copies import tensor_at
from understudy.graph.fake import map_structure
from understudy.graph.nodes import inside
from understudy.graph.numbers import plain
from understudy.graph.units import removed_paths, silenced_path
from understudy.surgery.build import inherits_all, kept_slots


class Masked(fx.Interpreter):
    """Runs the teacher's graph with dropped channels zeroed where a layer reads them.

    A channel that only passes through (an activation, a norm, an addition) need not be zero there; what a
    convolution or a linear layer reads of it is. A norm over all channels leaves the dropped ones out of its
    statistics, as a narrower one does. Removed units are passed by, and a smaller kernel is one with a rim of
    zeros. Call `run(*inputs)` for the teacher's output.

    Args:
        analysis: of the teacher; layers follow the mode (evaluation, training) that `analysis.trace.root` is in.
        architecture: what stays.
        graph: of `analysis.trace`, the one of evaluation unless given.
        record: keep what layers give, in `layers`: by module, call after call, the tensor and its channels.

    Raises:
        ArchitectureError: the architecture removes units so that layers read other channels than the teacher's.
    """

    def __init__(
        self, analysis: Analysis, architecture: Architecture, *, graph: fx.Graph | None = None, record: bool = False
    ) -> None:
        self._refit = analysis.refit(architecture)
        if not inherits_all(analysis, architecture):
            raise ArchitectureError("only a student that inherits all of its weights can be masked, but this one draws")
        super().__init__(
            analysis.trace.root, garbage_collect_values=not architecture.removed, graph=graph or analysis.trace.graph
        )
        self._modules = dict(analysis.trace.root.named_modules(remove_duplicate=False))
        self._kept = torch.from_numpy(kept_slots(analysis, architecture))
        self._kernels, self._batch = dict(architecture.kernels), analysis.trace.batch
        units = [analysis.space.unit(name) for name in architecture.removed]
        self.removed = {path for unit in units for path in removed_paths(unit)}
        self._silenced = {silenced_path(unit) for unit in units} - {None}
        parts = self._refit.plan.parts  # what only training runs has no work there, but is of the same kinds
        self._readers = {self._kind(n) for n in analysis.trace.graph.nodes if parts[n].work}
        self._twins = analysis.trace.twins
        self._theirs = {ours: theirs for theirs, ours in self._twins.items()}
        self._record, self._cast = record, analysis.trace.cast
        self.layers: dict[str, list[tuple[Tensor, Labelled]]] = {}

    def kept(self, value: Tensor, known: Labelled) -> Tensor | None:
        """Return the channels of a tensor that stay, None if they do not lie along one dimension."""
        if len(known.varying) > 1 or value.dim() != len(known.labels.shape):
            return None
        labels = self._of_batch(known.labels, value.shape).reshape(-1)
        for dim in known.varying:
            value = value.index_select(dim, self._kept[torch.from_numpy(labels.copy())].nonzero()[:, 0])
        return value

    def fetch_args_kwargs_from_env(self, n: fx.Node) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return a node's arguments, types among them as they are in this precision."""
        args, kwargs = super().fetch_args_kwargs_from_env(n)
        if self._cast:
            args, kwargs = map_structure(
                (args, kwargs), lambda v: self._cast.get(v, v) if type(v) is torch.dtype else v
            )
        return tuple(args), kwargs

    def run_node(self, n: fx.Node) -> Any:
        """Run one node; one that reads channels gets them masked, a norm over them only those that stay."""
        if self._twin(n) not in self._refit.trace.order and any(inside(n, path) for path in self.removed):
            return None  # a count of batches, say, which only training keeps in a module that is gone
        entry = self._refit.bypass(self._twin(n)) if self.removed and n.op.startswith("call_") else None
        if entry is not None:
            passed = self.env[entry if entry in self.env else self._theirs[entry]]
            dim = self._refit.empties(self._twin(n))
            if dim is not None:
                known = self._refit.plan.values[self._twin(n)]
                return passed.new_zeros((*passed.shape[:dim], known.shape[dim], *passed.shape[dim + 1 :]))
            silenced = any(inside(n, str(path)) for path in self._silenced)
            # A copy, as what follows may write into it in place.
            return torch.zeros_like(passed) if silenced else map_structure(passed, _copy)
        value = self._computed(n)
        known = self._refit.plan.values.get(self._twin(n))
        if self._record and n.op == "call_module" and isinstance(value, Tensor) and isinstance(known, Labelled):
            self.layers.setdefault(str(n.target), []).append((value.detach().clone(), known))
        return value

    def _twin(self, node: fx.Node) -> fx.Node:
        """Return the node that the passes over the graph know, for one of training where only flags differ."""
        return self._twins.get(node, node)

    def _computed(self, n: fx.Node) -> Any:
        weight = self._refit.plan.values.get(self._twin(n.all_input_nodes[0])) if n.target is F.batch_norm else None
        if isinstance(weight, Standardised):
            return self._standardised(n, weight.name)
        norm = norm_over_channels(self.module, n)
        stays = self._normalised(n, norm) if norm is not None else None
        if norm is not None and stays is not None:
            return self._narrow_norm(n, norm, stays)
        part = self._refit.plan.parts.get(self._twin(n))
        if part is not None and part.statistic is not None:
            return self._of_what_stays(n, part.statistic)
        if not (n.op.startswith("call_") and self._kind(n) in self._readers):
            return super().run_node(n)
        with self._instead({m: self._masked(m, self.env[m]) for m in n.all_input_nodes}):
            if part is not None and part.feeds_back is not None:
                return self._recurrent(n, part)
            return self._with_rim(n) if str(n.target) in self._kernels else super().run_node(n)

    @contextmanager
    def _instead(self, values: dict[fx.Node, Any]) -> Iterator[None]:
        """Let nodes have other values."""
        kept = {node: self.env[node] for node in values}
        self.env.update(values)
        try:
            yield
        finally:
            self.env.update(kept)

    def _of_what_stays(self, n: fx.Node, dims: tuple[int, ...]) -> Any:
        """Run what takes a statistic of channels on those that stay; the others of what it gives are zero."""
        plan, own = self._refit.plan, self._twin(n)
        narrow, back = dict[fx.Node, Any](), dict[int, Tensor]()
        for node in n.all_input_nodes:
            narrow[node] = self.env[node]
            for dim in dims if isinstance(narrow[node], Tensor) else ():
                labels = plan.along(self._twin(node), dim)
                places = self._kept[torch.from_numpy(labels.copy())].nonzero()[:, 0]
                if labels.size:
                    narrow[node] = narrow[node].index_select(dim, places)
                if labels.size and np.array_equal(plan.along(own, dim), labels):
                    back[dim] = places
        with self._instead(narrow):
            found = super().run_node(n)
        for dim, places in back.items():
            shape = [n.meta["value"].shape[d] if d == dim % found.dim() else s for d, s in enumerate(found.shape)]
            found = found.new_zeros(shape).index_copy(dim, places, found)
        return found

    def _kind(self, node: fx.Node) -> Any:
        """Return a node's operation: the class of a module, a function or the name of a method."""
        return type(self._modules[str(node.target)]) if node.op == "call_module" else node.target

    def _with_rim(self, node: fx.Node) -> Any:
        """Run a convolution whose kernel has zeros around what stays of it."""
        args, kwargs = self.fetch_args_kwargs_from_env(node)
        module: Any = self.module.get_submodule(str(node.target))
        return functional_call(module, {"weight": rimmed(module.weight, self._kernels[str(node.target)])}, args, kwargs)

    def _recurrent(self, node: fx.Node, part: Part) -> Any:
        """Run a recurrent layer whose dropped hidden units are zero at every step, as those of zero rows are."""
        args, kwargs = self.fetch_args_kwargs_from_env(node)
        module, cut = self.module.get_submodule(str(node.target)), {}
        for name, plan in part.parameters.items():
            tensor = tensor_at(self.module, name).detach()
            for dim, labels in enumerate(plan.dims):
                if isinstance(labels, np.ndarray):
                    stays = self._kept[torch.from_numpy(labels.copy())].to(tensor.device)
                    tensor = tensor * stays.view([-1 if d == dim else 1 for d in range(tensor.dim())])
            cut[name.removeprefix(f"{node.target}.")] = tensor
        return functional_call(module, cut, args, kwargs)

    def _standardised(self, node: fx.Node, name: str) -> Any:
        """Run a norm of a convolution's weight (1, O, I and the kernel) over the inputs that stay; others are zero."""
        args, kwargs = self.fetch_args_kwargs_from_env(node)
        inputs = self._refit.plan.parameters[name].dims[1]
        whole = args[0]
        if not isinstance(inputs, np.ndarray):
            return super().run_node(node)
        stays = self._kept[torch.from_numpy(inputs.copy())].repeat_interleave(whole.shape[2] // len(inputs))
        found = torch.zeros_like(whole)
        found[..., stays] = F.batch_norm(whole[..., stays], *args[1:], **kwargs)
        return found

    def _normalised(self, node: fx.Node, norm: Norm) -> Tensor | None:
        """Return which channels stay, (C,), of a norm over them that loses some; None of any other."""
        known = self._refit.plan.values.get(self._twin(node))
        if not isinstance(known, Labelled) or known.labels.shape[norm.dim] == 1:  # it is over space
            return None
        stays = self._kept[torch.from_numpy(known.labels.copy())]
        return None if bool(stays.all()) else stays.reshape(-1)

    def _narrow_norm(self, node: fx.Node, norm: Norm, stays: Tensor) -> Tensor:
        module = self.module.get_submodule(str(node.target)) if node.op == "call_module" else None
        args, kwargs = self.fetch_args_kwargs_from_env(node)
        x, _, weight, *rest = norm.given(module, args, kwargs)
        cut = [None if value is None else value[stays] for value in (weight, *rest[:-1])]
        over = 1 if norm.dim > 0 else (int(stays.sum()), *x.shape[x.dim() + norm.dim + 1 :])
        out = torch.zeros_like(x)
        places: Any = (*(slice(None) for _ in range(norm.dim % x.dim())), stays)
        out[places] = norm.function(x[places], over, *cut, rest[-1])
        return out

    def _masked(self, node: fx.Node, value: Any) -> Any:
        return self._passed(self._refit.plan.values.get(self._twin(node)), value)

    def _passed(self, known: Any, value: Any) -> Any:
        if isinstance(value, tuple | list) and isinstance(known, tuple | list):  # the state of a recurrent layer
            parts = map(self._passed, known, value)
            return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
        if not isinstance(value, Tensor) or not isinstance(known, Labelled):
            return value
        stays = self._kept[torch.from_numpy(self._of_batch(known.labels, value.shape).copy())]
        # Not by a product: what dropped channels divide by is zero, and infinities times zero are no zeros.
        return value if bool(stays.all()) else value.masked_fill(~stays.to(value.device), 0)

    def _of_batch(self, labels: Labels, shape: tuple[int, ...]) -> Labels:
        """Return labels for as many examples as came: a dimension may hold the heads of each one, or each head's."""
        for dim, size in enumerate(shape):
            each = labels.shape[dim] // self._batch
            if labels.shape[dim] in (1, size) or each * self._batch != labels.shape[dim] or size % each:
                continue
            first = np.moveaxis(labels, dim, 0)
            rest, times = first.shape[1:], size // each
            rows = first.reshape(self._batch, each, *rest)
            if (rows == rows[:1]).all():
                fitted = np.concatenate([rows[0]] * times)
            else:
                fitted = np.repeat(first.reshape(each, self._batch, *rest)[:, 0], times, axis=0)
            labels = np.moveaxis(fitted, 0, dim)
        return labels


def rimmed(weight: Tensor, kernel: int) -> Tensor:
    """Return the weight of a convolution with zeros around a kernel of that size."""
    rim, lost = torch.zeros_like(weight), weight.shape[-1] - kernel
    middle = slice(lost // 2, weight.shape[-1] - lost // 2)
    where: Any = (..., *(middle for _ in range(weight.dim() - 2)))
    rim[where] = weight[where]
    return rim


@dataclass(frozen=True)
class Norm:
    """How a norm over all channels is computed: the function, its arguments in their order, where the channels are."""

    function: Callable[..., Tensor]
    arguments: Callable[..., tuple[Any, ...]]
    dim: int

    def given(self, module: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[Any, ...]:
        """Return the function's arguments in a call of it, or of a layer, which is `module`."""
        if module is not None:
            held = (getattr(module, name) for name in ("weight", "bias") if hasattr(module, name))
            args = (*args, None, *held, module.eps)
        return self.arguments(*args, **kwargs)


def norm_over_channels(root: nn.Module, node: fx.Node) -> Norm | None:
    """Return how a layer norm, an RMS norm or a group norm of one group is computed; None of any other node."""
    module = root.get_submodule(str(node.target)) if node.op == "call_module" else None
    if node.target is F.layer_norm or isinstance(module, nn.LayerNorm):
        return Norm(F.layer_norm, _norm_arguments, -_dimensions(node, module))
    if node.target is F.rms_norm or isinstance(module, nn.RMSNorm):
        return Norm(F.rms_norm, _rms_arguments, -_dimensions(node, module))
    groups: Any = None
    if node.target is F.group_norm:
        groups = node.args[1] if len(node.args) > 1 else node.kwargs["num_groups"]
    groups = module.num_groups if isinstance(module, nn.GroupNorm) else groups
    if plain(groups) == 1:
        return Norm(F.group_norm, _norm_arguments, 1)
    return None


def _dimensions(node: fx.Node, module: Any) -> int:
    """Return how many dimensions a layer norm or an RMS norm is over."""
    over: Any = node.args[1] if len(node.args) > 1 else node.kwargs.get("normalized_shape")
    over = over.meta["value"] if isinstance(over, fx.Node) else over
    return len(over if module is None else module.normalized_shape)


def _norm_arguments(
    input: Tensor, over: Any = None, weight: Any = None, bias: Any = None, eps: float = 1e-5, **_: Any
) -> tuple[Any, ...]:
    """Return the arguments of `F.layer_norm` or `F.group_norm` in their order."""
    return input, over, weight, bias, eps


def _rms_arguments(
    input: Tensor, over: Any = None, weight: Any = None, eps: float | None = None, **_: Any
) -> tuple[Any, ...]:
    """Return the arguments of `F.rms_norm` in their order."""
    return input, over, weight, eps


def relative_error(analysis: Analysis, architecture: Architecture, student: nn.Module, x: Tensor) -> float:
    """Return the largest difference between a student and the masked teacher, in evaluation mode on x (B, ...).

    It is relative to the largest output of the teacher.
    """
    with torch.no_grad():
        masked = tensors_of(Masked(analysis, architecture).run(x))
        sliced = tensors_of(student(x))
        scale = max(float(t.abs().max()) for t in tensors_of(analysis.trace.root(x)))
        worst = max(float((a - b).abs().max()) for a, b in zip(masked, sliced, strict=True))
    return worst / scale if scale else worst


def tensors_of(output: Any) -> Iterator[Tensor]:
    """Yield the tensors of what a network gives, in order, however nested."""
    return (leaf for _, leaf in leaves(output) if isinstance(leaf, Tensor))


def _copy(value: Any) -> Any:
    return value.clone() if isinstance(value, Tensor) else value
