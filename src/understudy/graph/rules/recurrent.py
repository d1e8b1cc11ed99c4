"""LSTMs, GRUs and plain recurrent layers: what they read, and their hidden units, which go in all layers together.

A hidden unit whose rows are zero gives zeros at every step, so that nothing of it comes back: its gates have no bias,
and its candidate is tanh(0).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from torch import fx, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from understudy.graph.channels import Labelled, Labels, ParameterPlan, Work
from understudy.graph.fake import Packed
from understudy.graph.nodes import describe
from understudy.graph.rules.pointwise import meet
from understudy.graph.rules.tables import for_calls, for_modules
from understudy.graph.walk import Walk

_GATES: dict[type[nn.Module], int] = {nn.LSTM: 4, nn.LSTMCell: 4, nn.GRU: 3, nn.GRUCell: 3, nn.RNN: 1, nn.RNNCell: 1}


@for_modules(nn.LSTM, nn.GRU, nn.RNN, states=True)
def recurrent(walk: Walk, node: fx.Node, module: Any, input: Any, hx: Any = None) -> Any:
    """Reads channels along the last dimension. Layers and directions have as many hidden units, which go together.

    Shapes: (T, B, C), (B, T, C) or packed steps (R, C) give the like of D x H channels, and the last state of each
    layer, (L x D, B, H).
    """
    packed, states = isinstance(input, Packed), _states(hx)
    x = input.data if packed else input
    ranks = zip((x, *states), (2 if packed else 3, *(3 for _ in states)), strict=True)
    if not all(isinstance(s, Labelled) and len(s.shape) == rank for s, rank in ranks):
        return walk.give_up(node, (input, hx), {}, f"no rule for the {type(module).__name__} with these inputs")
    output, *after = (_projected if getattr(module, "proj_size", 0) else _stepped)(walk, node, module, x, states)
    state = tuple(after) if isinstance(module, nn.LSTM) else after[0]
    return (input._replace(data=output) if packed else output), state


def _stepped(walk: Walk, node: fx.Node, module: Any, x: Labelled, states: tuple[Any, ...]) -> list[Labelled]:
    """Return what a layer gives, its last state and, of an LSTM, its cells."""
    name, ways = str(node.target), 2 if module.bidirectional else 1
    inputs, hidden = walk.channels(x, -1, node), walk.emit(name, module.hidden_size)
    both = np.tile(hidden, ways)
    for layer in range(module.num_layers):
        for suffix in (f"_l{layer}", f"_l{layer}_reverse")[:ways]:
            _parameters(walk, node, module, suffix, both if layer else inputs, hidden)
    steps = math.prod(x.shape[:-1])
    _work(walk, node, module, steps * ways, inputs, hidden)
    for _ in range(1, module.num_layers):
        _work(walk, node, module, steps * ways, both, hidden)
    state = Labelled.along((module.num_layers * ways, _examples(walk, node), len(hidden)), 2, hidden)
    for before in states:
        meet(walk, node, state, before)
    return [Labelled.along(x.shape, len(x.shape) - 1, both), state, state]


def _projected(walk: Walk, node: fx.Node, module: nn.LSTM, x: Labelled, states: tuple[Any, ...]) -> list[Labelled]:
    """Projections (H to P) are fed back and given, and can go. Cells stay: torch takes H = P for no projection."""
    name, ways = str(node.target), 2 if module.bidirectional else 1
    inputs, projected = walk.channels(x, -1, node), walk.emit(name, module.proj_size)
    cells, both = module.hidden_size, np.tile(projected, ways)
    for layer in range(module.num_layers):
        for suffix in (f"_l{layer}", f"_l{layer}_reverse")[:ways]:
            _parameters(walk, node, module, suffix, both if layer else inputs, projected)
            walk.parameter(f"{name}.weight_hr{suffix}", ParameterPlan((projected, cells)), node)
        steps = math.prod(x.shape[:-1]) * ways
        for constant, labels in ((4, both if layer else inputs), (4, projected), (1, projected)):
            walk.part.work.append(Work(name, steps * constant * cells, (labels,)))
    states_of = module.num_layers * ways, _examples(walk, node)
    state = Labelled.along((*states_of, len(projected)), 2, projected)
    for before in states[:1]:
        meet(walk, node, state, before)
    for before in states[1:]:
        walk.freeze(before.labels, "the cells of an LSTM with projections stay", node)
    return [Labelled.along(x.shape, len(x.shape) - 1, both), state, Labelled.fixed((*states_of, cells))]


def _examples(walk: Walk, node: fx.Node) -> int:
    """Return for how many sequences a layer gives a last state."""
    _, state = walk.recorded(node)
    return int((state[0] if isinstance(state, tuple) else state).shape[1])


@for_calls(pack_padded_sequence)
def packed(walk: Walk, node: fx.Node, input: Any, lengths: Any, *rest: Any, **more: Any) -> Any:
    """Steps (T, B, ...) or (B, T, ...) become rows (R, ...), as many as are no padding: lengths say which these are."""
    was, rows = walk.recorded(node), walk.recorded(node.all_input_nodes[0]).shape[:2]
    if input.shape[:2] != rows:
        raise ValueError(f"lengths are of sequences of {rows}, but {input.shape[:2]} come")
    return Packed(_along_rows(walk, node, input, 2, was.data.shape[:1]), *map(_fixed, was[1:]))


@for_calls(pad_packed_sequence)
def padded(walk: Walk, node: fx.Node, sequence: Any, *rest: Any, **more: Any) -> Any:
    """Rows (R, ...) become steps again."""
    steps, lengths = walk.recorded(node)
    return _along_rows(walk, node, sequence.data, 1, steps.shape[:2]), _fixed(lengths)


def _along_rows(walk: Walk, node: fx.Node, x: Labelled, first: int, rows: tuple[int, ...]) -> Labelled:
    """Return a tensor with other dimensions in the place of its `first` ones."""
    if any(dim < first for dim in x.varying):
        walk.freeze(x.labels, f"{describe(node)} takes their number for that of steps", node)
        return Labelled.fixed((*rows, *x.shape[first:]))
    return Labelled((*rows, *x.shape[first:]), x.labels.reshape((*(1 for _ in rows), *x.labels.shape[first:])))


def _fixed(value: Any) -> Labelled | None:
    return None if value is None else Labelled.fixed(value.shape)


@for_calls(PackedSequence)
def packed_by_hand(walk: Walk, node: fx.Node, *parts: Any) -> Packed:
    """What the forward pass makes of the parts of another one."""
    return Packed(*parts)


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
