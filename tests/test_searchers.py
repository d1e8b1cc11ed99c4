from __future__ import annotations

import pytest

from understudy.config import N2N, ArchComp, Method, OptunaSearch, RandomSearch, UniformWidth
from understudy.search.archcomp import ArchCompSearcher
from understudy.search.base import Searcher
from understudy.search.baselines import RandomSearcher, UniformSearcher
from understudy.search.n2n import N2NSearch
from understudy.search.samplers import SamplerSearcher
from understudy.search.searchers import searcher_for
from understudy.testing import toy_cost, toy_reward, toy_space


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
