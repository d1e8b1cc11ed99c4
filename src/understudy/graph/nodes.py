"""What a node of the graph does, and which modules it belongs to."""

from __future__ import annotations

import operator
from collections.abc import Callable, Container, Iterable, Iterator
from typing import TYPE_CHECKING, Any

from torch import fx, nn

if TYPE_CHECKING:
    from understudy.graph.trace import Trace

# Operations whose result shares its input's memory.
VIEWS = frozenset(
    (
        *("flatten", "view", "reshape", "permute", "transpose", "unsqueeze", "squeeze", "getitem", "chunk"),
        *("split", "detach", "unbind", "expand", "expand_as", "view_as", "movedim", "swapaxes"),
    )
)


def describe(node: fx.Node) -> str:
    """Return the name of a node's operation as a user would write it."""
    if node.op == "call_function":
        return str(getattr(node.target, "__name__", node.target))
    return str(node.target)


def is_in_place(node: fx.Node) -> bool:
    """Return whether an operation of the forward pass overwrites its first argument."""
    if node.op == "call_method":
        return str(node.target).endswith("_") and not str(node.target).endswith("__")
    if node.op == "call_function":
        name = describe(node)
        is_word = node.target is getattr(operator, name, None)  # operator.and_ is named so for Python's sake
        return name in _IN_PLACE or bool(node.kwargs.get("inplace")) or (name.endswith("_") and not is_word)
    return False


def is_inplace(module: nn.Module) -> bool:
    """Return whether a module, such as an activation, overwrites what it is given."""
    return getattr(module, "inplace", False) is True


_OPERATORS = ("add", "sub", "mul", "truediv", "floordiv", "pow", "and", "or", "xor")
_IN_PLACE = frozenset(("setitem", *(f"i{name}" for name in _OPERATORS)))


_FACTS = frozenset((
    *("size", "dim", "ndimension", "numel", "nelement", "stride", "element_size", "getattr", "get_device", "type"),
    *("is_floating_point", "is_complex", "is_signed", "is_contiguous"),
))  # fmt: skip


def tells_values(node: fx.Node) -> bool:
    """Return whether a plain value tells what numbers an input holds, not how large it is: `lengths.max().item()`."""

    def behind(made: fx.Node) -> list[fx.Node]:
        tells = describe(made) not in _FACTS and made.op not in ("placeholder", "get_attr")
        return made.all_input_nodes if tells else []

    def of_numbers(made: fx.Node) -> list[fx.Node]:
        return [n for n in behind(made) if not hasattr(n.meta["value"], "dtype")]

    read = [n for made in each_once([node], of_numbers) for n in behind(made) if hasattr(n.meta["value"], "dtype")]
    return any(made.op == "placeholder" for made in each_once(read, lambda made: made.all_input_nodes))


def each_once(start: Iterable[fx.Node], near: Callable[[fx.Node], Iterable[fx.Node]]) -> Iterator[fx.Node]:
    """Yield nodes, those near to them and so on; by the ways to them alone a graph of many forks has no end."""
    waiting = list(dict.fromkeys(start))
    seen = set(waiting)
    for node in waiting:
        yield node
        new = [other for other in near(node) if other not in seen]
        seen.update(new)
        waiting += new


_OF_FINITE = {"isfinite": True, "isnan": False, "isinf": False}


def told_of_finite(node: fx.Node) -> bool | None:
    """Return what a test for overflow (`torch.isfinite(x).all()`) says without one; None for any other node."""
    inner = node.args[0] if describe(node) in ("all", "any") and len(node.args) == 1 and not node.kwargs else None
    return _OF_FINITE.get(describe(inner)) if isinstance(inner, fx.Node) else None


def enclosing_modules(node: fx.Node) -> tuple[str, ...]:
    """Return the paths of the modules whose forward a node belongs to, outermost first."""
    return tuple(node.meta.get("nn_module_stack", {}))


def inside(node: fx.Node, path: str) -> bool:
    """Return whether a node belongs to the forward of the module at `path`."""
    return path in node.meta.get("nn_module_stack", {})


def attribute(root: nn.Module, path: str) -> Any:
    """Return the parameter, buffer or module at a dotted path."""
    return operator.attrgetter(path)(root) if path else root


def is_overwritten(trace: Trace, path: str, gone: Container[str]) -> bool:
    """Return whether the forward pass itself writes in place into what passes by a module."""
    inner = set(trace.members[path])
    waiting, seen = [user for node in inner for user in node.users if user not in inner], set(inner)
    while waiting:
        node = waiting.pop()
        if is_in_place(node) or (node.op == "call_module" and node.target in trace.overwriting):
            return True
        passes = any(other in gone for other in enclosing_modules(node)) or describe(node) in VIEWS
        if node not in seen and passes:
            waiting.extend(node.users)
        seen.add(node)
    return False


def checks(graph: fx.Graph) -> set[fx.Node]:
    """Return the nodes that are there for an assertion alone."""
    found: set[fx.Node] = set()
    for node in reversed(graph.nodes):
        asserts = getattr(node.target, "__name__", "") in ("_assert", "_assert_is_none")
        if asserts or (node.users and found.issuperset(node.users)):
            found.add(node)
    return found
