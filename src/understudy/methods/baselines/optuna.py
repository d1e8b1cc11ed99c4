"""Optuna's samplers over the same Space, as baselines: TPE and NSGA-II. No torch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import count
from typing import TYPE_CHECKING

from understudy.config.methods import OptunaSearch, RandomSearch
from understudy.core.architecture import Architecture
from understudy.core.evaluation import Evaluation
from understudy.core.quiet import quiet_optuna
from understudy.methods.base import Problem, Searcher
from understudy.methods.baselines.random import RandomSearcher
from understudy.methods.baselines.uniform import AT_A_TIME
from understudy.methods.decisions import UNIT_OPTIONS, Decisions
from understudy.methods.proposals import Scoring, offered_units

if TYPE_CHECKING:
    from optuna.samplers import BaseSampler
    from optuna.trial import Trial

_START = 20  # students of random search before the sampler draws; the size of NSGA-II's population
_HOPELESS = 1e9  # by how much what cannot be built breaks the budgets: a constraint must be finite


class SamplerSearcher(Searcher):
    """Tree-structured Parzen estimator (Bergstra et al., 2011) or NSGA-II (Deb et al., 2002), as Optuna has them.

    Starts from 20 students of random search, and so from its calibration to the budgets. What breaks
    a predicted budget is not trained: the sampler is told by how much, as a violated constraint, and
    draws again as often as N2N may.
    """

    def __init__(self, problem: Problem, settings: OptunaSearch, *, start: int = _START) -> None:
        import optuna

        super().__init__(problem)
        self._settings = settings
        begin = RandomSearch(students=min(start, settings.students), fill=settings.fill)
        self._start = RandomSearcher(problem, begin)
        self._scoring, self._proposals = Scoring(problem.reward), self._start.proposals
        self._left = settings.students
        self._proposed: list[Trial] = []
        space = problem.space
        self._decided = Decisions(
            space,
            {
                **{("unit", unit.name): UNIT_OPTIONS for unit in offered_units(space, "units")},
                **{("width", group.name): problem.widths.legal(group) for group in space.groups},
                **{("kernel", layer.name): layer.kernels for layer in space.layers if len(layer.kernels) > 1},
            },
        )
        with quiet_optuna():
            self._study = optuna.create_study(direction="maximize", sampler=_sampler(settings, problem.seed, start))

    def propose(self) -> list[Architecture]:
        if not self._left:
            return []
        with quiet_optuna():
            started = self._start.propose()
            if started:
                self._proposed = [self._enqueued(architecture) for architecture in started]
                return started
            drawn: list[tuple[Trial, Architecture]] = []

            def draws() -> Iterator[tuple[Trial, Architecture]]:
                for number in count():
                    trial = self._study.ask()
                    drawn.append((trial, self._decode(trial)))
                    if self._settings.fill and number % 2:
                        filled = self._start.filled(drawn[-1][1])
                        if filled != drawn[-1][1]:
                            drawn.append((self._enqueued(filled), filled))
                    yield drawn[-1]

            picked = self._proposals.pick(draws(), min(AT_A_TIME, self._left), self._usage)
            self._proposed = [trial for trial, _ in picked]
            self._tell_of_refused([draw for draw in drawn if draw[0] not in self._proposed])
        return [architecture for _, architecture in picked]

    def learn(self, evaluations: Sequence[Evaluation]) -> None:
        self._left -= len(evaluations)
        if self._start.left:
            self._start.learn(evaluations)
        with quiet_optuna():
            for trial, evaluation, reward in zip(self._proposed, evaluations, self.rewards(evaluations), strict=True):
                self._note(trial, evaluation.architecture)
                self._study.tell(trial, reward)

    @property
    def updates(self) -> int:
        return self._start.updates + -(-(self._settings.students - self._start.students) // AT_A_TIME)

    @property
    def stage(self) -> str:
        return self._settings.sampler

    def _usage(self, architecture: Architecture) -> float:
        return self._scoring.usage(self._proposals.cost(architecture))

    def _note(self, trial: Trial, architecture: Architecture) -> None:
        trial.set_constraint("budgets", min(self._usage(architecture) - 1.0, _HOPELESS))

    def _tell_of_refused(self, refused: Sequence[tuple[Trial, Architecture]]) -> None:
        """Tell the sampler of what broke a budget; what it had drawn before says nothing new."""
        from optuna.trial import TrialState

        for trial, architecture in refused:
            self._note(trial, architecture)
            if self._usage(architecture) > 1.0:
                self._study.tell(trial, -1.0)
            else:
                self._study.tell(trial, state=TrialState.FAIL)

    def _decode(self, trial: Trial) -> Architecture:
        """Return the architecture of a trial: a choice for each unit, group and kernel."""
        choices = [
            1 - trial.suggest_categorical(f"remove {name}", [False, True])
            if kind == "unit"
            else trial.suggest_int(f"{kind} {name}", 0, len(options) - 1)
            for (kind, name), options in self._decided.options.items()
        ]
        return self._decided.architecture(choices)

    def _enqueued(self, architecture: Architecture) -> Trial:
        """Return a trial of an architecture that the sampler did not draw."""
        chosen = zip(self._decided.names, self._decided.choices(architecture), strict=True)
        params: dict[str, bool | int] = {
            f"remove {name}" if kind == "unit" else f"{kind} {name}": not choice if kind == "unit" else choice
            for (kind, name), choice in chosen
        }
        self._study.enqueue_trial(params)
        trial = self._study.ask()
        assert self._decode(trial) == architecture, "a trial says what its architecture says"
        return trial


def _sampler(settings: OptunaSearch, seed: int, start: int) -> BaseSampler:
    from optuna.samplers import NSGAIISampler, TPESampler

    if settings.sampler == "nsga2":
        return NSGAIISampler(population_size=max(start, 2), seed=seed)
    return TPESampler(n_startup_trials=start, seed=seed)
