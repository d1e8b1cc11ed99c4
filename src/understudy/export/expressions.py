"""One node of a graph -> the expression that a person would write for it."""

from __future__ import annotations

import builtins
import inspect
import keyword
import math
import operator
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional

from understudy.core.errors import ExportError
from understudy.export.layers import literal
from understudy.graph.fake import source_line

# How tightly an expression holds together, as in Python's grammar.
ATOM, POWER, UNARY, PRODUCT, SUM, SHIFT, AND, XOR, OR, COMPARISON = 20, 14, 13, 12, 11, 10, 9, 8, 7, 6
Expression = tuple[str, int]
# Numbers stand between these until it is known which of them differ between modules that share a class.
OPEN, CLOSE = "\x02", "\x03"

_INFIX: dict[Any, tuple[str, int]] = {
    operator.add: ("+", SUM),
    operator.sub: ("-", SUM),
    operator.mul: ("*", PRODUCT),
    operator.truediv: ("/", PRODUCT),
    operator.floordiv: ("//", PRODUCT),
    operator.mod: ("%", PRODUCT),
    operator.matmul: ("@", PRODUCT),
    operator.pow: ("**", POWER),
    operator.and_: ("&", AND),
    operator.or_: ("|", OR),
    operator.xor: ("^", XOR),
    operator.lshift: ("<<", SHIFT),
    operator.rshift: (">>", SHIFT),
    operator.eq: ("==", COMPARISON),
    operator.ne: ("!=", COMPARISON),
    operator.lt: ("<", COMPARISON),
    operator.le: ("<=", COMPARISON),
    operator.gt: (">", COMPARISON),
    operator.ge: (">=", COMPARISON),
}
_PREFIX = {operator.neg: "-", operator.invert: "~", operator.pos: "+"}
IN_PLACE = {
    operator.iadd: ("+=", "add_"),
    operator.isub: ("-=", "sub_"),
    operator.imul: ("*=", "mul_"),
    operator.itruediv: ("/=", "div_"),
}

# Functions of other libraries, written out. By their qualified names: the core does not import those libraries.
_STOCHASTIC_DEPTH = '''\
def stochastic_depth(x: Tensor, p: float, mode: str, training: bool = True) -> Tensor:
    """Zero a residual branch with probability p in training, for each example ("row") or for all ("batch")."""
    if not training or p == 0.0:
        return x
    shape = [x.shape[0] if mode == "row" else 1] + [1] * (x.ndim - 1)
    noise = torch.empty(shape, dtype=x.dtype, device=x.device).bernoulli_(1.0 - p)
    if p < 1.0:
        noise.div_(1.0 - p)
    return x * noise
'''
HELPERS = {"torchvision.ops.stochastic_depth.stochastic_depth": ("stochastic_depth", _STOCHASTIC_DEPTH)}


@cache
def _names() -> dict[Any, str]:
    """Return how functions are written, by the function; names that are found first win."""
    places: tuple[tuple[str, Any], ...] = (
        ("F", functional),
        ("torch", torch),
        ("torch.linalg", torch.linalg),
        ("torch.special", torch.special),
        ("torch.fft", torch.fft),
        ("nn.utils.rnn", nn.utils.rnn),
        ("math", math),
        ("", builtins),
    )
    found: dict[Any, str] = {}
    for prefix, place in places:
        for name in sorted(dir(place)):
            value = getattr(place, name, None)
            if callable(value) and not name.startswith("_") and not isinstance(value, type):
                found.setdefault(value, f"{prefix}.{name}".removeprefix("."))
    return found | {int: "int"}  # the one kind that forward passes compute with


def function_name(node: fx.Node) -> str:
    """Return how the function of a node is written.

    Raises:
        ExportError: it belongs neither to torch nor to Python.
    """
    target: Any = node.target
    if isinstance(target, torch._ops.OpOverload) and target.namespace in ("aten", "prims"):
        return f"torch.ops.{target}"
    known = _names().get(target)
    if known is not None:
        return known
    qualified = f"{getattr(target, '__module__', '')}.{getattr(target, '__qualname__', target)}"
    if qualified in HELPERS:
        return HELPERS[qualified][0]
    raise ExportError(
        f"model.py must call functions of torch only, but the forward pass calls {qualified} "
        f"({source_line(node) or node.name}); the other formats can still be written"
    )


def is_call(node: fx.Node) -> bool:
    """Return whether a node is written with brackets after a name, not as an operator, index or attribute."""
    target: Any = node.target
    return not (target is getattr or target is operator.getitem or target in _INFIX or target in _PREFIX)


def number(value: float) -> str:
    """Return a number with the marks around it that tell it from the text."""
    return f"{OPEN}{literal(value)}{CLOSE}"


def constant(value: Any) -> Expression:
    """Return a constant argument; numbers are marked."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return number(value), UNARY if value < 0 else ATOM
    return literal(value), ATOM


def operands(node: fx.Node) -> Iterator[fx.Node]:
    """Yield the nodes that an expression shows, from left to right, each as often as it stands there."""
    yield from nodes_in((node.args, node.kwargs))


def nodes_in(value: Any) -> Iterator[fx.Node]:
    """Yield the nodes in nested arguments, from left to right."""
    if isinstance(value, fx.Node):
        yield value
    elif isinstance(value, tuple | list):
        for part in value:
            yield from nodes_in(part)
    elif isinstance(value, dict):
        yield from nodes_in(list(value.values()))
    elif isinstance(value, slice):
        yield from nodes_in((value.start, value.stop, value.step))


class Writer:
    """Writes nodes as expressions; `operand` says how a node is written that an expression uses."""

    def __init__(
        self,
        operand: Callable[[fx.Node], Expression],
        module: Callable[[str], str],
        aggregate: Callable[[list[Any] | tuple[Any, ...]], str | None] = lambda parts: None,
    ) -> None:
        self._operand, self._module, self._aggregate = operand, module, aggregate

    def argument(self, value: Any) -> Expression:
        """Return an argument: nodes, constants, and what holds them."""
        if isinstance(value, fx.Node):
            return self._operand(value)
        if isinstance(value, tuple | list) and any(True for _ in nodes_in(value)):
            known = self._aggregate(value)
            if known is not None:
                return known, ATOM
        if isinstance(value, tuple | list):
            inner = ", ".join(self.argument(part)[0] for part in value)
            if isinstance(value, list):
                return f"[{inner}]", ATOM
            return f"({inner}{',' if len(value) == 1 else ''})", ATOM
        if isinstance(value, dict):
            pairs = ", ".join(f"{literal(k)}: {self.argument(v)[0]}" for k, v in value.items())
            return f"{{{pairs}}}", ATOM
        if isinstance(value, slice):
            parts = ", ".join(self.argument(part)[0] for part in (value.start, value.stop, value.step))
            return f"slice({parts})", ATOM
        if value is Ellipsis:
            return "...", ATOM
        return constant(value)

    def arguments(self, args: Any, kwargs: Any) -> str:
        """Return what stands between the brackets of a call."""
        named = [f"{name}={self.argument(value)[0]}" for name, value in kwargs.items()]
        return ", ".join([*(self.argument(value)[0] for value in args), *named])

    def node(self, node: fx.Node) -> Expression:
        """Return the expression of a node that is no output, placeholder or attribute.

        Raises:
            ExportError: it calls what is not torch's.
        """
        if node.op == "call_module":
            return f"{self._module(str(node.target))}({self.arguments(node.args, node.kwargs)})", ATOM
        if node.op == "call_method":
            called = f"{self._atom(node.args[0])}.{node.target}"
            return f"{called}({self.arguments(node.args[1:], node.kwargs)})", ATOM
        target: Any = node.target
        if target is getattr:
            return f"{self._atom(node.args[0])}.{node.args[1]}", ATOM
        if target is operator.getitem:
            return f"{self._atom(node.args[0])}[{self.index(node.args[1])}]", ATOM
        if target in _INFIX:
            return self._infix(*_INFIX[target], *node.args)
        if target in _PREFIX:
            return f"{_PREFIX[target]}{self._tight(node.args[0], UNARY)}", UNARY
        if isinstance(target, type) and issubclass(target, tuple):  # a named tuple, whose class is the teacher's
            return self.argument(tuple(node.args))
        if target in IN_PLACE:
            return f"{self._atom(node.args[0])}.{IN_PLACE[target][1]}({self.arguments(node.args[1:], {})})", ATOM
        kwargs = {name: v for name, v in node.kwargs.items() if name == "training" or not _is_default(target, name, v)}
        return f"{function_name(node)}({self.arguments(node.args, kwargs)})", ATOM

    def index(self, value: Any) -> str:
        """Return what stands between square brackets."""
        if isinstance(value, tuple) and value:
            return ", ".join(self.index(part) for part in value) + ("," if len(value) == 1 else "")
        if isinstance(value, slice):
            start, stop = ("" if part is None else self.argument(part)[0] for part in (value.start, value.stop))
            return f"{start}:{stop}" + ("" if value.step is None else f":{self.argument(value.step)[0]}")
        return self.argument(value)[0]

    def _atom(self, value: Any) -> str:
        text, holds = self.argument(value)
        return text if holds >= ATOM else f"({text})"

    def _tight(self, value: Any, least: int) -> str:
        text, holds = self.argument(value)
        return text if holds >= least else f"({text})"

    def _infix(self, sign: str, holds: int, left: Any, right: Any) -> Expression:
        # Only the left operand may hold as loosely as the operator, but for the power; comparisons do not chain.
        least_left = holds + (holds in (POWER, COMPARISON))
        least_right = holds if holds == POWER else holds + 1
        return f"{self._tight(left, least_left)} {sign} {self._tight(right, least_right)}", holds


def access(root: nn.Module, path: str, origin: str = "self") -> str:
    """Return how a member of a module is written, from `origin` on: `self.layers[0].conv`."""
    text, module = origin, root
    for part in path.split(".") if path else ():
        if is_list(module) and part.isdigit():
            text += f"[{part}]"
        elif isinstance(module, nn.ParameterDict) or (isinstance(module, nn.ModuleDict) and part in module):
            text += f'["{part}"]'
        elif is_name(part):
            text += f".{part}"
        else:
            text = f'getattr({text}, "{part}")'
        module = module[part] if isinstance(module, nn.ModuleDict) and part in module else getattr(module, part)
    return text


def is_name(text: str) -> bool:
    """Return whether a text can be a name in Python: no keyword, as a module of that name may be given one."""
    return text.isidentifier() and not keyword.iskeyword(text)


def is_list(module: nn.Module) -> bool:
    """Return whether a module is one of torch's containers that number what they hold."""
    return isinstance(module, nn.Sequential | nn.ModuleList | nn.ParameterList)


@cache
def _defaults(function: Any) -> dict[str, Any]:
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # compiled
        return {}
    return {p.name: p.default for p in parameters if p.default is not p.empty}


def _is_default(function: Any, name: str, value: Any) -> bool:
    """Return whether an argument is what the function takes if nothing is said."""
    defaults = _defaults(function)
    return name in defaults and type(value) is type(defaults[name]) and value == defaults[name]
