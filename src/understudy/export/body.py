"""A call of a module -> the lines of its forward, as a person would have written them.

Expressions that are used once are written where they are used, as long as Python then evaluates everything in the
order of the graph; so what is computed in place or at random stays what it was.
"""

from __future__ import annotations

import keyword
import operator
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import fx, nn

from understudy.core.errors import ExportError
from understudy.export.expressions import ATOM, CLOSE, IN_PLACE, OPEN, Expression, Writer, access, is_call, nodes_in
from understudy.export.scopes import Calls, Scope, member_path
from understudy.graph.fake import Signature, source_line

_LONGEST, _DEEPEST = 88, 3
_MEMBER = re.compile(r"\[\d+\]\(")
_RESERVED = frozenset(("self", "torch", "nn", "F", "math", "Tensor", "OrderedDict", "shape", "size"))
_TELLING = frozenset(("cat", "mean", "softmax", "sigmoid", "size", "interpolate", "stack"))
_UNPACKED = {4: ("b", "c", "h", "w"), 3: ("b", "n", "c"), 2: ("b", "n")}


@dataclass(frozen=True)
class Takes:
    """The names that a module's forward takes, and the types of them as text."""

    names: tuple[str, ...]
    types: tuple[str, ...]
    extra: int = 0  # how many of them the teacher's own forward has from elsewhere; they come last

    def of(self, calls: Calls, scope: Scope) -> list[Any]:
        """Return what one call gives for each name."""
        named = self.names[: len(self.names) - self.extra]
        missing = [name for name in named if name not in scope.given]
        if missing:
            raise ExportError(f"model.py must pass {missing[0]!r} to {scope.path!r}, which one of its calls leaves out")
        return [*(scope.given[name] for name in named), *extras(calls, scope)]


def extras(calls: Calls, scope: Scope) -> list[fx.Node]:
    """Return what a call uses of the outside that it is not given as an argument."""
    known = set(nodes_in(list(scope.given.values())))
    return [node for node in calls.used_by(scope) if node not in known]


def takes(found: Sequence[tuple[Calls, Scope]]) -> Takes:
    """Return what a module's forward takes, from all its calls: the arguments that any of them uses.

    Raises:
        ExportError: calls use different things besides their arguments.
    """
    path = found[0][1].path
    used: dict[str, Any] = {}
    others = {len(extras(calls, scope)) for calls, scope in found}
    if len(others) > 1:
        raise ExportError(f"model.py must have one forward for each module, but the calls of {path!r} differ")
    for calls, scope in found:
        wanted = set(calls.used_by(scope))
        for name, value in scope.given.items():
            inner = set(nodes_in(value))
            if inner & wanted:
                used.setdefault(name, value)
            wanted -= inner
    first = extras(*found[0])
    order = [name for _, scope in found for name in scope.given]
    names = sorted(used, key=order.index)
    types = [_type(used[name]) for name in names] + [_type(node) for node in first]
    more: list[str] = []
    for node in first:  # a constant that is read in two places comes twice
        more.append(_free(str(node.target).rpartition(".")[2] or "y", [*names, *more]))
    if any(name.startswith("*") for name in names):
        raise ExportError(f"model.py must name what {path!r} takes, but it takes any number of arguments")
    return Takes(names=(*names, *more), types=tuple(types), extra=len(first))


def _free(name: str, taken: Sequence[str]) -> str:
    name = re.sub(r"\W", "_", name) or "y"
    if keyword.iskeyword(name) or name in _RESERVED or not name.isidentifier():
        name += "_"
    number = 2
    free = name
    while free in taken:
        free, number = f"{name}{number}", number + 1
    return free


def _type(value: Any) -> str:
    if isinstance(value, fx.Node):
        held = value.meta.get("value")
        return "Tensor" if isinstance(held, Signature) or value.op == "get_attr" else "int" * (type(held) is int)
    parts = list(value) if isinstance(value, tuple | list) else []
    return "list[Tensor]" if parts and all(_type(part) == "Tensor" for part in parts) else ""


@dataclass(eq=False)
class _Entry:
    """One operation: a node, a call of a module, what is unpacked, or what is returned."""

    kind: Literal["expression", "in_place", "item", "unpack", "return"]
    item: Any
    results: list[fx.Node | None]
    reads: list[fx.Node] = field(default_factory=list)


@dataclass(eq=False)
class _Piece:
    """An entry with the pieces that are written inside of it."""

    entry: _Entry
    inner: dict[fx.Node, _Piece]

    @property
    def depth(self) -> int:
        """How many calls stand in each other."""
        item = self.entry.item
        call = self.entry.kind == "expression" and (isinstance(item, Scope) or is_call(item))
        return int(call) + max((piece.depth for piece in self.inner.values()), default=0)


class Body:
    """The lines of one call; `takes_of` says what the forward of each module takes, by its path."""

    def __init__(self, calls: Calls, scope: Scope, takes_of: Mapping[str, Takes]) -> None:
        self._calls, self._scope, self._takes = calls, scope, takes_of
        self._root = calls.recording.root
        self._module: nn.Module = self._root.get_submodule(scope.path)
        self._names: dict[fx.Node, str] = {}
        self._fixed: dict[fx.Node, str] = {}
        self._lists: list[tuple[tuple[Any, ...], str]] = []
        self._bind()

    def lines(self) -> list[str]:
        """Return the statements; numbers are marked."""
        return self._written(self._statements(self._entries()))

    def _bind(self) -> None:
        own = self._takes[self._scope.path]
        values = self._calls.inputs if self._scope.path == "" else own.of(self._calls, self._scope)
        for name, value in zip(own.names, values, strict=True):
            if isinstance(value, fx.Node):
                self._names.setdefault(value, name)
            else:
                self._fixed |= {node: text for node, text in _places(value, name) if node not in self._fixed}
                if isinstance(value, tuple | list):
                    self._lists.append((tuple(value), name))

    # What is to be written.

    def _entries(self) -> list[_Entry]:
        entries: list[_Entry] = []
        items = list(self._scope.items)
        while items:
            unpacked = self._unpacked(items)
            if unpacked is not None:
                entry, count = unpacked
                del items[:count]
            else:
                entry = self._entry(items.pop(0))
            entries.append(entry)
        entries.append(_Entry("return", self._result(), []))
        for entry in entries:
            self._render(entry, lambda node, entry=entry: self._note(entry, node))  # type: ignore[misc]
        return entries

    def _entry(self, item: fx.Node | Scope) -> _Entry:
        if isinstance(item, Scope):
            return _Entry("expression", item, list(self._calls.given_by(item)))
        changed: Any = item.args[0] if item.target in IN_PLACE else None
        if changed is not None and changed.op != "get_attr" and changed not in self._fixed:
            return _Entry("in_place", item, [item])
        return _Entry("item" if item.target is operator.setitem else "expression", item, [item])

    def _result(self) -> Any:
        if self._scope.path == "":
            return self._calls.output.args[0]
        given = self._calls.given_by(self._scope)
        return given[0] if len(given) == 1 else tuple(given)

    def _unpacked(self, items: list[Any]) -> tuple[_Entry, int] | None:
        """Return `a, b = base` and how many nodes it stands for, if that is what comes next."""
        first = items[0]
        if isinstance(first, Scope) or first.target is not operator.getitem:
            return None
        base = first.args[0]
        value = base.meta.get("value") if isinstance(base, fx.Node) else None
        if not isinstance(value, tuple | list) or not 2 <= len(value) <= 6:
            return None
        run: list[Any] = []
        for item in items:
            same = not isinstance(item, Scope) and item.target is operator.getitem and item.args[0] is base
            if not same or not isinstance(item.args[1], int) or (run and item.args[1] <= run[-1].args[1]):
                break
            run.append(item)
        users = [user for user in base.users if user in self._calls.owner or user.op == "output"]
        if len(run) < 2 or len(users) != len(run) or run[0].args[1] < 0:
            return None
        results = [next((n for n in run if n.args[1] == place), None) for place in range(len(value))]
        return _Entry("unpack", base, results), len(run)

    def _note(self, entry: _Entry, node: fx.Node) -> Expression:
        entry.reads.append(node)
        return "value", ATOM

    # What is written inside of what.

    def _statements(self, entries: list[_Entry]) -> list[_Piece]:
        uses = Counter(node for entry in entries for node in entry.reads)
        pending: list[tuple[fx.Node, _Piece]] = []
        statements: list[_Piece] = []
        for entry in entries:
            inner = self._inside(entry, pending)
            piece = _Piece(entry, dict(inner))
            if self._is_too_much(piece):
                inner, piece = [], _Piece(entry, {})
                statements += [waiting for _, waiting in pending]
                pending = []
            pending = pending[: len(pending) - len(inner)]
            single = entry.results[0] if len(entry.results) == 1 else None
            if entry.kind == "expression" and single is not None and uses[single] == 1:
                pending.append((single, piece))
            else:
                statements += [*(waiting for _, waiting in pending), piece]
                pending = []
        return statements

    def _is_too_much(self, piece: _Piece) -> bool:
        """Return whether an expression is too long to read, or a member of a list takes more than a variable."""
        text = self._nominal(piece)
        numbered = piece.inner and _MEMBER.search(self._nominal(_Piece(piece.entry, {})))
        return bool(numbered) or len(text) > _LONGEST or piece.depth > _DEEPEST

    def _inside(self, entry: _Entry, pending: list[tuple[fx.Node, _Piece]]) -> list[tuple[fx.Node, _Piece]]:
        """Return the last of what waits, as much of it as the entry reads in the same order."""
        if entry.kind == "item":
            return []
        reads = entry.reads[1:] if entry.kind == "in_place" else entry.reads
        for start in range(len(pending)):
            wanted = iter(reads)
            if all(any(read is node for read in wanted) for node, _ in pending[start:]):
                return pending[start:]
        return []

    def _nominal(self, piece: _Piece) -> str:
        text = self._text(piece, lambda node: (self._fixed.get(node, "value"), ATOM))[0]
        return text.replace(OPEN, "").replace(CLOSE, "")

    # How it is written.

    def _written(self, statements: list[_Piece]) -> list[str]:
        last: dict[fx.Node, int] = {}
        alias: dict[fx.Node, fx.Node] = {}
        for place, piece in enumerate(statements):
            if piece.entry.kind == "in_place":
                lhs = piece.entry.reads[0]
                alias[piece.entry.item] = alias.get(lhs, lhs)
            for node in _variables(piece):
                last[alias.get(node, node)] = place
        lines: list[str] = []
        for place, piece in enumerate(statements):
            text = self._statement(piece, last, place, alias)
            if text is not None:
                lines.append(text)
        return lines

    def _statement(
        self, piece: _Piece, last: dict[fx.Node, int], place: int, alias: dict[fx.Node, fx.Node]
    ) -> str | None:
        entry = piece.entry
        text = self._text(piece, self._variable)[0]
        if entry.kind == "in_place":
            self._names[entry.item] = self._names[entry.reads[0]]
            return text
        if entry.kind == "return":
            return f"return {text}" if self._returns(entry.item) else None
        if entry.kind == "item":
            return text
        live = {self._names[n] for n in self._names if last.get(alias.get(n, n), -1) > place}
        dying = [n for n in _variables(piece) if last[alias.get(n, n)] == place and n in self._names]
        targets: list[str] = []
        for index, node in enumerate(entry.results):
            if node is None or node not in last:
                targets.append("_")
                continue
            taken = (*live, *targets, *self._fixed_names())
            free = [self._names[n] for n in dying if _is_tensor(n) and self._names[n] not in taken]
            single = len(entry.results) == 1 and _is_tensor(node)
            name = self._again(free, taken) if single else None
            name = _free(self._hint(entry, index), taken) if name is None else name
            self._names[node] = name
            targets.append(name)
        if not targets or set(targets) == {"_"}:
            return text
        return f"{', '.join(targets)} = {text}"

    def _again(self, free: list[str], taken: Sequence[str]) -> str | None:
        """Return a name that is used again: that of what is read for the last time, or x; an input's own is not."""
        plain = [name for name in free if name in ("x", "y")]
        if plain or "x" not in taken:
            return plain[0] if plain else "x"
        return next((name for name in free if name not in self._takes[self._scope.path].names), None)

    def _returns(self, result: Any) -> bool:
        return self._scope.path == "" or isinstance(result, fx.Node) or len(result) > 0

    def _fixed_names(self) -> set[str]:
        return {name for _, name in self._lists} | {text.partition("[")[0] for text in self._fixed.values()}

    def _hint(self, entry: _Entry, index: int) -> str:
        item = entry.item
        if entry.kind == "unpack":
            shape = item.target in (getattr, "size")
            names = _UNPACKED.get(len(entry.results), ()) if shape else ()
            return names[index] if names else f"part{index + 1}"
        if isinstance(item, Scope) or item.op == "call_module":
            path = item.path if isinstance(item, Scope) else str(item.target)
            named = [part for part in path.split(".") if not part.isdigit()]
            return named[-1] if named else "y"
        if not _is_tensor(item) and item.target in (getattr, operator.getitem, "size"):
            return "length" if item.target is not getattr else "sizes"
        name = item.target if isinstance(item.target, str) else getattr(item.target, "__name__", "y")
        return name.strip("_") if name in _TELLING else "y"

    def _variable(self, node: fx.Node) -> Expression:
        if node not in self._names:
            raise ExportError(f"model.py must know {node.name} where it is used ({source_line(node)}), but does not")
        return self._names[node], ATOM

    def _text(self, piece: _Piece, variable: Callable[[fx.Node], Expression]) -> Expression:
        def operand(node: fx.Node) -> Expression:
            inner = piece.inner.get(node)
            return self._text(inner, variable) if inner is not None else variable(node)

        return self._render(piece.entry, operand)

    def _render(self, entry: _Entry, operand: Callable[[fx.Node], Expression]) -> Expression:
        writer = Writer(lambda node: self._operand(node, operand), self._member, self._aggregate)
        item = entry.item
        if entry.kind == "unpack":
            return writer.argument(item)
        if entry.kind == "return":
            if isinstance(item, tuple) and self._aggregate(item) is None and len(item) > 1:
                return writer.arguments(item, {}), ATOM
            return writer.argument(item if not isinstance(item, tuple) else tuple(item))
        if isinstance(item, Scope):
            values = self._takes[item.path].of(self._calls, item)
            return f"{self._member(item.path)}({writer.arguments(values, {})})", ATOM
        if entry.kind == "in_place":
            return (
                f"{writer.argument(item.args[0])[0]} {IN_PLACE[item.target][0]} {writer.argument(item.args[1])[0]}",
                0,
            )
        if entry.kind == "item":
            place = f"{writer.argument(item.args[0])[0]}[{writer.index(item.args[1])}]"
            return f"{place} = {writer.argument(item.args[2])[0]}", 0
        return writer.node(item)

    def _operand(self, node: fx.Node, operand: Callable[[fx.Node], Expression]) -> Expression:
        if node in self._fixed:
            return self._fixed[node], ATOM
        if node.op == "get_attr" and node not in self._names:
            return self._member(str(node.target)), ATOM
        return operand(node)

    def _aggregate(self, parts: Sequence[Any]) -> str | None:
        return next((name for known, name in self._lists if known == tuple(parts)), None)

    def _member(self, target: str) -> str:
        path = member_path(self._root, target, self._scope.path)
        if path is None:
            raise ExportError(f"model.py must reach {target!r} from {self._scope.path!r}, but it is elsewhere")
        return access(self._module, path)


def _places(value: Any, text: str) -> Iterator[tuple[fx.Node, str]]:
    if isinstance(value, fx.Node):
        yield value, text
    elif isinstance(value, tuple | list):
        for index, part in enumerate(value):
            yield from _places(part, f"{text}[{index}]")
    elif isinstance(value, dict):
        for name, part in value.items():
            yield from _places(part, f'{text}["{name}"]')


def _variables(piece: _Piece) -> Iterator[fx.Node]:
    """Yield the variables that a statement reads, from left to right."""
    for node in piece.entry.reads:
        if node in piece.inner:
            yield from _variables(piece.inner[node])
        else:
            yield node


def _is_tensor(node: fx.Node) -> bool:
    return isinstance(node.meta.get("value"), Signature)
