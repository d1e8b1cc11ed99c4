"""Layers as functions of parameters that the forward pass uses directly, as subclasses of torch's layers do.

Numbers that a call is given (groups, most of all) follow the channels if a module holds them, and freeze
the channels if the code writes them.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import fx, nn

from understudy.graph.channels import (
    FIXED,
    Labelled,
    Labels,
    Member,
    ParameterPlan,
    ParameterUse,
    Standardised,
    Statistic,
    Turned,
    Work,
)
from understudy.graph.copies import tensor_at
from understudy.graph.nodes import describe
from understudy.graph.rules.layers import normalises_channels
from understudy.graph.rules.standardised import layer_of, normed
from understudy.graph.rules.tables import for_calls
from understudy.graph.rules.weights import cut, made_by_columns
from understudy.graph.walk import Walk

# What a student's layer says of itself, beside what its forward pass reads.
_TELLING: dict[type[nn.Module], tuple[str, ...]] = {
    nn.modules.conv._ConvNd: ("in_channels", "out_channels"),
    nn.Linear: ("in_features", "out_features"),
    nn.modules.batchnorm._NormBase: ("num_features", "num_features"),
    nn.GroupNorm: ("num_channels", "num_channels"),
    nn.LayerNorm: ("normalized_shape",),
    nn.RMSNorm: ("normalized_shape",),
    nn.PReLU: ("num_parameters", "num_parameters"),
}


@for_calls(F.linear, parameters=True)
def linear(walk: Walk, node: fx.Node, x: Any, weight: Any, bias: Any = None) -> Any:
    """As the layer."""
    if not isinstance(x, Labelled) or not _is_matrix(weight, 2):
        return walk.give_up(node, (x, weight, bias), {}, "linear computes its weight in the forward pass")
    if weight.rows is not None:
        return _part_of_linear(walk, node, x, weight, bias)
    turned = isinstance(weight, Turned) or (isinstance(weight, Member) and weight.transposed)
    known = walk.known.get(walk.trace.names.get(weight.name, weight.name))
    name = made_by_columns(walk, weight, layer_of(weight)) if turned else layer_of(weight)
    inputs = walk.channels(x, -1, node)
    if known is not None and not isinstance(weight.seen(known.dims)[0], np.ndarray):  # as many as rows of a table
        outputs = np.full(weight.shape[0], FIXED)
    else:
        outputs = walk.emit(name, weight.shape[0])
    cut(walk, node, weight, (outputs, inputs))
    _per_channel(walk, node, bias, outputs)
    if not turned:
        _tell(walk, node, weight, inputs, outputs)
    walk.part.work.append(Work(name, math.prod(x.shape[:-1]), (outputs, inputs)))
    if (outputs == FIXED).all():
        return Labelled.fixed((*x.shape[:-1], len(outputs)))
    return Labelled.along(x.shape, len(x.shape) - 1, outputs)


def _part_of_linear(walk: Walk, node: fx.Node, x: Labelled, weight: Any, bias: ParameterUse | None) -> Labelled:
    """Rows of a weight that several linear layers share, such as those of queries, and of keys and values."""
    size, inputs = tensor_at(walk.trace.root, weight.name).shape[0], walk.channels(x, -1, node)
    everything = walk.emit(weight.name, size)
    walk.parameter(weight.name, ParameterPlan((everything, inputs)), node)
    if bias is not None:
        walk.parameter(bias.name, ParameterPlan((everything,)), node)
    outputs = everything[slice(*weight.rows)]
    walk.part.work.append(Work(weight.name, math.prod(x.shape[:-1]), (outputs, inputs)))
    return Labelled.along(x.shape, len(x.shape) - 1, outputs)


@for_calls(torch.addmm, parameters=True)
def linear_of_inputs_first(walk: Walk, node: fx.Node, bias: Any, x: Any, weight: Any, **more: Any) -> Any:
    """As `linear`, with a weight (inputs, outputs)."""
    if isinstance(weight, Turned) and isinstance(x, Labelled) and not more and len(bias.shape) == 1:
        return linear(walk, node, x, weight.turned, bias)  # torch.addmm(bias, x, weight.t())
    plain = _is_matrix(weight, 2) and not isinstance(weight, Turned)
    if more or not isinstance(x, Labelled) or not plain or len(bias.shape) != 1:
        return walk.give_up(node, (bias, x, weight), more, "no rule for addmm with these arguments")
    name = layer_of(weight)
    inputs, outputs = walk.channels(x, -1, node), walk.emit(name, weight.shape[1])
    cut(walk, node, weight, (inputs, outputs))
    _per_channel(walk, node, bias, outputs)
    walk.part.work.append(Work(name, x.shape[0], (outputs, inputs)))
    return Labelled.along((x.shape[0], len(outputs)), 1, outputs)


@for_calls(F.embedding, parameters=True)
def embedding(walk: Walk, node: fx.Node, input: Any, weight: Any, *rest: Any, **more: Any) -> Any:
    """As the layer."""
    fixed = (
        isinstance(input, Labelled) and input.is_fixed and (rest[1] if len(rest) > 1 else more.get("max_norm")) is None
    )
    if not fixed or not _is_matrix(weight, 2):
        return walk.give_up(node, (input, weight, *rest), more, "no rule for embedding with these arguments")
    outputs = walk.emit(layer_of(weight), weight.shape[1])
    cut(walk, node, weight, (weight.shape[0], outputs))
    return Labelled.along((*input.shape, len(outputs)), len(input.shape), outputs)


@for_calls(F.conv1d, F.conv2d, F.conv3d, parameters=True)
def convolution(
    walk: Walk, node: fx.Node, input: Any, weight: Any, bias: Any = None, *rest: Any, groups: Any = None, **more: Any
) -> Any:
    """As the layer. A weight that is computed keeps its inputs, and all of its outputs."""
    x, rank = input, int(describe(node)[4]) + 2
    filtered = _filtered(walk, node, x, weight, bias, rest[3] if len(rest) > 3 else groups)
    if filtered is not None:
        return filtered
    if not isinstance(x, Labelled) or not _is_matrix(weight, rank) or len(x.shape) != rank:
        more |= {} if groups is None else {"groups": groups}
        return walk.give_up(node, (x, weight, bias, *rest), more, f"{describe(node)} computes its weight")
    groups = groups if groups is not None else rest[3] if len(rest) > 3 else 1
    name = layer_of(weight)
    inputs, outputs = walk.channels(x, 1, node), walk.emit(name, weight.shape[0])
    spatial = walk.spatial(node, x, rank - 2)
    if len(inputs) != groups * weight.shape[1] and groups > 1:
        raise ValueError(f"{groups} groups of {weight.shape[1]} channels do not fit {len(inputs)} channels")
    if groups > 1:
        inputs, outputs = _grouped(walk, node, groups, inputs, outputs)
    else:
        walk.leave(groups)
    per_group = inputs if groups == 1 else weight.shape[1]
    cut(walk, node, weight, (outputs, per_group, *weight.shape[2:]))
    _per_channel(walk, node, bias, outputs)
    _tell(walk, node, weight, inputs, outputs)
    positions = math.prod(spatial) * x.shape[0] * math.prod(weight.shape[2:])
    factors = (outputs, inputs) if groups == 1 else (outputs,)
    walk.part.work.append(Work(name, positions * (1 if groups == 1 else weight.shape[1]), factors))
    return Labelled.along((x.shape[0], len(outputs), *spatial), 1, outputs)


@for_calls(F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d, parameters=True)
def transposed_convolution(
    walk: Walk, node: fx.Node, input: Any, weight: Any, bias: Any = None, *rest: Any, groups: Any = None, **more: Any
) -> Any:
    """As the layer without groups; a weight of several groups, or one that is computed, keeps its channels."""
    x, groups = input, groups if groups is not None else rest[3] if len(rest) > 3 else 1
    rank = len(weight.shape) if isinstance(weight, ParameterUse) else 0
    if groups != 1 or not isinstance(x, Labelled) or not _is_matrix(weight, len(x.shape)):
        return walk.give_up(node, (x, weight, bias, *rest), more, f"{describe(node)} has groups or computes its weight")
    walk.leave(groups)
    name = made_by_columns(walk, weight, layer_of(weight))
    inputs, outputs = walk.channels(x, 1, node), walk.emit(name, weight.shape[1])
    cut(walk, node, weight, (inputs, outputs, *weight.shape[2:]))
    _per_channel(walk, node, bias, outputs)
    if isinstance(walk.trace.root.get_submodule(weight.name.rpartition(".")[0]), nn.modules.conv._ConvTransposeNd):
        _tell(walk, node, weight, inputs, outputs)
    positions = math.prod(x.shape[2:]) * x.shape[0] * math.prod(weight.shape[2:])
    walk.part.work.append(Work(name, positions, (outputs, inputs)))
    return Labelled.along((x.shape[0], len(outputs), *walk.spatial(node, x, rank - 2)), 1, outputs)


def _filtered(walk: Walk, node: fx.Node, x: Any, weight: Any, bias: Any, groups: Any) -> Labelled | None:
    """Return what a kernel without weights of its own, such as a blur repeated for each channel, makes of each."""
    if not (isinstance(x, Labelled) and isinstance(weight, Labelled)) or bias is not None or x.varying != (1,):
        return None
    if weight.varying != (0,) or len(x.shape) != len(weight.shape) or weight.shape[1] != 1:
        return None
    if not groups == x.shape[1] == weight.shape[0]:
        return None
    labels = walk.tie(walk.channels(x, 1, node), walk.channels(weight, 0, node), node)
    spatial = walk.spatial(node, x, len(x.shape) - 2)
    labels, _ = _grouped(walk, node, groups, labels, labels)
    positions = x.shape[0] * math.prod(spatial) * math.prod(weight.shape[2:])
    walk.part.work.append(Work(describe(node), positions, (labels,)))
    return Labelled.along((x.shape[0], len(labels), *spatial), 1, labels)


def _grouped(walk: Walk, node: fx.Node, groups: Any, inputs: Labels, outputs: Labels) -> tuple[Labels, Labels]:
    rows = np.concatenate([inputs.reshape(groups, -1), outputs.reshape(groups, -1)], axis=1)
    if not walk.follow(groups, inputs, node, per=len(inputs) // groups):
        reason = f"{describe(node)} writes its groups as {groups}"
        walk.write(np.concatenate([inputs, outputs]), reason, node)
    walk.bundle(rows, node)
    walk.sized((6,) if len(node.args) > 6 else ("groups",), inputs, per=len(inputs) // groups)
    return inputs, outputs


@for_calls(F.batch_norm, F.instance_norm, parameters=True)
def norm_per_channel(
    walk: Walk,
    node: fx.Node,
    input: Any,
    running_mean: Any = None,
    running_var: Any = None,
    *rest: Any,
    **more: Any,
) -> Any:
    """Each channel has its own statistics and scale."""
    if isinstance(input, Standardised):
        return normed(walk, node, input, more.get("weight"))
    x = walk.as_tensor(input, node)
    labels = walk.channels(x, 1, node)
    scale = [*rest[:2], *(more[name] for name in ("weight", "bias") if name in more)]
    for value in (running_mean, running_var, *scale):
        _per_channel(walk, node, value, labels)
        if isinstance(value, ParameterUse):
            _tell(walk, node, value, labels, labels)
    return x


@for_calls(F.group_norm, parameters=True)
def group_norm(
    walk: Walk, node: fx.Node, input: Any, num_groups: Any, weight: Any = None, *rest: Any, **named: Any
) -> Labelled:
    """As the layer."""
    x = walk.as_tensor(input, node)
    labels = walk.channels(x, 1, node)
    per_group = len(labels) // num_groups
    if num_groups == 1:
        walk.leave(num_groups)
    else:
        if not walk.follow(num_groups, labels, node, per=per_group):
            walk.write(labels, f"group norm writes its groups as {int(num_groups)}", node)
        walk.bundle(labels.reshape(-1, per_group), node)
        walk.sized((1,) if len(node.args) > 1 else ("num_groups",), labels, per=per_group)
    for value in (weight, named.get("bias", rest[0] if rest else None)):
        _per_channel(walk, node, value, labels)
    if isinstance(weight, ParameterUse):
        _tell(walk, node, weight, labels, labels)
    return x


@for_calls(F.layer_norm, parameters=True)
def layer_norm(
    walk: Walk,
    node: fx.Node,
    input: Any,
    normalized_shape: Any,
    weight: Any = None,
    bias: Any = None,
    *rest: Any,
    **_: Any,
) -> Labelled:
    """As the layer, where a module holds the number of channels."""
    x = walk.as_tensor(input, node)
    if normalises_channels(walk, node, x, normalized_shape):
        labels, behind = walk.channels(x, -len(normalized_shape), node), tuple(normalized_shape[1:])
        _counts_in(walk, node, normalized_shape[0], labels)
        for value in (weight, bias):
            if isinstance(value, ParameterUse):
                walk.parameter(value.name, ParameterPlan((labels, *behind)), node)
                _tell(walk, node, value, labels, labels)
            elif isinstance(value, Labelled) and behind:
                walk.freeze(labels, "layer norm computes its weight", node)
            else:
                _per_channel(walk, node, value, labels)
        return x
    for value in (weight, bias):
        if isinstance(value, ParameterUse):
            walk.parameter(value.name, ParameterPlan(value.shape), node)
    return x


def _counts_in(walk: Walk, node: fx.Node, number: Any, labels: Labels) -> None:
    """Let the number of channels that a layer norm is given be theirs; one of a tensor's shape is."""
    place: tuple[int | str, ...] = (1,) if len(node.args) > 1 else ("normalized_shape",)
    given: Any = node.args[1] if len(node.args) > 1 else node.kwargs["normalized_shape"]
    if isinstance(given, fx.Node):
        return
    if not walk.follow(number, labels, node) and not isinstance(given[0], fx.Node):
        if number != len(labels):  # what a removal brings
            raise ValueError(f"layer norm writes {number} channels where {len(labels)} come")
        walk.write(labels, f"layer norm writes their number as {len(labels)}", node)
    walk.sized((*place, 0), labels)


@for_calls(F.rms_norm, parameters=True)
def rms_norm(
    walk: Walk, node: fx.Node, input: Any, normalized_shape: Any, weight: Any = None, eps: Any = None
) -> Labelled:
    """As `layer_norm`."""
    return layer_norm(walk, node, input, normalized_shape, weight)


@for_calls(F.prelu, parameters=True)
def prelu(walk: Walk, node: fx.Node, input: Any, weight: Any) -> Labelled:
    """One slope for all channels, or one for each."""
    x = walk.as_tensor(input, node)
    if math.prod(weight.shape) > 1:
        labels = walk.channels(x, 1, node)
        _per_channel(walk, node, weight, labels)
        if isinstance(weight, ParameterUse):
            _tell(walk, node, weight, labels, labels)
    return x


def _is_matrix(weight: Any, rank: int) -> bool:
    return isinstance(weight, ParameterUse) and len(weight.shape) == rank and not isinstance(weight, Statistic)


def _per_channel(walk: Walk, node: fx.Node, value: Any, labels: Labels) -> None:
    """Cut a parameter of one element per channel; tie a tensor that is one."""
    if isinstance(value, ParameterUse):
        walk.parameter(value.name, ParameterPlan((labels,)), node)
    elif isinstance(value, Labelled):
        walk.tie(walk.channels(value, 0, node), labels, node)


def _tell(walk: Walk, node: fx.Node, weight: ParameterUse, inputs: Labels, outputs: Labels) -> None:
    path = weight.name.rpartition(".")[0]
    module = walk.trace.root.get_submodule(path)
    names = next((names for kind, names in _TELLING.items() if isinstance(module, kind)), ())
    for name, labels in zip(names, (inputs, outputs), strict=False):
        counted = getattr(module, name)
        if (counted[0] if isinstance(counted, tuple) else counted) == len(labels):
            walk.count_in((path, name), labels, node)
