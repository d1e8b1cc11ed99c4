"""Which students are the best. No torch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from understudy.core.architecture import Architecture
from understudy.core.errors import GoalError, RunError
from understudy.core.evaluation import Evaluation
from understudy.core.figures import FIGURE, share, standard_error
from understudy.core.goal import Budgets, Reward
from understudy.methods.feasibility import said


def finalists(evaluations: Iterable[Evaluation], reward: Reward, count: int) -> list[Architecture]:
    """Return the architectures to train to convergence, the most promising first.

    Only those that keep the budgets on cost. Those that reached the score asked for after their short
    training come first; the others follow, by score, as the likeliest to reach it. See `merit_for`.

    Raises:
        GoalError: none keeps the budgets; the nearest points are listed.
    """
    found = list(evaluations)
    trained = [e for e in found if e.status != "failed"]
    on_cost = replace(reward.budgets, score=0.0)
    able = [e for e in trained if e.cost is not None and not on_cost.broken_by(e.cost)]
    if not able:
        raise GoalError(_nothing_fits(trained, on_cost) if trained else _none_trained(found))
    ordered = sorted(able, key=merit_for(reward), reverse=True)
    return list(dict.fromkeys(e.architecture for e in ordered))[:count]


def winner(finished: Sequence[Evaluation], reward: Reward, *, examples: int) -> Evaluation:
    """Return the best of the final students on the validation split.

    Of those that keep every budget the most accurate wins where there is a budget on cost; those within one standard
    error of its score are as accurate, and of these the cheapest wins, by the figures with a budget. Without a
    budget on cost nothing says how small is small enough, so the reward weighs one against the other. If none keeps
    every budget, the most accurate of those that keep the budgets on cost wins.

    Args:
        finished: the final students.
        reward: whose budgets are to be kept.
        examples: images of the validation split, which the standard error is from.

    Raises:
        RunError: no training succeeded.
    """
    trained = [e for e in finished if e.status == "ok"]
    if not trained:
        reasons = "\n  ".join(f"{e.architecture.digest}: {e.error}" for e in finished)
        raise RunError(f"at least one final training must succeed, but all failed:\n  {reasons}")
    best = max(trained, key=merit_for(reward))
    if not reward.budgets.limits() or not _keeps_all(best, reward):
        return best
    least = best.score - standard_error(best.score, examples)
    equal = [e for e in trained if _keeps_all(e, reward) and e.score >= least]
    return min(equal, key=lambda e: (_left(e, reward), -e.score, e.architecture.digest))


def merit_for(reward: Reward) -> Callable[[Evaluation], tuple[int, float, float, str]]:
    """Return what evaluations that were not failures are ranked by, larger is better.

    Whether it keeps every budget or at least those on cost; then score, but the reward of those that keep every
    budget where none is on cost; then how little is left of the figures with a budget (of parameters without one); at
    last the digest, so that nothing hangs on who was finished first.
    """
    by_reward = not reward.budgets.limits()

    def merit(evaluation: Evaluation) -> tuple[int, float, float, str]:
        assert evaluation.cost is not None, "what was trained has a cost"
        broken = reward.budgets.broken_by(evaluation.cost, evaluation.score)
        kept = 2 if not broken else 1 if broken == ("score",) else 0
        score = reward.plain(evaluation) if by_reward and kept == 2 else evaluation.score
        return kept, score, -_left(evaluation, reward), evaluation.architecture.digest

    return merit


def _keeps_all(evaluation: Evaluation, reward: Reward) -> bool:
    return evaluation.cost is not None and not reward.budgets.broken_by(evaluation.cost, evaluation.score)


def _left(evaluation: Evaluation, reward: Reward) -> float:
    assert evaluation.cost is not None, "what was trained has a cost"
    return reward.left(evaluation.cost)


def _none_trained(failed: Sequence[Evaluation]) -> str:
    rule = "a search must find at least one student that can be trained"
    return f"{rule}, but every one failed, as this one: {failed[-1].error}" if failed else f"{rule}, but it found none"


def _nothing_fits(trained: Sequence[Evaluation], budgets: Budgets) -> str:
    def excess(evaluation: Evaluation) -> float:
        return max((used for _, used in budgets.used(evaluation.cost)), default=0.0) if evaluation.cost else 0.0

    nearest = sorted(trained, key=excess)[:3]
    points = "\n  ".join(f"{said(e.cost)}, validation score {share(e.score)}" for e in nearest if e.cost)
    asked = ", ".join(FIGURE[name].text(most) for name, most in budgets.limits())
    return (
        f"at least one student must keep the budgets ({asked}), but none did. The nearest:\n  {points}\n"
        "Ask for less, or search longer or by another method in a new run folder."
    )
