"""The comparison of methods: equal image passes, resumable after a kill, tables from files alone."""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import shutil
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import torch
from safetensors.torch import load_file, save_file

from benchmarks import option_a, tables
from benchmarks.evidence import contenders as contending
from benchmarks.evidence import tracks
from benchmarks.evidence.cell import Cell, clocked, seconds_in
from benchmarks.evidence.contenders import BEFORE, CONTENDERS, torch_pruning
from benchmarks.evidence.results import BUDGETS, ROOT, Bench, place_of, read_results
from benchmarks.evidence.tracks import SEEDS, TRACKS, Point, Taught, Track
from benchmarks.run import SliceOver, listed, main, run, seconds_of, time_slice
from tests.support.tiny import CANDIDATES, DEVICE, FACTORY, TEACHING, WIDTHS
from understudy.config.training import Augmentation, Training
from understudy.core.architecture import Architecture
from understudy.core.errors import ConfigError, DataError, ExtraError, ModelError, RunError
from understudy.methods.archcomp import rules
from understudy.training.evaluator import Evaluator

TRACK = Track(
    name="tiny",
    data="digits",
    teacher=Taught(model=FACTORY, teaching=TEACHING),
    points=(Point("params", 3.0),),
    augmentation=Augmentation(),
    widths=WIDTHS,
    students=5,
    candidates=replace(CANDIDATES, examples=0),
    final=Training(epochs=2, batch_size=64, loss="mse+ce"),
    views=1,
    seeds=(1, 2),
    device=DEVICE,
)
SHORT = ["n2n", "uniform"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Results and work of a whole comparison of two contenders with two seeds."""
    folder = tmp_path_factory.mktemp("evidence")
    run(Bench.of(TRACK, folder / "results", folder / "work"), SHORT)
    return folder / "results", folder / "work"


@pytest.fixture(scope="module")
def cell(folders: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Cell:
    """An operating point and seed of which nothing is done."""
    results, work = folders
    bench = Bench.of(TRACK, results, work, policy_from=work)
    found = next(bench.cells(["free"], BUDGETS))
    return replace(found, folder=tmp_path_factory.mktemp("cell"))


def same(results: Path) -> list[dict[str, Any]]:
    """Return all results without what no two runs share."""
    _, found = read_results(results / TRACK.name)
    return [{k: v for k, v in result.items() if k not in ("seconds", "latency")} for result in found]


def test_all_take_the_same_image_passes_where_the_search_is_included(folders: tuple[Path, Path]) -> None:
    teacher, found = read_results(folders[0] / TRACK.name)
    images = teacher["images"]["train"]
    assert teacher["search_passes"] == 5 * images and teacher["final_passes"] == 2 * images
    totals = {budget: [sum(r["passes"].values()) for r in found if budget in r["budgets"]] for budget in BUDGETS}
    assert len(totals["included"]) == len(totals["excluded"]) == 4
    assert all(6 * images < total <= 7 * images for total in totals["included"])
    finals = {(r["contender"], tuple(r["budgets"])): r["passes"]["final"] for r in found}
    assert {value for (_, budgets), value in finals.items() if "excluded" in budgets} == {2 * images}
    assert finals["uniform", ("included",)] == 7 * images


def test_a_result_says_where_it_comes_from_and_what_was_obtained(folders: tuple[Path, Path]) -> None:
    teacher, found = read_results(folders[0] / TRACK.name)
    for result in found:
        assert result["recipe"] == TRACK.recipe == teacher["recipe"]
        assert result["keeps_budget"] and result["parameters"] <= teacher["parameters"] / 3
        assert 0.0 <= result["val"] <= 1.0 and 0.0 <= result["test"] <= 1.0
        assert result["latency"]["ratio"]["low"] <= result["latency"]["ratio"]["median"]
        assert result["environment"]["torch"] == torch.__version__
        assert result["environment"]["compute"] and result["commit"]
    assert [result["seed"] for result in found] == [1, 2, 1, 1, 2, 2]  # by contender, then seed, then budget


def test_what_is_done_is_not_done_again(folders: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    results, work = folders

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("everything has a result")

    for name in ("evaluate", "finish"):
        monkeypatch.setattr(Evaluator, name, refuse)
    run(Bench.of(TRACK, results, work), SHORT)
    lines = list(listed(TRACK, results, [*SHORT, "free"]))
    assert lines == [f"params-3x, seed {seed}: 2 done; missing: free" for seed in (1, 2)]


def test_one_of_the_budgets_alone(folders: tuple[Path, Path], tmp_path: Path) -> None:
    """What serves both is kept as such, and the others are not trained."""
    results = tmp_path / "results"
    shutil.copytree(folders[0] / TRACK.name, results / TRACK.name, ignore=shutil.ignore_patterns("*-*-*.json"))
    track = replace(TRACK, seeds=(1,))
    run(Bench.of(track, results, folders[1]), SHORT, ["included"])
    _, found = read_results(results / TRACK.name)
    both = next(r for r in read_results(folders[0] / TRACK.name)[1] if r["contender"] == "n2n")["budgets"]
    assert [(r["contender"], r["budgets"]) for r in found] == [("n2n", both), ("uniform", ["included"])]
    assert list(listed(track, results, SHORT, ["included"])) == ["params-3x, seed 1: 2 done; missing: none"]
    missing = [name for name in SHORT if name == "uniform" or both == ["included"]]
    assert list(listed(track, results, SHORT)) == [
        f"params-3x, seed 1: {2 - len(missing)} done; missing: {', '.join(missing)}"
    ]


def test_a_teacher_whose_weights_lie_beside_its_figures_is_not_trained_again(
    folders: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Trained on another machine it would be another one, and its results could not stand beside the others."""
    results, work = folders
    kept = tmp_path / TRACK.name
    kept.mkdir()
    shutil.copy(results / TRACK.name / "teacher.json", kept)
    shutil.copy(work / "teacher" / "teacher.safetensors", kept)
    first = Bench.of(TRACK, results, work).task.identity
    monkeypatch.setattr(tracks, "teach", None)
    assert Bench.of(TRACK, tmp_path, tmp_path / "work").task.identity == first
    other = load_file(kept / "teacher.safetensors")
    save_file({name: value + 1 for name, value in other.items()}, tmp_path / "other.safetensors")
    with pytest.raises(RunError, match=r"must be of one teacher, but those in .* give its weights by --weights"):
        Bench.of(TRACK, tmp_path, tmp_path / "work", weights=tmp_path / "other.safetensors")


def test_results_of_another_recipe_are_refused(folders: tuple[Path, Path]) -> None:
    other = replace(TRACK, students=10)
    with pytest.raises(RunError, match="all results of a track must be of one recipe"):
        Bench.of(other, *folders)


def killed_after(students: int, results: Path, work: Path) -> None:
    """Compare, in a process that is killed when it comes to that student."""
    train, left = Evaluator.evaluate, [students]

    def evaluate(self: Evaluator, architecture: Any) -> Any:
        left[0] -= 1
        if left[0] < 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return train(self, architecture)

    Evaluator.evaluate = evaluate  # type: ignore[method-assign]
    run(Bench.of(TRACK, results, work), ["n2n"])


@pytest.mark.skipif(sys.platform != "linux", reason="processes are not forked there")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_kill_loses_one_student_and_changes_nothing(
    folders: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    results, work = tmp_path / "results", tmp_path / "work"
    work.mkdir()
    for name in ("teacher", "latency"):  # networks of one shape are timed once
        os.symlink(folders[1] / name, work / name)
    process = multiprocessing.get_context("fork").Process(target=killed_after, args=(7, results, work))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    trained: list[str] = []
    train = Evaluator.evaluate

    def evaluate(self: Evaluator, architecture: Any) -> Any:
        trained.append(architecture.digest)
        return train(self, architecture)

    monkeypatch.setattr(Evaluator, "evaluate", evaluate)
    run(Bench.of(TRACK, results, work), ["n2n"])
    assert len(trained) == len(set(trained)) == 3  # of 10, of which 7 were there
    assert same(results) == [result for result in same(folders[0]) if result["contender"] == "n2n"]


def test_a_slice_ends_wherever_the_code_is(tmp_path: Path) -> None:
    assert not issubclass(SliceOver, Exception)  # so that nothing takes it for a student's failure
    with pytest.raises(SliceOver), time_slice(0.05), clocked(tmp_path / "seconds"):
        time.sleep(10.0)
    assert 0.0 < seconds_in(tmp_path / "seconds")["wall"] < 5.0
    with time_slice(None):
        pass
    assert (seconds_of("90s"), seconds_of("8m"), seconds_of("1.5h")) == (90.0, 480.0, 5400.0)


ONCE = (
    "free",
    "uniform",
    "tapered",
    "magnitude",
    "taylor",
    "decore",
    "n2n-decore",
)  # what proposes no students one by one
FINDERS = sorted(
    {contender.find: name for name, contender in reversed(CONTENDERS.items()) if name not in BEFORE}.values()
)


@pytest.mark.parametrize("name", FINDERS)
def test_every_contender_finds_a_student_within_the_budget(
    cell: Cell, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(rules.RULES, "tuned", rules.Rules(samples=40, fit_steps=10, refit_steps=4, starts=8))
    if name in ("magnitude", "taylor"):
        pytest.importorskip("torch_pruning")
    if name == "n2n-decore":  # its parts need a few epochs each
        cell = replace(cell, track=replace(TRACK, students=10))
    contender, most = CONTENDERS[name], cell.search_passes
    try:
        found = contender.find(cell)
    except contending.GoalError:  # the paper's rules may find nothing in so few updates
        assert name == "n2n-paper"
        return
    assert 0 <= found.passes <= most
    assert (found.passes == 0) == (name in ("free", "uniform", "tapered", "magnitude"))
    final = cell.final(contender.weights, contender.loss, epochs=1)
    student, score, cost = cell.trained(found, final, tmp_path / "checkpoint")
    assert not cell.reward.budgets.broken_by(cost)
    assert cost.parameters == sum(p.numel() for p in student.parameters()) and 0.0 <= score <= 1.0
    assert len(found.rewards) <= cell.track.students and bool(found.rewards) == (name not in ONCE)
    again = contender.find(cell)
    assert (again.passes, type(again.shape)) == (found.passes, type(found.shape))


@pytest.mark.parametrize("name", [name for name in TRACKS if name != "digits"])
def test_half_a_search_leaves_an_epoch_for_each_part_of_a_chain(name: str) -> None:
    examples = 54_000 if "mnist" in name or "fashion" in name else 45_000
    parts = contending.shared(TRACKS[name].search_passes(examples) // 2 // examples)
    assert min(parts) >= 1 and contending.shared(9) == (3, 6)


def test_what_earlier_code_found_is_read_from_its_file(cell: Cell, tmp_path: Path) -> None:
    find, cell = CONTENDERS["n2n-before"].find, replace(cell, folder=tmp_path)
    with pytest.raises(
        ConfigError, match=r"n2n-before needs the shape that commit \w+ found, but there is no .*json: put"
    ):
        find(cell)
    shape = CONTENDERS["uniform"].find(cell).shape
    assert isinstance(shape, Architecture)
    decisions = json.loads(shape.to_json())
    del decisions["space"]
    kept = {"decisions": decisions, "passes": 7, "seconds": 2.0, "rewards": [0.5]}
    (tmp_path / "n2n-before.json").write_text(json.dumps(kept), encoding="utf-8")
    found = find(cell)
    assert (found.shape, found.passes, found.rewards, found.seconds["cpu"]) == (shape, 7, (0.5,), 2.0)


def test_the_paddings_of_shortcuts_can_be_written_as_convolutions() -> None:
    network, images = option_a.resnet(20).eval(), torch.randn(2, 3, 32, 32)
    twin = option_a.with_shortcuts_as_convolutions(network)
    with torch.no_grad():
        assert torch.equal(network(images), twin(images))
    frozen = [name for name, parameter in twin.named_parameters() if not parameter.requires_grad]
    assert frozen == ["layer2.0.shortcut.weight", "layer3.0.shortcut.weight"]


def test_what_is_missing_is_one_clear_error(cell: Cell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match=r"fashion-vgg13 needs Fashion-MNIST as image files.*give the folder by --data"):
        TRACKS["fashion-vgg13"].open_data(None, tmp_path)
    with pytest.raises(ModelError, match=r"ResNet-56 needs the weights.*got None: give the file by --weights"):
        TRACKS["cifar10-resnet56a"].teacher.open(None, tmp_path, None)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"seed 1, but got None: give that track's --work folder by --policy-from"):
        replace(cell, policy_from=None).learned()
    monkeypatch.setitem(sys.modules, "torch_pruning", None)
    with pytest.raises(ExtraError, match=r"pip install --no-deps torch-pruning==1\.6\.1, or leave them out"):
        torch_pruning()
    with pytest.raises(SystemExit, match="error: the track mnist-vgg13 needs MNIST"):
        main(["mnist-vgg13", "--data", str(tmp_path), "--work", str(tmp_path), "--results", str(tmp_path)])


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["--points", "params-3x"], "an operating point must be one of params-20x, macs-20x"),
        (["--seeds", "0"], r"seeds must be of \(101, 102, 103\), on which no setting was chosen"),
        (["--slice", "8"], "a slice must be like 90s, 8m or 2h"),
    ],
)
def test_impossible_flags_are_refused(arguments: list[str], error: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["digits", *arguments])
    assert re.search(error, " ".join(capsys.readouterr().err.split()))


def test_tracks_use_three_seeds_and_students_that_updates_divide() -> None:
    assert len(SEEDS) == 3 and min(SEEDS) >= 10
    for name, track in TRACKS.items():
        assert track.name == name and track.seeds == SEEDS and track.students % contending.ROLLOUTS == 0
        assert replace(track, seeds=(1,), points=()).recipe == track.recipe
        assert replace(track, views=99).recipe != track.recipe


def result(contender: str, seed: int, test: float, budgets: list[str], **more: Any) -> dict[str, Any]:
    """Return a result as a file holds it."""
    timing = {"median": 2.0, "low": 1.5, "high": 2.5}
    return {
        "track": "made", "recipe": "r", "contender": contender, "point": "params-10x", "seed": seed, "budgets": budgets,
        "parameters": 100, "macs": 1000, "val": test - 0.01, "test": test,
        "passes": {"search": 500, "final": 2000},
        "seconds": {part: {"wall": 1.0, "cpu": 36.0} for part in ("search", "final")},
        "latency": {"where": "1 thread", "first": timing, "second": timing, "ratio": timing},
        "commit": "0123456789" * 4, "environment": {"processor": "P", "gpu": "none", "torch": "2"}, **more,
    }  # fmt: skip


@pytest.fixture
def made(tmp_path: Path) -> Callable[..., None]:
    """Write results of a track by hand."""
    teacher = {
        "recipe": "r", "note": "by hand", "parameters": 1000, "macs": 20000, "val": 0.95, "test": 0.94,
        "search_passes": 3000, "final_passes": 2000, "images": {"train": 1000, "val": 100, "test": 100},
    }  # fmt: skip

    def write(*results: dict[str, Any]) -> None:
        for name, content in [("teacher.json", teacher)]:
            (tmp_path / "made").mkdir(exist_ok=True)
            (tmp_path / "made" / name).write_text(json.dumps(content))
        for content in results:
            point = Point(*_point(content["point"]))
            place = place_of(tmp_path / "made", point, content["contender"], content["seed"], content["budgets"][0])
            place.parent.mkdir(exist_ok=True)
            place.write_text(json.dumps(content))

    return write


def _point(name: str) -> tuple[Any, float]:
    figure, _, factor = name.partition("-")
    return figure, float(factor.removesuffix("x"))


MARKS = f"Words.\n{tables.BEGIN}\nold\n{tables.END}\nMore.\n"


def test_tables_say_mean_deviation_seeds_and_budget(made: Callable[..., None], tmp_path: Path) -> None:
    failed = result("tpe", 1, 0.5, ["excluded", "included"], error="nothing | fits\nmore")
    both = ["excluded", "included"]
    made(
        result("n2n", 1, 0.90, both), result("n2n", 2, 0.92, both), failed,
        result("free", 1, 0.88, ["excluded"]), result("free", 1, 0.89, ["included"]),
    )  # fmt: skip
    found = tables.pages(tmp_path, MARKS)
    assert sorted(found) == ["results.md", "results/made.md", "results/made.svg"]
    text = found["results.md"]
    assert text.startswith(f"Words.\n{tables.BEGIN}\n") and text.endswith(f"{tables.END}\nMore.\n")
    assert "old" not in text and tables.pages(tmp_path, text)["results.md"] == text
    included, excluded = text.split("By parameters, ")[1:]
    assert included.startswith("the same image passes for all, search included")
    assert excluded.startswith("the same final training for all, search not counted")
    assert "| N2N | 91.00 ± 1.41 (2) |" in included and "| free | 89.00 (1) |" in included
    assert "| free | 88.00 (1) |" in excluded
    missing = "\n\nNot run: N2N, its first students alone; N2N, 200 looks and ten students; N2N, the paper's two "
    assert missing in excluded and "| DECORE" not in excluded
    assert "| TPE, filled | 1 without a student |" in included
    line = "| N2N | 1, 2 | 91.00 ± 1.41 | 90.00 ± 1.41 | 100 (10.0x fewer) | 1K (20.0x fewer) | 2.00x (1.50-2.50) |"
    assert f"{line} 500, 2K | 0.010, 0.010 |" in found["results/made.md"]
    assert "| TPE, filled | 1 | no student: nothing / fits | | | | | | |" in found["results/made.md"]


def test_the_plot_has_a_line_for_each_contender_and_a_dot_for_each_point(
    made: Callable[..., None], tmp_path: Path
) -> None:
    both = ["excluded", "included"]
    made(*(result("n2n", seed, 0.9, both) for seed in (1, 2)), result("free", 1, 0.91, both))
    made(*(result("n2n", seed, 0.8 + seed / 100, both, point="params-20x") for seed in (1, 2)))
    made(result("tpe", 1, 0.5, both, error="nothing fits"), result("tapered", 1, 0.5, ["excluded"]))
    found = tables.pages(tmp_path, MARKS)
    assert "![Test accuracy by operating point](results/made.svg)" in found["results.md"]
    root = ElementTree.fromstring(found["results/made.svg"])
    texts, circles = (root.iter(f"{{http://www.w3.org/2000/svg}}{kind}") for kind in ("text", "circle"))
    said = [text.text for text in texts]
    assert [name for name in said if name in ("free", "N2N")] == ["free", "N2N"] and "teacher" in said
    assert {"10x fewer", "20x fewer"} < set(said) and not {"TPE, filled", "tapered width"} & set(said)
    free, first, second = (float(circle.get("cx", "")) for circle in list(circles)[2:])  # after those of the legend
    assert second < first < free  # 81.5%, 90% and 91%


def test_transfer_is_counted_in_students(made: Callable[..., None], tmp_path: Path) -> None:
    both, low, high = ["excluded", "included"], [0.1] * 5, [0.2] * 4 + [0.9]
    made(
        result("n2n", 1, 0.9, both, rewards=[*low, *low, *high]),
        result("n2n-transferred", 1, 0.9, both, rewards=[*high, *low, *low]),
    )
    text = tables.pages(tmp_path, MARKS)["results.md"]
    assert "| params-10x | 1 | 15 / 5 | 15 / 5 |" in text


def test_results_of_two_recipes_are_not_mixed(made: Callable[..., None], tmp_path: Path) -> None:
    with pytest.raises(RunError, match="must hold the marks"):
        tables.pages(tmp_path, "no marks")
    made(result("n2n", 1, 0.9, ["excluded"], recipe="other"))
    with pytest.raises(RunError, match=r"n2n at params-10x, seed 1, is of other, not of r"):
        tables.pages(tmp_path, MARKS)


def test_the_readme_has_whoever_has_enough_seeds_everywhere(
    made: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tables, "README_TRACK", "made")
    tests = {"n2n": (0.90, 0.91, 0.92), "free": (0.93, 0.94, 0.95), "uniform": (0.99, 0.99), "n2n-before": (0.5,) * 3}
    for point in ("params-10x", "params-20x"):
        for name, values in tests.items():
            made(*(result(name, seed, value, ["included"], point=point) for seed, value in enumerate(values)))
    made(*(result("tapered", seed, 0.99, ["included"]) for seed in range(3)))  # at one of two points
    before, found, after = tables.readme(tmp_path, MARKS).partition(tables.BEGIN)
    table, _, rest = after.partition(tables.END)
    assert (before, found, rest) == ("Words.\n", tables.BEGIN, "\nMore.\n")
    assert table.strip().splitlines()[2:] == [
        "| the teacher | 94.00 | 94.00 |",
        "| free | 94.00 ± 1.00 | 94.00 ± 1.00 |",
        "| N2N | 91.00 ± 1.00 | 91.00 ± 1.00 |",
    ]


def test_the_docs_are_in_step_with_the_results() -> None:
    docs = ROOT / "docs"
    found = tables.pages(ROOT / "benchmarks" / "results", (docs / "results.md").read_text(encoding="utf-8"))
    for name, text in found.items():
        assert (docs / name).read_text(encoding="utf-8") == text, "run python -m benchmarks.tables"
    known = {f"results/{path.name}" for path in (docs / "results").glob("*")}
    assert known == set(found) - {"results.md"}
    first = (ROOT / "README.md").read_text(encoding="utf-8")
    assert tables.readme(ROOT / "benchmarks" / "results", first) == first, "run python -m benchmarks.tables"
