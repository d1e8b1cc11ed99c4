"""How a module is made, as a tree: layers of torch, containers of them, and classes that are written out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from understudy.export.layers import Layer

Place = tuple[str, ...]  # names of members, then of an argument
# What stands at a place: text, or None where nothing is to be written.
Resolve = Callable[[Place], str | None]


@dataclass(frozen=True)
class Slot:
    """An argument: what it is as text, and what it would be if nothing was written."""

    text: str
    default: str | None = None


@dataclass(frozen=True)
class Single:
    """A layer of torch.nn."""

    layer: Layer

    @property
    def kind(self) -> Any:
        """What must be alike for two of them to be written by the same line."""
        return ("layer", self.layer.name, tuple(self.layer.arguments))

    def slots(self) -> Iterator[tuple[Place, Slot]]:
        """Yield the arguments with their places."""
        for name, text in self.layer.arguments.items():
            yield (name,), Slot(text, self.layer.defaults.get(name))

    def text(self, resolve: Resolve) -> str:
        """Return the call that makes it."""
        parts = []
        for name in self.layer.arguments:
            text = resolve((name,))
            if text is not None:
                parts.append(text if name not in self.layer.defaults else f"{name}={text}")
        return f"{self.layer.name}({', '.join(parts)})"


@dataclass(frozen=True)
class Held:
    """A parameter or buffer that a module holds itself."""

    before: str  # "nn.Parameter(torch.zeros("
    sizes: tuple[str, ...]
    after: str

    @property
    def kind(self) -> Any:
        """As of a layer."""
        return ("tensor", self.before, len(self.sizes), self.after)

    def slots(self) -> Iterator[tuple[Place, Slot]]:
        """As of a layer."""
        for index, size in enumerate(self.sizes):
            yield (f"size{index}" if index else "size",), Slot(size)

    def text(self, resolve: Resolve) -> str:
        """As of a layer."""
        inner = ", ".join(resolve((f"size{i}" if i else "size",)) or "" for i in range(len(self.sizes)))
        return f"{self.before}{inner or '()'}{self.after}"


@dataclass(frozen=True)
class Container:
    """nn.Sequential, nn.ModuleList, nn.ModuleDict or nn.ParameterList."""

    name: str
    members: Mapping[str, Build]
    numbered: bool

    @property
    def kind(self) -> Any:
        """As of a layer."""
        return (self.name, tuple((name, member.kind) for name, member in self.members.items()))

    def slots(self) -> Iterator[tuple[Place, Slot]]:
        """As of a layer."""
        for name, member in self.members.items():
            for place, slot in member.slots():
                yield (name, *place), slot

    def text(self, resolve: Resolve) -> str:
        """As of a layer."""
        return f"{self.name}({self.inside(resolve)})"

    def inside(self, resolve: Resolve) -> str:
        """Return what stands between the brackets."""
        texts = {name: member.text(_below(resolve, name)) for name, member in self.members.items()}
        if not texts:
            return ""
        if self.name == "nn.ModuleDict":
            return "{" + ", ".join(f'"{name}": {text}' for name, text in texts.items()) + "}"
        if self.name == "nn.ModuleList":  # which may hold None
            return f"[{', '.join(texts.get(str(index), 'None') for index in range(int(max(texts, key=int)) + 1))}]"
        if not self.numbered:
            return "OrderedDict([" + ", ".join(f'("{name}", {text})' for name, text in texts.items()) + "])"
        inner = ", ".join(texts.values())
        return inner if self.name == "nn.Sequential" else f"[{inner}]"


@dataclass(frozen=True)
class Written:
    """A module of a class that is written out, with what it is made with."""

    name: str
    group: int
    arguments: Mapping[str, Slot | Build] = field(default_factory=dict)

    @property
    def kind(self) -> Any:
        """As of a layer."""
        inner = tuple((n, v.kind) for n, v in self.arguments.items() if not isinstance(v, Slot))
        return ("class", self.group, inner)

    def slots(self) -> Iterator[tuple[Place, Slot]]:
        """As of a layer."""
        for name, value in self.arguments.items():
            if isinstance(value, Slot):
                yield (name,), value
            else:
                for place, slot in value.slots():
                    yield (name, *place), slot

    def text(self, resolve: Resolve) -> str:
        """As of a layer."""
        parts = []
        for name, value in self.arguments.items():
            text = resolve((name,)) if isinstance(value, Slot) else value.text(_below(resolve, name))
            if text is not None:
                parts.append(text if len(self.arguments) == 1 else f"{name}={text}")
        return f"{self.name}({', '.join(parts)})"


Build = Single | Held | Container | Written


def _below(resolve: Resolve, name: str) -> Resolve:
    return lambda place: resolve((name, *place))


def plain(build: Build) -> Resolve:
    """Return what writes every argument of a build as it is, and none that is the default."""
    known = dict(build.slots())
    return lambda place: None if known[place].text == known[place].default else known[place].text
