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
from typing import Any, TypeVar

from understudy.core.errors import ArchitectureError, check_kind, did_you_mean, whole
from understudy.core.parts import Frozen as Frozen
from understudy.core.parts import Group as Group
from understudy.core.parts import Layer as Layer
from understudy.core.parts import Refused as Refused
from understudy.core.parts import Unit as Unit
from understudy.core.written import made, written

T = TypeVar("T")


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
        chosen = {name: _slots(name, slots) for name, slots in _by_name("channels", channels).items()}
        counted = {name: len(slots) * self.group(name).step for name, slots in chosen.items()}
        wide, sizes = _numbers("widths", widths), _numbers("kernels", kernels)
        return Architecture(
            space=self,
            removed=frozenset(_names("removed", removed)),
            widths=tuple(sorted({**wide, **counted}.items())),
            kernels=tuple(sorted(sizes.items())),
            channels=tuple(sorted(chosen.items())),
        ).canonical()

    def check_own(self, architecture: Architecture) -> None:
        """Raise ArchitectureError of what is no architecture of this teacher, or is not in this Space."""
        rule = "an architecture must be one of the Space, such as analysis.space.full.with_width(group, width)"
        check_kind(architecture, Architecture, rule, ArchitectureError)
        if architecture.space is not self:
            _check_space(self, architecture.space.family)
            replace(architecture, space=self)  # checks itself

    @cached_property
    def full(self) -> Architecture:
        """The keep-all architecture: the teacher itself."""
        return Architecture(space=self)

    def without(self, refused: Iterable[Refused]) -> Space:
        """Return the part of this Space in which these decisions are not offered: groups freeze, units stay.

        Raises:
            ArchitectureError: one is no `Refused`, such as a Proof names them.
        """
        refused = tuple(_listed("refused", refused))
        for found in refused:
            check_kind(found, Refused, "what is refused must be a Refused, as those of a Proof", ArchitectureError)
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
        name = self.unit(unit).name
        if name not in self._layers_of:
            self._layers_of[name] = frozenset(self.unit(name).layers)
        return self._layers_of[name]

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
        """Read what `to_json` wrote.

        Raises:
            ArchitectureError: the text is no Space.
        """
        kinds: dict[str, Any] = {"layers": Layer, "groups": Group, "units": Unit, "frozen": Frozen, "refused": Refused}
        with written("a Space", text, ArchitectureError):
            fields = json.loads(text)
            parts = {name: tuple(made(kind, part) for part in fields[name]) for name, kind in kinds.items()}
            return made(cls, {**fields, **parts})


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
        check_kind(self.space, Space, "an architecture must be of a Space, as analyse(...).space", ArchitectureError)
        try:
            self._check()
        except ArchitectureError:
            raise
        except (TypeError, ValueError) as error:
            raise ArchitectureError(
                f"an architecture must be made by Space.architecture(removed=..., widths=...), but was not: {error}"
            ) from error

    def _check(self) -> None:
        for name in self.removed:
            self.space.unit(name)
        for name, slots in self.channels:
            self.space.group(name).check_slots(slots)
        for name, width in self.widths:
            self.space.group(name).check_width(width)
        for name, kernel in self.kernels:
            self.space.layer(name).check_kernel(kernel)

    def width(self, group: str) -> int:
        """Return how many channels the group keeps."""
        return self._widths.get(group, self.space.group(group).width)

    def kernel(self, layer: str) -> int:
        """Return the layer's kernel size."""
        return self._kernels.get(layer, self.space.layer(layer).kernel)

    @cached_property
    def _widths(self) -> dict[str, int]:
        return dict(self.widths)

    @cached_property
    def _kernels(self) -> dict[str, int]:
        return dict(self.kernels)

    def without(self, *units: str) -> Architecture:
        """Return this architecture with those units removed as well."""
        return self._changed(removed=(*self.removed, *units))

    def with_width(self, group: str, width: int) -> Architecture:
        """Return this architecture with another width (channels) of one group."""
        return self.with_widths({self.space.group(group).name: width})

    def with_widths(self, widths: Mapping[str, int]) -> Architecture:
        """Return this architecture with other widths (channels) of these groups."""
        widths = _by_name("widths", widths)
        channels = {name: slots for name, slots in self.channels if name not in widths}
        return self._changed(widths={**dict(self.widths), **widths}, channels=channels)

    def with_kernel(self, layer: str, kernel: int) -> Architecture:
        """Return this architecture with another kernel size of one layer."""
        return self._changed(kernels={**dict(self.kernels), self.space.layer(layer).name: kernel})

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
        check_kind(space, Space, "an architecture must be of a Space, as analyse(...).space", ArchitectureError)
        with written("an architecture", text, ArchitectureError):
            fields = json.loads(text)
            made_for = fields["space"]
            decisions = {name: fields[name] for name in ("removed", "widths", "kernels", "channels")}
        _check_space(space, made_for)
        return space.architecture(**decisions)


def _digest(fields: Any) -> str:
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()[:16]


def _named(kind: str, name: str, known: Mapping[str, T]) -> T:
    if not isinstance(name, str) or name not in known:
        raise ArchitectureError(f"the Space has no {kind} {name!r}{did_you_mean(name, known)}")
    return known[name]


def _is_gone(group: Group, layers: frozenset[str]) -> bool:
    """Return whether nothing is left of a group without these layers."""
    return group.name in layers or bool(group.layers and layers.issuperset(group.layers))


def _check_space(space: Space, made_for: str) -> None:
    if made_for != space.family:
        raise ArchitectureError(
            f"an architecture belongs to the teacher that it was made for: it was made for Space {made_for}, "
            f"but this teacher's is {space.family} "
            "(of a student that was cut from another, given as start=, that one is the teacher here)"
        )


def _listed(called: str, given: Any) -> Iterable[Any]:
    """Return what is a list or the like; a text is none, though Python goes through its letters."""
    check_kind(given, Iterable, f"{called} must be a list", ArchitectureError)
    if isinstance(given, str):
        raise ArchitectureError(f"{called} must be a list, but got {given!r}: write [{given!r}]")
    return given  # type: ignore[no-any-return]


def _names(called: str, given: Any) -> list[str]:
    names = list(_listed(called, given))
    for name in names:
        check_kind(name, str, f"{called} must be names", ArchitectureError)
    return names


def _by_name(called: str, given: Any) -> dict[str, Any]:
    """Return decisions by name, none of None."""
    check_kind(given, Mapping | None, f"{called} must be a dict, by name", ArchitectureError)
    return dict(zip(_names(f"the keys of {called}", given or ()), (given or {}).values(), strict=True))


def _numbers(called: str, given: Any) -> dict[str, int]:
    decided = _by_name(called, given).items()
    return {name: whole(number, f"{called} of {name!r}", ArchitectureError) for name, number in decided}


def _slots(group: str, slots: Any) -> tuple[int, ...]:
    called = f"channels of group {group!r}"
    return tuple(sorted({whole(slot, called, ArchitectureError) for slot in _listed(called, slots)}))


def weighted_layers(architecture: Architecture) -> int:
    """Return how many convolutions and linear layers an architecture keeps."""
    space = architecture.space
    gone = {layer for name in architecture.removed for layer in space.unit(name).layers}
    return sum(layer.type in ("conv", "linear") and layer.name not in gone for layer in space.layers)
