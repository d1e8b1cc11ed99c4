"""Which decisions hold: students are drawn, those that are wrong lead to a culprit, and the culprit is not offered."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from understudy.core.architecture import Architecture, Group, Refused, Unit
from understudy.core.caller import as_usual, outside_inference
from understudy.core.errors import ConfigError, check_kind, whole
from understudy.core.memory import enough_memory
from understudy.graph.analysis import Analysis, check_analysis
from understudy.proof.trial import Outcome, Trials

_CHUNKS = 4  # in so many students all units of a kind go
_REMOVALS = (0.15, 0.3, 0.5)  # chances of units in joint draws
_MIXED = 2  # draws with half of the groups at random widths
_WAY_OUT = "free some, or let fewer processes run beside"
USUAL = 1 + 3 + _MIXED + 3 * _CHUNKS + len(_REMOVALS) + 1  # students, where all hold


@dataclass(frozen=True, kw_only=True)
class Proof:
    """What was checked, and what is not offered for it."""

    refused: tuple[Refused, ...]
    students: int  # that were built and compared
    largest: float  # difference that was taken for rounding, of the largest output
    dtype: str  # "float64", or "float32" where the teacher does not compute in it

    @property
    def summary(self) -> str:
        """What was found, in one line."""
        line = f"{self.students} students checked against the masked network"
        if not self.refused:
            return f"{line}: all agree, outputs differ by {self.largest:.0e} at most"
        counted = ((kind, sum(found.kind == kind for found in self.refused)) for kind in ("group", "unit", "kernel"))
        parts = (f"{number} {kind}{'s' if number > 1 else ''}" for kind, number in counted if number)
        return f"{line}; not offered, because students were wrong: {', '.join(parts)}"

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain values; `from_dict` reads them."""
        return asdict(self)

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> Proof:
        """Read what `to_dict` gave."""
        return cls(**{**fields, "refused": tuple(Refused(**found) for found in fields["refused"])})


@dataclass(frozen=True)
class _Decision:
    """One thing that an architecture decides: channels of a group, a kernel, or that a unit goes."""

    kind: Literal["group", "kernel", "unit"]
    name: str
    value: tuple[int, ...] = ()


@outside_inference
@as_usual
def prove(
    analysis: Analysis, *, seed: int = 0, on_student: Callable[[int], object] = lambda done: None
) -> tuple[Analysis, Proof]:
    """Check students of a teacher against the masked teacher, and return the analysis with what holds.

    Students of random architectures, in which every group, kernel and unit takes part, are built from a copy of
    the real module with drawn parameters, in double precision. Each must run in evaluation and in training
    mode and at several batch sizes, take a step back, have the size that was predicted, and compute what the recorded
    forward pass does with the same channels masked, layer by layer; the recorded pass itself must compute what the
    module does. Where one fails, in whatever way, bisection finds a decision that is to blame: that group freezes,
    that unit or kernel stays, and the measured difference or the error is the reason.

    Args:
        analysis: of the teacher, which is not touched.
        seed: of what is drawn.
        on_student: hears how many students were checked.

    Returns:
        The analysis in whose Space only what holds is offered, and what was found.

    Raises:
        ConfigError: the analysis is none, the seed no whole number, or what hears no function.
        MachineError: memory ran out, which says nothing of the network.
    """
    check_analysis(analysis)
    check_kind(on_student, Callable, "on_student must be a function of a number", ConfigError)
    seed = whole(seed, "a seed", ConfigError)
    with enough_memory("while students of the network were checked in double precision", _WAY_OUT):
        prover = _Prover(analysis, seed, on_student)
        prover.run()
    found = tuple(Refused(kind=kind, name=name, reason=why) for (kind, name), why in prover.refused.items())
    trials = prover.trials
    dtype = str(trials.dtype).removeprefix("torch.")
    return analysis.without(found), Proof(refused=found, students=trials.students, largest=trials.largest, dtype=dtype)


class _Prover:
    def __init__(self, analysis: Analysis, seed: int, on_student: Callable[[int], object]) -> None:
        self.space, self.trials = analysis.space, Trials(analysis, seed)
        self.refused: dict[tuple[Literal["group", "unit", "kernel"], str], str] = {}
        self._rng = random.Random(seed)
        self._on_student = on_student

    def run(self) -> None:
        """Draw students until all that is left holds."""
        space = self.space
        if self.trials.reference:
            self._refuse_all(self.trials.reference)
            return
        whole = self._judge((), thorough=True)
        if whole.status != "holds":
            self._refuse_all(whole.reason)
            return
        rng = self._rng
        self._hold([self._narrowed(g, g.nearest(g.width / 2)) for g in space.groups])
        self._hold([self._narrowed(g, g.legal_widths()[0]) for g in space.groups])
        kernels = [_Decision("kernel", layer.name, (layer.kernels[0],)) for layer in space.layers if layer.kernels]
        self._hold([*(self._narrowed(g, rng.choice(g.legal_widths())) for g in space.groups), *kernels])
        for _ in range(_MIXED):
            self._hold([self._narrowed(g, rng.choice(g.legal_widths())) for g in space.groups if rng.random() < 0.5])
        for kinds in (("block", "branch", "joined"), ("conv", "linear", "pool"), ("layer",)):
            for chunk in _apart([unit for unit in space.units if unit.kind in kinds]):
                self._each(chunk)
        for chance in _REMOVALS:
            self._hold([*self._some_widths(), *self._some_units(chance, single=False)])
        self._hold(self._some_units(_REMOVALS[0], single=True))

    def _narrowed(self, group: Group, width: int) -> _Decision:
        slots = self._rng.sample(range(group.width // group.step), width // group.step)
        return _Decision("group", group.name, tuple(sorted(slots)))

    def _some_widths(self) -> list[_Decision]:
        rng = self._rng
        return [self._narrowed(g, rng.choice(g.legal_widths())) for g in self.space.groups if rng.random() < 0.7]

    def _some_units(self, chance: float, *, single: bool) -> list[_Decision]:
        units = [unit for unit in self.space.units if (unit.kind == "layer") == single]
        return [_Decision("unit", unit.name) for unit in units if self._rng.random() < chance]

    def _hold(self, decisions: Sequence[_Decision]) -> None:
        """Refuse decisions of a student until the rest of them holds together."""
        left = [decision for decision in decisions if (decision.kind, decision.name) not in self.refused]
        while left:
            outcome = self._judge(left, thorough=True)
            if outcome.status == "holds":
                return
            if outcome.status == "impossible":  # which is known before anything is built
                units = [decision for decision in left if decision.kind == "unit"]
                left = [d for d in left if d.kind != "unit" or d in units[: len(units) // 2]] if units else []
                continue
            culprit, reason = self._culprit(left, outcome)
            self.refused[culprit.kind, culprit.name] = reason
            left.remove(culprit)

    def _culprit(self, decisions: Sequence[_Decision], outcome: Outcome) -> tuple[_Decision, str]:
        """Return a decision with which a student fails that holds without it, and how it fails."""
        holds, fails, reason = 0, len(decisions), outcome.reason
        while fails - holds > 1:
            middle = (holds + fails) // 2
            tried = self._judge(decisions[:middle], thorough=True)
            if tried.status == "fails":
                fails, reason = middle, tried.reason
            else:
                holds = middle
        return decisions[fails - 1], reason

    def _each(self, units: Sequence[Unit]) -> None:
        """Refuse the units with which no student holds; all at once first, then halves."""
        if not units:
            return
        outcome = self._judge([_Decision("unit", unit.name) for unit in units])
        if outcome.status == "holds":
            return
        if len(units) == 1:
            self.refused["unit", units[0].name] = outcome.reason
            return
        self._each(units[: len(units) // 2])
        self._each(units[len(units) // 2 :])

    def _judge(self, decisions: Iterable[_Decision], *, thorough: bool = False) -> Outcome:
        outcome = self.trials.judge(self._architecture(decisions), thorough=thorough)
        self._on_student(self.trials.students)
        return outcome

    def _architecture(self, decisions: Iterable[_Decision]) -> Architecture:
        decisions = tuple(decisions)
        return self.space.architecture(
            removed=[d.name for d in decisions if d.kind == "unit"],
            kernels={d.name: d.value[0] for d in decisions if d.kind == "kernel"},
            channels={d.name: d.value for d in decisions if d.kind == "group"},
        )

    def _refuse_all(self, reason: str) -> None:
        self.refused |= {("group", group.name): reason for group in self.space.groups}
        self.refused |= {("unit", unit.name): reason for unit in self.space.units}
        self.refused |= {("kernel", layer.name): reason for layer in self.space.layers if layer.kernels}


def _apart(units: Sequence[Unit]) -> list[list[Unit]]:
    """Return units in few lists such that none holds layers of another one of its list, nor its neighbours."""
    most = -(-len(units) // _CHUNKS)
    lists: list[list[Unit]] = [[] for _ in range(_CHUNKS)]
    for index, unit in enumerate(units):
        order = sorted(range(len(lists)), key=lambda i: (i - index) % len(lists))
        free = (i for i in order if len(lists[i]) < most and not any(_overlap(unit, other) for other in lists[i]))
        place = next(free, None)
        if place is None:
            lists.append([unit])
        else:
            lists[place].append(unit)
    return lists


def _overlap(a: Unit, b: Unit) -> bool:
    return not set(a.layers).isdisjoint(b.layers)
