"""Layers with parameters: what reads channels and emits new ones, and norms."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import fx, nn

from understudy.graph.channels import Attribute, Labelled, Labels, ParameterPlan, ParameterUse, Work
from understudy.graph.copies import tensor_at
from understudy.graph.rules.tables import for_modules
from understudy.graph.walk import Walk

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
# They also take an input without a batch, (C, ...); these are the dimensions with one.
_INSTANCE_NORMS: dict[type[nn.Module], int] = {nn.InstanceNorm1d: 3, nn.InstanceNorm2d: 4, nn.InstanceNorm3d: 5}


@for_modules(*_CONVOLUTIONS, *_TRANSPOSED)
def convolution(walk: Walk, node: fx.Node, module: Any, x: Labelled) -> Any:
    """Reads channels, emits new ones. A grouped one drops whole groups, inputs and outputs together."""
    name, kernel_dims = str(node.target), len(module.kernel_size)
    if len(x.shape) != kernel_dims + 2:
        return walk.give_up(node, (x,), {}, f"{type(module).__name__} gets an input without a batch")
    spatial = walk.spatial(node, x, kernel_dims)
    single = math.prod((*module.kernel_size, *module.stride)) == module.groups == 1
    if single and spatial == x.shape[2:] and passes_channels(walk, node, x, 1, name, module.out_channels):
        return apart(walk, node, x, 1, (name, module.out_channels))
    if _covers(module, x):
        return _across(walk, node, module, x, spatial)
    inputs, outputs = walk.channels(x, 1, node), walk.emit(name, module.out_channels)
    evenly = module.groups > 1 and _loses_evenly(walk, node, module, inputs)
    if evenly:
        _even(walk, node, module, inputs, outputs)
    elif module.groups > 1:
        inputs, outputs = _grouped(walk, node, module, inputs, outputs)
    shared = len(inputs) // module.groups if evenly else len(inputs)  # inputs of a weight, of which each is cut alike
    per_group = inputs[:shared] if evenly or module.groups == 1 else module.in_channels // module.groups
    transposed = isinstance(module, _TRANSPOSED)
    dims = _transposed_dims(module, inputs, outputs, evenly) if transposed else (outputs, per_group)
    plan = ParameterPlan((*dims, *module.kernel_size), kernel_of=name, kernel_from=2)
    walk.parameter(f"{name}.weight", plan, node)
    if module.bias is not None:
        walk.parameter(f"{name}.bias", ParameterPlan((outputs,)), node)
    walk.count_in((name, "in_channels"), inputs, node)
    walk.count_in((name, "out_channels"), outputs, node)
    if module.groups > 1 and not evenly:
        walk.count_in((name, "groups"), inputs, node, per=module.in_channels // module.groups)
    positions = math.prod(x.shape[2:] if transposed else spatial) * x.shape[0]
    factors = (outputs, per_group) if isinstance(per_group, np.ndarray) else (outputs,)
    constant = positions * (1 if isinstance(per_group, np.ndarray) else per_group)
    walk.part.work.append(Work(name, constant, factors, kernel_of=name, kernel_dims=kernel_dims))
    return Labelled.along((x.shape[0], len(outputs), *spatial), 1, outputs)


def _covers(module: Any, x: Labelled) -> bool:
    """Return whether channels lie along a dimension behind the first two that a kernel covers, as in a TextCNN."""
    dim = x.varying[0] - 2 if len(x.varying) == 1 else -1
    if dim < 0 or isinstance(module, _TRANSPOSED) or module.groups > 1 or isinstance(module.padding, str):
        return False
    whole: bool = module.kernel_size[dim] == x.shape[dim + 2]
    return whole and module.padding[dim] == 0 and module.dilation[dim] == 1


def _across(walk: Walk, node: fx.Node, module: Any, x: Labelled, spatial: tuple[int, ...]) -> Labelled:
    """Each place of the kernel along these channels reads one of them."""
    name, dim = str(node.target), x.varying[0]
    inputs, outputs = walk.channels(x, dim, node), walk.emit(name, module.out_channels)
    kernel = [inputs if d == dim - 2 else size for d, size in enumerate(module.kernel_size)]
    walk.parameter(f"{name}.weight", ParameterPlan((outputs, module.in_channels, *kernel)), node)
    if module.bias is not None:
        walk.parameter(f"{name}.bias", ParameterPlan((outputs,)), node)
    walk.count_in((name, "out_channels"), outputs, node)
    walk.part.attributes.append(Attribute(name, "kernel_size", inputs, at=dim - 2))
    each = module.in_channels * math.prod(size for size in kernel if isinstance(size, int))
    walk.part.work.append(Work(name, math.prod(spatial) * x.shape[0] * each, (outputs, inputs)))
    return Labelled.along((x.shape[0], len(outputs), *spatial), 1, outputs)


def _grouped(walk: Walk, node: fx.Node, module: Any, inputs: Labels, outputs: Labels) -> tuple[Labels, Labels]:
    """Tie each group's inputs to its outputs. A depthwise convolution takes on whatever arrives."""
    if module.groups == module.in_channels == module.out_channels and len(inputs) != len(outputs):
        return inputs, inputs
    if len(inputs) != module.in_channels:  # a removal brings others, with which its weights would be in other groups
        raise ValueError(f"{module.groups} groups of {module.in_channels} channels do not fit {len(inputs)}")
    rows = np.concatenate([inputs.reshape(module.groups, -1), outputs.reshape(module.groups, -1)], axis=1)
    walk.bundle(rows, node)
    return inputs, outputs


def _loses_evenly(walk: Walk, node: fx.Node, module: Any, inputs: Labels) -> bool:
    """Return whether each group loses channels at the same places, where what else is known lets no whole group go."""
    several = min(module.in_channels, module.out_channels) > module.groups and len(inputs) % module.groups == 0
    return several and walk.choose(node, [0, 1], inputs) == 1


def _even(walk: Walk, node: fx.Node, module: Any, inputs: Labels, outputs: Labels) -> None:
    """Tie what is at the same place of each group, inputs and outputs apart."""
    for labels in (inputs, outputs):
        walk.bundle(labels.reshape(module.groups, -1).T, node)


def _transposed_dims(module: Any, inputs: Labels, outputs: Labels, evenly: bool) -> tuple[Labels | int, ...]:
    own = len(outputs) // module.groups
    return (inputs, outputs[:own] if evenly or module.groups == 1 else module.out_channels // module.groups)


@for_modules(nn.Linear, parameters=True)
def linear(walk: Walk, node: fx.Node, module: Any, x: Labelled | ParameterUse) -> Labelled:
    """Reads the last dimension's features, emits new ones."""
    name = str(node.target)
    x = _rows(walk, node, x) if isinstance(x, ParameterUse) else x
    if passes_channels(walk, node, x, -1, name, module.out_features):
        return apart(walk, node, x, -1, (name, module.out_features))
    inputs, outputs = walk.channels(x, -1, node), walk.emit(name, module.out_features)
    walk.parameter(f"{name}.weight", ParameterPlan((outputs, inputs)), node)
    if module.bias is not None:
        walk.parameter(f"{name}.bias", ParameterPlan((outputs,)), node)
    walk.count_in((name, "in_features"), inputs, node)
    walk.count_in((name, "out_features"), outputs, node)
    walk.part.work.append(Work(name, math.prod(x.shape[:-1]), (outputs, inputs)))
    return Labelled.along(x.shape, len(x.shape) - 1, outputs)


def _rows(walk: Walk, node: fx.Node, x: ParameterUse) -> Labelled:
    """Return a table that a layer reads; a buffer with several dimensions (a map of coordinates) has no channels."""
    learned = isinstance(tensor_at(walk.trace.root, x.name), nn.Parameter)
    if type(x) is not ParameterUse or learned or sum(size > 1 for size in x.shape) < 2:
        return walk.as_tensor(x, node)
    walk.parameter(x.name, ParameterPlan(x.shape), node)
    return Labelled.fixed(x.shape)


def passes_channels(walk: Walk, node: fx.Node, x: Labelled, dim: int, name: str, size: int) -> bool:
    """Return whether channels of another dimension go through a layer along `dim`, which then keeps its own number.

    So those of an MLP-Mixer go through its layers along tokens. Where they cannot go at all, those that the layer makes
    are taken.
    """
    dim %= len(x.shape)
    if len(x.varying) != 1 or x.varying[0] == dim:
        return False
    dims = [x.varying[0], dim]
    if walk.choose(node, dims, x.labels) == dims[0]:
        return True
    walk.choose(node, dims, walk.emit(name, size))
    return False


def apart(walk: Walk, node: fx.Node, x: Labelled, dim: int, layer: tuple[str, int]) -> Labelled:
    """Return what a layer (its name, its outputs) along one dimension gives for each channel of another one."""
    dim %= len(x.shape)
    name, outputs = layer
    inputs = walk.recorded(node.all_input_nodes[0]).shape[dim]
    if x.shape[dim] != inputs:
        raise ValueError(f"{x.shape[dim]} inputs cannot be read where there must be {inputs}")
    held = walk.trace.modules[name].named_parameters()
    for part, tensor in held:
        walk.parameter(f"{name}.{part}", ParameterPlan(tuple(tensor.shape)), node)
    labels = x.labels.reshape(-1)
    walk.part.work.append(Work(name, math.prod(x.shape) // len(labels) * outputs, (labels,)))
    return Labelled((*x.shape[:dim], outputs, *x.shape[dim + 1 :]), x.labels)


@for_modules(nn.Embedding, nn.EmbeddingBag, states=True)
def embedding(walk: Walk, node: fx.Node, module: Any, input: Labelled, *rest: Any, **more: Any) -> Any:
    """Turns numbers into the rows of a table, whose columns are channels, or a bag of them into one such row.

    A bag may be given where each one starts, and the weights of its members.
    """
    further = [v for v in (*rest, *more.values()) if isinstance(v, Labelled)]
    kind = f"the {type(module).__name__}"
    if not all(x.is_fixed for x in (input, *further)):
        return walk.give_up(node, (input, *rest), more, f"{kind} looks up what these channels say")
    if module.max_norm is not None:
        return walk.give_up(node, (input, *rest), more, f"{kind} changes its weight in the forward pass")
    name = str(node.target)
    outputs = walk.emit(name, module.embedding_dim)
    walk.parameter(f"{name}.weight", ParameterPlan((module.num_embeddings, outputs)), node)
    walk.count_in((name, "embedding_dim"), outputs, node)
    rows = input.shape if isinstance(module, nn.Embedding) else walk.recorded(node).shape[:1]
    return Labelled.along((*rows, len(outputs)), len(rows), outputs)


@for_modules(
    *(nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm),
    *(nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d),
)
def norm_per_channel(walk: Walk, node: fx.Node, module: Any, x: Labelled) -> Any:
    """Each channel has its own statistics and scale."""
    name = str(node.target)
    rank = _INSTANCE_NORMS.get(type(module))
    if rank is not None and len(x.shape) != rank:
        return walk.give_up(node, (x,), {}, f"{type(module).__name__} gets an input without a batch")
    labels = walk.channels(x, 1, node)
    for part in ("weight", "bias", "running_mean", "running_var"):
        if getattr(module, part) is not None:
            walk.parameter(f"{name}.{part}", ParameterPlan((labels,)), node)
    walk.count_in((name, "num_features"), labels, node)
    return x


@for_modules(nn.GroupNorm)
def group_norm(walk: Walk, node: fx.Node, module: Any, x: Labelled) -> Labelled:
    """A group shares statistics, so it stays or goes whole; one of all channels has those of the ones that stay."""
    name = str(node.target)
    labels = walk.channels(x, 1, node)
    per_group = module.num_channels // module.num_groups
    if module.weight is not None:
        walk.parameter(f"{name}.weight", ParameterPlan((labels,)), node)
        walk.parameter(f"{name}.bias", ParameterPlan((labels,)), node)
    walk.count_in((name, "num_channels"), labels, node)
    if module.num_groups > 1:
        walk.bundle(labels.reshape(-1, per_group), node)
        walk.count_in((name, "num_groups"), labels, node, per=per_group)
    return x


@for_modules(nn.LayerNorm, nn.RMSNorm)
def layer_norm(walk: Walk, node: fx.Node, module: Any, x: Labelled) -> Labelled:
    """Over channels, and over space behind them, it takes its statistics over the channels that stay."""
    name = str(node.target)
    sizes = tuple(module.normalized_shape)
    over = normalises_channels(walk, node, x, sizes)
    first = walk.channels(x, -len(sizes), node) if over else sizes[0]  # which a removal may bring channels to
    for part in ("weight", "bias"):
        if getattr(module, part, None) is not None:
            walk.parameter(f"{name}.{part}", ParameterPlan((first, *sizes[1:])), node)
    if isinstance(first, np.ndarray):
        walk.count_in((name, "normalized_shape"), first, node)
    return x


def normalises_channels(walk: Walk, node: fx.Node, x: Labelled, sizes: Sequence[int]) -> bool:
    """Return whether a layer norm of these sizes is over channels that can go; freeze those that cannot."""
    first, behind = len(x.shape) - len(sizes), tuple(sizes[1:])
    over = [d for d in x.varying if d >= first]
    if x.varying == (first,) and x.shape[first + 1 :] == behind:
        return True
    if x.shape[-len(sizes) :] != tuple(sizes):  # what a removal brings
        raise ValueError(f"a layer norm of {tuple(map(int, sizes))} does not fit {x.shape}")
    if over:
        walk.freeze(x.labels, "layer norm takes statistics over these channels and more", node)
    return False


@for_modules(nn.PReLU)
def prelu(walk: Walk, node: fx.Node, module: Any, x: Labelled) -> Labelled:
    """One slope for all channels, or one for each."""
    if module.num_parameters > 1:
        labels = walk.channels(x, 1, node)
        walk.parameter(f"{node.target}.weight", ParameterPlan((labels,)), node)
        walk.count_in((str(node.target), "num_parameters"), labels, node)
    return x
