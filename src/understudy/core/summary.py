"""What a run found, as values: teacher beside student, and what was asked for beside what was obtained. No torch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from understudy.core.evaluation import Cost, Status
from understudy.core.figures import BY_GOAL, FIGURE, share, standard_error
from understudy.core.goal import Goal, Reward, lowered
from understudy.core.timing import Comparison

_SHARE = "accuracy"  # the metric that is a share of examples
_CLEARLY = 3.0  # standard errors, from which on two scores differ


@dataclass(frozen=True, kw_only=True)
class Score:
    """A share of examples that were classified rightly."""

    value: float  # 0..1
    examples: int

    def __post_init__(self) -> None:
        if not 0.0 <= self.value <= 1.0 or self.examples < 1:
            raise ValueError(f"a score must be in 0..1, of at least one example, but got {self}")

    @property
    def error(self) -> float:
        """The standard error, 0..1."""
        return standard_error(self.value, self.examples)

    def above(self, other: Score) -> bool:
        """Return whether it is larger than another one by more than chance explains."""
        return self.value - other.value > _CLEARLY * math.hypot(self.error, other.error)

    def __str__(self) -> str:
        """Return it in percents, give or take a standard error in points."""
        return f"{share(self.value)} ± {100 * self.error:.2g}"


@dataclass(frozen=True, kw_only=True)
class Network:
    """The figures of one network."""

    cost: Cost  # with a latency only where the goal limits it
    val: Score
    test: Score | None  # None without a test split

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Network:
        """Return what `dataclasses.asdict` gave."""
        test = None if values["test"] is None else Score(**values["test"])
        return cls(cost=Cost(**values["cost"]), val=Score(**values["val"]), test=test)


@dataclass(frozen=True, kw_only=True)
class Asked:
    """One budget, and what became of it."""

    name: str  # field of Goal
    asked: str
    limit: float  # the same in absolute numbers
    obtained: float
    int8: bool = False  # whether it is a figure of the student in 8 bits

    @property
    def is_floor(self) -> bool:
        """Whether at least that much was asked for, as of score, and not at most."""
        return self.name not in BY_GOAL

    @property
    def kept(self) -> bool:
        """Whether the student keeps it."""
        return self.obtained >= self.limit if self.is_floor else self.obtained <= self.limit

    def to_json(self) -> dict[str, Any]:
        """Return plain values; `from_json` reads them."""
        return {**asdict(self), "kept": self.kept}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Asked:
        """Return what `to_json` gave."""
        return cls(**{name: value for name, value in values.items() if name != "kept"})


@dataclass(frozen=True, kw_only=True)
class InEightBits:
    """The figures of the student in 8 bits."""

    network: Network  # whose bytes are those of the file
    latency: Comparison  # of the teacher (first) and the student in 8 bits (second), both in ONNX Runtime

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> InEightBits:
        """Return what `dataclasses.asdict` gave."""
        return cls(network=Network.from_json(values["network"]), latency=Comparison.from_json(values["latency"]))


@dataclass(frozen=True, kw_only=True)
class SearchTotals:
    """What the search took."""

    students: int
    stopped: int
    failed: int
    seconds: float


@dataclass(frozen=True, kw_only=True)
class FinalStudent:
    """One of the students that were trained to convergence."""

    name: str
    val: float  # score, 0..1
    status: Status
    seconds: float
    int8: float | None = None  # score in 8 bits, where the goal asks for them


@dataclass(frozen=True, kw_only=True)
class Summary:
    """All figures of a finished run."""

    name: str  # of the winner: its architecture's digest
    teacher: Network
    student: Network
    latency: tuple[Comparison, ...]  # of teacher (first) and student (second), one image at a time
    goal: tuple[Asked, ...]
    search: SearchTotals
    finals: tuple[FinalStudent, ...]
    metric: str = "accuracy"  # what the score is
    compute: str
    versions: Mapping[str, str]
    int8: InEightBits | None = None  # where the goal asks for 8 bits

    def __post_init__(self) -> None:
        if self.name not in {final.name for final in self.finals}:
            raise ValueError(f"the winner must be one of the final students, but {self.name!r} is not")

    def told(self, score: Score) -> str:
        """Return one of its scores for people: with a standard error where it is a share of the examples."""
        return str(score) if self.metric == _SHARE else share(score.value)

    def called(self, split: str) -> str:
        """Return what its scores on a split are called."""
        return f"{split} {self.metric}" + (" ± s.e." if self.metric == _SHARE else "")

    @property
    def kept(self) -> bool:
        """Whether the student keeps every budget."""
        return all(budget.kept for budget in self.goal)

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader of the figures should know."""
        val, test = self.teacher.val, self.teacher.test
        if test is None or self.metric != _SHARE or not val.above(test):
            return ()
        asked = " A score that is asked for is judged there, so it was judged too hard." if self._floors else ""
        return (
            f"The teacher's {self.metric} is {val} on the validation split and {test} on the test split: it has "
            f"probably been trained on the former.{asked} Give images that it has not seen: FOLDER/val, or val= in "
            "Python.",
        )

    @property
    def _floors(self) -> bool:
        return any(budget.is_floor for budget in self.goal)

    def to_json(self) -> dict[str, Any]:
        """Return plain values; `from_json` reads them."""
        return {**asdict(self), "goal": [budget.to_json() for budget in self.goal]}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Summary:
        """Return what `to_json` gave."""
        plain = {name: values[name] for name in ("name", "metric", "compute", "versions")}
        return cls(
            **plain,
            teacher=Network.from_json(values["teacher"]),
            student=Network.from_json(values["student"]),
            latency=tuple(Comparison.from_json(pair) for pair in values["latency"]),
            goal=tuple(Asked.from_json(budget) for budget in values["goal"]),
            search=SearchTotals(**values["search"]),
            finals=tuple(FinalStudent(**final) for final in values["finals"]),
            int8=None if values.get("int8") is None else InEightBits.from_json(values["int8"]),
        )


def asked_and_obtained(goal: Goal, reward: Reward, student: Network) -> tuple[Asked, ...]:
    """Return each budget of a goal beside what a student takes; its score is that on the validation split.

    Where the goal asks for 8 bits the student's figures are those in 8 bits.
    """
    found = []
    for name, most in reward.budgets.limits():
        figure, obtained = FIGURE[name], FIGURE[name].of(student.cost)
        assert obtained is not None, "what has a budget was measured"
        asked = str(getattr(goal, figure.goal))
        int8 = goal.int8 and name in ("size_mb", "latency_ms")
        found.append(Asked(name=figure.goal, asked=asked, limit=most, obtained=obtained, int8=int8))
    floors = {"score": goal.score, "score_drop": goal.score_drop}
    for name, number in floors.items():
        if number is not None:
            limit = number if name == "score" else lowered(reward.teacher_score, number)
            asked, obtained = str(number), student.val.value
            found.append(Asked(name=name, asked=asked, limit=limit, obtained=obtained, int8=goal.int8))
    return tuple(found)
