"""The plan for a student: what a teacher allows (`Space`) and what was decided (`Architecture`).

Both are immutable values of names and integers. Nothing here imports torch, so that plans can be
read, compared, cached and sent to other machines without it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from typing import Any, Literal, TypeVar

from understudy.core.errors import ArchitectureError, did_you_mean

T = TypeVar("T")
UnitKind = Literal["conv", "linear", "pool", "block", "branch", "layer"]


@dataclass(frozen=True, kw_only=True)
class Layer:
    """One layer of the teacher in execution order: a row of N2N's state (paper, section 3.1).

    `skip_start` and `skip_end` are how many layers back the innermost enclosing skip connection
    starts and how many layers ahead it ends; 0 outside of any.
    """

    name: str  # qualified module name in the teacher
    type: str  # "conv", "linear", "norm", "activation", "pool" or "other"
    kernel: int = 0
    stride: int = 0
    padding: int = 0
    outputs: int = 0  # channels or features that it emits, 0 where it keeps those that it gets
    parameters: int = 0
    skip_start: int = 0
    skip_end: int = 0
    group: str | None = None  # the group that its output channels belong to, if to exactly one
    kernels: tuple[int, ...] = ()  # legal kernel sizes, ascending, the teacher's last


@dataclass(frozen=True, kw_only=True)
class Group:
    """Channels of several tensors that must keep the same indices.

    `width` counts output channels of the layer that the group is named after. Channels go in slots
    of `step` (1 but for grouped convolutions and group norms), so a legal width is a multiple of it, and not under
    `least`: a variance over a single channel is none.
    """

    name: str
    width: int
    step: int = 1
    layers: tuple[str, ...] = ()  # every layer that emits or reads these channels
    # Why the teacher's own class cannot have other widths, so that the student is a plain graph; "" where it can.
    plain: str = ""
    least: int = 1  # channels

    def legal_widths(self, *, round_to: int = 1, minimum: int = 1) -> tuple[int, ...]:
        """Return the widths (channels, ascending) that are multiples of `round_to` and of the step.

        The teacher's own width is always legal, whatever it is a multiple of.
        """
        steps = range(self.step, self.width, self.step)
        return (*(w for w in steps if w % round_to == 0 and w >= max(minimum, self.least)), self.width)

    def nearest(self, width: float, *, round_to: int = 1, minimum: int = 1) -> int:
        """Return the legal width (channels) nearest to `width`, the larger one of two equally near."""
        legal = self.legal_widths(round_to=round_to, minimum=minimum)
        return min(legal, key=lambda w: (abs(w - width), -w))


@dataclass(frozen=True, kw_only=True)
class Unit:
    """What can be removed as one.

    "conv" and "linear" are such a layer with its norm and activation, "block" is a module that keeps shape and
    channels, "branch" what an addition in a forward pass adds to its own input. In a student, a removed block is one
    identity, otherwise each of `layers` becomes one; the last layer of a branch becomes zero.
    """

    name: str
    kind: UnitKind
    layers: tuple[str, ...]  # the leaf layers that go with it


@dataclass(frozen=True, kw_only=True)
class Frozen:
    """Channels that must keep their full width, why, and the source line that needs them."""

    name: str
    width: int
    reason: str
    source: str = ""


@dataclass(frozen=True, kw_only=True)
class Refused:
    """A decision that a check of real students found wrong: a group's width, a unit's removal or a layer's kernel."""

    kind: Literal["group", "unit", "kernel"]
    name: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class Space:
    """All that a teacher allows.

    `refused` is what the structure allows and a check found wrong. Such a Space is a part of another one, whose
    digest is `origin`; their architectures belong to both.
    """

    layers: tuple[Layer, ...]
    groups: tuple[Group, ...]
    units: tuple[Unit, ...]
    frozen: tuple[Frozen, ...] = ()
    refused: tuple[Refused, ...] = ()
    origin: str = ""

    def architecture(
        self,
        *,
        removed: Iterable[str] = (),
        widths: Mapping[str, int] | None = None,
        kernels: Mapping[str, int] | None = None,
        channels: Mapping[str, Iterable[int]] | None = None,
    ) -> Architecture:
        """Return the Architecture with these decisions; what is not named keeps the teacher's value.

        `widths` counts channels per group, `kernels` gives sizes per layer, `channels` names the very
        slots of a group to keep (a slot is one channel unless the group's step is larger).

        Raises:
            ArchitectureError: a name is unknown or a value is not legal.
        """
        chosen = {name: tuple(sorted(set(slots))) for name, slots in (channels or {}).items()}
        counted = {name: len(slots) * self.group(name).step for name, slots in chosen.items()}
        return Architecture(
            space=self,
            removed=frozenset(removed),
            widths=tuple(sorted({**(widths or {}), **counted}.items())),
            kernels=tuple(sorted((kernels or {}).items())),
            channels=tuple(sorted(chosen.items())),
        ).canonical()

    @cached_property
    def full(self) -> Architecture:
        """The keep-all architecture: the teacher itself."""
        return Architecture(space=self)

    def without(self, refused: Iterable[Refused]) -> Space:
        """Return the part of this Space in which these decisions are not offered: groups freeze, units stay."""
        known = {"group": {*self._groups}, "unit": {*self._units}, "kernel": {*self._layers}}
        refused = tuple(found for found in refused if found.name in known[found.kind])
        if not refused:
            return self
        reasons = {(found.kind, found.name): found.reason for found in refused}
        frozen = (
            Frozen(name=group.name, width=group.width, reason=reasons["group", group.name])
            for group in self.groups
            if ("group", group.name) in reasons
        )
        return Space(
            layers=tuple(
                replace(
                    layer,
                    group=None if ("group", str(layer.group)) in reasons else layer.group,
                    kernels=() if ("kernel", layer.name) in reasons else layer.kernels,
                )
                for layer in self.layers
            ),
            groups=tuple(group for group in self.groups if ("group", group.name) not in reasons),
            units=tuple(unit for unit in self.units if ("unit", unit.name) not in reasons),
            frozen=(*self.frozen, *frozen),
            refused=(*self.refused, *refused),
            origin=self.family,
        )

    def group(self, name: str) -> Group:
        """Return the group of that name, or raise ArchitectureError."""
        return _named("group", name, self._groups)

    def unit(self, name: str) -> Unit:
        """Return the unit of that name, or raise ArchitectureError."""
        return _named("unit", name, self._units)

    def layer(self, name: str) -> Layer:
        """Return the layer of that name, or raise ArchitectureError."""
        return _named("layer", name, self._layers)

    def layers_of(self, unit: str) -> frozenset[str]:
        """Return the leaf layers that go with a unit."""
        if unit not in self._layers_of:
            self._layers_of[unit] = frozenset(self.unit(unit).layers)
        return self._layers_of[unit]

    @cached_property
    def _groups(self) -> dict[str, Group]:
        return {group.name: group for group in self.groups}

    @cached_property
    def _units(self) -> dict[str, Unit]:
        return {unit.name: unit for unit in self.units}

    @cached_property
    def _layers(self) -> dict[str, Layer]:
        return {layer.name: layer for layer in self.layers}

    @cached_property
    def _layers_of(self) -> dict[str, frozenset[str]]:
        return {}

    @cached_property
    def digest(self) -> str:
        """16 hexadecimal digits that name what this Space allows.

        The lines of code that freeze channels have no part in it, as files are edited and renamed, nor has what was
        measured of a decision that is refused.
        """
        fields = self._fields()
        for group in fields["groups"]:
            if "plain" in group:
                group["plain"] = True
        for frozen in fields["frozen"]:
            frozen["source"] = ""
        for refused in fields["refused"]:
            del refused["reason"]
        return _digest(fields)

    @property
    def family(self) -> str:
        """The digest of the whole Space that this one is or is a part of; architectures name it."""
        return self.origin or self.digest

    def to_json(self) -> str:
        """Return this Space as JSON text; `from_json` reads it back."""
        return json.dumps(self._fields())

    def _fields(self) -> dict[str, Any]:
        fields = asdict(self)
        for group in fields["groups"]:  # Spaces from before there were such groups keep their digests
            if not group["plain"]:
                del group["plain"]
            if group["least"] == 1:
                del group["least"]
        return fields

    @classmethod
    def from_json(cls, text: str) -> Space:
        """Read what `to_json` wrote."""
        fields = json.loads(text)
        return cls(
            layers=tuple(Layer(**{**x, "kernels": tuple(x["kernels"])}) for x in fields["layers"]),
            groups=tuple(Group(**{**x, "layers": tuple(x["layers"])}) for x in fields["groups"]),
            units=tuple(Unit(**{**x, "layers": tuple(x["layers"])}) for x in fields["units"]),
            frozen=tuple(Frozen(**x) for x in fields["frozen"]),
            refused=tuple(Refused(**x) for x in fields["refused"]),
            origin=fields["origin"],
        )


@dataclass(frozen=True)
class Architecture:
    """Which units go, how wide each group is and how large each kernel. Checks itself when built.

    Only what differs from the teacher is stored. Make one with `Space.architecture` and change it by
    `without`, `with_width` and `with_kernel`, which return new values.

    Raises:
        ArchitectureError: a name is unknown or a value is not legal.
    """

    space: Space = field(repr=False, hash=False)  # to hash all of it takes longer than most of what is asked here
    removed: frozenset[str] = frozenset()
    widths: tuple[tuple[str, int], ...] = ()
    kernels: tuple[tuple[str, int], ...] = ()
    channels: tuple[tuple[str, tuple[int, ...]], ...] = ()

    def __post_init__(self) -> None:
        for name in self.removed:
            self.space.unit(name)
        for name, slots in self.channels:
            _check_slots(self.space.group(name), slots)
        for name, width in self.widths:
            _check_width(self.space.group(name), width)
        for name, kernel in self.kernels:
            _check_kernel(self.space.layer(name), kernel)

    def check_belongs(self, space: Space) -> None:
        """Raise ArchitectureError if this was made for another teacher than the one of `space`, or is not in it."""
        if self.space is not space:
            _check_space(space, self.space.family)
            replace(self, space=space)  # checks itself

    def width(self, group: str) -> int:
        """Return how many channels the group keeps."""
        return self._widths[group] if group in self._widths else self.space.group(group).width

    def kernel(self, layer: str) -> int:
        """Return the layer's kernel size."""
        return self._kernels[layer] if layer in self._kernels else self.space.layer(layer).kernel

    @cached_property
    def _widths(self) -> dict[str, int]:
        return dict(self.widths)

    @cached_property
    def _kernels(self) -> dict[str, int]:
        return dict(self.kernels)

    def without(self, *units: str) -> Architecture:
        """Return this architecture with those units removed as well."""
        return self._changed(removed=self.removed | set(units))

    def with_width(self, group: str, width: int) -> Architecture:
        """Return this architecture with another width (channels) of one group."""
        return self.with_widths({group: width})

    def with_widths(self, widths: Mapping[str, int]) -> Architecture:
        """Return this architecture with other widths (channels) of these groups."""
        channels = {name: slots for name, slots in self.channels if name not in widths}
        return self._changed(widths={**dict(self.widths), **widths}, channels=channels)

    def with_kernel(self, layer: str, kernel: int) -> Architecture:
        """Return this architecture with another kernel size of one layer."""
        return self._changed(kernels={**dict(self.kernels), layer: kernel})

    def canonical(self) -> Architecture:
        """Return the one form of all architectures that build the same student.

        A unit inside a removed one, the width of a group and the kernel of a layer that are gone, and
        values equal to the teacher's say nothing and are dropped.
        """
        space, gone, removed = self.space, frozenset[str](), self.removed
        if removed:
            units = {name: space.layers_of(name) for name in removed}
            gone = gone.union(*units.values())
            removed = frozenset(u for u, layers in units.items() if not any(layers < other for other in units.values()))
        widths = tuple(
            (g, w) for g, w in self.widths if space.group(g).width != w and not _is_gone(space.group(g), gone)
        )
        decided = {name for name, _ in widths}
        kernels = tuple((n, k) for n, k in self.kernels if n not in gone and k != space.layer(n).kernel)
        channels = tuple((g, slots) for g, slots in self.channels if g in decided)
        if (removed, widths, kernels, channels) == (self.removed, self.widths, self.kernels, self.channels):
            return self
        return Architecture(space=space, removed=removed, widths=widths, kernels=kernels, channels=channels)

    def _changed(self, **changes: Any) -> Architecture:
        decisions: dict[str, Any] = {
            "removed": self.removed,
            "widths": dict(self.widths),
            "kernels": dict(self.kernels),
            "channels": dict(self.channels),
        }
        return self.space.architecture(**{**decisions, **changes})

    @cached_property
    def digest(self) -> str:
        """16 hexadecimal digits, equal for two architectures exactly if they build the same student."""
        return _digest(self.canonical()._fields())

    def _fields(self) -> dict[str, Any]:
        return {
            "space": self.space.family,
            "removed": sorted(self.removed),
            "widths": dict(self.widths),
            "kernels": dict(self.kernels),
            "channels": {name: list(slots) for name, slots in self.channels},
        }

    def to_json(self) -> str:
        """Return this architecture as JSON text; `from_json` reads it back."""
        return json.dumps(self._fields(), indent=1)

    @classmethod
    def from_json(cls, space: Space, text: str) -> Architecture:
        """Read what `to_json` wrote, for the Space that it was made for.

        Raises:
            ArchitectureError: the text is no architecture, or of another Space, or a decision is not legal.
        """
        try:
            fields = json.loads(text)
            made_for = fields["space"]
            decisions = {name: fields[name] for name in ("removed", "widths", "kernels", "channels")}
        except (ValueError, KeyError, TypeError) as error:
            raise ArchitectureError(f"an architecture must be what to_json wrote, but got {text[:60]!r}") from error
        _check_space(space, made_for)
        return space.architecture(**decisions)


def _digest(fields: Any) -> str:
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()[:16]


def _named(kind: str, name: str, known: Mapping[str, T]) -> T:
    if name not in known:
        raise ArchitectureError(f"the Space has no {kind} {name!r}{did_you_mean(name, known)}")
    return known[name]


def _is_gone(group: Group, layers: frozenset[str]) -> bool:
    """Return whether nothing is left of a group without these layers."""
    return group.name in layers or bool(group.layers and layers.issuperset(group.layers))


def _check_space(space: Space, made_for: str) -> None:
    if made_for != space.family:
        raise ArchitectureError(
            f"an architecture belongs to the teacher that it was made for: it was made for Space {made_for}, "
            f"but this teacher's is {space.family}"
        )


def _check_width(group: Group, width: int) -> None:
    least = max(group.step, group.least)
    if not least <= width <= group.width or width % group.step:
        multiple = f", a multiple of {group.step}" if group.step > 1 else ""
        raise ArchitectureError(
            f"width of group {group.name!r} must be in {least}..{group.width}{multiple}, but got {width}"
        )


def _check_kernel(layer: Layer, kernel: int) -> None:
    legal = layer.kernels or (layer.kernel,)
    if kernel not in legal:
        raise ArchitectureError(f"kernel of layer {layer.name!r} must be one of {legal}, but got {kernel}")


def _check_slots(group: Group, slots: tuple[int, ...]) -> None:
    size, least = group.width // group.step, -(-group.least // group.step)
    if len(slots) < least or slots[0] < 0 or slots[-1] >= size:
        number = "one" if least == 1 else str(least)
        raise ArchitectureError(
            f"channels of group {group.name!r} must be at least {number} of 0..{size - 1}, but got {list(slots)}"
        )


def weighted_layers(architecture: Architecture) -> int:
    """Return how many convolutions and linear layers an architecture keeps."""
    space = architecture.space
    gone = {layer for name in architecture.removed for layer in space.unit(name).layers}
    return sum(layer.type in ("conv", "linear") and layer.name not in gone for layer in space.layers)
