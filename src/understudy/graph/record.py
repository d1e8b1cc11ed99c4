"""A forward pass in one mode, with the calls of modules in it: what source code is written from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import fx, nn

from understudy.core.memory import enough_memory
from understudy.graph.trace import Example, check_example, copy_to_trace, record_or_explain


@dataclass(frozen=True, eq=False)
class Recording:
    """A forward pass in one mode, with what each module that was looked into was called with.

    `calls` has, by the keys of `node.meta["nn_module_stack"]`, the arguments by name, nodes for what was computed.
    `given` are the inputs that the example has; the others are at their defaults.
    """

    root: nn.Module
    graph: fx.Graph
    calls: Mapping[str, Mapping[str, Any]]
    given: tuple[fx.Node, ...]


def record(
    module: nn.Module, example: Example, *, training: bool, leaf_modules: tuple[type[nn.Module], ...] = ()
) -> Recording:
    """Record the forward pass of a module in training or in evaluation mode; the module is not touched.

    Attention is one layer in it, as in its code.

    Raises:
        TraceError: the forward pass fails on the example, or branches on a value, or the example is empty.
        MachineError: memory ran out.
    """
    check_example(module, example)
    with enough_memory("while the forward pass was recorded", "free some, or give a smaller example"):
        root = copy_to_trace(module).train(training)
        graph, watch = record_or_explain(root, example, (*leaf_modules, nn.MultiheadAttention))
    inputs = tuple(graph.find_nodes(op="placeholder"))
    if isinstance(example, Mapping):
        given = tuple(node for node in inputs if node.target in example)
    else:
        given = inputs[: len(example)] if isinstance(example, tuple) else inputs[:1]
    return Recording(root=root, graph=graph, calls=watch.given, given=given)
