"""LSTMs, GRUs and plain recurrent layers: what they read, and their hidden units, which go in all layers together.

A hidden unit whose rows are zero gives zeros at every step, so that nothing of it comes back: its gates have no bias,
and its candidate is tanh(0).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from torch import fx, nn

from understudy.graph.channels import Labelled, Labels, ParameterPlan, Work
from understudy.graph.rules.pointwise import meet
from understudy.graph.rules.tables import for_modules
from understudy.graph.walk import Walk

_GATES: dict[type[nn.Module], int] = {nn.LSTM: 4, nn.LSTMCell: 4, nn.GRU: 3, nn.GRUCell: 3, nn.RNN: 1, nn.RNNCell: 1}


@for_modules(nn.LSTM, nn.GRU, nn.RNN, states=True)
def recurrent(walk: Walk, node: fx.Node, module: Any, input: Any, hx: Any = None) -> Any:
    """Reads channels along the last dimension. Layers and directions have as many hidden units, which go together.

    Shapes: (T, B, C) or (B, T, C) gives that of D x H channels, and the last state of each layer, (L x D, B, H).
    """
    x, states = input, _states(hx)
    given = all(isinstance(s, Labelled) and len(s.shape) == 3 for s in (x, *states))
    if not given:
        return walk.give_up(node, (x, hx), {}, f"no rule for the {type(module).__name__} with these inputs")
    if getattr(module, "proj_size", 0):
        return _projected(walk, node, module, x, states)
    name, ways = str(node.target), 2 if module.bidirectional else 1
    inputs, hidden = walk.channels(x, -1, node), walk.emit(name, module.hidden_size)
    both = np.tile(hidden, ways)
    for layer in range(module.num_layers):
        for suffix in (f"_l{layer}", f"_l{layer}_reverse")[:ways]:
            _parameters(walk, node, module, suffix, both if layer else inputs, hidden)
    steps = math.prod(x.shape[:2])
    _work(walk, node, module, steps * ways, inputs, hidden)
    for _ in range(1, module.num_layers):
        _work(walk, node, module, steps * ways, both, hidden)
    batch = x.shape[0] if module.batch_first else x.shape[1]
    output = Labelled.along((*x.shape[:2], len(both)), 2, both)
    state = Labelled.along((module.num_layers * ways, batch, len(hidden)), 2, hidden)
    for before in states:
        meet(walk, node, state, before)
    return (output, (state, state)) if isinstance(module, nn.LSTM) else (output, state)


def _projected(walk: Walk, node: fx.Node, module: nn.LSTM, x: Labelled, states: tuple[Any, ...]) -> Any:
    """Projections (H to P) are fed back and given, and can go. Cells stay: torch takes H = P for no projection."""
    name, ways = str(node.target), 2 if module.bidirectional else 1
    inputs, projected = walk.channels(x, -1, node), walk.emit(name, module.proj_size)
    cells, both = module.hidden_size, np.tile(projected, ways)
    for layer in range(module.num_layers):
        for suffix in (f"_l{layer}", f"_l{layer}_reverse")[:ways]:
            _parameters(walk, node, module, suffix, both if layer else inputs, projected)
            walk.parameter(f"{name}.weight_hr{suffix}", ParameterPlan((projected, cells)), node)
        steps = math.prod(x.shape[:2]) * ways
        for constant, labels in ((4, both if layer else inputs), (4, projected), (1, projected)):
            walk.part.work.append(Work(name, steps * constant * cells, (labels,)))
    batch = x.shape[0] if module.batch_first else x.shape[1]
    output = Labelled.along((*x.shape[:2], len(both)), 2, both)
    state = Labelled.along((module.num_layers * ways, batch, len(projected)), 2, projected)
    for before in states[:1]:
        meet(walk, node, state, before)
    for before in states[1:]:
        walk.freeze(before.labels, "the cells of an LSTM with projections stay", node)
    return output, (state, Labelled.fixed((module.num_layers * ways, batch, cells)))


def _states(given: Any) -> tuple[Any, ...]:
    return () if given is None else tuple(given) if isinstance(given, tuple | list) else (given,)


@for_modules(nn.LSTMCell, nn.GRUCell, nn.RNNCell, states=True)
def cell(walk: Walk, node: fx.Node, module: Any, input: Any, hx: Any = None) -> Any:
    """One step: the hidden units of the state that it is given are those of the state that it gives."""
    x, states = input, _states(hx)
    if not all(isinstance(s, Labelled) and len(s.shape) == 2 for s in (x, *states)):
        return walk.give_up(node, (x, hx), {}, f"no rule for the {type(module).__name__} with these inputs")
    inputs, hidden = walk.channels(x, -1, node), walk.emit(str(node.target), module.hidden_size)
    _parameters(walk, node, module, "", inputs, hidden)
    _work(walk, node, module, x.shape[0], inputs, hidden)
    after = Labelled.along((x.shape[0], len(hidden)), 1, hidden)
    for state in states:
        meet(walk, node, after, state)
    return (after, after) if isinstance(module, nn.LSTMCell) else after


def _parameters(walk: Walk, node: fx.Node, module: Any, suffix: str, inputs: Labels, hidden: Labels) -> None:
    projects = bool(getattr(module, "proj_size", 0))
    rows = _GATES[type(module)] * module.hidden_size if projects else np.tile(hidden, _GATES[type(module)])
    plans: dict[str, tuple[Labels | int, ...]] = {
        "weight_ih": (rows, inputs),
        "weight_hh": (rows, hidden),
        "bias_ih": (rows,),
        "bias_hh": (rows,),
    }
    for kind, dims in plans.items():
        if getattr(module, f"{kind}{suffix}", None) is not None:
            walk.parameter(f"{node.target}.{kind}{suffix}", ParameterPlan(dims), node)
    walk.part.feeds_back = hidden
    if suffix in ("", "_l0"):
        walk.count_in((str(node.target), "input_size"), inputs, node)
        walk.count_in((str(node.target), "proj_size" if projects else "hidden_size"), hidden, node)


def _work(walk: Walk, node: fx.Node, module: Any, times: int, inputs: Labels, hidden: Labels) -> None:
    for other in (inputs, hidden):
        walk.part.work.append(Work(str(node.target), times * _GATES[type(module)], (hidden, other)))
