"""What the choices of N2N's policies mean: decisions on units, widths and kernels <-> architectures.

Shapes: B = proposals, D = decisions, F = factors, I = columns of a row, in the order of the suffix.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from understudy.config.methods import N2N
from understudy.config.widths import Widths
from understudy.core.architecture import Architecture, Group, Layer, Space
from understudy.methods import proposals as budget
from understudy.methods.decisions import UNIT_OPTIONS, Decisions, value_in
from understudy.methods.firsts import first_students
from understudy.methods.n2n.policies import KERNEL, UNIT, WIDTH, RemovalPolicy, ShrinkagePolicy
from understudy.methods.n2n.rules import DEPTHS, TUNED, Rules
from understudy.methods.n2n.state import encode, rows_of, teacher_rows

_KINDS = {"width": WIDTH, "kernel": KERNEL, "unit": UNIT}  # how a row says what is decided there
_MOST = 0.5  # chance of a change at which the start says nothing any more
Figure = Callable[[Architecture], float]


@dataclass(frozen=True, eq=False)
class Near:
    """A student that a draw stays near to."""

    student: Architecture
    kept_D: Tensor  # which of its decisions are not drawn anew


class Removal:
    """Choices of stage 1 <-> architectures of the Space."""

    name = "removal"

    def __init__(self, space: Space, settings: N2N, rules: Rules = TUNED) -> None:
        self.updates, self.prior = settings.removal_updates, rules.keep_bias
        self.biases = (self.prior - budget.REMOVAL_BIAS, self.prior)
        rows, decided = teacher_rows(space, settings.granularity)
        units = [name for _, name in decided]
        self._decided = Decisions(space, {("unit", name): UNIT_OPTIONS for name in units})
        self.decisions = len(decided)
        self.policy = RemovalPolicy(encode(rows, rules), [row for row, _ in decided])
        sizes = [sum(space.layer(layer).parameters for layer in space.unit(name).layers) for name in units]
        self._order = sorted(range(self.decisions), key=lambda decision: -sizes[decision])

    def architecture(self, choices_D: Tensor) -> Architecture:
        """Return what the choices stand for."""
        return self._decided.architecture(choices_D.tolist())

    def filled(self, choices_D: Tensor, used: Figure, near: Near | None = None) -> Architecture:
        """Return what the choices stand for: what stage 1 leaves, stage 2 makes narrower."""
        return self.architecture(choices_D)

    def first(self, used: Figure, macs: Figure) -> list[tuple[Tensor, Architecture]]:
        """Return the students that the search should try before any that are drawn, with their choices: none."""
        return []

    def near_to(self, student: Architecture) -> Tensor:
        """Return the choices nearest to a student."""
        return torch.tensor(self._decided.choices(student))

    def spread(self, uniform_BD: Tensor, generator: torch.Generator) -> Tensor:
        """Return the same numbers: how much is removed is what this stage learns."""
        return uniform_BD

    def counts(self, choices_BD: Tensor) -> Tensor:
        """Return 1 for each choice that changes the student, (B, D); 0 inside of a block that goes anyway."""
        return torch.from_numpy(self._decided.matter(choices_BD.numpy())).double()

    def repaired(self, choices_D: Tensor, used: Figure) -> Tensor:
        """Return choices near by that keep the budgets, where there are: the largest units change first.

        Units come back as well, where that is cheaper: pooling layers.
        """
        steps = [(decision, lambda choice: 1 - choice) for decision in self._order]
        return _repaired(choices_D, 2 * steps, self.architecture, used)


class Shrinkage:
    """Choices of stage 2 <-> architectures near the units of a start, narrower and with smaller kernels.

    Stage 1 judges units at full width. So stage 2 decides them again (ours): before it has learned, each unit and
    kernel otherwise than in the start with the chance `revisit`. At 0 units stay as they are (N2N).
    """

    name = "shrinkage"
    biases: tuple[float, float] = budget.SHRINKAGE_BIAS

    def __init__(
        self, start: Architecture, settings: N2N, widths: Widths, rules: Rules = TUNED, *, budgets: bool = False
    ) -> None:
        self.updates, self.prior = settings.shrinkage_updates, 0.0
        self._start, self._change, self._widths = start, min(settings.revisit, _MOST), widths
        self._gathers, self._factors = rules.calibrate and budgets, widths.factors
        rows, units = teacher_rows(start.space, settings.granularity) if self._change else (rows_of(start), [])
        self._decide(rows, units, widths, rules)

    def _decide(self, rows: Sequence[Layer], units: Sequence[tuple[int, str]], widths: Widths, rules: Rules) -> None:
        """Find what is decided at each row, the values that each factor stands for, and the policy for it."""
        factors, values, at = self._factors, dict[tuple[str, str], list[int]](), list[int]()
        middle, groups = (factors[0] + factors[-1]) / 2.0, _groups_at(rows, self._start.space)
        for index, layer in enumerate(rows):
            here = dict[tuple[str, str], list[int]]()
            for unit in (name for row, name in units if row == index):
                here["unit", unit] = [int(f >= middle) for f in factors]
            for group in groups.get(index, ()):
                here["width", group.name] = widths.options(replace(group, width=self._start.width(group.name)))
            if len(layer.kernels) > 1:
                here["kernel", layer.name] = [budget.nearest_kernel(layer, f) for f in factors]
            values |= here
            at += [index] * len(here)
        self._decided = Decisions(self._start.space, values, start=self._start)
        self.names, self.decisions = self._decided.names, len(at)
        self._values_DF = torch.tensor(list(values.values()), dtype=torch.float64).reshape(-1, len(factors))
        kinds_D1 = torch.tensor([[_KINDS[kind]] for kind, _ in values], dtype=torch.float64).reshape(-1, 1)
        rows_DI = torch.cat([encode(rows, rules)[at], kinds_D1], 1)
        shares_DF = self._values_DF / self._values_DF.amax(1, keepdim=True)
        self.policy = ShrinkagePolicy(rows_DI, shares_DF, factors, self._priors())

    def _priors(self) -> Tensor:
        """Return the prior logits of single decisions, (D, F): towards the start, if to anything.

        With a budget widths gather where its calibration leads them.
        """
        prior_DF = torch.zeros_like(self._values_DF)
        for prior_F, values_F, (kind, name) in zip(prior_DF, self._values_DF, self.names, strict=True):
            if kind == "width" and self._gathers:
                prior_F += torch.tensor(budget.gathered(self._factors), dtype=torch.float64)
            stays_F = values_F == value_in(self._start, kind, name)
            if kind != "width" and self._change and stays_F.any() and not stays_F.all():
                odds = self._change / (1.0 - self._change)
                prior_F[~stays_F] = math.log(odds * stays_F.sum() / (~stays_F).sum())
        return prior_DF

    def architecture(self, choices_D: Tensor) -> Architecture:
        """Return what the choices stand for."""
        return self._decided.architecture(choices_D.tolist())

    def near_to(self, student: Architecture) -> Tensor:
        """Return the choices nearest to a student."""
        return torch.tensor(self._decided.choices(student))

    def spread(self, uniform_BD: Tensor, generator: torch.Generator) -> Tensor:
        """Return numbers by which each draw removes units at a chance of its own, `DEPTHS` times the policy's or less.

        As much more as less, in logarithms. The first factors, which the lowest numbers choose, stand for removed.
        """
        often_B1 = torch.rand(len(uniform_BD), 1, generator=generator, dtype=torch.float64)
        units_D = torch.tensor([kind == "unit" for kind, _ in self.names])
        return torch.where(units_D, uniform_BD * DEPTHS ** (2.0 * often_B1 - 1.0), uniform_BD)

    def counts(self, choices_BD: Tensor) -> Tensor:
        """Return 1 for each choice that changes the student, (B, D); 0 for what goes with a unit."""
        return torch.from_numpy(self._decided.matter(choices_BD.numpy())).double()

    def repaired(self, choices_D: Tensor, used: Figure) -> Tensor:
        """Return choices near by that keep the budgets, where there are: all give way in turn, a factor at a time.

        Widths first, as far as they can, then kernels, then units.
        """
        rounds = self._values_DF.shape[1]
        steps = [
            (decision, lambda choice: max(choice - 1, 0))
            for kind in _KINDS
            for _ in range(rounds)
            for decision, (its, _) in enumerate(self.names)
            if its == kind
        ]
        return _repaired(choices_D, steps, self.architecture, used)

    def filled(self, choices_D: Tensor, used: Figure, near: Near | None = None) -> Architecture:
        """Return what the choices stand for with the factors of all widths times what uses the budgets up.

        The widths that are kept of a student near by are its own, which no factor may be.
        """
        architecture, space = self.architecture(choices_D), self._start.space
        shares = self._shares(choices_D, near)

        def at(scale: float) -> Architecture:
            widths = {name: min(scale * share, 1.0) * self._start.width(name) for name, share in shares.items()}
            return architecture.with_widths({n: self._widths.nearest(space.group(n), w) for n, w in widths.items()})

        return budget.scaled(at, 1.0 / self._factors[0], used) if shares else architecture

    def _shares(self, choices_D: Tensor, near: Near | None) -> dict[str, float]:
        """Return each width as a share of the start's."""
        kept = near.kept_D.tolist() if near else [False] * self.decisions
        shares = {}
        for (kind, name), choice, keeps in zip(self.names, choices_D.tolist(), kept, strict=True):
            if kind == "width" and near and keeps:
                shares[name] = near.student.width(name) / self._start.width(name)
            elif kind == "width":
                shares[name] = self._factors[choice]
        return shares

    def first(self, used: Figure, macs: Figure) -> list[tuple[Tensor, Architecture]]:
        """Return the students that the search should try before any that are drawn, with the choices nearest to them.

        All widths alike, then tapered ones, at several depths, if budgets ask for something.
        """
        if not self._gathers:
            return []
        units = [name for kind, name in self.names if kind == "unit"]
        students = first_students(self._start, units, self._widths, used=used, macs=macs)
        return [(self.near_to(student), student) for student in students]


def _groups_at(rows: Sequence[Layer], space: Space) -> dict[int, list[Group]]:
    """Return the groups that are decided at each row: the first that emits just these channels, if there is one.

    Else, as where a shortcut adds channels to those of another group, the one that the group is named after. A group
    that is named after a parameter is decided at the first row that has its channels, or else with the first one.
    """
    found: dict[int, list[Group]] = {}
    layers = {layer.name for layer in space.layers}
    for group in space.groups:
        emits = [index for index, row in enumerate(rows) if row.group == group.name and row.outputs]
        named = [index for index, row in enumerate(rows) if row.name == group.name]
        other = [] if group.name in layers else [i for i, row in enumerate(rows) if row.name in group.layers] or [0]
        for index in [*emits, *named, *other][:1]:
            found.setdefault(index, []).append(group)
    return found


def _repaired(
    choices_D: Tensor,
    steps: Iterable[tuple[int, Callable[[int], int]]],
    architecture: Callable[[Tensor], Architecture],
    used: Figure,
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
