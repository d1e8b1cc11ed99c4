"""Operation -> how it carries, ties and slices channels.

One function for each kind of operation, registered for the modules, functions and tensor methods that
are of this kind. What is not in the tables freezes what it touches: never guess.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import fx, nn

from understudy.trace import Signature
from understudy.walk import (
    CALL_RULES,
    FIXED,
    MODULE_RULES,
    Attribute,
    Labelled,
    Labels,
    ParameterPlan,
    ParameterUse,
    Rule,
    Walk,
    Work,
    count,
    describe,
)

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


def _for_modules(*classes: type[nn.Module]) -> Callable[[Rule], Rule]:
    def register(rule: Rule) -> Rule:
        MODULE_RULES.update(dict.fromkeys(classes, rule))
        return rule

    return register


def _for_calls(*targets: Any) -> Callable[[Rule], Rule]:
    def register(rule: Rule) -> Rule:
        CALL_RULES.update(dict.fromkeys(targets, rule))
        return rule

    return register


# Layers with parameters


@_for_modules(*_CONVOLUTIONS, *_TRANSPOSED)
def convolution(walk: Walk, node: fx.Node, module: Any, x: Labelled) -> Labelled:
    """Reads channels, emits new ones. A grouped one drops whole groups, inputs and outputs together."""
    name = str(node.target)
    spatial = walk.spatial(node, x)
    inputs, outputs = walk.channels(x, 1, node), walk.emit(name, module.out_channels)
    if module.groups > 1:
        inputs, outputs = _grouped(walk, node, module, inputs, outputs)
    per_group = inputs if module.groups == 1 else module.in_channels // module.groups
    transposed = isinstance(module, _TRANSPOSED)
    kernel_dims = len(module.kernel_size)
    dims = _transposed_dims(module, inputs, outputs) if transposed else (outputs, per_group)
    plan = ParameterPlan((*dims, *module.kernel_size), kernel_of=name, kernel_from=2)
    walk.parameter(f"{name}.weight", plan, node)
    if module.bias is not None:
        walk.parameter(f"{name}.bias", ParameterPlan((outputs,)), node)
    walk.part.attributes += [
        Attribute(name, "in_channels", inputs),
        Attribute(name, "out_channels", outputs),
    ]
    if module.groups > 1:
        walk.part.attributes.append(Attribute(name, "groups", inputs, module.in_channels // module.groups))
    positions = count(x.shape[2:] if transposed else spatial) * x.shape[0]
    factors = (outputs, inputs) if module.groups == 1 else (outputs,)
    constant = positions * (1 if module.groups == 1 else module.in_channels // module.groups)
    walk.part.work.append(Work(name, constant, factors, kernel_of=name, kernel_dims=kernel_dims))
    return Labelled.along((x.shape[0], len(outputs), *spatial), 1, outputs)


def _grouped(walk: Walk, node: fx.Node, module: Any, inputs: Labels, outputs: Labels) -> tuple[Labels, Labels]:
    """Tie each group's inputs to its outputs. A depthwise convolution takes on whatever arrives."""
    if module.groups == module.in_channels == module.out_channels and len(inputs) != len(outputs):
        return inputs, inputs
    rows = np.concatenate([inputs.reshape(module.groups, -1), outputs.reshape(module.groups, -1)], axis=1)
    walk.bundle(rows, node)
    return inputs, outputs


def _transposed_dims(module: Any, inputs: Labels, outputs: Labels) -> tuple[Labels | int, ...]:
    return (inputs, outputs if module.groups == 1 else module.out_channels // module.groups)


@_for_modules(nn.Linear)
def linear(walk: Walk, node: fx.Node, module: Any, x: Labelled) -> Labelled:
    """Reads the last dimension's features, emits new ones."""
    name = str(node.target)
    inputs, outputs = walk.channels(x, -1, node), walk.emit(name, module.out_features)
    walk.parameter(f"{name}.weight", ParameterPlan((outputs, inputs)), node)
    if module.bias is not None:
        walk.parameter(f"{name}.bias", ParameterPlan((outputs,)), node)
    walk.part.attributes += [Attribute(name, "in_features", inputs), Attribute(name, "out_features", outputs)]
    walk.part.work.append(Work(name, count(x.shape[:-1]), (outputs, inputs)))
    return Labelled.along(x.shape, len(x.shape) - 1, outputs)


@_for_modules(
    nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d
)
def norm_per_channel(walk: Walk, node: fx.Node, module: Any, x: Labelled) -> Labelled:
    """Each channel has its own statistics and scale."""
    name = str(node.target)
    labels = walk.channels(x, 1, node)
    for part in ("weight", "bias", "running_mean", "running_var"):
        if getattr(module, part) is not None:
            walk.parameter(f"{name}.{part}", ParameterPlan((labels,)), node)
    walk.part.attributes.append(Attribute(name, "num_features", labels))
    return x


@_for_modules(nn.GroupNorm)
def group_norm(walk: Walk, node: fx.Node, module: Any, x: Labelled) -> Labelled:
    """A group shares statistics, so it stays or goes whole."""
    name = str(node.target)
    labels = walk.channels(x, 1, node)
    per_group = module.num_channels // module.num_groups
    walk.bundle(labels.reshape(-1, per_group), node)
    if module.weight is not None:
        walk.parameter(f"{name}.weight", ParameterPlan((labels,)), node)
        walk.parameter(f"{name}.bias", ParameterPlan((labels,)), node)
    walk.part.attributes += [
        Attribute(name, "num_channels", labels),
        Attribute(name, "num_groups", labels, per_group),
    ]
    return x


@_for_modules(nn.LayerNorm)
def layer_norm(walk: Walk, node: fx.Node, module: Any, x: Labelled) -> Labelled:
    """Statistics over the normalised dimensions change with any channel among them."""
    first = len(x.shape) - len(module.normalized_shape)
    if any(d >= first for d in x.varying):
        walk.freeze(x.labels, "layer norm takes statistics over these channels", node)
    return x


@_for_modules(nn.PReLU)
def prelu(walk: Walk, node: fx.Node, module: Any, x: Labelled) -> Labelled:
    """One slope for all channels, or one for each."""
    if module.num_parameters > 1:
        labels = walk.channels(x, 1, node)
        walk.parameter(f"{node.target}.weight", ParameterPlan((labels,)), node)
        walk.part.attributes.append(Attribute(str(node.target), "num_parameters", labels))
    return x


# Element by element


@_for_modules(
    nn.ReLU,
    nn.ReLU6,
    nn.LeakyReLU,
    nn.ELU,
    nn.SELU,
    nn.CELU,
    nn.GELU,
    nn.SiLU,
    nn.Mish,
    nn.Sigmoid,
    nn.Tanh,
    nn.Softplus,
    nn.Softsign,
    nn.Hardsigmoid,
    nn.Hardswish,
    nn.Hardtanh,
    nn.LogSigmoid,
    nn.Identity,
    nn.Dropout,
    nn.Dropout1d,
    nn.Dropout2d,
    nn.Dropout3d,
    nn.AlphaDropout,
)
def elementwise_module(walk: Walk, node: fx.Node, module: nn.Module, x: Labelled) -> Labelled:
    """Each element by itself."""
    return x


@_for_calls(
    *(operator.add, operator.sub, operator.mul, operator.truediv, operator.neg, operator.pow),
    *(operator.iadd, operator.isub, operator.imul, operator.itruediv),
    *(torch.add, torch.sub, torch.mul, torch.div, torch.neg, torch.pow, torch.exp, torch.sqrt, torch.abs),
    *(torch.relu, torch.sigmoid, torch.tanh, torch.clamp, torch.maximum, torch.minimum, torch.erf, torch.rsqrt),
    *(F.relu, F.relu6, F.leaky_relu, F.elu, F.selu, F.gelu, F.silu, F.mish, F.sigmoid, F.tanh, F.softplus),
    *(F.hardsigmoid, F.hardswish, F.hardtanh, F.logsigmoid, F.dropout, F.dropout2d, F.dropout3d, F.alpha_dropout),
    *("add", "sub", "mul", "div", "neg", "pow", "exp", "sqrt", "abs", "relu", "sigmoid", "tanh", "clamp"),
    *("add_", "sub_", "mul_", "div_", "relu_", "sigmoid_", "tanh_", "clamp_", "erf", "rsqrt"),
    *("contiguous", "clone", "detach", "float", "half", "double", "to", "type", "type_as"),
)
def elementwise(walk: Walk, node: fx.Node, *args: Any, **kwargs: Any) -> Labelled:
    """Operands that meet element by element keep the same channels; broadcasting ones follow."""
    operands = [_as_labelled(walk, node, v) for v in args if isinstance(v, Labelled | ParameterUse)]
    operands += [_as_labelled(walk, node, v) for v in kwargs.values() if isinstance(v, Labelled | ParameterUse)]
    result = operands[0]
    for other in operands[1:]:
        result = _meet(walk, node, result, other)
    return result


def _as_labelled(walk: Walk, node: fx.Node, value: Labelled | ParameterUse) -> Labelled:
    """A parameter with one dimension of several elements has channels there, any other has none."""
    if isinstance(value, Labelled):
        return value
    wide = [d for d, size in enumerate(value.shape) if size > 1]
    if len(wide) != 1:
        return Labelled.fixed(value.shape)
    labels = walk.emit(value.name, value.shape[wide[0]])
    dims = tuple(labels if d == wide[0] else size for d, size in enumerate(value.shape))
    walk.parameter(value.name, ParameterPlan(dims), node)
    return Labelled.along(value.shape, wide[0], labels)


def _meet(walk: Walk, node: fx.Node, a: Labelled, b: Labelled) -> Labelled:
    rank = max(len(a.shape), len(b.shape))
    a, b = _with_rank(a, rank), _with_rank(b, rank)
    shape = np.broadcast_shapes(a.shape, b.shape)
    for x, other in ((a, b), (b, a)):
        opposed = any(other.shape[d] == x.shape[d] > 1 and other.labels.shape[d] == 1 for d in x.varying)
        if opposed and other.is_fixed:
            walk.freeze(x.labels, f"{describe(node)} joins it with a tensor of fixed size", node)
    outline = np.broadcast_shapes(a.labels.shape, b.labels.shape)
    left, right = np.broadcast_to(a.labels, outline), np.broadcast_to(b.labels, outline)
    both = (left != FIXED) & (right != FIXED)
    _freeze_half_fixed(walk, node, (a, left), (b, right))
    labels = np.where(left == FIXED, right, left)
    if both.any():
        labels[both] = walk.tie(left[both], right[both], node)
    return Labelled(shape, labels)


def _freeze_half_fixed(walk: Walk, node: fx.Node, *sides: tuple[Labelled, Labels]) -> None:
    """Where one side has a channel and the other a fixed element of the same dimension, it stays."""
    (a, left), (b, right) = sides
    for x, labels, other, others in ((a, left, b, right), (b, right, a, left)):
        if not other.is_fixed and any(other.labels.shape[d] > 1 for d in x.varying):
            alone = (labels != FIXED) & (others == FIXED)
            if alone.any():
                walk.freeze(labels[alone], f"{describe(node)} joins it with channels of fixed size", node)


def _with_rank(x: Labelled, rank: int) -> Labelled:
    missing = rank - len(x.shape)
    return Labelled((1,) * missing + x.shape, x.labels.reshape((1,) * missing + x.labels.shape))


# Space: every channel by itself


@_for_modules(
    *(nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d),
    *(nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d),
    *(nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d),
    *(nn.LPPool1d, nn.LPPool2d, nn.LPPool3d, nn.Upsample, nn.UpsamplingBilinear2d, nn.UpsamplingNearest2d),
    *(nn.ZeroPad1d, nn.ZeroPad2d, nn.ZeroPad3d, nn.ReflectionPad1d, nn.ReflectionPad2d, nn.ReflectionPad3d),
    *(nn.ReplicationPad1d, nn.ReplicationPad2d, nn.ReplicationPad3d),
    *(nn.ConstantPad1d, nn.ConstantPad2d, nn.ConstantPad3d),
)
def spatial_module(walk: Walk, node: fx.Node, module: nn.Module, x: Labelled) -> Any:
    """Changes sizes behind the channels, each channel by itself."""
    return _spatial(walk, node, x)


@_for_calls(
    *(F.max_pool1d, F.max_pool2d, F.max_pool3d, F.avg_pool1d, F.avg_pool2d, F.avg_pool3d),
    *(F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_avg_pool3d),
    *(F.adaptive_max_pool1d, F.adaptive_max_pool2d, F.adaptive_max_pool3d, F.interpolate),
)
def spatial_call(walk: Walk, node: fx.Node, x: Labelled, *args: Any, **kwargs: Any) -> Any:
    """As `spatial_module`, for functions."""
    return _spatial(walk, node, x)


@_for_calls(F.pad)
def pad(walk: Walk, node: fx.Node, x: Labelled, widths: Sequence[int], *args: Any, **kwargs: Any) -> Any:
    """Padding in space only; padded channels are frozen."""
    if len(widths) > 2 * (len(x.shape) - 2):
        return walk.give_up(node, (x, widths, *args), kwargs, "padding adds channels")
    return _spatial(walk, node, x)


def _spatial(walk: Walk, node: fx.Node, x: Labelled) -> Any:
    if not isinstance(walk.recorded(node), Signature):
        return walk.give_up(node, (x,), {}, f"no rule for {describe(node)} with several results")
    if any(d != 1 for d in x.varying):
        return walk.give_up(node, (x,), {}, f"{describe(node)} mixes channels outside of dimension 1")
    return Labelled((*x.shape[:2], *walk.spatial(node, x)), x.labels)


@_for_calls(torch.mean, torch.sum, torch.amax, torch.amin, "mean", "sum", "amax", "amin")
def reduce(walk: Walk, node: fx.Node, x: Labelled, dim: Any = None, keepdim: bool = False, **kwargs: Any) -> Any:
    """Over space it keeps channels; over channels it freezes them."""
    rank = len(x.shape)
    dims = range(rank) if dim is None else [dim] if isinstance(dim, int) else dim
    reduced = {d % rank for d in dims}
    if reduced & set(x.varying):
        return walk.give_up(node, (x, dim, keepdim), kwargs, f"{describe(node)} runs over these channels")
    kept = [d for d in range(rank) if keepdim or d not in reduced]
    shape = tuple(1 if d in reduced else x.shape[d] for d in kept)
    return Labelled(shape, x.labels.reshape([x.labels.shape[d] for d in kept]))


# Moving elements


@_for_modules(nn.Flatten)
def flatten_module(walk: Walk, node: fx.Node, module: Any, x: Labelled) -> Labelled:
    """As `flatten`."""
    return flatten(walk, node, x, module.start_dim, module.end_dim)


@_for_calls(torch.flatten, "flatten")
def flatten(walk: Walk, node: fx.Node, x: Labelled, start_dim: int = 0, end_dim: int = -1) -> Labelled:
    """Joins dimensions; every element of the new one knows its channel."""
    rank = len(x.shape)
    start, end = start_dim % rank, end_dim % rank
    middle = count(x.shape[start : end + 1])
    return _reshaped(x, (*x.shape[:start], middle, *x.shape[end + 1 :]))


@_for_calls(torch.reshape, "view", "reshape")
def reshape(walk: Walk, node: fx.Node, x: Labelled, *sizes: Any, **kwargs: Any) -> Any:
    """Sizes that the forward pass computes follow the student; those written as numbers do not.

    Channels that end up in a written size are frozen, or, beside a computed one, tied along it.
    """
    if kwargs or not isinstance(x, Labelled) or not _are_sizes(sizes):
        return walk.give_up(node, (x, sizes), kwargs, f"no rule for {describe(node)} with these arguments")
    flat = tuple(sizes[0]) if len(sizes) == 1 and not isinstance(sizes[0], int) else tuple(sizes)
    written = [isinstance(s, int) and s != -1 for s in _written_sizes(node, len(flat))]
    shape = tuple(np.empty(x.shape, dtype=bool).reshape(flat).shape)
    result = _reshaped(x, shape)
    literal = [d for d in result.varying if written[d] and shape[d] > 1]
    if literal and len(literal) == len(result.varying):
        walk.freeze(result.labels, f"{describe(node)} writes their number as {shape[literal[0]]}", node)
    elif len(result.varying) > 1:
        _tie_across(walk, node, result, literal)
    return result


def _are_sizes(sizes: tuple[Any, ...]) -> bool:
    flat = sizes[0] if len(sizes) == 1 and isinstance(sizes[0], list | tuple) else sizes
    return all(isinstance(s, int) for s in flat)


def _written_sizes(node: fx.Node, number: int) -> tuple[Any, ...]:
    """Return the sizes as the graph has them: nodes where they are computed."""
    sizes = node.args[1:] if len(node.args) > 1 else (node.kwargs.get("shape"),)
    if len(sizes) == 1 and isinstance(sizes[0], list | tuple):
        return tuple(sizes[0])
    return tuple(sizes) if len(sizes) == number else (None,) * number


def _tie_across(walk: Walk, node: fx.Node, x: Labelled, literal: list[int]) -> None:
    """Channels that lie in several dimensions can go only by whole slices of the computed one."""
    free = [d for d in x.varying if d not in literal]
    if len(free) != 1:
        walk.freeze(x.labels, f"{describe(node)} spreads them over several computed dimensions", node)
        return
    walk.bundle(np.moveaxis(x.labels, free[0], 0).reshape(x.labels.shape[free[0]], -1), node)


def _reshaped(x: Labelled, shape: tuple[int, ...]) -> Labelled:
    """Return x in another shape; dimensions that both shapes begin or end with are not expanded."""
    front = 0
    while front < min(len(shape), len(x.shape)) and shape[front] == x.shape[front]:
        front += 1
    back = 0
    while back < min(len(shape), len(x.shape)) - front and shape[-1 - back] == x.shape[-1 - back]:
        back += 1
    end = len(x.shape) - back
    outline = (*x.labels.shape[:front], *x.shape[front:end], *x.labels.shape[end:])
    middle = shape[front : len(shape) - back]
    labels = np.broadcast_to(x.labels, outline)
    labels = labels.reshape((*x.labels.shape[:front], *middle, *x.labels.shape[end:]))
    return Labelled(shape, _compressed(labels))


def _compressed(labels: Labels) -> Labels:
    for d, size in enumerate(labels.shape):
        if size > 1:
            first = labels.take([0], axis=d)
            if (labels == first).all():
                labels = first
    return labels


@_for_calls(torch.permute, "permute")
def permute(walk: Walk, node: fx.Node, x: Labelled, *dims: Any) -> Labelled:
    """Channels move with their dimension."""
    order = dims[0] if len(dims) == 1 and not isinstance(dims[0], int) else dims
    order = [d % len(x.shape) for d in order]
    return Labelled(tuple(x.shape[d] for d in order), x.labels.transpose(order))


@_for_calls(torch.transpose, torch.swapaxes, "transpose", "swapaxes")
def transpose(walk: Walk, node: fx.Node, x: Labelled, a: int, b: int) -> Labelled:
    """Channels move with their dimension."""
    order = list(range(len(x.shape)))
    order[a], order[b] = order[b], order[a]
    return permute(walk, node, x, order)


@_for_calls(torch.unsqueeze, "unsqueeze")
def unsqueeze(walk: Walk, node: fx.Node, x: Labelled, dim: int) -> Labelled:
    """A new dimension of size 1."""
    at = dim % (len(x.shape) + 1)
    return Labelled((*x.shape[:at], 1, *x.shape[at:]), np.expand_dims(x.labels, at))


@_for_calls(torch.squeeze, "squeeze")
def squeeze(walk: Walk, node: fx.Node, x: Labelled, dim: Any = None) -> Labelled:
    """Dimensions of size 1 go."""
    rank = len(x.shape)
    dims = range(rank) if dim is None else [dim] if isinstance(dim, int) else dim
    gone = {d % rank for d in dims if x.shape[d] == 1}
    kept = [d for d in range(rank) if d not in gone]
    return Labelled(tuple(x.shape[d] for d in kept), x.labels.reshape([x.labels.shape[d] for d in kept]))


@_for_calls(torch.cat, torch.concat)
def concatenate(walk: Walk, node: fx.Node, tensors: Sequence[Any], dim: int = 0, **kwargs: Any) -> Any:
    """Along channels their labels follow one another; along space the channels meet."""
    dim = kwargs.get("axis", dim)
    parts = [t for t in tensors if isinstance(t, Labelled)]
    if len(parts) != len(tensors):
        return walk.give_up(node, (tensors, dim), {}, "a parameter is concatenated")
    dim %= len(parts[0].shape)
    sizes = list(parts[0].shape)
    sizes[dim] = sum(p.shape[dim] for p in parts)
    across = [any(d != dim for d in p.varying) for p in parts]
    if any(across):
        outlines = [p.labels.take([0], axis=dim) if p.labels.shape[dim] > 1 else p.labels for p in parts]
        slices = [Labelled(tuple(1 if d == dim else s for d, s in enumerate(p.shape)), o)
                  for p, o in zip(parts, outlines, strict=True)]
        if any(dim in p.varying for p in parts):
            return walk.give_up(node, (tensors, dim), {}, "cat joins channels of two dimensions")
        result = slices[0]
        for other in slices[1:]:
            result = _meet(walk, node, result, other)
        return Labelled(tuple(sizes), result.labels)
    expanded = []
    for part in parts:
        outline = list(part.labels.shape)
        outline[dim] = part.shape[dim]
        expanded.append(np.broadcast_to(part.labels, outline))
    return Labelled(tuple(sizes), _compressed_if_fixed(np.concatenate(expanded, axis=dim)))


def _compressed_if_fixed(labels: Labels) -> Labels:
    return labels if (labels != FIXED).any() else _compressed(labels)


@_for_calls(torch.chunk, "chunk")
def chunk(walk: Walk, node: fx.Node, x: Labelled, chunks: int, dim: int = 0) -> Any:
    """Equal parts: the channels at the same place of each part go together, so parts stay equal."""
    dim %= len(x.shape)
    if dim in x.varying and x.shape[dim] % chunks == 0:
        walk.bundle(walk.channels(x, dim, node).reshape(chunks, -1).T, node)
    elif dim in x.varying:
        return walk.give_up(node, (x, chunks, dim), {}, "chunk cuts them into unequal parts")
    size = -(-x.shape[dim] // chunks)
    return tuple(_sliced(x, dim, start, min(start + size, x.shape[dim])) for start in range(0, x.shape[dim], size))


@_for_calls(torch.split, "split")
def split(walk: Walk, node: fx.Node, x: Labelled, sizes: Any, dim: int = 0) -> Any:
    """Parts of written sizes freeze their channels."""
    dim %= len(x.shape)
    if dim in x.varying:
        walk.freeze(x.labels, "split writes the numbers of its parts", node)
    whole = x.shape[dim]
    parts = [min(sizes, whole - at) for at in range(0, whole, sizes)] if isinstance(sizes, int) else sizes
    ends = np.cumsum(parts)
    return tuple(_sliced(x, dim, int(end - part), int(end)) for part, end in zip(parts, ends, strict=True))


def _sliced(x: Labelled, dim: int, start: int, stop: int) -> Labelled:
    sizes = list(x.shape)
    sizes[dim] = stop - start
    index = [slice(None)] * len(sizes)
    if x.labels.shape[dim] > 1:
        index[dim] = slice(start, stop)
    return Labelled(tuple(sizes), x.labels[tuple(index)])


@_for_calls(operator.getitem)
def getitem(walk: Walk, node: fx.Node, x: Any, key: Any) -> Any:
    """Of a tuple or dict: its member. Of a tensor: a slice, which freezes channels that it cuts."""
    if not isinstance(x, Labelled):
        return x[key] if not isinstance(x, ParameterUse) else walk.give_up(node, (x, key), {}, "a parameter is sliced")
    keys = key if isinstance(key, tuple) else (key,)
    plain = all(isinstance(k, int | slice) or k is None or k is Ellipsis for k in keys)
    if not plain:
        return walk.give_up(node, (x, key), {}, "no rule for an index that is a tensor")
    flat = np.broadcast_to(x.labels, x.shape)[key]
    untouched = np.isin(np.unique(x.labels), np.unique(flat)).all() and _whole(x, keys)
    if not untouched:
        walk.freeze(x.labels, "a slice cuts these channels at written places", node)
    return Labelled(flat.shape, _compressed(flat))


def _whole(x: Labelled, keys: tuple[Any, ...]) -> bool:
    """Return whether no dimension with channels is cut."""
    if any(k is None or k is Ellipsis for k in keys):
        return not x.varying or all(k in (None, Ellipsis) or k == slice(None) for k in keys)
    return all(k == slice(None) for d, k in enumerate(keys) if d in x.varying)


# Sizes and facts


@_for_calls("size")
def size(walk: Walk, node: fx.Node, x: Labelled | ParameterUse, dim: int | None = None) -> Any:
    """Plain numbers."""
    return x.shape if dim is None else x.shape[dim]


@_for_calls("dim", "numel", "get_device", "is_floating_point", torch._assert)
def fact(walk: Walk, node: fx.Node, *args: Any, **kwargs: Any) -> Any:
    """What does not depend on channels in a network that can be traced."""
    return walk.recorded(node)


@_for_calls(getattr)
def attribute_of(walk: Walk, node: fx.Node, x: Any, name: str) -> Any:
    """The shape is computed; dtype, device and rank are the teacher's."""
    if name == "shape":
        return x.shape
    if isinstance(walk.recorded(node), Signature):
        return walk.give_up(node, (x, name), {}, f"no rule for the attribute {name}")
    return walk.recorded(node)
