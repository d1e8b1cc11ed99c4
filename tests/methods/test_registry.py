from __future__ import annotations

import pytest

from understudy.config.methods import N2N, ArchComp, Method, OptunaSearch, RandomSearch, UniformWidth
from understudy.methods.archcomp.search import ArchCompSearcher
from understudy.methods.base import Searcher
from understudy.methods.baselines.random import RandomSearcher, UniformSearcher
from understudy.methods.baselines.samplers import SamplerSearcher
from understudy.methods.n2n.search import N2NSearch
from understudy.methods.registry import searcher_for
from understudy.testing.landscapes import toy_cost, toy_reward, toy_space


@pytest.mark.parametrize(
    ("method", "searcher"),
    [
        (N2N(), N2NSearch),
        (ArchComp(), ArchCompSearcher),
        (RandomSearch(), RandomSearcher),
        (OptunaSearch(), SamplerSearcher),
        (UniformWidth(), UniformSearcher),
    ],
)
def test_each_method_has_its_searcher(method: Method, searcher: type[Searcher]) -> None:
    space = toy_space()
    assert type(searcher_for(method, space, toy_reward(space), seed=0, predict=toy_cost)) is searcher
