"""First students of a search, found by the same search on untrained students, which are known in a second (ours)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from understudy.core.architecture import Architecture
from understudy.core.evaluation import Evaluation
from understudy.methods.base import Problem, Searcher
from understudy.methods.proposals import usage

_APART, _ALIKE = 4, 0.9  # students are nearly alike where all but a fourth of their widths are, to a tenth


def seen_untrained(problem: Problem) -> Problem:
    """Return the same problem where the score of a student is how much it has of its teacher before any training.

    That is 1 for the teacher and 0 for a student that says nothing of what its teacher says (R2 of the outputs).
    """
    reward = replace(problem.reward, teacher_score=1.0, budgets=replace(problem.reward.budgets, score=0.0))
    return replace(problem, reward=reward)


def best_untrained(searcher: Searcher, count: int) -> list[Architecture]:
    """Return the best students of a whole search whose problem `seen_untrained` made, the best one first.

    Only those that keep the budgets on cost, and no two that are nearly alike.
    """
    problem, found = searcher.problem, list[tuple[float, Evaluation]]()
    while proposals := searcher.propose():
        evaluations = [_seen(problem, architecture) for architecture in proposals]
        searcher.learn(evaluations)
        found += zip(map(problem.reward, evaluations), evaluations, strict=True)
    fitting = [pair for pair in found if pair[1].status == "ok" and usage(pair[1].cost, problem.reward.budgets) <= 1.0]
    ordered = sorted(fitting, key=lambda pair: (-pair[0], pair[1].architecture.digest))
    return _apart((evaluation.architecture for _, evaluation in ordered), count)


def _seen(problem: Problem, architecture: Architecture) -> Evaluation:
    assert problem.glance is not None, "whoever asks for it can look"
    error = problem.glance(architecture)
    return Evaluation(
        architecture=architecture,
        teacher="",
        data="",
        recipe="untrained",
        cost=problem.predict(architecture),
        score=max(1.0 - error, 0.0),
        seconds=0.0,
        seed=problem.seed,
        status="failed" if error == float("inf") else "ok",
    )


def _apart(ordered: Iterable[Architecture], count: int) -> list[Architecture]:
    """Return the first architectures that differ from each one before them in a unit or a fourth of all widths."""
    picked: list[Architecture] = []
    for architecture in ordered:
        if len(picked) < count and not any(_alike(architecture, other) for other in picked):
            picked.append(architecture)
    return picked


def _alike(one: Architecture, other: Architecture) -> bool:
    widths = [(one.width(group.name), other.width(group.name)) for group in one.space.groups]
    unlike = sum(min(pair) < _ALIKE * max(pair) for pair in widths)
    return one.removed == other.removed and unlike <= len(widths) // _APART
