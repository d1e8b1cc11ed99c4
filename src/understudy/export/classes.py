"""Modules that are alike -> one class, what differs between them as arguments of its constructor."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from understudy.export.builds import Build, Container, Held, Place, Slot, Written
from understudy.export.expressions import CLOSE, OPEN, is_name
from understudy.export.lines import broken

_NUMBER = re.compile(f"(?:(?<=\\W)(\\w+)=)?{OPEN}([^{CLOSE}]*){CLOSE}")
_MARKED = re.compile(f"{OPEN}[^{CLOSE}]*{CLOSE}")
_UNMARKED = str.maketrans("", "", OPEN + CLOSE)
_MOST_MEMBERS = 2  # members of different kinds that a class gets from outside; with more there are several classes
_WIDTHS = ("out_channels", "out_features", "num_features", "num_channels", "normalized_shape")
_EMPTY = "        super().__init__()"
_BY_ITSELF = frozenset(("in_channels", "in_features"))


@dataclass(frozen=True)
class Forward:
    """The forward of a module: names and types of what it takes, type of what it gives, marked lines."""

    names: tuple[str, ...]
    types: tuple[str, ...]
    gives: str
    lines: tuple[str, ...]

    @property
    def kind(self) -> object:
        """What must be alike in modules that share a class: all but the numbers."""
        return self.names, self.types, self.gives, tuple(_MARKED.sub(OPEN, line) for line in self.lines)

    @property
    def numbers(self) -> list[tuple[str, str]]:
        """The numbers, from the first line to the last, with the names of the arguments that they are."""
        return [(name or "number", number) for line in self.lines for name, number in _NUMBER.findall(line)]


@dataclass(eq=False)
class Instance:
    """One module of the student that needs a class of its own."""

    path: str
    name: str  # of the teacher's class
    base: str  # nn.Module, or the container that the class is one of
    members: dict[str, Build]  # what it holds, by attribute
    forward: Forward | None
    numbered: bool = True  # whether the members of a container are numbered
    tensors: frozenset[str] = frozenset()  # the members that are buffers, written by register_buffer
    after: list[str] = field(default_factory=list)  # lines at the end of the constructor
    build: Written | None = None


@dataclass
class Class:
    """A class that is written out."""

    name: str
    instances: list[Instance]
    given: list[str]  # members that come from outside
    parameters: dict[str, list[Place]] = field(default_factory=dict)  # what differs, and where it stands
    derived: dict[Place, str] = field(default_factory=dict)  # what differs, but follows from a parameter

    @property
    def first(self) -> Instance:
        """The module that stands for all of them."""
        return self.instances[0]


def classes_of(instances: Sequence[Instance], group: int, taken: set[str]) -> Iterator[Class]:
    """Yield the classes of modules of one height, and give each module its build; `group` numbers the first class."""
    alike: dict[object, list[Instance]] = {}
    for instance in instances:
        forward = instance.forward.kind if instance.forward is not None else None
        shape = (instance.name, instance.base, tuple(instance.members), forward, instance.tensors)
        alike.setdefault(shape, []).append(instance)
    for members in alike.values():
        for part in _split(members):
            made = _class(part, group, taken)
            group += 1
            yield made


def _split(instances: list[Instance]) -> list[list[Instance]]:
    differing = _differing(instances)
    can_be_arguments = all(map(is_name, differing))
    if len(differing) <= _MOST_MEMBERS and can_be_arguments and instances[0].base == "nn.Module":
        return [instances]
    alike: dict[object, list[Instance]] = {}
    for instance in instances:
        alike.setdefault(tuple(build.kind for build in instance.members.values()), []).append(instance)
    return list(alike.values())


def _differing(instances: list[Instance]) -> list[str]:
    names = instances[0].members
    return [name for name in names if len({instance.members[name].kind for instance in instances}) > 1]


def _class(instances: list[Instance], group: int, taken: set[str]) -> Class:
    name, number = instances[0].name, 2
    while name in taken:
        name, number = f"{instances[0].name}{number}", number + 1
    taken.add(name)
    made = Class(name, instances, _differing(instances))
    found = [_slots(instance, made.given) for instance in instances]
    by_values: dict[tuple[str, ...], list[Place]] = {}
    for place in found[0]:
        values = tuple(slots[place].text for slots in found)
        if len(set(values)) > 1:
            by_values.setdefault(values, []).append(place)
    halves = _halves(by_values)
    groups = [places for values, places in by_values.items() if values not in halves]
    made.parameters = _named(groups, list(instances[0].members))
    by_place = {place: name for name, places in made.parameters.items() for place in places}
    for values, kernel in halves.items():
        made.derived |= dict.fromkeys(by_values[values], f"{by_place[by_values[kernel][0]]} // 2")
    for instance, slots in zip(instances, found, strict=True):
        arguments: dict[str, Slot | Build] = {n: Slot(slots[p[0]].text) for n, p in made.parameters.items()}
        arguments |= {member: instance.members[member] for member in made.given}
        instance.build = Written(name, group, arguments)
    return made


def _halves(by_values: Mapping[tuple[str, ...], list[Place]]) -> dict[tuple[str, ...], tuple[str, ...]]:
    """Return the paddings that are half of a kernel everywhere, with that kernel."""
    kernels = [values for values, places in by_values.items() if any(p[-1] == "kernel_size" for p in places)]
    found: dict[tuple[str, ...], tuple[str, ...]] = {}
    for values, places in by_values.items():
        if not all(place[-1] == "padding" for place in places) or not all(value.isdigit() for value in values):
            continue
        for kernel in kernels:
            if all(k.isdigit() and int(k) // 2 == int(v) for k, v in zip(kernel, values, strict=True)):
                found[values] = kernel
    return found


def _slots(instance: Instance, given: list[str]) -> dict[Place, Slot]:
    slots = {
        (name, *place): slot
        for name, build in instance.members.items()
        if name not in given
        for place, slot in build.slots()
    }
    numbers = instance.forward.numbers if instance.forward is not None else []
    return slots | {("", name, str(index)): Slot(number) for index, (name, number) in enumerate(numbers)}


def _named(groups: list[list[Place]], taken: list[str]) -> dict[str, list[Place]]:
    """Name what differs: by the argument if that is clear enough, else by the member as well."""
    short = [_short(places) for places in groups]
    names: dict[str, list[Place]] = {}
    for index, places in enumerate(groups):
        name, place = short[index]
        clear = [n for n, _ in short].count(name) == 1 and name not in _WIDTHS
        if not clear:
            plain = "channels" if name in _WIDTHS else name
            name = "_".join([*(part for part in place[:-1] if part and place[0]), plain])
        name = re.sub(r"\W", "_", name)
        name = f"layer{name}" if name[0].isdigit() else name
        name = name if is_name(name) else f"{name}_"
        free, number = name, 2
        while free in names or free in taken:
            free, number = f"{name}_{number}", number + 1
        names[free] = places
    return names


def _short(places: list[Place]) -> tuple[str, Place]:
    first = places[0]
    if first[-1] in _BY_ITSELF:
        return first[-1], first
    best = next((place for width in _WIDTHS[:2] for place in places if place[-1] == width), first)
    return (best[1] if best[0] == "" else best[-1]), best


def class_text(made: Class, docstring: str) -> list[str]:
    """Return the lines of a class."""
    instance = made.first
    names = {place: name for name, places in made.parameters.items() for place in places} | made.derived
    lines = [f"class {made.name}({instance.base}):", f'    """{docstring}"""', ""]
    lines += _constructor(made, names)
    if lines[-1] == _EMPTY:
        del lines[-2:]
    elif instance.forward is not None:
        lines.append("")
    if instance.forward is not None:
        lines += _forward(instance.forward, names)
    return lines


def _constructor(made: Class, names: Mapping[Place, str]) -> list[str]:
    instance = made.first
    types = {name: _type([_text(i, places[0]) for i in made.instances]) for name, places in made.parameters.items()}
    types |= dict.fromkeys(made.given, "nn.Module")
    signature = ", ".join(["self", *(f"{name}: {kind}" for name, kind in types.items())])
    lines = broken(f"def __init__({signature}) -> None:", 4)
    resolve = _Resolver(instance, names)
    members = instance.members
    if instance.base != "nn.Module":  # what it holds beside the modules that it contains comes after these
        modules = {name: build for name, build in members.items() if not isinstance(build, Held)}
        members = {name: build for name, build in members.items() if isinstance(build, Held)}
        inside = Container(instance.base, modules, instance.numbered).inside(resolve)
        lines += broken(f"super().__init__({inside})", 8)
    else:
        lines.append(_EMPTY)
    for place in names:
        line = f"        self.{names[place]} = {names[place]}"
        lines += [] if place[0] or line in lines else [line]
    for name, build in members.items():
        text = name if name in made.given else build.text(lambda place, name=name: resolve((name, *place)))  # type: ignore[misc]
        if name in instance.tensors:
            lines += broken(f'self.register_buffer("{name}", {text})', 8)
        elif is_name(name):
            lines += broken(f"self.{name} = {text}", 8)
        else:
            lines += broken(f'self.add_module("{name}", {text})', 8)
    return lines + [" " * 8 + line for line in instance.after]


class _Resolver:
    """Writes the arguments of a class's members: what differs by name, what does not as it is."""

    def __init__(self, instance: Instance, names: Mapping[Place, str]) -> None:
        self._names = names
        self._slots = {(n, *place): slot for n, build in instance.members.items() for place, slot in build.slots()}

    def __call__(self, place: Place) -> str | None:
        if place in self._names:
            return self._names[place]
        slot = self._slots[place]
        return None if slot.text == slot.default else slot.text


def _text(instance: Instance, place: Place) -> str:
    return _slots(instance, [])[place].text


def _type(texts: Sequence[str]) -> str:
    kinds = {_kind(text) for text in texts}
    return kinds.pop() if len(kinds) == 1 else " | ".join(sorted(kinds))


def _kind(text: str) -> str:
    if text in ("True", "False"):
        return "bool"
    if text == "None":
        return "None"
    if re.fullmatch(r"-?\d+", text):
        return "int"
    if text.startswith("("):
        inner = {_kind(part) for part in text.strip("(),").split(", ")}
        return f"tuple[{' | '.join(sorted(inner))}, ...]"
    return "str" if text.startswith('"') else "float"


def _forward(forward: Forward, names: Mapping[Place, str]) -> list[str]:
    by_index = {place[2]: name for place, name in names.items() if place[0] == ""}
    index = -1

    def resolved(match: re.Match[str]) -> str:
        nonlocal index
        index += 1
        name = by_index.get(str(index))
        return match[0].translate(_UNMARKED) if name is None else _MARKED.sub(f"self.{name}", match[0])

    typed = [f"{n}: {t}" if t else n for n, t in zip(forward.names, forward.types, strict=True)]
    lines = broken(f"def forward({', '.join(['self', *typed])}){forward.gives}:", 4)
    for marked in forward.lines:
        line = _NUMBER.sub(resolved, marked)
        text = line.lstrip()
        lines += broken(text, 8 + len(line) - len(text))
    return lines
