"""Element by element: operands that meet keep the same channels."""

from __future__ import annotations

import operator
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import fx, nn

from understudy.rules.tables import for_calls, for_modules
from understudy.walk import FIXED, Labelled, Labels, ParameterPlan, ParameterUse, Walk, describe


@for_modules(
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


@for_calls(
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
        result = meet(walk, node, result, other)
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


def meet(walk: Walk, node: fx.Node, a: Labelled, b: Labelled) -> Labelled:
    """Return what two tensors that meet element by element become, and tie their channels."""
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
