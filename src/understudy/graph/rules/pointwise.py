"""Element by element: operands that meet keep the same channels."""

from __future__ import annotations

import functools
import operator
from dataclasses import replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import fx, nn

from understudy.graph.channels import FIXED, Arranged, Labelled, Labels, ParameterPlan, ParameterUse, Statistic
from understudy.graph.copies import tensor_at
from understudy.graph.nodes import describe, is_in_place
from understudy.graph.rules.tables import for_calls, for_modules
from understudy.graph.rules.weights import CHANGING, arranged, combined, is_list, is_weight, overwritten
from understudy.graph.walk import Walk


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
    *(nn.FeatureAlphaDropout, nn.RReLU, nn.Threshold, nn.Hardshrink, nn.Softshrink, nn.Tanhshrink),
)
def elementwise_module(walk: Walk, node: fx.Node, module: nn.Module, x: Labelled) -> Labelled:
    """Each element by itself."""
    return x


# As functions of torch, as methods, and as methods that overwrite, whichever of them there are.
_NAMES = (
    *("absolute", "acos", "acosh", "asin", "asinh", "atan", "atan2", "atanh", "cosh", "sinh", "tan", "sinc"),
    *("arccos", "arccosh", "arcsin", "arcsinh", "arctan", "arctan2", "arctanh", "ldexp", "nextafter", "i0"),
    *("exp", "exp2", "expm1", "log", "log10", "log1p", "log2", "logit", "erfc", "erfinv", "lgamma", "digamma"),
    *("abs", "neg", "negative", "positive", "reciprocal", "sqrt", "rsqrt", "square", "sign", "sgn", "signbit"),
    *("ceil", "floor", "round", "trunc", "fix", "frac", "fmod", "remainder", "floor_divide", "nan_to_num"),
    *("clip", "clamp_max", "multiply", "divide", "subtract", "true_divide", "float_power", "hypot", "copysign"),
    *("maximum", "minimum", "fmax", "fmin", "logaddexp", "logaddexp2", "xlogy", "heaviside", "where", "masked_fill"),
    *("eq", "ne", "ge", "gt", "le", "lt", "not_equal", "greater", "greater_equal", "less", "less_equal", "isclose"),
    *("logical_and", "logical_not", "logical_or", "logical_xor", "bitwise_and", "bitwise_not", "bitwise_or"),
    *("bitwise_xor", "bitwise_left_shift", "bitwise_right_shift", "isposinf", "isneginf", "isreal", "short", "byte"),
    *("isnan", "isinf", "isfinite", "conj", "conj_physical", "resolve_conj", "resolve_neg", "real", "imag", "angle"),
    *("complex", "polar", "bool", "int", "long", "cfloat", "cdouble", "cpu", "detach"),
    *("hardshrink", "deg2rad", "rad2deg", "lerp", "addcmul", "addcdiv", "selu", "celu", "rrelu", "erf", "sin", "cos"),
)
_NAMED = [
    target
    for name in _NAMES
    for target in (getattr(torch, name, None), name, f"{name}_")
    if target is not None and (not isinstance(target, str) or hasattr(torch.Tensor, target))
]
_OPERATORS = [
    getattr(operator, name)
    for name in ("gt", "ge", "lt", "le", "eq", "ne", "and_", "or_", "xor", "invert", "mod", "floordiv", "abs", "ipow")
]


@for_calls(
    *_NAMED,
    *_OPERATORS,
    *(F.hardshrink, F.softshrink, F.tanhshrink, F.rrelu, F.relu_, F.elu_, F.selu_, F.celu_, F.leaky_relu_, F.hardtanh_),
    *(operator.add, operator.sub, operator.mul, operator.truediv, operator.neg, operator.pow),
    *(operator.iadd, operator.isub, operator.imul, operator.itruediv),
    *(torch.add, torch.sub, torch.mul, torch.div, torch.neg, torch.pow, torch.exp, torch.sqrt, torch.abs),
    *(torch.relu, torch.sigmoid, torch.tanh, torch.clamp, torch.maximum, torch.minimum, torch.erf, torch.rsqrt),
    *(F.relu, F.relu6, F.leaky_relu, F.elu, F.selu, F.gelu, F.silu, F.mish, F.sigmoid, F.tanh, F.softplus),
    *(F.hardsigmoid, F.hardswish, F.hardtanh, F.logsigmoid, F.dropout, F.dropout2d, F.dropout3d, F.alpha_dropout),
    *("add", "sub", "mul", "div", "neg", "pow", "exp", "sqrt", "abs", "relu", "sigmoid", "tanh", "clamp"),
    *("add_", "sub_", "mul_", "div_", "relu_", "sigmoid_", "tanh_", "clamp_", "erf", "rsqrt"),
    *("contiguous", "clone", "detach", "float", "half", "double", "type"),
    *(torch.square, torch.log, torch.sin, torch.cos, torch.where, torch.clone),
    *(torch.zeros_like, torch.ones_like, torch.full_like, torch.empty_like),
    *(torch.addcmul, torch.addcdiv, torch.lerp, "addcmul", "addcdiv", "lerp"),
    *("square", "log", "sin", "cos", "pow_", "hardswish", "softplus", "masked_fill", "bfloat16", "requires_grad_"),
    *(F.threshold, F.softsign, F.dropout1d, F.feature_alpha_dropout, F.celu, torch.clamp_min, "clamp_min", "clamp_max"),
    # These multiply each example, or each example's tensor, by one random number.
    "torchvision.ops.stochastic_depth.stochastic_depth",
    *(torch.special.expit, torch.special.erf, torch.special.xlogy, torch.dropout, torch.rsub),
    *(torch.special.log1p, torch.special.expm1, torch.special.exp2, torch.special.logit, torch.special.erfc),
    *(torch.special.ndtr, torch.special.log_ndtr, torch.special.entr, torch.special.sinc, torch.special.xlog1py),
    torch.fake_quantize_per_tensor_affine,
    arranged=True,
)
def elementwise(walk: Walk, node: fx.Node, *args: Any, **kwargs: Any) -> Any:
    """Operands that meet element by element keep the same channels; broadcasting ones follow.

    A weight of several dimensions is cut behind it as it would be before.
    """
    given = [v for v in (*args, *kwargs.values()) if isinstance(v, Labelled | ParameterUse)]
    weight = overwritten(walk, node, given) if is_in_place(node) else combined(walk, node, given)
    if weight is not None:
        return weight
    tensors = [v for v in given if isinstance(v, Labelled)]
    operands = [v if isinstance(v, Labelled) else _beside(walk, node, v, tensors) for v in given]
    result = operands[0]
    for other in operands[1:]:
        result = meet(walk, node, result, other)
    return result


def _beside(walk: Walk, node: fx.Node, use: ParameterUse, tensors: list[Labelled]) -> Labelled:
    """Return a parameter as a tensor: a table of positions has its channels where the tensor that it meets has them."""
    own = use.dims if isinstance(use, Arranged) else range(len(use.shape))
    last, wide = len(use.shape), [d for d, size in enumerate(use.shape) if size > 1 and own[d] is not None]
    along = {d - len(tensor.shape) for tensor in tensors for d in tensor.varying}
    same = [d for d in wide if d - last in along]
    if not tensors and len(wide) == 2 and wide[0] == 0 and is_list(node):
        return walk.as_tensor(use, node, wide[1])
    # Where all that it meets has a single element, it makes channels: each feature of a table as a token, say.
    made = [d for d in wide if all(len(t.shape) >= last - d and t.shape[d - last] == 1 for t in tensors)]
    if tensors and not along and len(wide) > len(made) == 1 and _learns(walk, use.name):
        return walk.as_tensor(use, node, made[0])
    return walk.as_tensor(use, node, same[0] if len(wide) > 1 and len(same) == len(along) == 1 else None)


def _learns(walk: Walk, name: str) -> bool:
    return isinstance(tensor_at(walk.trace.root, name), nn.Parameter)


@for_calls("to", "type_as", arranged=True)
def cast(walk: Walk, node: fx.Node, x: Labelled | ParameterUse, *args: Any, **kwargs: Any) -> Any:
    """Of another tensor it takes the type and the device, and nothing of its channels."""
    return x if is_weight(walk, node, x) else arranged(walk, node, x)


CHANGING += [elementwise, cast]


@for_calls(torch.bucketize, parameters=True)
def bucketize(walk: Walk, node: fx.Node, input: Any, boundaries: Any, **more: Any) -> Any:
    """Each element by itself, between limits that have no channels."""
    return _between(walk, node, input, boundaries, more)


@for_calls(torch.searchsorted, parameters=True)
def searchsorted(walk: Walk, node: fx.Node, sorted_sequence: Any, input: Any, **more: Any) -> Any:
    """As `bucketize`, where the limits are the same for all."""
    return _between(walk, node, input, sorted_sequence, more)


def _between(walk: Walk, node: fx.Node, x: Any, limits: Any, more: Any) -> Any:
    x, single = walk.as_tensor(x, node) if isinstance(x, ParameterUse) else x, len(limits.shape) == 1
    if isinstance(limits, ParameterUse):
        walk.parameter(limits.name, ParameterPlan(limits.whole), node)
        limits = Labelled.fixed(limits.shape)
    if not isinstance(x, Labelled) or not limits.is_fixed or not (single or x.is_fixed):
        return walk.give_up(node, (x, limits), more, f"no rule for {describe(node)} with these arguments")
    return x


@for_calls(F.normalize, parameters=True)
def normalize(walk: Walk, node: fx.Node, input: Any, p: float = 2.0, dim: Any = 1, *args: Any, **kwargs: Any) -> Any:
    """Of length 1 along a dimension; along channels that is the length of those that stay."""
    weighs = type(input) is ParameterUse and is_weight(walk, node, input)
    x = input if weighs else walk.as_tensor(input, node)
    if not isinstance(dim, int):
        return walk.give_up(node, (x, p, dim), kwargs, "normalize runs over these channels")
    dim %= len(x.shape)
    if weighs or (isinstance(x, Labelled) and x.varying == (dim,)):
        walk.part.statistic = (dim,)
    return x if weighs else _mixing(walk, node, x, dim)


CHANGING.append(normalize)


@for_calls(
    *(torch.softmax, torch.log_softmax, F.softmax, F.log_softmax, F.softmin, "softmax", "log_softmax"),
    *(torch.special.softmax, torch.special.log_softmax),
)
def over_one_dimension(walk: Walk, node: fx.Node, x: Labelled, *args: Any, **kwargs: Any) -> Any:
    """What mixes elements along a dimension; over channels it freezes them."""
    return _mixing(walk, node, x, node.kwargs.get("dim", args[:1]))


@for_modules(nn.Softmax, nn.LogSoftmax, nn.Softmin, nn.Softmax2d)
def softmax_module(walk: Walk, node: fx.Node, module: Any, x: Labelled) -> Any:
    """As the functions."""
    return _mixing(walk, node, x, -3 if isinstance(module, nn.Softmax2d) else module.dim)


def _mixing(walk: Walk, node: fx.Node, x: Labelled, dim: Any) -> Labelled:
    dim = dim[0] if isinstance(dim, tuple) and dim else dim
    if walk.part.statistic is None and isinstance(dim, int) and len(x.varying) > 1 and dim % len(x.shape) in x.varying:
        # Channels of several dimensions: what it runs over stays or goes together.
        walk.bundle(np.moveaxis(x.labels, dim, -1).reshape(-1, x.labels.shape[dim]), node)
    elif walk.part.statistic is None and (not isinstance(dim, int) or dim % len(x.shape) in x.varying):
        walk.freeze(x.labels, f"{describe(node)} runs over these channels", node)
        return Labelled.fixed(x.shape)
    return x


@for_calls(torch.broadcast_tensors)
def broadcast_tensors(walk: Walk, node: fx.Node, *tensors: Labelled) -> tuple[Labelled, ...]:
    """Each takes on the channels of all."""
    return (functools.reduce(functools.partial(meet, walk, node), tensors),) * len(tensors)


@for_calls("expand_as", parameters=True)
def expand_as(walk: Walk, node: fx.Node, x: Any, other: Any) -> Labelled | Statistic:
    """Takes on another's shape, and its channels where it had a single element; a statistic meets its weight so."""
    if isinstance(x, Statistic) and isinstance(other, ParameterUse) and (x.name, x.of) == (other.name, other.shape):
        return replace(x, shape=other.shape)
    x, other = (walk.as_tensor(v, node) for v in (x, other))
    return Labelled(other.shape, meet(walk, node, x, other).labels)


CHANGING.append(expand_as)


def meet(walk: Walk, node: fx.Node, a: Labelled, b: Labelled) -> Labelled:
    """Return what two tensors that meet element by element become, and tie their channels."""
    rank = max(len(a.shape), len(b.shape))
    a, b = _one_dimension(walk, node, a, b) if len(a.shape) == len(b.shape) else (a, b)
    a, b = _with_rank(a, rank), _with_rank(b, rank)
    a, b = _freeze_single(walk, node, a, b), _freeze_single(walk, node, b, a)
    shape = np.broadcast_shapes(a.shape, b.shape)
    for x, other in ((a, b), (b, a)):
        if other.is_fixed and any(other.shape[d] == x.shape[d] > 1 for d in x.varying):
            walk.freeze(x.labels, f"{describe(node)} joins it with a tensor of fixed size", node)
    outline = np.broadcast_shapes(a.labels.shape, b.labels.shape)
    left, right = np.broadcast_to(a.labels, outline), np.broadcast_to(b.labels, outline)
    both = (left != FIXED) & (right != FIXED)
    _freeze_half_fixed(walk, node, (a, left), (b, right))
    labels = np.where(left == FIXED, right, left)
    if both.any():
        labels[both] = walk.tie(left[both], right[both], node)
    return Labelled(shape, labels)


def _one_dimension(walk: Walk, node: fx.Node, *sides: Labelled) -> list[Labelled]:
    """Return two tensors of which only one has channels where these would be of two dimensions: that with the most.

    A tensor that is the same for all examples, such as a table of angles, is left to what it is made of.
    """
    places, own = [x.varying for x in sides], all(x.shape[0] == walk.trace.batch > 1 for x in sides)
    if not own or places[0] == places[1] or any(len(place) != 1 for place in places):
        return [*sides]
    most = sorted(sides, key=lambda x: -x.labels.size)
    dims = [x.varying[0] for x in most]
    taken = 1 if walk.choose(node, dims, most[0].labels) == dims[1] else 0
    if taken:
        walk.choose(node, dims, most[1].labels)
    walk.freeze(most[1 - taken].labels, f"{describe(node)} joins it with channels of another dimension", node)
    return [x if x is most[taken] else Labelled.fixed(x.shape) for x in sides]


def _freeze_single(walk: Walk, node: fx.Node, x: Labelled, other: Labelled) -> Labelled:
    """Return a tensor that is a single channel, such as a gate that several others meet, without it: it stays."""
    if x.varying or x.is_fixed or not other.varying:
        return x
    walk.freeze(x.labels, f"{describe(node)} joins it with several other channels", node)
    return Labelled.fixed(x.shape)


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
