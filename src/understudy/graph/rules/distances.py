"""What compares tensors over their channels: distances, similarities, and forms of two inputs.

A distance is over the channels that stay, as a norm is.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from understudy.graph.channels import Labelled, ParameterPlan, ParameterUse, Work
from understudy.graph.nodes import describe
from understudy.graph.rules.pointwise import meet
from understudy.graph.rules.spatial import reduce
from understudy.graph.rules.standardised import layer_of
from understudy.graph.rules.tables import for_calls, for_modules
from understudy.graph.rules.weights import cut
from understudy.graph.walk import Walk


@for_calls(F.pairwise_distance, torch.pairwise_distance)
def pairwise_distance(walk: Walk, node: fx.Node, x1: Labelled, x2: Labelled, *rest: Any, **named: Any) -> Any:
    """As a norm of the difference."""
    keepdim = named.get("keepdim", rest[2] if len(rest) > 2 else False)
    return reduce(walk, node, meet(walk, node, x1, x2), -1, keepdim)


@for_calls(F.cosine_similarity, torch.cosine_similarity)
def cosine_similarity(walk: Walk, node: fx.Node, x1: Labelled, x2: Labelled, dim: int = 1, eps: Any = 0) -> Any:
    """As a norm, over one dimension."""
    return reduce(walk, node, meet(walk, node, x1, x2), dim)


@for_calls(torch.linalg.vecdot)
def products_of_vectors(walk: Walk, node: fx.Node, x: Labelled, y: Labelled, *, dim: int = -1) -> Any:
    """As a sum of products, over one dimension."""
    return reduce(walk, node, meet(walk, node, x, y), dim)


@for_modules(nn.PairwiseDistance, nn.CosineSimilarity, states=True)
def comparison(walk: Walk, node: fx.Node, module: Any, x1: Labelled, x2: Labelled) -> Any:
    """As the functions."""
    dim, keepdim = (module.dim, False) if isinstance(module, nn.CosineSimilarity) else (-1, module.keepdim)
    return reduce(walk, node, meet(walk, node, x1, x2), dim, keepdim)


@for_calls(F.mse_loss, F.l1_loss, F.smooth_l1_loss, F.huber_loss)
def loss(walk: Walk, node: fx.Node, input: Labelled, target: Labelled, *rest: Any, **named: Any) -> Any:
    """Element by element, and the mean or the sum of that over all channels that stay."""
    over = "" if rest else "mean"  # arguments that are not named stand at other places in each of them
    return _lost(walk, node, input, target, named.get("reduction", over), named.get("weight"))


@for_modules(nn.MSELoss, nn.L1Loss, nn.SmoothL1Loss, nn.HuberLoss, states=True)
def loss_module(walk: Walk, node: fx.Node, module: Any, input: Labelled, target: Labelled) -> Any:
    """As the functions."""
    return _lost(walk, node, input, target, module.reduction, None)


def _lost(walk: Walk, node: fx.Node, x: Labelled, target: Labelled, over: str, weight: Any) -> Any:
    if weight is not None or not over or x.shape != target.shape or len(x.varying) > 1 or x.varying != target.varying:
        args, kwargs = walk.value_of((node.args, node.kwargs))
        return walk.give_up(node, args, kwargs, f"no rule for {describe(node)} with these arguments")
    found = meet(walk, node, x, target)
    if over == "none":
        return found
    walk.part.statistic = found.varying or None
    return Labelled.fixed(())


@for_calls(torch.cdist, parameters=True)
def cdist(walk: Walk, node: fx.Node, x1: Any, x2: Any, *args: Any, **kwargs: Any) -> Any:
    """Distances to the rows of a parameter (R, C) are channels, as the outputs of a layer; others have none."""
    if type(x1) is not ParameterUse and type(x2) is ParameterUse and len(x2.shape) == 2 and not x2.beside:
        inputs, rows = walk.channels(x1, -1, node), walk.emit(layer_of(x2), x2.shape[0])
        cut(walk, node, x2, (rows, inputs))
        walk.part.statistic = (-1,)
        return Labelled.along((*x1.shape[:-1], len(rows)), len(x1.shape) - 1, rows)
    x1, x2 = (walk.as_tensor(x, node) for x in (x1, x2))
    if any(d < len(x.shape) - 1 for x in (x1, x2) for d in x.varying) or x1.is_fixed != x2.is_fixed:
        return walk.give_up(node, (x1, x2, *args), kwargs, "cdist mixes these channels with others")
    walk.tie(walk.channels(x1, -1, node), walk.channels(x2, -1, node), node)
    walk.part.statistic = (-1,)
    return Labelled.fixed(walk.outcome(node, (x1, x2, *args), kwargs).shape)


@for_modules(nn.Bilinear, states=True)
def bilinear(walk: Walk, node: fx.Node, module: Any, input1: Labelled, input2: Labelled) -> Labelled:
    """Reads the features of two inputs, emits new ones."""
    name = str(node.target)
    first, second = walk.channels(input1, -1, node), walk.channels(input2, -1, node)
    outputs = walk.emit(name, module.out_features)
    walk.parameter(f"{name}.weight", ParameterPlan((outputs, first, second)), node)
    if module.bias is not None:
        walk.parameter(f"{name}.bias", ParameterPlan((outputs,)), node)
    counts = {"in1_features": first, "in2_features": second, "out_features": outputs}
    for number, labels in counts.items():
        walk.count_in((name, number), labels, node)
    walk.part.work.append(Work(name, math.prod(input1.shape[:-1]), (outputs, first, second)))
    return Labelled.along(input1.shape, len(input1.shape) - 1, outputs)
