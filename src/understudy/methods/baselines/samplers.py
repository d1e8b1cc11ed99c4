"""Optuna's samplers over the same Space, as yardsticks: TPE and NSGA-II. No torch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import count
from typing import TYPE_CHECKING

from understudy.config.methods import OptunaSearch, RandomSearch
from understudy.core.architecture import Architecture, Space
from understudy.core.evaluation import Evaluation
from understudy.core.goal import Reward
from understudy.core.quiet import quiet_optuna
from understudy.methods.base import Searcher
from understudy.methods.baselines.random import RandomSearcher
from understudy.methods.proposals import Predict, Scoring, offered_units

if TYPE_CHECKING:
    from optuna.samplers import BaseSampler
    from optuna.trial import Trial

_AT_A_TIME = 5
_HOPELESS = 1e9  # by how much what cannot be built breaks the budgets: a constraint must be finite


class SamplerSearcher(Searcher):
    """Tree-structured Parzen estimator (Bergstra et al., 2011) or NSGA-II (Deb et al., 2002), as Optuna has them.

    Starts from `start` students of random search, and so from its calibration to the budgets. What breaks
    a predicted budget is not trained: the sampler is told by how much, as a violated constraint, and
    draws again as often as N2N may.
    """

    def __init__(self, space: Space, reward: Reward, settings: OptunaSearch, *, seed: int, predict: Predict) -> None:
        import optuna

        self._space, self._reward, self._settings = space, reward, settings
        start = RandomSearch(
            students=min(settings.start, settings.students),
            round_to=settings.round_to,
            min_width=settings.min_width,
            redraws=settings.redraws,
            fill=settings.fill,
        )
        self._start = RandomSearcher(space, reward, start, seed=seed, predict=predict)
        self._scoring, self._proposals = Scoring(reward), self._start.proposals
        self._left = settings.students
        self._proposed: list[Trial] = []
        self._widths = {
            group.name: group.legal_widths(round_to=settings.round_to, minimum=settings.min_width)
            for group in space.groups
        }
        with quiet_optuna():
            self._study = optuna.create_study(direction="maximize", sampler=_sampler(settings, seed))

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

            picked = self._proposals.pick(draws(), min(_AT_A_TIME, self._left), self._usage)
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
        return self._start.updates + -(-(self._settings.students - self._start.students) // _AT_A_TIME)

    @property
    def stage(self) -> str:
        return self._settings.sampler

    def rewards(self, evaluations: Sequence[Evaluation]) -> list[float]:
        return [self._reward(evaluation) for evaluation in evaluations]

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
        space = self._space
        units = [unit.name for unit in offered_units(space, "units")]
        removed = [name for name in units if trial.suggest_categorical(f"remove {name}", [False, True])]
        widths = {
            name: legal[trial.suggest_int(f"width {name}", 0, len(legal) - 1)] for name, legal in self._widths.items()
        }
        kernels = {
            layer.name: layer.kernels[trial.suggest_int(f"kernel {layer.name}", 0, len(layer.kernels) - 1)]
            for layer in space.layers
            if len(layer.kernels) > 1
        }
        return space.architecture(removed=removed, widths=widths, kernels=kernels)

    def _enqueued(self, architecture: Architecture) -> Trial:
        """Return a trial of an architecture that the sampler did not draw."""
        space = architecture.space
        params: dict[str, bool | int] = {
            f"remove {unit.name}": unit.name in architecture.removed for unit in offered_units(space, "units")
        }
        for name, legal in self._widths.items():
            params[f"width {name}"] = legal.index(architecture.width(name))
        for layer in space.layers:
            if len(layer.kernels) > 1:
                params[f"kernel {layer.name}"] = layer.kernels.index(architecture.kernel(layer.name))
        self._study.enqueue_trial(params)
        trial = self._study.ask()
        assert self._decode(trial) == architecture, "a trial says what its architecture says"
        return trial


def _sampler(settings: OptunaSearch, seed: int) -> BaseSampler:
    from optuna.samplers import NSGAIISampler, TPESampler

    if settings.sampler == "nsga2":
        return NSGAIISampler(population_size=max(settings.start, 2), seed=seed)
    return TPESampler(n_startup_trials=settings.start, seed=seed)
