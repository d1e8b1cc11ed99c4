"""Which students are the best. No torch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from understudy.core.architecture import Architecture
from understudy.core.errors import GoalError, RunError
from understudy.core.evaluation import Evaluation
from understudy.core.figures import share
from understudy.core.goal import Budgets, Reward
from understudy.methods.feasibility import said


def finalists(evaluations: Iterable[Evaluation], reward: Reward, count: int) -> list[Architecture]:
    """Return the architectures to train to convergence, the most promising first.

    Only those that keep the budgets on cost. Those that reached the accuracy asked for after their short
    training come first, by reward; the others follow by accuracy, as the likeliest to reach it.

    Raises:
        GoalError: none keeps the budgets; the nearest points are listed.
    """
    trained = [e for e in evaluations if e.status != "failed"]
    on_cost = replace(reward.budgets, accuracy=0.0)
    able = [e for e in trained if e.cost is not None and not on_cost.broken_by(e.cost)]
    if not able:
        raise GoalError(_nothing_fits(trained, on_cost))
    ordered = sorted(able, key=merit_for(reward), reverse=True)
    return list(dict.fromkeys(e.architecture for e in ordered))[:count]


def winner(finished: Sequence[Evaluation], reward: Reward) -> Evaluation:
    """Return the best of the final students on the validation split: by reward, then fewer parameters.

    Those that keep every budget go before all others.

    Raises:
        RunError: no training succeeded.
    """
    trained = [e for e in finished if e.status == "ok"]
    if not trained:
        reasons = "\n  ".join(f"{e.architecture.digest}: {e.error}" for e in finished)
        raise RunError(f"at least one final training must succeed, but all failed:\n  {reasons}")
    return max(trained, key=merit_for(reward))


def merit_for(reward: Reward) -> Callable[[Evaluation], tuple[int, float, int, str]]:
    """Return what evaluations that were not failures are ranked by, larger is better.

    Whether it keeps every budget or at least those on cost, then the reward of those that keep every one
    and the accuracy of the others, then fewer parameters; at last the digest, so that nothing hangs on
    who was finished first.
    """
    plain = replace(reward, budgets=Budgets())

    def merit(evaluation: Evaluation) -> tuple[int, float, int, str]:
        assert evaluation.cost is not None, "what was trained has a cost"
        broken = reward.budgets.broken_by(evaluation.cost, evaluation.accuracy)
        kept = 0 if broken and broken != ("accuracy",) else 1 if broken else 2
        score = plain(evaluation) if kept == 2 else evaluation.accuracy
        return kept, score, -evaluation.cost.parameters, evaluation.architecture.digest

    return merit


def _nothing_fits(trained: Sequence[Evaluation], budgets: Budgets) -> str:
    def excess(evaluation: Evaluation) -> float:
        return max((getattr(evaluation.cost, name) or 0.0) / most for name, most in budgets.limits())

    nearest = sorted(trained, key=excess)[:3]
    points = "\n  ".join(f"{said(e.cost)}, validation accuracy {share(e.accuracy)}" for e in nearest if e.cost)
    if not points:
        return "a search must find at least one student that can be trained, but every one failed; run.log says why"
    asked = ", ".join(f"{name} {most:.6g}" for name, most in budgets.limits())
    return (
        f"at least one student must keep the budgets ({asked}), but none did. The nearest:\n  {points}\n"
        "Ask for less, or search longer in a new run folder."
    )
