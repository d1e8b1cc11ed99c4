"""Parameters that the forward pass computes with before it multiplies by them: weights, and tables.

A weight may be masked, scaled or standardised in the forward pass itself: what it meets element by element is cut as it
is, and a statistic of it is over what stays.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import fx, nn

from understudy.graph.channels import (
    Arranged,
    Labelled,
    Labels,
    Member,
    ParameterPlan,
    ParameterUse,
    Product,
    Rows,
    Statistic,
    Turned,
    Work,
)
from understudy.graph.copies import tensor_at
from understudy.graph.nodes import describe, each_once, is_in_place
from understudy.graph.registry import CALL_RULES
from understudy.graph.told import tell_layer
from understudy.graph.walk import Walk

_MULTIPLYING = (
    *(F.linear, F.conv1d, F.conv2d, F.conv3d, torch.einsum, torch.addmm),
    *(F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d),
    *(torch.matmul, torch.mm, torch.bmm, torch.baddbmm, operator.matmul, "matmul", "mm", "bmm"),
)
_READ = ("shape", "dtype", "device", "ndim")  # what else may be asked of a weight
CHANGING: list[Any] = []  # rules that change elements or exchange dimensions of a weight, or take a statistic of it


def is_only_multiplied(node: fx.Node) -> bool:
    """Return whether all that reads a tensor multiplies by it, as a layer does by its weight, or changes elements."""

    def ends(user: fx.Node) -> bool:
        return user.target in _MULTIPLYING or is_overwritten_weight(user) or asks(user)

    def goes_on(made: fx.Node, user: fx.Node) -> bool:
        member = user.target is operator.getitem and isinstance(made.meta["value"], tuple)  # of torch.var_mean
        if member or are_rows(user) or is_spread(user) or _takes_member(user):
            return True
        turns = user.target is getattr and user.args[1] in ("T", "mT")
        changes = user.op != "call_module" and (turns or CALL_RULES.get(user.target) in CHANGING)
        return changes and not is_in_place(user) and all(map(is_of_parameters, user.all_input_nodes))

    for made in each_once([node], lambda made: [user for user in made.users if not ends(user)]):
        known = all(ends(user) or goes_on(made, user) for user in made.users)
        if not known or all(map(asks, made.users)):
            return False
    return True


def _takes_member(node: fx.Node) -> bool:
    """Return whether a node takes one of several weights that a parameter holds, `self.weight[i]` or `[i][j]`."""
    of, key = node.args if node.target is operator.getitem else (None, None)
    known = isinstance(of, fx.Node) and (of.op == "get_attr" or _takes_member(of))
    places = key if isinstance(key, tuple) else (key,)
    return known and all(type(place) is int for place in places) and len(_sizes(node)[1]) > 1


def member(walk: Walk, node: fx.Node, x: Any) -> Member | None:
    """Return one of several weights that a parameter holds, None where it is anything else."""
    if type(x) not in (ParameterUse, Member) or x.beside or not _takes_member(node) or not is_weight(walk, node, x):
        return None
    shape = _sizes(node)[1]
    return Member(x.name, shape, lead=x.whole[: len(x.whole) - len(shape)])


_JOINING = ("view", "reshape", torch.reshape, "flatten", torch.flatten)
_OF_ROWS = ("mean", "std", "var", "std_mean", "var_mean", "sum", "norm", "linalg_vector_norm", "amax", "amin")


def are_rows(node: fx.Node) -> bool:
    """Return whether a weight becomes a matrix (outputs, the rest), of whose rows nothing but statistics are taken."""
    was, now = _sizes(node)
    if node.target not in _JOINING or len(was) < 3 or now != (was[0], math.prod(was[1:])):
        return False
    readers = [user for user in node.users if not asks(user)]
    single = ((was[0],), (was[0], 1))
    return bool(readers) and all(describe(u) in _OF_ROWS and _sizes(u) in [(now, s) for s in single] for u in readers)


def is_spread(node: fx.Node) -> bool:
    """Return whether a statistic of each row gets a dimension for each that the weight has behind the first."""
    was, now = _sizes(node)
    if was[:1] != now[:1] or set(was[1:]) | set(now[1:]) != {1} or len(now) <= len(was):
        return False
    if node.target is operator.getitem:
        return node.args[1] == (slice(None), *(None for _ in now[1:]))
    sizes: Any = node.args[1:] if node.target in ("view", "reshape") else ()
    sizes = sizes[0] if sizes and isinstance(sizes[0], tuple | list) else sizes
    return bool(sizes) and (isinstance(sizes[0], fx.Node) or sizes[0] == -1)  # a written number would stay


def _sizes(node: fx.Node) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the shapes of what a node first reads and of what it gives, or of the first of several tensors."""
    near = node.all_input_nodes[:1]
    values = (n.meta["value"] for n in (near[0] if near else node, node))
    was, now = (getattr(v[0] if isinstance(v, tuple) and v else v, "shape", ()) for v in values)
    return tuple(was), tuple(now)


def asks(user: fx.Node) -> bool:
    """Return whether a node reads the size, the type or the place of a tensor, none of its elements."""
    return describe(user) == "size" or (user.target is getattr and user.args[1] in _READ)


def is_only_matrices(node: fx.Node) -> bool:
    """Return whether all that reads matrices, one of each row, multiplies the rows by them, perhaps transposed."""

    def takes(user: fx.Node) -> bool:
        if user.target in (torch.bmm, "bmm", torch.matmul, "matmul", operator.matmul):
            return True
        flips = user.target in (torch.transpose, "transpose") or (user.target is getattr and user.args[1] == "mT")
        return flips and {d % 3 for d in user.args[1:] if isinstance(d, int)} <= {1, 2} and is_only_matrices(user)

    return bool(node.users) and all(map(takes, node.users))


def is_overwritten_weight(node: fx.Node) -> bool:
    """Return whether a node is a parameter's values, of which the forward pass does nothing but overwrite them."""
    values = node.target is getattr and node.args[1] == "data" and node.args[0].op == "get_attr"  # type: ignore[union-attr]
    return values and bool(node.users) and all(is_in_place(user) and user.args[0] is node for user in node.users)


def is_of_parameters(node: fx.Node) -> bool:
    """Return whether nothing but parameters and buffers takes part in what a node is, but for its type and device."""

    def near(made: fx.Node) -> list[fx.Node]:
        return [] if made.target is getattr and made.args[1] in ("dtype", "device") else made.all_input_nodes

    def may(made: fx.Node) -> bool:
        return made.op == "get_attr" or (made.op in ("call_function", "call_method") and bool(made.all_input_nodes))

    return all(map(may, each_once([node], near)))


def is_table(walk: Walk, node: fx.Node, x: Any) -> bool:
    """Return whether it is a parameter of several dimensions, of which what it meets says where its channels are."""
    known = isinstance(x, ParameterUse) and type(x) in (ParameterUse, Arranged) and x.rows is None
    if not known or walk.trace.are_numbers(x.name) or is_in_place(node):
        return False
    return sum(size > 1 for size in x.whole) > 1 and not is_list(node)


def arranged(walk: Walk, node: fx.Node, x: Any) -> Labelled | Arranged:
    """Return a tensor, or a parameter of which it is not yet said where its channels are."""
    if isinstance(x, Labelled | Arranged):
        return x
    if not is_table(walk, node, x):
        return walk.as_tensor(x, node)
    return Arranged(x.name, x.shape, dims=tuple(range(len(x.shape))))


def is_weight(walk: Walk, node: fx.Node, x: Any) -> bool:
    """Return whether it is a parameter of which sums of products, and they alone, make channels."""
    if not isinstance(x, ParameterUse) or isinstance(x, Arranged) or x.rows is not None:
        return False
    if walk.trace.are_numbers(x.name) or is_in_place(node):
        return False
    return (len(x.shape) > 1 or isinstance(x, Statistic)) and is_only_multiplied(node)


def is_list(node: fx.Node) -> bool:
    """Return whether members along the first dimension are taken one by one, each as a tensor of its own."""
    count = node.meta["value"].shape[0]

    def takes(user: fx.Node) -> bool:
        if user.target is operator.getitem:
            return user.args[0] is node and isinstance(user.args[1], int)
        shaped = user.op == "call_method" and user.target in ("view", "reshape", "to", "type_as")
        return shaped and user.args[0] is node and user.meta["value"].shape[0] == count and is_list(user)

    return bool(node.users) and all(map(takes, node.users))


def rows(walk: Walk, node: fx.Node, x: Any) -> Rows | None:
    """Return a weight as the matrix that a reshape makes of it for statistics of its rows, None where it is none."""
    if type(x) is not ParameterUse or not are_rows(node) or not is_weight(walk, node, x):
        return None
    sizes: Any = () if "flatten" in describe(node) else node.args[1:]
    listed = bool(sizes) and isinstance(sizes[0], tuple | list)
    sizes = sizes[0] if listed else sizes
    if any(not isinstance(size, fx.Node) and size != -1 for size in sizes):
        return None  # a written number would stay
    cut = walk.known.get(x.name) or walk.cuts.get(x.name)
    if sizes and isinstance(sizes[0], fx.Node) and cut is not None and isinstance(cut.dims[0], np.ndarray):
        walk.sized((1, 0) if listed else (1,), cut.dims[0])
    return Rows(x.name, node.meta["value"].shape, beside=x.beside, of=x.shape)


def is_kernel(node: fx.Node) -> bool:
    """Return whether a tensor is nothing but the weight of convolutions."""

    def weight_of(user: fx.Node) -> Any:
        if user.target not in (F.conv1d, F.conv2d, F.conv3d):
            return None
        return user.args[1] if len(user.args) > 1 else user.kwargs.get("weight")

    return bool(node.users) and all(weight_of(user) is node for user in node.users)


def kernel(walk: Walk, node: fx.Node, x: Any) -> Any:
    """Return a buffer of one kernel that is about to be repeated for each channel as a tensor that has none itself."""
    learned = isinstance(x, ParameterUse) and isinstance(tensor_at(walk.trace.root, x.name), nn.Parameter)
    if type(x) is not ParameterUse or learned or x.shape[:1] != (1,) or not is_kernel(node):
        return x
    walk.parameter(x.name, ParameterPlan(x.shape), node)
    return Labelled.fixed(x.shape)


def spread(node: fx.Node, x: Any) -> Statistic | None:
    """Return a statistic of each row in the shape in which it meets the weight, None where it is anything else."""
    known = isinstance(x, Statistic) and is_spread(node) and len(node.meta["value"].shape) == len(x.of)
    return replace(x, shape=tuple(node.meta["value"].shape)) if known else None


def combined(walk: Walk, node: fx.Node, given: list[Any]) -> ParameterUse | None:
    """Return the weight or table that operands become element by element, None where they are tensors."""
    shape = node.meta["value"].shape
    whole = [v for v in given if isinstance(v, ParameterUse) and v.shape == shape]
    held = dict(walk.trace.root.named_parameters()) if len(whole) > 1 else {}
    whole.sort(key=lambda v: isinstance(v, Product))  # a change of low rank comes to the weight that it changes
    first = next((v for v in whole if v.name in held), whole[0] if whole else None)
    others = [v for v in given if v is not first]
    if first is None:
        return None
    single = all(isinstance(v, ParameterUse) and math.prod(v.shape) == 1 for v in others)
    if is_weight(walk, node, first):
        if not single and not (is_of_parameters(node) and all(_fits(walk, first, v) for v in others)):
            return None
        found = dict.fromkeys(part for v in others for part in _alone(v))  # each once, though weights fork and join
        for v in found:
            if isinstance(v, ParameterUse) and not isinstance(v, Statistic) and math.prod(v.shape) == 1:
                walk.as_tensor(v, node)
        wide = (v for v in found if math.prod(v.shape) > 1)
        return replace(first, beside=tuple(dict.fromkeys((*first.beside, *wide))))
    if not single or not is_table(walk, node, first):
        return None
    for scale in others:
        walk.as_tensor(scale, node)
    return arranged(walk, node, first)  # type: ignore[return-value]


def _alone(value: Any) -> tuple[Any, ...]:
    """Return a weight or tensor without what it meets, and that."""
    return (replace(value, beside=()), *value.beside) if isinstance(value, ParameterUse) else (value,)


def overwritten(walk: Walk, node: fx.Node, given: list[Any]) -> ParameterUse | None:
    """Return the weight whose values meet others in place, `self.weight.data *= self.mask`, None where that is none.

    From here on it is a weight beside these.
    """
    values, (first, *others) = node.args[0], given
    if not isinstance(values, fx.Node) or not is_overwritten_weight(values) or type(first) is not ParameterUse:
        return None
    held: Any = values.args[0]
    if node.users or not is_weight(walk, held, first):
        return None
    if not all(type(v) is ParameterUse and _fits(walk, first, v) for v in others):
        return None
    walk.plan.values[held] = replace(first, beside=(*first.beside, *others))
    return first


def _fits(walk: Walk, weight: ParameterUse, other: Any) -> bool:
    """Return whether what a weight meets can be cut as it is."""
    pairs = zip(reversed(weight.shape), reversed(other.shape), strict=False)
    if len(other.shape) > len(weight.shape) or any(size not in (1, whole) for whole, size in pairs):
        return False
    if isinstance(other, Labelled):
        return len(other.varying) < 2
    if isinstance(other, Statistic):
        return other.name == weight.name and len(other.shape) in (0, len(other.of))
    known = type(other) in (ParameterUse, Turned, Product) and other.rows is None
    return known and not walk.trace.are_numbers(other.name)


def cut(walk: Walk, node: fx.Node, weight: ParameterUse, dims: tuple[Labels | int, ...]) -> None:
    """Let a weight have these channels along the dimensions that the forward pass sees, and what it meets as well."""
    if isinstance(weight, Product):
        _cut_product(walk, node, weight, dims)
    else:
        held = weight.held(dims)
        walk.parameter(weight.name, ParameterPlan(held), node)
        for dim, labels in enumerate(held):
            if isinstance(labels, np.ndarray):
                tell_layer(walk, weight.name, dim, labels, node)
    for other in weight.beside:
        own = dims[len(dims) - len(other.shape) :]
        if isinstance(other, Product):
            cut(walk, node, other, own)
        elif isinstance(other, Labelled):
            _cut_tensor(walk, node, other, own)
        elif not isinstance(other, Statistic):
            plan = tuple(d if n > 1 else 1 for d, n in zip(own, other.shape, strict=True))
            walk.parameter(other.name, ParameterPlan(other.held(plan)), node)


def multiplied(node: fx.Node, a: Any, b: Any) -> Product | None:
    """Return the weight that the product of two parameters is, None where it is none or several things read it."""
    for use in (a, b):
        if type(use) not in (ParameterUse, Turned) or len(use.shape) != 2 or use.rows is not None or use.beside:
            return None
    if not is_only_multiplied(node) or not _is_used_once(node) or a.shape[1] != b.shape[0]:
        return None
    return Product(a.name, (a.shape[0], b.shape[1]), factors=(a, b))


def made_by_columns(walk: Walk, weight: ParameterUse, name: str) -> str:
    """Return the name of what the columns of a weight make: not that of what its rows make in a tied decoder."""
    if isinstance(weight, Member):
        return f"{weight.name}.T"
    owner = weight.name.rpartition(".")[0]

    def reads_rows(node: fx.Node) -> bool:
        if node.op == "call_module":
            return str(node.target) == owner
        read = node.args[1] if node.target is F.linear and len(node.args) > 1 else None
        return isinstance(read, fx.Node) and read.op == "get_attr" and read.target == weight.name

    return f"{weight.name}.T" if any(map(reads_rows, walk.trace.order)) else name


def _is_used_once(node: fx.Node) -> bool:
    """Return whether a weight that is computed is a part of one weight alone, so that its MACs count once."""
    if len(node.users) != 1:
        return False
    user = next(iter(node.users))
    return not is_of_parameters(user) or _is_used_once(user)


def _cut_product(walk: Walk, node: fx.Node, weight: Product, dims: tuple[Labels | int, ...]) -> None:
    """Cut the rows of the first factor and the columns of the second; what they have in common stays."""
    (left, right), (rows, columns) = weight.factors, dims
    rank = left.shape[1]
    cut(walk, node, left, (rows, rank))
    cut(walk, node, right, (rank, columns))
    factors = tuple(labels for labels in dims if isinstance(labels, np.ndarray))
    sizes = (size for size in dims if isinstance(size, int))
    walk.part.work.append(Work("matmul", math.prod((rank, *sizes)), factors))


def _cut_tensor(walk: Walk, node: fx.Node, x: Labelled, dims: Iterable[Labels | int]) -> None:
    for d, labels in enumerate(dims):
        if isinstance(labels, np.ndarray) and x.shape[d] > 1:
            if x.shape[d] != len(labels):  # what a removal brings
                raise ValueError(f"a weight of {x.shape[d]} channels does not fit {len(labels)}")
            if d in x.varying:
                walk.tie(walk.channels(x, d, node), labels, node)
            else:
                walk.freeze(labels, "their weight meets a tensor of fixed size", node)
        elif d in x.varying:
            walk.freeze(x.labels, "it meets a weight of fixed size", node)


def statistic(walk: Walk, node: fx.Node, x: ParameterUse, dim: Any, keepdim: bool) -> Statistic | None:
    """Return a statistic of a weight over some dimensions, of what stays along them; None where that is none."""
    whole = dim is None or (isinstance(dim, tuple | list) and not dim)
    if isinstance(x, Rows):
        walk.part.statistic = (1,)
        return Statistic(x.name, _sizes(node)[1], beside=x.beside, of=x.of)
    if type(x) not in (ParameterUse, Statistic) or not (keepdim or whole) or not is_weight(walk, node, x):
        return None
    rank = len(x.shape)
    over = range(rank) if whole else [d % rank for d in ([dim] if isinstance(dim, int) else dim)]
    walk.part.statistic = tuple(over)
    return Statistic(x.name, _sizes(node)[1], beside=x.beside, of=x.whole)
