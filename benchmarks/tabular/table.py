"""A table of a small Space: every architecture that a search can propose, or a random part, really trained once.

The file holds decisions, costs and accuracies as arrays, and what they were made by as JSON.
"""

from __future__ import annotations

import itertools
import json
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from understudy.core.architecture import Architecture, Space
from understudy.core.evaluation import Cost, Evaluation
from understudy.core.goal import Goal, Reward
from understudy.methods.base import Searcher
from understudy.methods.proposals import offered_units

ROUND_TO = 8  # widths are multiples of this, as by default of every method
COSTS = ("parameters", "macs", "weight_bytes", "peak_activation_bytes")


def all_architectures(space: Space) -> list[Architecture]:
    """Return each architecture that a search with widths in multiples of `ROUND_TO` can propose once, in one order."""
    units = [unit.name for unit in offered_units(space, "units")]
    kernels = {layer.name: layer.kernels for layer in space.layers if len(layer.kernels) > 1}
    widths = {group.name: group.legal_widths(round_to=ROUND_TO, minimum=ROUND_TO) for group in space.groups}
    removals = ([u for u, gone in zip(units, flags, strict=True) if gone] for flags in _product([(0, 1)] * len(units)))
    found = (
        space.architecture(
            removed=removed,
            widths=dict(zip(widths, chosen, strict=True)),
            kernels=dict(zip(kernels, sizes, strict=True)),
        )
        for removed in removals
        for chosen in _product(list(widths.values()))
        for sizes in _product(list(kernels.values()))
    )
    return list(dict.fromkeys(found))


def _product(choices: Sequence[Sequence[int]]) -> Iterator[tuple[int, ...]]:
    return itertools.product(*choices)


@dataclass(frozen=True, kw_only=True)
class Table:
    """What became of every architecture of a Space or a random part, and of some of them with other seeds."""

    space: Space
    evaluations: tuple[Evaluation, ...]
    repeats: tuple[tuple[Evaluation, ...], ...]  # of some architectures: with the table's seed, then with others
    about: Mapping[str, Any]  # teacher's accuracy, recipe, command

    def __getitem__(self, architecture: Architecture) -> Evaluation:
        """Return the evaluation of an architecture; KeyError if it is none of the table."""
        return self._by_digest[architecture.digest]

    def __contains__(self, architecture: Architecture) -> bool:
        return architecture.digest in self._by_digest

    @cached_property
    def whole(self) -> bool:
        """Whether every architecture that a search can propose is there."""
        return len(self.evaluations) == len(all_architectures(self.space))

    @cached_property
    def _by_digest(self) -> dict[str, Evaluation]:
        return {evaluation.architecture.digest: evaluation for evaluation in self.evaluations}

    def cost(self, architecture: Architecture) -> Cost | None:
        """Return the exact cost, as searchers may know it before anything is trained; None outside of the table."""
        return self[architecture].cost if architecture in self else None

    @property
    def judges(self) -> bool:
        """Whether every architecture was trained with other seeds too, which judge what a search has found."""
        return len(self.repeats) == len(self.evaluations)

    def judged(self, architecture: Architecture) -> float:
        """Return the mean accuracy of an architecture in the trainings that no search sees."""
        return statistics.fmean(evaluation.score for evaluation in self._judges[architecture.digest])

    @cached_property
    def _judges(self) -> dict[str, tuple[Evaluation, ...]]:
        return {first.architecture.digest: others for first, *others in self.repeats}

    def reward(self, **budgets: str) -> Reward:
        """Return N2N's reward in this table, with budgets as a goal has them, such as params="5x"."""
        teacher = self.cost(self.space.full)
        assert teacher is not None, "the teacher can be built"
        accuracy = float(self.about["teacher_accuracy"])
        asked = Goal(**budgets).budgets(teacher, accuracy)  # type: ignore[arg-type]
        return Reward(teacher_cost=teacher, teacher_score=accuracy, budgets=asked)

    def save(self, path: Path) -> None:
        """Write the file that `load` reads."""
        sample = [[self._index[e.architecture.digest] for e in row[:1]] for row in self.repeats]
        np.savez_compressed(
            path,
            **_columns(self.evaluations, self.space),
            repeated=np.array(sample, dtype=np.int16).reshape(-1),
            repeated_accuracy=np.array([[e.score for e in row[1:]] for row in self.repeats]),
            repeated_seed=np.array([[e.seed for e in row[1:]] for row in self.repeats], dtype=np.uint64),
            space=np.array(self.space.to_json()),
            about=np.array(json.dumps(dict(self.about))),
        )

    @cached_property
    def _index(self) -> dict[str, int]:
        return {e.architecture.digest: number for number, e in enumerate(self.evaluations)}

    @classmethod
    def load(cls, path: Path) -> Table:
        """Read what `save` wrote."""
        with np.load(path, allow_pickle=False) as file:
            held = {name: file[name] for name in file.files}
        space, about = Space.from_json(str(held["space"])), json.loads(str(held["about"]))
        evaluations = tuple(_rows(space, held, about))
        repeats = tuple(
            (evaluations[first], *(_again(evaluations[first], *other) for other in zip(accuracies, seeds, strict=True)))
            for first, accuracies, seeds in zip(
                held["repeated"].tolist(),
                held["repeated_accuracy"].tolist(),
                held["repeated_seed"].tolist(),
                strict=True,
            )
        )
        return cls(space=space, evaluations=evaluations, repeats=repeats, about=about)


def search(searcher: Searcher, table: Table, students: int) -> list[Evaluation]:
    """Return the first `students` evaluations of a search in the table, in the order proposed."""
    found: list[Evaluation] = []
    while len(found) < students and (proposals := searcher.propose()):
        answers = [table[architecture] for architecture in proposals]
        searcher.learn(answers)
        found += answers
    return found[:students]


def _columns(evaluations: Sequence[Evaluation], space: Space) -> dict[str, np.ndarray[Any, Any]]:
    units = [unit.name for unit in offered_units(space, "units")]
    kernels = [layer.name for layer in space.layers if len(layer.kernels) > 1]
    architectures = [evaluation.architecture for evaluation in evaluations]
    costs = [[getattr(e.cost, name) if e.cost else -1 for name in COSTS] for e in evaluations]
    return {
        "removed": np.array([[u in a.removed for u in units] for a in architectures]),
        "widths": np.array([[a.width(g.name) for g in space.groups] for a in architectures], dtype=np.uint16),
        "kernels": np.array([[a.kernel(name) for name in kernels] for a in architectures], dtype=np.uint8),
        "costs": np.array(costs, dtype=np.int32),
        "accuracy": np.array([e.score for e in evaluations]),
        "failed": np.array([e.status == "failed" for e in evaluations]),
        "seconds": np.array([e.seconds for e in evaluations], dtype=np.float16),
        "seed": np.array([e.seed for e in evaluations], dtype=np.uint64),
    }


def _rows(space: Space, held: Mapping[str, Any], about: Mapping[str, Any]) -> Iterable[Evaluation]:
    units = [unit.name for unit in offered_units(space, "units")]
    kernels = [layer.name for layer in space.layers if len(layer.kernels) > 1]
    names = ("removed", "widths", "kernels", "costs", "accuracy", "failed", "seconds", "seed")
    for removed, widths, sizes, costs, accuracy, failed, seconds, seed in zip(
        *(held[name].tolist() for name in names), strict=True
    ):
        architecture = space.architecture(
            removed=[unit for unit, gone in zip(units, removed, strict=True) if gone],
            widths=dict(zip((group.name for group in space.groups), widths, strict=True)),
            kernels=dict(zip(kernels, sizes, strict=True)),
        )
        yield Evaluation(
            architecture=architecture,
            teacher=about["teacher"],
            data=about["data"],
            recipe=about["recipe"],
            cost=None if costs[0] < 0 else Cost(**dict(zip(COSTS, costs, strict=True))),
            score=accuracy,
            seconds=seconds,
            seed=seed,
            status="failed" if failed else "ok",
            error="it could not be built or trained" if failed else None,
        )


def _again(first: Evaluation, accuracy: float, seed: int) -> Evaluation:
    fields = {name: getattr(first, name) for name in ("architecture", "teacher", "data", "recipe", "cost")}
    return Evaluation(**fields, score=accuracy, seconds=0.0, seed=seed)
