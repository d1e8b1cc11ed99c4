"""What the choices of N2N's policies mean: decisions on units, widths and kernels <-> architectures.

Shapes: B = proposals, D = decisions, F = factors, I = columns of a row, in the order of the suffix.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from understudy.config.methods import N2N
from understudy.core.architecture import Architecture, Layer, Space
from understudy.methods import proposals as budget
from understudy.methods.n2n.policies import KERNEL, UNIT, WIDTH, RemovalPolicy, ShrinkagePolicy
from understudy.methods.n2n.state import encode, rows_of, teacher_rows

_KINDS = {"width": WIDTH, "kernel": KERNEL, "unit": UNIT}  # how a row says what is decided there
_NEAR = 0.5  # how far, in the logarithm of factors, a refinement looks
_MOST = 0.5  # chance of a change at which the start says nothing any more
Used = Callable[[Architecture], float]


class Removal:
    """Choices of stage 1 <-> architectures of the Space."""

    name = "removal"

    def __init__(self, space: Space, settings: N2N, asked: Sequence[float] = ()) -> None:
        self.updates, self.lr, self.prior = settings.removal_updates, settings.removal_lr, settings.keep_bias
        self.leans = (self.prior - budget.REMOVAL_LEAN, self.prior)
        self._space = space
        rows, decided = teacher_rows(space, settings.granularity)
        self._units = [name for _, name in decided]
        self.decisions = len(decided)
        self.policy = RemovalPolicy(encode(rows, settings, asked), [row for row, _ in decided], settings)
        layers = [set(space.unit(name).layers) for name in self._units]
        self._inside_DD = torch.tensor([[inner < outer for outer in layers] for inner in layers])
        sizes = [sum(space.layer(name).parameters for name in names) for names in layers]
        self._order = sorted(range(self.decisions), key=lambda decision: -sizes[decision])

    def architecture(self, choices_D: Tensor) -> Architecture:
        """Return what the choices stand for."""
        return self._space.architecture(
            removed=[unit for unit, keep in zip(self._units, choices_D.tolist(), strict=True) if not keep]
        )

    def filled(self, choices_D: Tensor, used: Used) -> Tensor:
        """Return the same: what stage 1 leaves, stage 2 makes narrower."""
        return choices_D

    def first(self, used: Used) -> Tensor | None:
        """Return the choices that the search should try before any that are drawn: none."""
        return None

    def spread(self, uniform_BD: Tensor, generator: torch.Generator) -> Tensor:
        """Return the same numbers: how much is removed is what this stage learns."""
        return uniform_BD

    def counts(self, choices_BD: Tensor) -> Tensor:
        """Return 1 for each choice that changes the student, (B, D); 0 inside of a block that goes anyway."""
        return 1.0 - ((choices_BD == 0).double() @ self._inside_DD.double().T > 0).double()

    def mended(self, choices_D: Tensor, used: Used) -> Tensor:
        """Return choices near by that keep the budgets, where there are: the largest units change first.

        Units come back as well, where that is cheaper: pooling layers.
        """
        steps = [(decision, lambda choice: 1 - choice) for decision in self._order]
        return _mended(choices_D, 2 * steps, self.architecture, used)


class Shrinkage:
    """Choices of stage 2 <-> architectures near the units of a start, narrower and with smaller kernels.

    Stage 1 judges units at full width. So stage 2 decides them again (ours): before it has learned, each unit and
    kernel otherwise than in the start with the chance `revisit`. At 0 units stay as they are (N2N).
    """

    name = "shrinkage"
    leans: tuple[float, float] | None = budget.SHRINKAGE_LEAN

    def __init__(self, start: Architecture, settings: N2N, asked: Sequence[float] = ()) -> None:
        self.updates, self.lr, self.prior = settings.shrinkage_updates, settings.shrinkage_lr, 0.0
        self._start, self._asked, self._change = start, asked, min(settings.revisit, _MOST)
        self._gathers, self._depths = settings.calibrate and any(asked), settings.depths
        rows, units = teacher_rows(start.space, settings.granularity) if self._change else (rows_of(start), [])
        self._decide(rows, units, settings)

    def _decide(self, rows: Sequence[Layer], units: Sequence[tuple[int, str]], settings: N2N) -> None:
        """Find what is decided at each row, the values that each factor stands for, and the policy for it."""
        self._factors = settings.factors
        values, seen, at = dict[tuple[str, str], list[int]](), set[str | None](), list[int]()
        middle = (min(settings.factors) + max(settings.factors)) / 2.0
        for index, layer in enumerate(rows):
            here = dict[tuple[str, str], list[int]]()
            for unit in (name for row, name in units if row == index):
                here["unit", unit] = [int(f >= middle) for f in settings.factors]
            if layer.group and layer.outputs and layer.group not in seen:
                seen.add(layer.group)
                group = replace(self._start.space.group(layer.group), width=self._whole(layer.group))
                here["width", group.name] = [
                    group.nearest(f * group.width, round_to=settings.round_to, minimum=settings.min_width)
                    for f in settings.factors
                ]
            if settings.shrink_kernels and len(layer.kernels) > 1:
                here["kernel", layer.name] = [budget.nearest_kernel(layer, f) for f in settings.factors]
            values |= here
            at += [index] * len(here)
        self._values, self.decisions = values, len(at)
        self._values_DF = torch.tensor(list(values.values()), dtype=torch.float64).reshape(-1, len(settings.factors))
        kinds_D1 = torch.tensor([[_KINDS[kind]] for kind, _ in values], dtype=torch.float64).reshape(-1, 1)
        rows_DI = torch.cat([encode(rows, settings, self._asked)[at], kinds_D1], 1)
        shares_DF = self._values_DF / self._values_DF.amax(1, keepdim=True)
        self.policy = ShrinkagePolicy(rows_DI, shares_DF, settings, self._habit(settings))

    def _whole(self, group: str) -> int:
        """Return the width (channels) that factors are shares of."""
        return self._start.width(group)

    def _near(self, kind: str, far_F: Tensor) -> Tensor | None:
        """Return how likely changes are, each against the others, by how far they go in factors; None: no habit."""
        return torch.ones_like(far_F) if kind != "width" and self._change else None

    def _habit(self, settings: N2N) -> Tensor:
        """Return what leans single decisions before anything is learned, (D, F): towards the start, if to anything.

        With a budget widths gather where its calibration leads them.
        """
        factors_F = torch.tensor(settings.factors, dtype=torch.float64).log()
        habit_DF = torch.zeros_like(self._values_DF)
        for habit_F, values_F, (kind, name) in zip(habit_DF, self._values_DF, self._values, strict=True):
            if kind == "width" and self._gathers:
                habit_F += torch.tensor(budget.gathered(settings.factors), dtype=torch.float64)
            stays_F = values_F == self._now(kind, name)
            near_F = self._near(kind, (factors_F - factors_F[stays_F].mean()).abs())
            if near_F is not None and not stays_F.all():
                odds = self._change / (1.0 - self._change)
                habit_F[~stays_F] = (near_F[~stays_F] * odds * stays_F.sum() / near_F[~stays_F].sum()).log()
        return habit_DF

    def _now(self, kind: str, name: str) -> int:
        if kind == "unit":
            return int(name not in self._start.removed)
        return self._start.width(name) if kind == "width" else self._start.kernel(name)

    def architecture(self, choices_D: Tensor) -> Architecture:
        """Return what the choices stand for."""
        decided = {name: values[c] for (name, values), c in zip(self._values.items(), choices_D.tolist(), strict=True)}
        units = {name: value for (kind, name), value in decided.items() if kind == "unit"}
        return self._start.space.architecture(
            removed=[name for name in {*self._start.removed, *units} if not units.get(name)],
            widths={name: value for (kind, name), value in decided.items() if kind == "width"},
            kernels={name: value for (kind, name), value in decided.items() if kind == "kernel"},
        )

    def spread(self, uniform_BD: Tensor, generator: torch.Generator) -> Tensor:
        """Return numbers by which each draw removes units at a chance of its own, `depths` times the policy's or less.

        As much more as less, in logarithms. The first factors, which the lowest numbers choose, stand for removed.
        """
        if self._depths == 1.0:
            return uniform_BD
        often_B1 = torch.rand(len(uniform_BD), 1, generator=generator, dtype=torch.float64)
        units_D = torch.tensor([kind == "unit" for kind, _ in self._values])
        return torch.where(units_D, uniform_BD * self._depths ** (2.0 * often_B1 - 1.0), uniform_BD)

    def counts(self, choices_BD: Tensor) -> Tensor:
        """Return 1 for each choice that changes the student, (B, D); 0 for what is inside of a unit that goes."""
        space, counts_BD = self._start.space, torch.ones_like(choices_BD, dtype=torch.float64)
        layers = [
            frozenset(
                space.unit(name).layers if kind == "unit" else space.group(name).layers if kind == "width" else [name]
            )
            for kind, name in self._values
        ]
        for choices_D, counts_D in zip(choices_BD, counts_BD, strict=True):
            removed = [frozenset(space.unit(name).layers) for name in self.architecture(choices_D).removed]
            gone = frozenset[str]().union(*removed)
            for decision, ((kind, _), own) in enumerate(zip(self._values, layers, strict=True)):
                inside = any(own < unit for unit in removed) if kind == "unit" else own <= gone
                counts_D[decision] = float(not inside)
        return counts_BD

    def mended(self, choices_D: Tensor, used: Used) -> Tensor:
        """Return choices near by that keep the budgets, where there are: all give way in turn, a factor at a time.

        Widths first, as far as they can, then kernels, then units.
        """
        rounds = self._values_DF.shape[1]
        steps = [
            (decision, self._lower)
            for kind in _KINDS
            for _ in range(rounds)
            for decision, (its, _) in enumerate(self._values)
            if its == kind
        ]
        return _mended(choices_D, steps, self.architecture, used)

    def filled(self, choices_D: Tensor, used: Used) -> Tensor:
        """Return choices near by that use the budgets up: widths grow in turn, a factor at a time, while they fit."""
        widths = [decision for decision, (kind, _) in enumerate(self._values) if kind == "width"]
        return budget.grown(choices_D, widths, self._wider, self.architecture, used)

    def _wider(self, choices_D: Tensor, decision: int) -> Tensor | None:
        """Return the choices with one at the next larger factor, None if it has the largest."""
        now = int(choices_D[decision])
        higher = self._higher(now)
        if higher == now:
            return None
        wider_D = choices_D.clone()
        wider_D[decision] = higher
        return wider_D

    def first(self, used: Used) -> Tensor | None:
        """Return the choices that the search should try before any that are drawn: all widths alike, if budgets ask."""
        if not self._gathers:
            return None
        widest = max(range(len(self._factors)), key=self._factors.__getitem__)
        stays = [(values.index(self._now(*key)), key[0]) for key, values in self._values.items()]
        return self.mended(torch.tensor([widest if kind == "width" else stay for stay, kind in stays]), used)

    def _higher(self, choice: int) -> int:
        """Return the next larger factor, or the same if there is none."""
        larger = [i for i, factor in enumerate(self._factors) if factor > self._factors[choice]]
        return min(larger, key=self._factors.__getitem__, default=choice)

    def _lower(self, choice: int) -> int:
        """Return the next smaller factor, or the same if there is none."""
        smaller = [i for i, factor in enumerate(self._factors) if factor < self._factors[choice]]
        return max(smaller, key=self._factors.__getitem__, default=choice)


class Refinement(Shrinkage):
    """Choices after both stages (ours) <-> architectures near the best student: depth, widths, kernels together.

    Every unit, width and kernel of the teacher is decided again by a policy of its own, which before it has
    learned changes `refinement_changes` of the best student's decisions, to values near by rather than far.
    """

    name = "refinement"
    leans = None

    def __init__(self, start: Architecture, settings: N2N, asked: Sequence[float] = ()) -> None:
        self.updates, self.lr, self.prior = settings.refinement_updates, settings.shrinkage_lr, 0.0
        self._start, self._asked, self._gathers, self._depths = start, asked, False, 1.0
        rows, units = teacher_rows(start.space, settings.granularity)
        self._decide(rows, units, settings)

    def filled(self, choices_D: Tensor, used: Used) -> Tensor:
        """Return the same: few decisions change here, and the best student uses the budgets as it found best."""
        return choices_D

    def _whole(self, group: str) -> int:
        return self._start.space.group(group).width

    def _near(self, kind: str, far_F: Tensor) -> Tensor:
        return (-far_F / _NEAR).exp()

    def _habit(self, settings: N2N) -> Tensor:
        self._change = min(settings.refinement_changes / max(self.decisions, 1), _MOST)
        return super()._habit(settings)


def _mended(
    choices_D: Tensor,
    steps: Iterable[tuple[int, Callable[[int], int]]],
    architecture: Callable[[Tensor], Architecture],
    used: Used,
) -> Tensor:
    """Take steps (decision, its next choice), in order, that lower the usage of the budgets, until it is at most 1."""
    now = architecture(choices_D)
    usage = used(now)
    for decision, step in steps:
        if usage <= 1.0:
            break
        trial_D = choices_D.clone()
        trial_D[decision] = step(int(choices_D[decision]))
        tried = architecture(trial_D)
        lower = used(tried)
        if lower < usage or tried == now:  # several factors can end in the same width
            choices_D, now, usage = trial_D, tried, lower
    return choices_D
