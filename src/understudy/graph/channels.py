"""What a walk over a teacher's graph carries and finds: labelled tensors, and how parameters are cut."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, MutableMapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import fx

from understudy.graph.fake import Signature

Labels = npt.NDArray[np.int64]
FIXED = -1


@dataclass(frozen=True, eq=False)
class Labelled:
    """A tensor of the pass: its shape, and labels of as many dimensions, each of full size or 1."""

    shape: tuple[int, ...]
    labels: Labels

    @classmethod
    def fixed(cls, shape: Iterable[int]) -> Labelled:
        """A tensor without channels."""
        shape = tuple(shape)
        return cls(shape, np.full((1,) * len(shape), FIXED))

    @classmethod
    def along(cls, shape: Iterable[int], dim: int, labels: Labels) -> Labelled:
        """A tensor with channels along one dimension; its size there is the number of labels."""
        sizes = list(shape)
        sizes[dim] = len(labels)
        if (labels == FIXED).all():
            return cls.fixed(sizes)
        outline = [1] * len(sizes)
        outline[dim] = len(labels)
        return cls(tuple(sizes), labels.reshape(outline))

    @property
    def varying(self) -> tuple[int, ...]:
        """The dimensions along which labels differ."""
        return tuple(d for d, size in enumerate(self.labels.shape) if size > 1)

    @property
    def is_fixed(self) -> bool:
        """True if no element belongs to a channel."""
        return bool((self.labels == FIXED).all())


def shape_of(value: Any) -> Any:
    """Return the shape of what has one, and anything else as it is."""
    return tuple(value.shape) if isinstance(value, Labelled | ParameterUse | Signature) else value


@dataclass(frozen=True)
class ParameterUse:
    """A parameter or buffer that the forward pass uses directly, not yet tied to anything.

    `rows` are those of it that are used, where a linear layer's weight or bias is one of several in one. `beside` are
    parameters, or tensors made of them, that it meets element by element, such as a mask of a weight.
    """

    name: str
    shape: tuple[int, ...]
    rows: tuple[int, int] | None = None
    beside: tuple[ParameterUse | Labelled, ...] = ()

    @property
    def whole(self) -> tuple[int, ...]:
        """The parameter's own shape."""
        return self.shape

    @property
    def parts(self) -> tuple[ParameterUse, ...]:
        """The parameters that it is made of, without what it meets."""
        return (self,)

    @property
    def work(self) -> list[Work]:
        """What making it takes where its channels stay."""
        return []

    def seen(self, own: tuple[Any, ...]) -> tuple[Any, ...]:
        """Return for each dimension of `shape` what `own` says of the parameter's."""
        return own

    def seen_of(self, own: Callable[[str], tuple[Any, ...]]) -> tuple[Any, ...]:
        """As `seen` by what a function says of a parameter by its name."""
        return self.seen(own(self.name))

    def held(self, seen: tuple[Any, ...]) -> tuple[Any, ...]:
        """Return for each dimension of the parameter what `seen` says of that of `shape`."""
        return seen

    @property
    def turned(self) -> ParameterUse:
        """The same with its two dimensions exchanged."""
        return Turned(self.name, self.shape[::-1], beside=_turned(self.beside))


@dataclass(frozen=True)
class Turned(ParameterUse):
    """A weight of two dimensions, the other way round: `shape` is what the forward pass sees."""

    @property
    def whole(self) -> tuple[int, ...]:
        """The parameter's own shape."""
        return self.shape[::-1]

    def seen(self, own: tuple[Any, ...]) -> tuple[Any, ...]:
        """As for any parameter."""
        return own[::-1]

    def held(self, seen: tuple[Any, ...]) -> tuple[Any, ...]:
        """As for any parameter."""
        return seen[::-1]

    @property
    def turned(self) -> ParameterUse:
        """The parameter as it is."""
        return ParameterUse(self.name, self.shape[::-1], beside=_turned(self.beside))


@dataclass(frozen=True)
class Product(ParameterUse):
    """A weight (O, I) that is a product of two parameters, (O, R) and (R, I), and has the name of the first."""

    factors: tuple[ParameterUse, ...] = ()

    @property
    def parts(self) -> tuple[ParameterUse, ...]:
        """Both."""
        return self.factors

    @property
    def work(self) -> list[Work]:
        """The product."""
        return [Work("matmul", math.prod(self.shape) * self.factors[0].shape[1])]

    def seen_of(self, own: Callable[[str], tuple[Any, ...]]) -> tuple[Any, ...]:
        """Its rows are the first one's, its columns the other's."""
        left, right = self.factors
        return left.seen_of(own)[0], right.seen_of(own)[1]

    @property
    def turned(self) -> ParameterUse:
        """The product of both, turned, in the other order."""
        left, right = (factor.turned for factor in self.factors[::-1])
        return Product(left.name, self.shape[::-1], beside=_turned(self.beside), factors=(left, right))


def _turned(beside: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(use.turned for use in beside)


@dataclass(frozen=True)
class Paired(ParameterUse):
    """A weight of complex numbers, which the parameter holds as pairs along a last dimension of its own."""

    @property
    def whole(self) -> tuple[int, ...]:
        """The parameter's own shape."""
        return (*self.shape, 2)

    def seen(self, own: tuple[Any, ...]) -> tuple[Any, ...]:
        """As for any parameter."""
        return own[:-1]

    def held(self, seen: tuple[Any, ...]) -> tuple[Any, ...]:
        """As for any parameter."""
        return (*seen, 2)


@dataclass(frozen=True)
class Picked(ParameterUse):
    """Matrices (S, A, B) at computed places of a parameter (E, A, B), such as those of the expert that each row chose.

    `transposed` ones are of a parameter (E, B, A).
    """

    of: int = 0  # E
    transposed: bool = False

    @property
    def whole(self) -> tuple[int, ...]:
        """The parameter's own shape."""
        return self.held(self.shape)

    def seen(self, own: tuple[Any, ...]) -> tuple[Any, ...]:
        """As for any parameter."""
        return (self.shape[0], *(own[:0:-1] if self.transposed else own[1:]))

    def held(self, seen: tuple[Any, ...]) -> tuple[Any, ...]:
        """As for any parameter."""
        return (self.of, *(seen[:0:-1] if self.transposed else seen[1:]))

    @property
    def turned(self) -> ParameterUse:
        """Each matrix transposed."""
        rows, first, last = self.shape
        return replace(self, shape=(rows, last, first), transposed=not self.transposed)


@dataclass(frozen=True)
class Member(ParameterUse):
    """One matrix or kernel of a parameter that holds several, `self.weight[i]`; `lead` are its dimensions before them.

    A `transposed` one has its two dimensions exchanged.
    """

    lead: tuple[int, ...] = ()
    transposed: bool = False

    @property
    def whole(self) -> tuple[int, ...]:
        """The parameter's own shape."""
        return self.held(self.shape)

    def seen(self, own: tuple[Any, ...]) -> tuple[Any, ...]:
        """As for any parameter."""
        return own[len(self.lead) :][:: -1 if self.transposed else 1]

    def held(self, seen: tuple[Any, ...]) -> tuple[Any, ...]:
        """As for any parameter; all members are cut alike."""
        return (*self.lead, *seen[:: -1 if self.transposed else 1])

    @property
    def turned(self) -> ParameterUse:
        """The member with its two dimensions exchanged."""
        return replace(self, shape=self.shape[::-1], transposed=not self.transposed)


@dataclass(frozen=True)
class Squeezed(ParameterUse):
    """A parameter without a dimension of size 1, `at`, which comes back before it is used."""

    at: int = 0

    @property
    def whole(self) -> tuple[int, ...]:
        """The parameter's own shape."""
        return self.held(self.shape)

    def seen(self, own: tuple[Any, ...]) -> tuple[Any, ...]:
        """As for any parameter."""
        return (*own[: self.at], *own[self.at + 1 :])

    def held(self, seen: tuple[Any, ...]) -> tuple[Any, ...]:
        """As for any parameter."""
        return (*seen[: self.at], 1, *seen[self.at :])


@dataclass(frozen=True)
class Statistic(ParameterUse):
    """A statistic of a weight over some of its dimensions, which are of size 1 in `shape`; `of` is the weight's.

    One of each of its rows may lack them.
    """

    of: tuple[int, ...] = ()

    @property
    def whole(self) -> tuple[int, ...]:
        """The parameter's own shape."""
        return self.of

    def seen(self, own: tuple[Any, ...]) -> tuple[Any, ...]:
        """As for any parameter; what the statistic is over has size 1."""
        if len(self.shape) < len(self.of):
            return (*own[: len(self.shape[:1])], *self.shape[1:])
        return tuple(d if now == size else 1 for d, now, size in zip(own, self.shape, self.of, strict=True))


@dataclass(frozen=True)
class Rows(ParameterUse):
    """A weight of which all dimensions behind the first are one, for a statistic of each row; `of` is its own shape."""

    of: tuple[int, ...] = ()

    @property
    def whole(self) -> tuple[int, ...]:
        """The parameter's own shape."""
        return self.of

    def seen(self, own: tuple[Any, ...]) -> tuple[Any, ...]:
        """As for any parameter; each channel has as many places in a row as the other dimensions have."""
        cut = [d for d, labels in enumerate(own) if d > 0 and isinstance(labels, np.ndarray)]
        if not cut:
            return own[0], math.prod(own[1:])
        if len(cut) > 1:
            return own[0], self.shape[1]
        sizes = [len(own[d]) if d in cut else own[d] for d in range(1, len(own))]
        outline = [-1 if d in cut else 1 for d in range(1, len(own))]
        return own[0], np.broadcast_to(own[cut[0]].reshape(outline), sizes).reshape(-1)


@dataclass(frozen=True)
class Arranged(ParameterUse):
    """A parameter whose dimensions are in another order, or between new ones, along which it may be repeated.

    `dims` says which one of the parameter's each dimension of `shape` is, None for a new one.
    """

    dims: tuple[int | None, ...] = ()

    @property
    def whole(self) -> tuple[int, ...]:
        """The parameter's own shape."""
        return tuple(self.shape[self.dims.index(d)] for d in range(sum(d is not None for d in self.dims)))

    def seen(self, own: tuple[Any, ...]) -> tuple[Any, ...]:
        """As for any parameter; a new dimension has its size."""
        return tuple(size if d is None else own[d] for d, size in zip(self.dims, self.shape, strict=True))

    def labelled(self, whole: Labelled) -> Labelled:
        """Return the parameter as a tensor whose own labels those are."""
        order = [d for d in self.dims if d is not None]
        labels = whole.labels.transpose(order)
        return Labelled(self.shape, np.expand_dims(labels, [i for i, d in enumerate(self.dims) if d is None]))

    @property
    def place(self) -> int | None:
        """Where its channels are if nothing else tells: of one of several tokens for each example, the last one."""
        tokens = any(d is None and size > 1 for d, size in zip(self.dims, self.shape, strict=True))
        wide = [i for i, d in enumerate(self.dims) if d is not None and self.shape[i] > 1]
        return wide[-1] if tokens and wide else None


@dataclass(frozen=True)
class Standardised(ParameterUse):
    """A convolution's weight (O, I, ...) as (1, O, the rest), on the way to one whose outputs have mean 0."""


@dataclass(frozen=True, eq=False)
class ParameterPlan:
    """How one parameter or buffer is cut: per dimension the labels along it, or a size that stays."""

    dims: tuple[Labels | int, ...]
    kernel_of: str | None = None  # the layer whose kernel size the dimensions from `kernel_from` on have
    kernel_from: int = 0


@dataclass(frozen=True, eq=False)
class Attribute:
    """A number of a module, or the one `at` a place of its tuple, that counts channels: `labels` kept, by `per`."""

    module: str
    name: str
    labels: Labels
    per: int = 1
    at: int = 0


@dataclass(frozen=True, eq=False)
class Size:
    """An argument of a node that is a number of channels: in a plain graph, how many of `labels` stay, by `per`.

    `place` leads to it: (1, 2) is the third of the second positional argument, ("groups",) one by name, "start" and
    "stop" those of a slice. Labels in several parts stand for a list of as many numbers.
    """

    place: tuple[int | str, ...]
    labels: Labels | tuple[Labels, ...]
    per: int = 1


@dataclass(frozen=True, eq=False)
class Work:
    """MACs of one operation for the whole example: `constant` times the count of each of `factors`."""

    layer: str
    constant: int
    factors: tuple[Labels, ...] = ()
    kernel_of: str | None = None  # the layer whose kernel size takes part, `kernel_dims` times
    kernel_dims: int = 0


@dataclass(eq=False)
class Part:
    """What one node asks for: how its parameters are cut, which numbers follow, what it computes, what sizes it has."""

    parameters: dict[str, ParameterPlan] = field(default_factory=dict)
    attributes: list[Attribute] = field(default_factory=list)
    work: list[Work] = field(default_factory=list)
    sizes: list[Size] = field(default_factory=list)
    # The dimensions of the first input over whose channels it takes statistics: over those that stay.
    statistic: tuple[int, ...] | None = None
    # The channels that a recurrent layer feeds back to itself; where they go, its parameters are cut inside.
    feeds_back: Labels | None = None

    @property
    def uses(self) -> set[Any]:
        """Names of its parameters, and (module, name) of its numbers."""
        return {*self.parameters, *((a.module, a.name) for a in self.attributes)}


@dataclass(eq=False)
class Plan:
    """What a pass found: everything that building and costing a student needs."""

    values: MutableMapping[fx.Node, Any] = field(default_factory=dict)
    parts: MutableMapping[fx.Node, Part] = field(default_factory=dict)
    # Of plain values: the channels whose number they were computed from.
    sizes: MutableMapping[fx.Node, Labels] = field(default_factory=dict)
    # Parameters whose shape the forward pass reads.
    measured: set[str] = field(default_factory=set)

    def along(self, node: fx.Node, dim: int) -> Labels:
        """Return the labels along one dimension of the tensor or parameter at a node, none where it has no channels."""
        value, found = self.values[node], None
        if isinstance(value, Labelled) and value.shape and value.varying == (dim % len(value.shape),):
            return value.labels.reshape(-1)
        if isinstance(value, ParameterUse) and value.name in self.parameters:
            seen = value.seen_of(lambda name: self.parameters[name].dims)
            found = seen[dim] if dim < len(seen) else None
        return found if isinstance(found, np.ndarray) else np.zeros(0, dtype=np.int64)

    @property
    def parameters(self) -> dict[str, ParameterPlan]:
        """How each parameter and buffer that the forward pass reaches is cut; the first use decides."""
        found: dict[str, ParameterPlan] = {}
        for part in self.parts.values():
            for name, plan in part.parameters.items():
                found.setdefault(name, plan)
        return found

    @property
    def attributes(self) -> list[Attribute]:
        """All numbers of modules that follow the channels."""
        return [attribute for part in self.parts.values() for attribute in part.attributes]

    @property
    def work(self) -> list[Work]:
        """All operations that MACs are counted for, in order."""
        return [work for part in self.parts.values() for work in part.work]
