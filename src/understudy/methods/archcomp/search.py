"""Architecture compression (Ashok, 2019, arXiv 1902.03326): ascent in a learned space of architectures.

An encoder-decoder learns to map architectures to a continuous embedding and back, while heads on the
embedding regress score and cost. To compress, the objective is ascended in the embedding and the
decoder says which architectures the points on the way stand for. The best are trained, which gives
labels for the next fit. `docs/archcomp.md` numbers every choice with its source.

Shapes: B = architectures, S = starts, D = decisions, C = channels, L = columns, F = figures of cost, M = draws
of the score's posterior (the first is its mean), in the order of the suffix.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from understudy.config.methods import ArchComp, RandomSearch
from understudy.core.architecture import Architecture
from understudy.core.evaluation import Cost, Evaluation
from understudy.core.figures import FIGURE
from understudy.methods.archcomp.embedding import (
    FIGURES,
    Embedding,
    Known,
    loaded,
    log_shares,
    made_for,
    refuse_other_embedding,
    sizes_of,
)
from understudy.methods.archcomp.rules import RULES, Rules
from understudy.methods.base import Problem, Searcher
from understudy.methods.baselines.random import RandomSearcher
from understudy.methods.baselines.uniform import AT_A_TIME
from understudy.methods.proposals import Scoring
from understudy.methods.surrogate.columns import Columns
from understudy.methods.surrogate.regression import Forecast, in_turn, one_thread
from understudy.methods.untrained import best_untrained, seen_untrained

_SNAP = 5  # steps of ascent after which it goes on from the best that was decoded
_BEST = 8  # known students that ascent starts from
_SAVED_DRAWS = 50  # of score's posterior, of which a forecast's deviation is computed
_POOL = 10  # times the first architectures whose costs are known: the most that are remembered, the latest
_SHORTLIST = 60  # decoded architectures whose exact costs are asked for in one update


# --- The objective, and its ascent in the embedding ---


@dataclass(frozen=True)
class Objective:
    """N2N's reward of a point in the embedding, as the heads predict it, less what it takes too much of a budget."""

    embedding: Embedding
    forecast: Forecast
    limits: tuple[tuple[int, float], ...]  # index of a figure -> logarithm of the most, as a share of the teacher's

    def __call__(self, code_SCL: Float[Tensor, "s c l"], draw_S: Int[Tensor, " s"]) -> Float[Tensor, " s"]:
        """Return the objective, which is to rise, of each point under its draw of the score's posterior."""
        logs_SF = self.embedding.costs(code_SCL)
        accuracy_SM = self.forecast(self.embedding.features(code_SCL))
        value_S = rewarded(left(logs_SF, self.limits), accuracy_SM.gather(1, draw_S[:, None])[:, 0])
        for figure, most in self.limits:
            value_S = value_S - (logs_SF[:, figure] - most).clamp_min(0.0)
        return value_S


def left(logs_BF: Tensor, limits: Sequence[tuple[int, float]]) -> Tensor:
    """Return the log of what is left of the teacher in the figures with a budget, no less than it asks for.

    That of the parameters where there is none; see `Reward`.
    """
    asked = [logs_BF[:, figure].clamp_min(most) for figure, most in limits if most < 0.0]
    return torch.stack(asked).mean(0) if asked else logs_BF[:, 0]


def rewarded(log_left_B: Tensor, accuracy_B: Tensor) -> Tensor:
    """Return `C (2 - C) A` for the log of what is left of the teacher's cost, and shares of its score."""
    compression_B = 1.0 - log_left_B.exp()
    return compression_B * (2.0 - compression_B) * accuracy_B


def ascend(
    objective: Objective, starts_SD: Int[Tensor, "s d"], draw_S: Int[Tensor, " s"], *, steps: int, radius: float
) -> Iterator[Int[Tensor, "s d"]]:
    """Yield the best architecture that each start has come to, every few steps: its objective never falls.

    The objective is believed of what an architecture is encoded as, not of the points between. So what a step has
    come to is decoded and encoded anew, and every few steps the ascent goes on from the best of these, `radius` far
    in all. Where none was better the next goes half as far, or twice where it never left its architecture.
    """
    embedding = objective.embedding

    def valued(choices_SD: Tensor) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            code_SCL = embedding.encode(choices_SD)
            return code_SCL, objective(code_SCL, draw_S)

    best_SD = starts_SD
    code_SCL, best_S = valued(best_SD)
    reach_S = torch.full_like(best_S, radius)
    for _ in range(-(-steps // _SNAP)):
        before_S, moved_S = best_S, torch.zeros_like(best_S, dtype=torch.bool)
        for _ in range(_SNAP):
            code_SCL = code_SCL.detach().requires_grad_()
            (gradient_SCL,) = torch.autograd.grad(objective(code_SCL, draw_S).sum(), code_SCL)
            code_SCL = code_SCL.detach() + reach_S[:, None, None] / _SNAP * _scaled_to_one(gradient_SCL)
            now_SD = embedding.decode(code_SCL)
            _, now_S = valued(now_SD)
            moved_S |= (now_SD != best_SD).any(1)
            best_SD = torch.where((now_S > best_S)[:, None], now_SD, best_SD)
            best_S = torch.maximum(now_S, best_S)
        further_S = torch.where(moved_S, 0.5 * reach_S, 2.0 * reach_S)
        reach_S = torch.where(best_S > before_S, reach_S, further_S)
        code_SCL, _ = valued(best_SD)
        yield best_SD


def _scaled_to_one(x_SCL: Tensor) -> Tensor:
    norm_S11: Tensor = torch.linalg.vector_norm(x_SCL, dim=(1, 2), keepdim=True)
    return x_SCL / norm_S11.clamp_min(1e-12)


# --- Fit, ascend, train, and again ---


class ArchCompSearcher(Searcher):
    """Fits the embedding and ascends in it for every update, after a start by random search.

    Args:
        problem: its policy may be what another search's `state_dict` gave, on a teacher of the same structure: its
            embedding serves as it is, what it says of score is corrected, and no student is random.
        settings: of architecture compression.
        rules: instead of those that the settings name.
        start: how many students random search draws before the first fit; None: as the rules say, at most half.
    """

    def __init__(
        self, problem: Problem, settings: ArchComp, *, rules: Rules | None = None, start: int | None = None
    ) -> None:
        super().__init__(problem)
        self._space, self._reward, self._settings = problem.space, problem.reward, settings
        self._rules, policy = rules or RULES[settings.rules], problem.policy
        start = min(self._rules.start, settings.students // 2) if start is None else start
        random = 0 if policy else max(start, 1)
        self._random = RandomSearcher(problem, RandomSearch(), students=random)
        self._proposals, self._scoring = self._random.proposals, Scoring(problem.reward)
        self._looks = settings.glances > 0 and problem.glance is not None and random > 0
        self._left = settings.students
        self._told: list[Evaluation] = []
        self._merits: list[float] = []  # of what was told
        self._generator = torch.Generator().manual_seed(problem.seed)
        self.columns = Columns(problem.space, problem.widths)
        self.embedding = Embedding(self.columns, sizes_of(policy, self._rules) if policy else self._rules)
        self._before = loaded(self.embedding, policy) if policy else None
        self._told_ND = torch.zeros(0, len(self.columns.at), dtype=torch.int64)
        self._pool_BD = torch.zeros(0, len(self.columns.at), dtype=torch.int64)
        self._logs_BF = torch.zeros(0, len(FIGURES), dtype=torch.float64)

    def propose(self) -> list[Architecture]:
        if not self._left:
            return []
        if self._looks and self._reward.budgets.limits():
            self._random.begin_with(best_untrained(self._on_glances(), AT_A_TIME))
        self._looks = False
        started = self._random.propose()
        if started:
            return started
        ordered: list[Architecture] = []
        if self.columns.names:  # else there is nothing to decide
            with one_thread():
                ordered = [self.columns.architecture(c_D) for c_D in self._candidates(self.fit())]

        def draws() -> Iterator[tuple[None, Architecture]]:
            for architecture in ordered:
                yield None, architecture
            while True:  # ascent has found too little that is new
                yield None, self._random.drawn()

        picked = self._proposals.pick(draws(), min(AT_A_TIME, self._left), self._usage)
        return [architecture for _, architecture in picked]

    def _on_glances(self) -> ArchCompSearcher:
        """Return the same search, on untrained students."""
        settings = replace(self._settings, glances=0, students=self._settings.glances * self._settings.students)
        return ArchCompSearcher(seen_untrained(self.problem), settings, rules=self._rules)

    def learn(self, evaluations: Sequence[Evaluation]) -> None:
        self._left -= len(evaluations)
        self._told += evaluations
        self._merits += map(self._scoring, evaluations)
        if evaluations:
            told_ND = self._choices(*(evaluation.architecture for evaluation in evaluations))
            self._told_ND = torch.cat([self._told_ND, told_ND])
        if self._random.left:
            self._random.learn(evaluations)

    # Knowledge: costs are free, scores are not.

    def _grow_pool(self) -> None:
        """Add architectures to the pool: of all sizes at first, then near to the best known students."""
        count, generator = self._rules.samples, self._generator
        if len(self._pool_BD):
            best_BD = self._best()
            picked_B = torch.arange(-(-count // 10)) % len(best_BD)
            more_BD = self.columns.near(best_BD[picked_B], self._rules.changes, generator)
        else:
            more_BD = torch.cat([self.columns.sample(count, generator), self._choices(self._space.full)])
        self._pool_BD = torch.cat([self._pool_BD, more_BD])[-_POOL * count :]
        self._logs_BF = torch.cat([self._logs_BF, self.exact(more_BD)])[-_POOL * count :]

    def exact(self, choices_BD: Tensor) -> Tensor:
        """Return the exact log shares of the teacher's figures, (B, F)."""
        costs = [self._proposals.cost(self.columns.architecture(choices_D)) for choices_D in choices_BD]
        teacher = self._figures(self._reward.teacher_cost)
        return log_shares([None if cost is None else self._figures(cost) for cost in costs], teacher)

    @staticmethod
    def _figures(cost: Cost) -> list[float]:
        return [float(getattr(cost, name)) for name in FIGURES]

    def _choices(self, *architectures: Architecture) -> Tensor:
        return torch.stack([self.columns.choices(architecture) for architecture in architectures])

    def _known(self) -> Known:
        """Return everything known; the teacher's own score is, without training."""
        scored = [index for index, evaluation in enumerate(self._told) if evaluation.status != "failed"]
        teacher = self._reward.teacher_score
        scores = [teacher, *(self._told[index].score for index in scored)]
        return Known(
            choices_BD=self._pool_BD,
            logs_BF=self._logs_BF,
            trained_ND=torch.cat([self._choices(self._space.full), self._told_ND[scored]]),
            scores_N=torch.tensor(scores, dtype=torch.float64) / teacher,
        )

    def _best(self) -> Tensor:
        """Return the choices of the best known students, best first; at least one."""
        ranked = sorted(range(len(self._told)), key=self._merits.__getitem__, reverse=True)[:_BEST]
        return self._told_ND[ranked] if ranked else self._choices(self._space.full)

    def _usage(self, architecture: Architecture) -> float:
        return self._scoring.usage(self._proposals.cost(architecture))

    # The method.

    def fit(self) -> Objective:
        """Fit the embedding, from where the last fit left it, and what it says about score."""
        rules, first = self._rules, not len(self._pool_BD)
        if first and self._before is None:
            self.embedding.draw_weights(self._generator)
        self._grow_pool()
        known = self._known()
        if self._before is None:
            self.embedding.fit(known, rules.fit_steps if first else rules.refit_steps, self._generator)
        forecast = self._forecast(known, rules.draws, self._generator)
        limits = []
        for limit, most in self._reward.budgets.limits():
            figure, own = FIGURE[limit], FIGURE[limit].of(self._reward.teacher_cost)
            name = figure.field if figure.field in FIGURES else figure.stand_in
            if name in FIGURES and own:
                limits.append((FIGURES.index(name), math.log(most / own)))
        return Objective(self.embedding, forecast, tuple(limits))

    @torch.no_grad()
    def _forecast(self, known: Known, draws: int, generator: torch.Generator) -> Forecast:
        features_NP = self.embedding.features(self.embedding.encode(known.trained_ND))
        return Forecast.of(features_NP, known.scores_N, draws, generator, before=self._before)

    def starts(self, objective: Objective) -> Tensor:
        """Return where to ascend from: teacher, best students, some near to them, the most promising of the pool."""
        count, best_BD = self._rules.starts, self._best()
        mean_B = torch.zeros(len(self._pool_BD), dtype=torch.int64)
        with torch.no_grad():
            promise_B = objective(self.embedding.encode(self._pool_BD), mean_B)
        promise_B[~self._logs_BF.isfinite().all(1)] = -math.inf  # these cannot be built
        near_BD = best_BD[torch.arange(count // 3) % len(best_BD)]
        near_BD = self.columns.near(near_BD, self._rules.changes, self._generator)
        pool_BD = self._pool_BD[promise_B.argsort(descending=True, stable=True)[:count]]
        known_BD = torch.cat([self._choices(self._space.full), best_BD, near_BD])[:count]
        return torch.cat([known_BD, pool_BD[: count - len(known_BD)]])

    def _candidates(self, objective: Objective) -> Tensor:
        """Return the choices to propose, in order: each draw of the posterior in turn its favourite, then its next."""
        rules, starts_SD = self._rules, self.starts(objective)
        draw_S = 1 + torch.arange(len(starts_SD)) % rules.draws
        way = ascend(objective, starts_SD, draw_S, steps=rules.steps, radius=self.radius)
        found_BD: Tensor = torch.cat([starts_SD, *way]).unique(dim=0)
        trained = set(map(tuple, self._told_ND.tolist()))
        found_BD = found_BD[[tuple(row) not in trained for row in found_BD.tolist()]]
        if not len(found_BD):
            return found_BD
        with torch.no_grad():
            code_BCL = self.embedding.encode(found_BD)
            accuracy_BM = objective.forecast(self.embedding.features(code_BCL))
            guessed_BM = torch.stack(
                [objective(code_BCL, torch.full((len(found_BD),), m)) for m in range(rules.draws + 1)], 1
            )
        short_B = in_turn(guessed_BM[:, 1:], found_BD, apart=1, count=_SHORTLIST)
        logs_BF = self.exact(found_BD[short_B])
        exact_BM = rewarded(left(logs_BF, objective.limits)[:, None], accuracy_BM[short_B]).nan_to_num(-1.0)
        for figure, most in objective.limits:
            exact_BM = torch.where(logs_BF[:, figure, None] <= most, exact_BM, -1.0)
        return found_BD[short_B][in_turn(exact_BM[:, 1:], found_BD[short_B], apart=rules.apart, count=_SHORTLIST)]

    @property
    def radius(self) -> float:
        """How far ascent goes from an architecture at first: a share of the median distance between two."""
        with torch.no_grad():
            code_BCL = self.embedding.encode(self._pool_BD[:256])
        return self._rules.trust * torch.pdist(code_BCL.flatten(1)).median().item()

    @property
    def updates(self) -> int:
        return self._random.updates + -(-(self._settings.students - self._random.students) // AT_A_TIME)

    @property
    def stage(self) -> str:
        return "random" if self._random.left else "embedding"

    @classmethod
    def check_start(cls, tensors: Mapping[str, Tensor], problem: Problem, settings: ArchComp) -> None:
        """Check that an embedding which was fitted elsewhere is of this teacher's structure and these widths.

        Raises:
            ConfigError: it is not, or there is none.
        """
        refuse_other_embedding(tensors, problem.space, problem.widths)

    def state_dict(self) -> dict[str, object]:
        """Return the embedding and what it says of score given all that is known; nothing before the first fit."""
        if not len(self._pool_BD):
            return {}
        with one_thread():
            draws = torch.Generator().manual_seed(0)  # the searcher's own is not touched by saving
            forecast = self._forecast(self._known(), _SAVED_DRAWS, draws)
        made = torch.tensor(made_for(self._space, self.problem.widths))
        return {**self.embedding.state_dict(), **forecast.tensors(), "made_for": made}
