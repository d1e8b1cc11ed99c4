"""Weights that are standardised before a convolution uses them (Qiao et al. 2019, "Micro-Batch Training").

Each output's weights are brought to mean 0 and variance 1 by a batch norm over `weight.reshape(1, outputs, -1)`, so the
statistics are over the inputs that stay, as those of a layer norm are over the channels that stay.
"""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import fx

from understudy.graph.channels import Labelled, ParameterUse, Standardised
from understudy.graph.walk import Walk

_CONVOLUTIONS = (F.conv1d, F.conv2d, F.conv3d)


def is_standardised(node: fx.Node) -> bool:
    """Return whether a reshape of a parameter is the first step of a standardised weight, and nothing else."""
    weight = node.args[0]
    norm = _only_user(node)
    if not isinstance(weight, fx.Node) or weight.op != "get_attr" or norm is None or norm.target is not F.batch_norm:
        return False
    plain = norm.args[0] is node and norm.args[1:3] == (None, None) and norm.kwargs.get("training") is True
    back = _only_user(norm)
    if not plain or back is None or (back.target, back.args) != ("reshape_as", (norm, weight)):
        return False
    conv = _only_user(back)
    first = isinstance(node.args[1], int) and node.args[1] == 1 and len(node.args) == 4 and node.args[3] == -1
    return bool(first and conv is not None and conv.target in _CONVOLUTIONS and conv.args[1] is back)


def _only_user(node: fx.Node) -> fx.Node | None:
    return next(iter(node.users)) if len(node.users) == 1 else None


def begun(walk: Walk, node: fx.Node, weight: ParameterUse, outputs: Any) -> Standardised:
    """Return a weight (O, I, ...) as (1, O, the rest), where the code says how many outputs there are."""
    labels = walk.emit(layer_of(weight), weight.shape[0])
    if not walk.follow(outputs, labels, node):
        walk.write(labels, f"reshape writes their number as {weight.shape[0]}", node)
    walk.sized((2,), labels)
    return Standardised(weight.name, walk.recorded(node).shape)


def normed(walk: Walk, node: fx.Node, weight: Standardised, scale: Any) -> Standardised:
    """Each output's weights by themselves; a scale has one element for each."""
    if isinstance(scale, Labelled):
        labels = walk.emit(layer_of(weight), weight.shape[1])
        walk.tie(walk.channels(scale, 0, node), labels, node)
    return weight


def ended(weight: Standardised, like: ParameterUse) -> ParameterUse:
    """Return the weight in its own shape again."""
    return ParameterUse(like.name, like.shape)


def layer_of(weight: ParameterUse) -> str:
    """Return the name of the layer that a weight makes: its module's, if it is the weight of that."""
    path, _, leaf = weight.name.rpartition(".")
    return path if path and leaf == "weight" else weight.name
