from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch

from benchmarks.tabular import build, compare, macro, networks
from benchmarks.tabular.compare import METHODS, STUDENTS, curve
from benchmarks.tabular.embedding import fitted, ranks
from benchmarks.tabular.plot import Curve, Panel, svg
from benchmarks.tabular.table import Table, all_architectures, search
from understudy.config.methods import ArchComp, OptunaSearch
from understudy.core.architecture import Architecture
from understudy.core.evaluation import Evaluation
from understudy.cost.predict import predict
from understudy.graph.analysis import Analysis, analyse
from understudy.methods.archcomp.rules import Rules
from understudy.methods.archcomp.search import ArchCompSearcher
from understudy.methods.base import Problem, Searcher

FOLDER = Path(build.__file__).parent
FILES = sorted(FOLDER.glob("*.npz"))
TRAINED_HERE = [path for path in FILES if path.stem in build.PLANS]
WHOLE = {"skip-mnist"}


def analysis_of(network: str, shape: Sequence[int], width: int = 24) -> Analysis:
    teacher = getattr(networks, network)(in_channels=shape[0], width=width)
    return analyse(teacher.eval(), torch.zeros(2, *shape))


def made(analysis: Analysis) -> Table:
    """Return a table of accuracies by formula, with two repeats."""

    def evaluation(architecture: Architecture, luck: int) -> Evaluation:
        cost = predict(analysis, architecture)
        accuracy = round(cost.parameters / (cost.parameters + 1000.0) + luck / 1000.0, 4)
        return Evaluation(
            architecture=architecture, teacher="t", data="d", recipe="r", cost=cost, score=accuracy, seconds=0.25,
            seed=2**63 + luck,
        )  # fmt: skip

    architectures = all_architectures(analysis.space)
    return Table(
        space=analysis.space,
        evaluations=tuple(evaluation(architecture, 0) for architecture in architectures),
        repeats=tuple(tuple(evaluation(architectures[n], luck) for luck in (0, 1, 2)) for n in (7, 3)),
        about={"teacher": "t", "data": "d", "recipe": "r", "teacher_accuracy": 0.95},
    )


@pytest.fixture(scope="module")
def table() -> Table:
    return made(analysis_of("skip", (1, 12, 12), width=16))  # two widths, not three, so that a test takes seconds


@pytest.mark.parametrize("called", [called for called, method in METHODS.items() if method is not None])
def test_every_proposal_of_every_searcher_is_in_the_table(table: Table, called: str) -> None:
    method, problem = METHODS[called], Problem(space=table.space, reward=table.reward(params="5x"), predict=table.cost)
    assert method is not None
    if isinstance(method, ArchComp | OptunaSearch):
        method = replace(method, students=30)
    if isinstance(method, ArchComp):
        searcher: Searcher = ArchCompSearcher(problem, method, rules=Rules(samples=100, fit_steps=5, refit_steps=2))
    else:
        searcher = method.searcher(problem)
    found = search(searcher, table, STUDENTS)
    # Of two uniform widths one breaks the budget.
    assert len(found) == {"uniform": 1, "ArchComp": 30, "TPE": 30, "TPE, filled": 30, "NSGA-II": 30}.get(
        called, STUDENTS
    )


def test_each_architecture_is_there_once_and_the_teacher_among_them(table: Table) -> None:
    digests = [evaluation.architecture.digest for evaluation in table.evaluations]
    assert len(digests) == len(set(digests)) == 550
    assert table[table.space.full].architecture == table.space.full


def test_what_is_saved_is_loaded(table: Table, tmp_path: Path) -> None:
    table.save(tmp_path / "table.npz")
    again = Table.load(tmp_path / "table.npz")
    assert again.space == table.space
    assert again.evaluations == tuple(replace(e, seconds=again[e.architecture].seconds) for e in table.evaluations)
    assert [[e.score for e in row] for row in again.repeats] == [[e.score for e in row] for row in table.repeats]
    assert [row[2].seed for row in again.repeats] == [2**63 + 2] * 2
    assert again.reward(params="5x") == table.reward(params="5x")


def test_a_part_of_a_table_knows_what_it_lacks(table: Table, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    part = replace(table, evaluations=table.evaluations[::3], repeats=())
    inside, outside = (table.evaluations[number].architecture for number in (0, 1))
    assert table.whole and not part.whole
    assert inside in part and part.cost(inside) == table.cost(inside)
    assert outside not in part and part.cost(outside) is None
    part.save(tmp_path / "part.npz")
    monkeypatch.setattr(compare, "HERE", tmp_path)
    command = ["compare", "--tables", "part", "--methods", "random", "--results", str(tmp_path / "results")]
    monkeypatch.setattr(sys, "argv", command)
    with pytest.raises(SystemExit, match="needs a whole table, but part is a part"):
        compare.main()


def test_an_embedding_of_a_part_is_fitted_to_what_is_in_it(table: Table) -> None:
    full = next(e for e in table.evaluations if e.architecture == table.space.full)
    part = replace(table, evaluations=tuple({full, *table.evaluations[::2]}), repeats=())
    rules = Rules(samples=100, fit_steps=5)
    searcher, objective, known = fitted(part, 25, seed=0, rules=rules)
    assert 15 < len(known) <= 26 and known <= {e.architecture.digest for e in part.evaluations}
    figures = ranks(part, searcher, objective, known)
    assert len(figures) == 2 and all(-1.0 <= value <= 1.0 for value in figures.values())


def test_a_curve_never_falls_and_ends_at_the_best(table: Table) -> None:
    reached = curve(table, "params=5x", METHODS["random"], 0)
    reward = table.reward(params="5x")
    searcher = METHODS["random"].searcher(Problem(space=table.space, reward=reward, predict=table.cost))
    assert reached == sorted(reached)
    assert reached[-1] == max(reward(evaluation) for evaluation in search(searcher, table, STUDENTS))


def test_draws_keep_the_budget_and_none_comes_twice(table: Table) -> None:
    kept = [
        e for e in table.evaluations if e.cost is not None and not table.reward(params="5x").budgets.broken_by(e.cost)
    ]
    reached = [curve(table, "params=5x", None, seed) for seed in (0, 0, 1)]
    assert reached[0] == reached[1] != reached[2] and reached[0] == sorted(reached[0])
    few = replace(table, evaluations=(*kept[:7], table[table.space.full]))
    assert set(curve(few, "params=5x", None, 0)) == {max(map(table.reward(params="5x"), kept[:7]))}


def test_a_torn_line_of_the_log_is_dropped_and_the_rest_is_known(table: Table, tmp_path: Path) -> None:
    path, first, second = tmp_path / "log", *table.evaluations[:2]
    log = build.Log(path, table.space)
    log.add(first)
    log.add(second)
    path.write_bytes(path.read_bytes()[:-5])
    again = build.Log(path, table.space)
    assert list(again.known.values()) == [first]
    again.add(second)
    assert list(build.Log(path, table.space).known.values()) == [first, second]


@pytest.mark.parametrize("path", TRAINED_HERE, ids=lambda path: path.stem)
def test_tables_here_are_whole_and_made_by_the_networks_here(path: Path) -> None:
    table = Table.load(path)
    analysis = analysis_of(table.about["network"], table.about["images"]["shape"])
    assert path.stat().st_size < 300_000
    assert table.space == analysis.space
    everything = all_architectures(analysis.space)
    assert [e.architecture for e in table.evaluations] == [a for a in everything if a in table]
    assert (len(table.evaluations) == len(everything)) == (path.stem in WHOLE)
    assert table[table.space.full].cost == predict(analysis, analysis.space.full)
    assert len(table.repeats) == build.REPEATED and all(len(row) == len(build.SEEDS) for row in table.repeats)
    assert all(row[0] == table[row[0].architecture] for row in table.repeats)


@pytest.fixture(scope="module")
def by_others() -> Table:
    return Table.load(FOLDER / "macro-cifar10.npz")


def test_the_table_of_others_is_whole_and_its_costs_are_those_that_are_predicted(by_others: Table) -> None:
    analysis = macro.analysis()
    assert (FOLDER / "macro-cifar10.npz").stat().st_size < 300_000
    assert by_others.space == macro.space_of(analysis)
    assert by_others.whole and by_others.judges and len(by_others.evaluations) == 2**3 * 3**5
    for evaluation in by_others.evaluations[::97]:
        assert evaluation.cost == predict(analysis, macro.built(analysis, evaluation.architecture))


def test_networks_of_others_have_the_figures_of_their_file(by_others: Table) -> None:
    full = by_others[by_others.space.full]
    assert full.cost is not None and (full.cost.parameters, full.cost.macs) == (2_932_586, 105_660_928)
    assert full.score == 0.9306 and by_others.judged(full.architecture) == pytest.approx(0.929)
    halves = (96, 192, 192, 384, 384)
    widths = {f"blocks.{number}.expansion.0": width for number, width in enumerate(halves)}
    some = by_others.space.architecture(widths={**widths, "blocks.7.expansion.0": 768})
    assert macro.code_of(some) == "11111221"
    cost = by_others[some].cost
    assert cost is not None and (cost.parameters, cost.macs) == (2_181_386, 65_012_224)
    gone = by_others.space.full.without("blocks.1", "blocks.4")
    assert macro.code_of(gone) == "20220222"


def test_what_a_search_found_is_judged_by_trainings_that_it_has_not_seen(by_others: Table) -> None:
    reward = compare.reward_of(by_others, "macs=2x")
    found = [e for e in by_others.evaluations if e.cost is not None and not reward.budgets.broken_by(e.cost)]
    best = max(found, key=lambda evaluation: evaluation.score)
    others = [e.score for row in by_others.repeats if row[0] == best for e in row[1:]]
    assert len(others) == 2 and compare.worth(by_others, reward, found) == sum(others) / 2
    broken = by_others[by_others.space.full]
    assert compare.worth(by_others, reward, [broken]) == 0.0


def test_the_plot_is_a_picture_with_a_line_for_each_curve() -> None:
    curves = tuple(Curve.of(name, [[0.1, 0.5, 0.6], [0.3, 0.4, 0.7]]) for name in ("a<b", "c"))
    text = svg([Panel(title="one", best=0.8, at=(10, 20, 30), curves=curves)] * 3)
    root = ElementTree.fromstring(text)
    assert len(re.findall('fill="none"', text)) == 6
    assert [node.text for node in root.iter("{http://www.w3.org/2000/svg}text")][-2:] == ["a<b", "c"]
