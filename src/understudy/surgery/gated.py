"""A network whose channels are multiplied by masks, one for each example, while it trains.

Shapes: B = examples, S = slots of the analysis (one more stands for what is FIXED).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, fx, nn

from understudy.graph.analysis import Analysis
from understudy.graph.channels import FIXED, Labelled, Labels
from understudy.graph.fake import source_line
from understudy.graph.nodes import attribute
from understudy.surgery.masked import Norm, norm_over_channels


class Gated(nn.Module):
    """A network with a gate wherever a layer reads channels; `mask` says which of them pass.

    A channel is zero where it is read: after its norm, activation, pooling and addition. It need not be zero
    before, where it only passes through; a norm over channels takes its statistics over those that pass. So the network
    computes what its slice without the channel does, for tied, concatenated, depthwise and gated channels alike. Layers
    are called as the forward pass in evaluation mode calls them; dropout, norms and the like still follow the mode.
    `unmasked` says of slots that no mask can drop as slicing does, and of which gates know nothing, why.

    Args:
        analysis: of the network's structure.
        network: has that structure; its modules are shared, so training this trains the network.
    """

    def __init__(self, analysis: Analysis, network: nn.Module) -> None:
        super().__init__()
        self.slots = analysis.groups.slots
        graph, self.gates, self.unmasked = _with_gates(analysis, network)
        used = {str(n.target) for n in graph.nodes if n.op in ("call_module", "get_attr")}
        # Tensors that the forward pass makes itself are in no network: the trace has them.
        held = vars(analysis.trace.root).items()
        made = {name: value for name, value in held if isinstance(value, Tensor) and name not in vars(network)}
        parts: dict[str, Any] = {name: attribute(network, name) for name in used - self.gates.keys() - made.keys()}
        parts |= {**self.gates, **{name: value for name, value in made.items() if name in used}}
        self.network = fx.GraphModule(parts, graph)

    def mask(self, kept: Float[Tensor, "b s"] | None) -> None:
        """Let the channels of these slots pass: 1 or 0 for each example, (B, S) or (1, S); None: all of them."""
        if kept is not None:
            kept = F.pad(kept, (0, 1), value=1.0)
        for gate in self.gates.values():
            gate.kept = kept

    def forward(self, *inputs: Any, **named: Any) -> Any:
        """Return the network's output with the channels that the mask lets pass."""
        return self.network(*inputs, **named)


class Gate(nn.Module):
    """Multiplies the channels that pass by the mask; `relu` applies that activation before."""

    labels: Tensor

    def __init__(self, labels: Labels, *, relu: bool) -> None:
        super().__init__()
        self.register_buffer("labels", torch.from_numpy(labels.reshape(-1).copy()), persistent=False)
        self.outline = labels.shape[1:]
        self.relu = relu
        self.kept: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Return x (B, ...) with dropped channels zero."""
        if self.kept is None:
            return torch.relu(x) if self.relu else x
        mask = self.kept.to(x.dtype)[:, self.labels].view(-1, *self.outline)
        return _MaskedRelu.apply(x, mask) if self.relu else x * mask  # type: ignore[no-untyped-call]


class NormGate(nn.Module):
    """A layer norm, RMS norm or group norm of one group over the channels that the mask lets pass, for each example.

    `module` is the layer whose place it takes, None for a function.
    """

    labels: Tensor

    def __init__(self, norm: Norm, labels: Labels, module: nn.Module | None) -> None:
        super().__init__()
        self.register_buffer("labels", torch.from_numpy(labels.reshape(-1).copy()), persistent=False)
        self.norm, self.module = norm, module
        self.kept: Tensor | None = None

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """Return x (B, ...) with the statistics of the channels that pass; those that are dropped get the shift."""
        x, _, weight, *rest = self.norm.given(self.module, args, kwargs)
        first = self.norm.dim % x.dim()
        if self.kept is None:
            return self.norm.function(x, 1 if self.norm.dim > 0 else x.shape[first:], weight, *rest)
        *shift, eps = rest
        over, each = tuple(range(first, x.dim())), [1] * (x.dim() - 1)
        each[first - 1] = len(self.labels)
        y: Tensor = x.float() if x.dtype.itemsize < 4 else x
        mask = self.kept.to(y.dtype)[:, self.labels].view(-1, *each)
        share = mask.mean(over, keepdim=True).clamp(min=0.5 / len(self.labels))
        if self.norm.function is not F.rms_norm:
            y = y - (y * mask).mean(over, keepdim=True) / share
        y = y * mask
        least = torch.finfo(x.dtype).eps if eps is None else eps
        y = y * torch.rsqrt(y.square().mean(over, keepdim=True) / share + least)
        weight, *shift = (v.view(each) if v is not None and v.dim() == 1 else v for v in (weight, *shift))
        y = y if weight is None else y * weight
        for bias in shift:
            y = y if bias is None else y + bias
        return y.to(x.dtype)


class _MaskedRelu(torch.autograd.Function):
    """`relu(x) * mask` for a mask of 0 and 1. What passes is what is positive, so going back costs nothing more."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, mask: Tensor) -> Tensor:
        y = torch.relu(x).mul_(mask)
        ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (y,) = ctx.saved_tensors
        return torch.ops.aten.threshold_backward(gradients[0], y, 0), None


def _with_gates(analysis: Analysis, network: nn.Module) -> tuple[fx.Graph, dict[str, Gate | NormGate], dict[int, str]]:
    """Return a copy of the graph with gates, the gates by name, and why there are slots that no gate can mask."""
    graph, copies = fx.Graph(), dict[fx.Node, fx.Node]()
    graph.output(graph.graph_copy(analysis.trace.graph, copies))
    gates, unmasked = dict[str, Gate | NormGate](), dict[int, str]()
    free = np.ones(analysis.groups.slots + 1, dtype=bool)
    free[[*analysis.groups.held.tolist(), FIXED]] = False
    normed = _normed(analysis, free)
    for node in normed:
        path = str(node.target) if node.op == "call_module" else None
        name, norm = f"norm{len(gates)}", norm_over_channels(analysis.trace.root, node)
        labels = analysis.groups.plan.values[node.all_input_nodes[0]].labels
        assert norm is not None, "it is one of them"
        gates[name] = NormGate(norm, labels, None if path is None else network.get_submodule(path))
        with graph.inserting_after(copies[node]):
            own = graph.call_module(name, copies[node].args, copies[node].kwargs)
        copies[node].replace_all_uses_with(own)
        graph.erase_node(copies[node])
        copies[node] = own
    for node in _read(analysis):
        labels = analysis.groups.plan.values[node].labels
        if not free[labels].any():
            continue
        if labels.shape[0] != 1 or node.meta["value"].shape[0] != analysis.trace.batch:
            reason = f"at {source_line(node) or node.name} examples cannot be told apart"
            unmasked |= dict.fromkeys(labels[free[labels]].tolist(), reason)
            continue
        name, copied = f"gate{len(gates)}", copies[node]
        relu = _is_relu(analysis, node)
        gates[name] = Gate(labels, relu=relu)
        with graph.inserting_after(copied):
            gate = graph.call_module(name, (copied,))
        copied.replace_all_uses_with(gate, lambda user, gate=gate: user is not gate)  # type: ignore[misc]
        if relu:
            gate.args = (copied.args[0],)
            graph.erase_node(copied)
    for node in analysis.trace.graph.nodes:
        if node not in normed:  # a narrower one takes its statistics over what stays, as no mask can
            labels = _counted_in(analysis, node)
            reason = f"at {source_line(node) or node.name} statistics are taken over these channels"
            unmasked |= dict.fromkeys(labels[free[labels]].tolist(), reason)
        labels = analysis.groups.plan.parts[node].feeds_back
        if labels is not None:
            reason = f"at {source_line(node) or node.name} a recurrent layer feeds these channels back to itself"
            unmasked |= dict.fromkeys(labels[free[labels]].tolist(), reason)
    return graph, gates, unmasked


def _normed(analysis: Analysis, free: npt.NDArray[np.bool_]) -> list[fx.Node]:
    """Return the norms over channels of which some can go, and of which each example has its own."""
    found = []
    for node in analysis.trace.graph.nodes:
        norm = norm_over_channels(analysis.trace.root, node)
        known = analysis.groups.plan.values[node.all_input_nodes[0]] if norm is not None else None
        if norm is None or not isinstance(known, Labelled) or not free[known.labels].any():
            continue
        along = (norm.dim % len(known.shape),)
        if known.varying == along and along != (0,) and node.meta["value"].shape[0] == analysis.trace.batch:
            found.append(node)
    return found


def _counted_in(analysis: Analysis, node: fx.Node) -> Labels:
    """Return the channels that a node takes statistics over."""
    plan, norm = analysis.groups.plan, norm_over_channels(analysis.trace.root, node)
    found = [np.zeros(0, dtype=np.int64)]
    if norm is not None and plan.values[node.all_input_nodes[0]].labels.shape[norm.dim] > 1:
        found.append(plan.values[node.all_input_nodes[0]].labels.reshape(-1))
    elif norm is None:
        found += [plan.along(node.all_input_nodes[0], dim) for dim in plan.parts[node].statistic or ()]
    return np.concatenate(found)


def _read(analysis: Analysis) -> list[fx.Node]:
    """Return the nodes whose channels a layer reads to make others of them.

    A grouped convolution makes a channel of channels that go when it goes, so it needs no gate.
    """
    plan = analysis.groups.plan
    found: dict[fx.Node, None] = {}
    for node in analysis.trace.graph.nodes:
        module = analysis.trace.root.get_submodule(str(node.target)) if node.op == "call_module" else None
        if plan.parts[node].work and getattr(module, "groups", 1) == 1:
            found.update(dict.fromkeys(n for n in node.all_input_nodes if isinstance(plan.values[n], Labelled)))
    return list(found)


def _is_relu(analysis: Analysis, node: fx.Node) -> bool:
    """Return whether a node is a ReLU whose input nobody else sees, before or after it is overwritten."""
    if len(node.all_input_nodes) != 1 or len(node.all_input_nodes[0].users) != 1:
        return False
    if node.op == "call_module":
        return type(analysis.trace.root.get_submodule(str(node.target))) is nn.ReLU
    return node.op == "call_function" and node.target in (torch.relu, F.relu)
