"""Which searcher goes with which settings. No torch but for those that need it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from understudy.config.methods import N2N, ArchComp, Method, OptunaSearch, RandomSearch, UniformWidth
from understudy.core.architecture import Space
from understudy.core.goal import Reward
from understudy.methods.base import Searcher
from understudy.methods.baselines.random import RandomSearcher, UniformSearcher
from understudy.methods.proposals import Predict


def searcher_for(
    method: Method,
    space: Space,
    reward: Reward,
    *,
    seed: int,
    predict: Predict,
    policy: Mapping[str, Any] | None = None,
) -> Searcher:
    """Return the searcher that goes with these settings.

    Args:
        method: its settings.
        space: what the teacher allows.
        reward: with the budgets of the search.
        seed: of the searcher's own randomness.
        predict: the exact cost of an architecture, None if it cannot be built.
        policy: tensors of what learned elsewhere: policies for N2N, an embedding for ArchComp.
    """
    if isinstance(method, N2N):
        from understudy.methods.n2n.search import N2NSearch  # here, because it needs torch

        return N2NSearch(space, reward, method, seed=seed, predict=predict, policy=policy)
    if isinstance(method, ArchComp):
        from understudy.methods.archcomp.search import ArchCompSearcher  # here, because it needs torch

        return ArchCompSearcher(space, reward, method, seed=seed, predict=predict, policy=policy)
    if isinstance(method, OptunaSearch):
        from understudy.methods.baselines.samplers import SamplerSearcher  # the only one that needs Optuna

        return SamplerSearcher(space, reward, method, seed=seed, predict=predict)
    if isinstance(method, RandomSearch):
        return RandomSearcher(space, reward, method, seed=seed, predict=predict)
    assert isinstance(method, UniformWidth), "DECORE proposes nothing: it has a loop of its own"
    return UniformSearcher(space, reward, method, predict=predict)
