"""A searcher that proposes all it has to propose at once, before anything is evaluated. No torch."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

from understudy.core.architecture import Architecture
from understudy.core.evaluation import Evaluation
from understudy.methods.base import Problem, Searcher


class Once(Searcher):
    """Proposes one update and learns nothing from it."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem)
        self._done = False

    @abstractmethod
    def best(self) -> list[Architecture]:
        """Return what is proposed."""

    def propose(self) -> list[Architecture]:
        return [] if self._done else self.best()

    def learn(self, evaluations: Sequence[Evaluation]) -> None:
        self._done = True

    @property
    def updates(self) -> int:
        return 1
