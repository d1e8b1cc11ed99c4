from __future__ import annotations

import json
import math
import statistics
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from scipy.stats import spearmanr

from tests.support.tiny import FACTORY, squeeze, teach_tiny
from understudy.cli import main
from understudy.config.methods import ArchComp, RandomSearch
from understudy.config.widths import Widths
from understudy.core.architecture import Architecture, Group
from understudy.core.errors import ConfigError
from understudy.core.evaluation import Cost
from understudy.core.goal import Goal
from understudy.methods.archcomp import rules
from understudy.methods.archcomp.embedding import predicted_score
from understudy.methods.archcomp.rules import Rules
from understudy.methods.archcomp.search import ArchCompSearcher, ascend, left, rewarded
from understudy.methods.base import Searcher
from understudy.methods.baselines.random import RandomSearcher
from understudy.testing.contracts import SearcherContract, run_searcher
from understudy.testing.landscapes import (
    ToyKind,
    toy_cost,
    toy_evaluation,
    toy_problem,
    toy_reward,
    toy_score,
    toy_space,
)

QUICK = ArchComp(students=16)
RULES = Rules(samples=60, fit_steps=12, refit_steps=4, batch_size=16, starts=12, steps=10, hidden=8)


def archcomp(
    settings: ArchComp, rules: Rules = RULES, *, kind: ToyKind = "chain", params: str | None = None, seed: int = 0
) -> ArchCompSearcher:
    return ArchCompSearcher(toy_problem(kind, params, seed=seed), settings, rules=rules)


def fitted(settings: ArchComp, rules: Rules = RULES, **fields: str) -> ArchCompSearcher:
    searcher = archcomp(settings, rules, **fields)  # type: ignore[arg-type]
    while searcher.stage == "random":
        searcher.learn([toy_evaluation(a) for a in searcher.propose()])
    return searcher


class TestArchComp(SearcherContract):
    def make(self, seed: int) -> Searcher:
        return archcomp(QUICK, params="20x", seed=seed)


class TestArchCompOfResidual(SearcherContract):
    def make(self, seed: int) -> Searcher:
        return archcomp(QUICK, kind="residual", seed=seed)


def test_it_starts_as_random_search_does() -> None:
    start = run_searcher(RandomSearcher(toy_problem(params="20x", seed=5), RandomSearch(students=8)))
    students = run_searcher(archcomp(QUICK, params="20x", seed=5))
    assert [e.architecture for e in students[:8]] == [e.architecture for e in start]


def test_students_keep_the_budget_and_differ() -> None:
    searcher = archcomp(replace(QUICK, students=33), kind="residual", params="20x")
    students = run_searcher(searcher)
    limit = toy_cost(toy_space("residual").full).parameters / 20
    assert len({e.architecture.digest for e in students}) == 33
    assert all(e.cost.parameters <= limit for e in students if e.cost)


def test_the_objective_is_n2ns_reward_less_what_breaks_a_budget() -> None:
    searcher = fitted(QUICK, params="20x")
    objective = searcher.fit()
    ((figure, most),) = objective.limits
    assert (figure, most) == (0, pytest.approx(-2.9957, abs=1e-4))
    with torch.no_grad():
        code_SCL = searcher.embedding.encode(searcher.starts(objective))
        mean_S = torch.zeros(len(code_SCL), dtype=torch.int64)
        accuracy_S = objective.forecast(searcher.embedding.features(code_SCL))[:, 0]
        logs_S = searcher.embedding.costs(code_SCL)[:, 0]
        expected_S = rewarded(logs_S.clamp_min(most), accuracy_S) - (logs_S - most).clamp_min(0.0)
        torch.testing.assert_close(objective(code_SCL, mean_S), expected_S)
    evaluation = toy_evaluation(toy_space().full.with_width("features.0", 8))
    assert evaluation.cost is not None
    share = evaluation.cost.parameters / toy_cost(toy_space().full).parameters
    known = torch.tensor([[share], [evaluation.score / 0.95]], dtype=torch.float64)
    reward = rewarded(known[0].log(), known[1])
    assert reward.item() == pytest.approx(toy_reward(toy_space())(evaluation))


def test_budgets_are_shares_of_the_teachers_figures() -> None:
    space = toy_space()
    teacher = replace(toy_cost(space.full), weight_bytes=400_000, latency_ms=3.0)
    reward = replace(toy_reward(space), teacher_cost=teacher)
    reward = replace(reward, budgets=Goal(size_mb="0.1", macs="2x", latency_ms="2x").budgets(teacher, 0.9))

    def predict(architecture: Architecture) -> Cost:  # with a latency that is estimated
        cost = toy_cost(architecture)
        return replace(cost, latency_ms=3.0 * cost.macs / teacher.macs)

    searcher = ArchCompSearcher(toy_problem(space, reward=reward, predict=predict), QUICK, rules=RULES)
    while searcher.stage == "random":
        searcher.learn([replace(toy_evaluation(a), cost=predict(a)) for a in searcher.propose()])
    # MACs stand in for latency, which the heads do not predict.
    macs, size, latency = searcher.fit().limits
    assert macs == (1, pytest.approx(math.log(0.5))) and size == (2, pytest.approx(math.log(0.25)))
    assert latency == (1, pytest.approx(math.log(0.5)))


def test_what_is_left_is_that_of_the_figures_with_a_budget() -> None:
    logs_BF = torch.tensor([[-3.0, -1.0, -2.0], [-0.1, -0.2, -0.3]])
    assert left(logs_BF, ()).tolist() == logs_BF[:, 0].tolist()
    assert left(logs_BF, ((1, -0.5),)).tolist() == pytest.approx([-0.5, -0.2])
    assert left(logs_BF, ((1, -9.0), (2, -9.0))).tolist() == pytest.approx([-1.5, -0.25])
    assert left(logs_BF, ((1, 0.5),)).tolist() == logs_BF[:, 0].tolist()


def test_ascent_raises_the_objective_of_what_is_decoded_and_never_lowers_it() -> None:
    searcher = fitted(replace(QUICK, students=30), replace(RULES, fit_steps=120, samples=300))
    objective = searcher.fit()
    starts_SD = searcher.starts(objective)
    draw_S = torch.arange(len(starts_SD)) % RULES.draws
    way = list(ascend(objective, starts_SD, draw_S, steps=20, radius=searcher.radius))
    assert len(way) == 4
    with torch.no_grad():
        values = torch.stack([objective(searcher.embedding.encode(choices_SD), draw_S) for choices_SD in way])
        before_S = objective(searcher.embedding.encode(starts_SD), draw_S)
    gains = torch.diff(torch.cat([before_S[None], values]), dim=0)
    assert gains.min() >= 0.0
    assert gains.sum(0).mean() > 0.02
    assert all(len(way_SD.unique(dim=0)) > 3 for way_SD in way)


def test_ascent_stays_where_nothing_better_is_met() -> None:
    searcher = fitted(QUICK)
    objective = searcher.fit()
    starts_SD = searcher.starts(objective)
    draw_S = torch.zeros(len(starts_SD), dtype=torch.int64)
    (*_, last_SD) = ascend(objective, starts_SD, draw_S, steps=10, radius=0.0)
    with torch.no_grad():
        exact_S = (searcher.embedding.decode(searcher.embedding.encode(starts_SD)) == starts_SD).all(1)
    assert exact_S.sum() > 3
    assert torch.equal(last_SD[exact_S], starts_SD[exact_S])
    # Too short a way to leave an architecture is made longer, too long a one shorter.
    for radius in (searcher.radius / 16.0, searcher.radius * 16.0):
        (*_, last_SD) = ascend(objective, starts_SD, draw_S, steps=60, radius=radius)
        assert (last_SD != starts_SD).any(1).double().mean() > 0.5


def test_it_learns_on_a_known_landscape() -> None:
    settings = replace(QUICK, students=45)
    quick = replace(RULES, samples=300, fit_steps=120, refit_steps=20, hidden=12)
    gains = []
    for seed in range(2):
        searcher = archcomp(settings, quick, seed=seed)
        students = run_searcher(searcher, landscape=seed)
        rewards = searcher.rewards(students)
        gains.append(statistics.mean(rewards[30:]) - statistics.mean(rewards[:20]))
    assert min(gains) > 0.1


@pytest.mark.slow
def test_it_beats_random_search() -> None:
    # benchmarks/archcomp.py at its full settings has the figures.
    def best(searcher: Searcher, seed: int) -> float:
        reward = searcher.problem.reward
        return max(reward(evaluation) for evaluation in run_searcher(searcher, landscape=seed))

    quick = Rules(samples=500, fit_steps=200, refit_steps=30)
    gains = []
    for seed in range(2):
        learned = archcomp(ArchComp(students=40), quick, params="20x", seed=seed)
        chance = RandomSearch(students=40).searcher(toy_problem(params="20x", seed=seed))
        gains.append(best(learned, seed) - best(chance, seed))
    assert min(gains) >= 0.0  # the best may be the first student of both
    assert max(gains) > 0.02


def test_it_proposes_although_nothing_can_be_built() -> None:
    def never(architecture: Architecture) -> Cost | None:
        return None

    searcher = ArchCompSearcher(toy_problem(params="9x", predict=never), QUICK, rules=RULES)
    for expected in (5, 3, 5):
        proposals = searcher.propose()
        assert len(proposals) == expected
        searcher.learn([toy_evaluation(a).with_error("no") for a in proposals])


def test_a_space_without_decisions_is_searched_as_random_search_does() -> None:
    space = replace(toy_space(), units=(), groups=tuple[Group, ...]())
    space = replace(space, layers=tuple(replace(layer, group=None, kernels=()) for layer in space.layers))
    searcher = ArchCompSearcher(toy_problem(space), QUICK, rules=RULES)
    assert {e.architecture for e in run_searcher(searcher)} == {space.full}


def test_threads_are_given_back_and_do_not_matter() -> None:
    before = torch.get_num_threads()
    proposals = []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            proposals.append(fitted(QUICK).propose())
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    assert proposals[0] == proposals[1]


def test_what_was_learned_can_be_saved() -> None:
    searcher = fitted(QUICK)
    assert searcher.state_dict() == {}
    expected = fitted(QUICK)
    searcher.propose(), expected.propose()
    state = searcher.state_dict()
    parts = {"encoder", "decoder", "cost", "traits", "score", "forecast", "made_for"}
    assert {name.split(".")[0] for name in state} == parts
    assert all(isinstance(value, torch.Tensor) and value.isfinite().all() for value in state.values())
    told = [toy_evaluation(a) for a in toy_students(5)]
    for other in (searcher, expected):
        other.learn(told)
    assert searcher.propose() == expected.propose()  # saving draws nothing from the searcher's generator


def toy_students(count: int, seed: int = 9) -> list[Architecture]:
    random = RandomSearcher(toy_problem(seed=seed), RandomSearch())
    return [random.drawn() for _ in range(count)]


LEARNED = replace(QUICK, students=50)
FITTED = replace(RULES, samples=200, fit_steps=60, hidden=12)


def learned(landscape: int) -> dict[str, torch.Tensor]:
    searcher = ArchCompSearcher(toy_problem(), LEARNED, rules=FITTED, start=45)
    run_searcher(searcher, landscape=landscape)
    return searcher.state_dict()  # type: ignore[return-value]


def test_what_was_learned_predicts_accuracies_and_their_deviation() -> None:
    space, students = toy_space(), toy_students(60)
    told = predicted_score(learned(0), space, Widths(), [space.full, *students])
    teacher, *shares = [share for share, _ in told]
    true = [toy_score(a) / 0.95 for a in students]
    assert teacher == pytest.approx(1.0, abs=0.1)
    assert spearmanr(shares, true).statistic > 0.6
    assert all(deviation > 0.0 for _, deviation in told)
    assert told[0][1] < statistics.fmean(deviation for _, deviation in told[1:])  # the teacher's own is known
    with pytest.raises(ConfigError, match="a teacher of the same structure"):
        predicted_score(learned(0), toy_space("residual"), Widths(), [toy_space("residual").full])
    with pytest.raises(ConfigError, match="a teacher of the same structure"):
        predicted_score(learned(0), space, Widths(min_width=16), [space.full])


def test_a_search_that_starts_from_another_is_good_at_once() -> None:
    space, reward = toy_space(), toy_reward(toy_space(), Goal(params="20x"))
    settings, bests = replace(LEARNED, students=10), []
    for landscape in (0, 1, 2):
        problem = toy_problem(space, "20x", seed=1, policy=learned(landscape))
        warm = ArchCompSearcher(problem, settings, rules=FITTED)
        assert warm.stage == "embedding"
        before = {name: tensor.clone() for name, tensor in warm.embedding.state_dict().items()}
        students = run_searcher(warm, landscape=landscape)
        assert len(students) == 10
        assert all(torch.equal(before[name], tensor) for name, tensor in warm.embedding.state_dict().items())
        random = RandomSearcher(toy_problem(space, "20x", seed=1), RandomSearch(students=20))
        drawn = [reward(e) for e in run_searcher(random, landscape=landscape)]
        first = [reward(e) for e in students[:5]]
        # Random search starts from uniform widths, a good student on some landscapes; what follows is compared.
        assert statistics.fmean(first) > statistics.fmean(drawn[1:]) + 0.05
        bests.append(max(first) - max(drawn))
    assert statistics.fmean(bests) > 0.0 and max(bests) > 0.05


def test_a_run_serves_inspect_and_the_next_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(rules.RULES, "tuned", RULES)
    teacher = teach_tiny(tmp_path / "teacher")
    method = replace(QUICK, students=8)
    first = squeeze(teacher, tmp_path / "first", method=method)
    first.save(tmp_path / "student")
    model = [FACTORY, "--size", "8", "--channels", "1", "--architecture", str(tmp_path / "student")]
    assert main(["inspect", *model, "--forecast-by", str(first.run), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)["forecast"]
    assert told["architecture"] == first.architecture.digest
    assert told["cost"]["parameters"] == sum(p.numel() for p in first.student.parameters())
    assert 0.0 < told["score"] < 1.5 and told["deviation"] > 0.0
    assert main(["inspect", *model, "--forecast-by", str(tmp_path)]) == 2
    second = squeeze(teacher, tmp_path / "second", method=method, policy_from=str(first.run))
    assert squeeze(teacher, tmp_path / "second", method=method, policy_from=str(first.run)).summary == second.summary
    with pytest.raises(ConfigError, match="a teacher of the same structure"):
        squeeze(teacher, tmp_path / "third", method=method, widths=Widths(min_width=4), policy_from=str(first.run))
