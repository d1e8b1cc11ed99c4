from __future__ import annotations

import copy
import errno
import fcntl
import json
from importlib import import_module
from pathlib import Path
from typing import Any

import optuna
import pytest
import torch
from torch import nn

import understudy as us
from tests.support.tiny import CANDIDATES, DEVICE, FINAL, METHOD, WIDTHS, Tiny, outcome, squeeze, teach_tiny
from understudy.config.job import Compression
from understudy.config.methods import RandomSearch, UniformWidth
from understudy.config.training import Device, Final, Training
from understudy.core.errors import ConfigError, DataError, GoalError, ModelError, RunError
from understudy.core.files import write_json
from understudy.data import Data
from understudy.models.spec import Teacher
from understudy.models.student import load_student
from understudy.runs import folder as run_module
from understudy.runs.folder import Run
from understudy.runs.predictions import Predictions

JOB = import_module("understudy.jobs.compress")  # understudy.compress is the function


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Teacher:
    return teach_tiny(tmp_path_factory.mktemp("teacher") / "tiny")


@pytest.fixture(scope="module")
def done(teacher: Teacher, tmp_path_factory: pytest.TempPathFactory) -> us.Result:
    """A finished run, not to be changed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("understudy.jobs.summary.cores", lambda: 2)
        return squeeze(teacher, tmp_path_factory.mktemp("runs") / "done", goal=us.Goal(params="4x", score_drop=0.9))


def keys(folder: Path) -> list[str]:
    study = optuna.load_study(study_name="candidates", storage=f"sqlite:///{folder / 'study.db'}")
    return [trial.user_attrs["digest"] for trial in study.trials]


def test_student_keeps_the_budget_and_is_as_good_as_reported(done: us.Result) -> None:
    data, summary = Data.digits(), done.summary
    parameters = sum(p.numel() for p in done.student.parameters())
    assert parameters == summary.student.cost.parameters == done.evaluation.cost.parameters
    assert parameters <= summary.teacher.cost.parameters / 4
    assert done.kept and [budget.kept for budget in summary.goal] == [True, True]
    for name, split in (("val", data.val), ("test", data.test)):
        with torch.no_grad():
            right = done.student(data.normalise(split.images)).argmax(1) == split.labels
        assert right.double().mean().item() == getattr(summary.student, name).value
    assert done.evaluation.score == summary.student.val.value
    assert not done.student.training


def test_the_table_can_be_printed(done: us.Result, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")  # times of a busy machine are long; no row is folded
    lines = [" ".join(line.replace("│", " ").split()) for line in str(done.table).splitlines()]
    assert any(line.startswith("parameters") and f"{done.summary.student.cost.parameters:,}" in line for line in lines)
    assert any(line.startswith("params 4x") and line.endswith("✓") for line in lines)
    assert [timed.where for timed in done.summary.latency] == ["1 thread", "2 threads"]
    for timed in done.summary.latency:
        assert any(line.startswith(f"ms for 1 example, {timed.where}") and str(timed) in line for line in lines)
    error = 100 * done.summary.student.val.error
    assert any(line.startswith("validation accuracy ± s.e.") and f"± {error:.2g}" in line for line in lines)


def test_a_result_and_its_data_are_a_line_each(done: us.Result) -> None:
    assert repr(done).startswith(f"Result({done.evaluation.cost.parameters:,} parameters")  # type: ignore[union-attr]
    assert "\n" not in repr(done) and len(repr(done)) < 300
    assert repr(us.Data.digits()) == (
        "Data(digits: 1,213 training, 135 validation and 449 test images of 1 x 8 x 8, 10 classes)"
    )


def test_run_folder_holds_everything(done: us.Result) -> None:
    names = {path.name for path in done.run.iterdir() if not path.name.startswith(".")}
    assert names == {
        *("config.toml", "identity.json", "source.json", "space.json", "compute.json", "proof.json", "code"),
        *("teacher.json", "teacher.safetensors", "study.db", "policy.safetensors", "logits", "students"),
        *("summary.json", "predictions.npz", "layers.json", "run.log", "code"),
    }
    assert "update 4/4" in (done.run / "run.log").read_text()
    finals = {final.name for final in done.summary.finals}
    assert {path.stem for path in (done.run / "students").iterdir()} == finals


def test_predictions_on_the_test_split_are_left_for_the_page(done: us.Result) -> None:
    found = Predictions.read(done.run / "predictions.npz")
    labels = us.Data.digits().test.labels  # type: ignore[union-attr]
    assert found.labels.tolist() == labels.tolist() and found.classes == tuple(map(str, range(10)))
    for name, network in (("teacher", done.summary.teacher), ("student", done.summary.student)):
        assert network.test is not None
        assert (getattr(found, name) == found.labels).mean() == pytest.approx(network.test.value)
    assert 0.1 <= found.student_confidence.min() <= found.student_confidence.max() <= 1.0


def test_no_student_is_stored_twice(done: us.Result) -> None:
    found = keys(done.run)
    assert len(found) == len(set(found)) == done.summary.search.students


def test_a_finished_run_is_loaded_without_training(teacher: Teacher, done: us.Result, monkeypatch: Any) -> None:
    monkeypatch.setattr("understudy.training.evaluator.train", _unexpected)
    monkeypatch.setattr("understudy.jobs.summary.predict", _unexpected)
    again = squeeze(teacher, done.run, goal=us.Goal(params="4x", score_drop=0.9))
    assert again.summary == done.summary
    assert _same(again.student, done.student)


def _unexpected(*args: object, **kwargs: object) -> None:
    raise AssertionError("nothing is to be done again")


def _same(a: nn.Module, b: nn.Module) -> bool:
    left, right = a.state_dict(), b.state_dict()
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def test_an_interrupted_run_ends_as_an_undisturbed_one(
    teacher: Teacher, done: us.Result, tmp_path: Path, monkeypatch: Any
) -> None:
    goal = us.Goal(params="4x", score_drop=0.9)
    for step in ("updated", "tell_of_final"):
        with monkeypatch.context() as m:
            m.setattr(JOB.Job, step, _interrupt)
            with pytest.raises(KeyboardInterrupt):
                squeeze(teacher, tmp_path / "run", goal=goal)
    squeeze(teacher, tmp_path / "run", goal=goal)
    assert outcome(tmp_path / "run") == outcome(done.run)


def _interrupt(*args: object, **kwargs: object) -> None:
    raise KeyboardInterrupt


@pytest.mark.slow
def test_workers_change_nothing(teacher: Teacher, done: us.Result, tmp_path: Path) -> None:
    two = Device(device="cpu", precision="fp32", memory_format="contiguous", workers=2)
    squeeze(teacher, tmp_path / "run", goal=us.Goal(params="4x", score_drop=0.9), device=two)
    assert outcome(tmp_path / "run") == outcome(done.run)


def test_the_teacher_is_not_touched(teacher: Teacher, tmp_path: Path) -> None:
    module = copy.deepcopy(teacher.module).train()
    before, state = copy.deepcopy(module), torch.get_rng_state()
    squeeze(module, tmp_path / "run", method=RandomSearch(students=1))
    assert _same(module, before) and module.training
    assert torch.equal(torch.get_rng_state(), state)


def test_students_of_the_most_macs_are_trained_first(teacher: Teacher, tmp_path: Path) -> None:
    squeeze(
        teacher, tmp_path / "run", method=RandomSearch(students=4), final=Final(students=1, training=FINAL.training)
    )
    macs = [e.cost.macs for e in Run(tmp_path / "run").evaluations() if e.cost is not None]
    assert len(set(macs)) > 2 and macs == sorted(macs, reverse=True)


@pytest.mark.parametrize("method", [RandomSearch(students=3), UniformWidth(students=3)])
def test_other_methods(teacher: Teacher, tmp_path: Path, method: us.RandomSearch | us.UniformWidth) -> None:
    result = squeeze(teacher, tmp_path / "run", method=method)
    assert result.summary.student.cost.parameters < result.summary.teacher.cost.parameters
    assert result.summary.goal == () and result.kept


def test_latency_budget_is_measured_in_the_search(teacher: Teacher, tmp_path: Path) -> None:
    method = RandomSearch(students=2)
    result = squeeze(teacher, tmp_path / "run", method=method, goal=us.Goal(latency_ms="50"))
    (budget,) = result.summary.goal
    assert all(e.cost.latency_ms > 0 and e.cost.latency_spread_ms >= 0 for e in Run(result.run).evaluations())
    assert budget.name == "latency_ms" and budget.limit == 50 and 0 < budget.obtained <= 50


def test_settings_come_one_by_one_or_as_one(teacher: Teacher, done: us.Result) -> None:
    whole = Compression(
        method=METHOD,
        widths=WIDTHS,
        goal=us.Goal(params="4x", score_drop=0.9),
        candidates=CANDIDATES,
        final=FINAL,
        device=DEVICE,
    )
    assert us.compress(teacher, Data.digits(), run=done.run, settings=whole, progress=False).summary == done.summary
    with pytest.raises(ConfigError, match="one by one or as a Compression, but both were: seed"):
        us.compress(teacher, Data.digits(), run=done.run, settings=whole, seed=1)


def test_a_search_starts_from_the_policy_of_another_run(teacher: Teacher, done: us.Result, tmp_path: Path) -> None:
    start = tmp_path / "start.safetensors"
    start.write_bytes((done.run / "policy.safetensors").read_bytes())
    first = squeeze(teacher, tmp_path / "run", policy_from=str(start))
    again = squeeze(teacher, tmp_path / "again", policy_from=str(done.run))
    assert keys(first.run) == keys(again.run) != keys(done.run)
    for _ in range(4):  # a file's tensors come in another order each time
        assert squeeze(teacher, tmp_path / "run", policy_from=str(start)).summary == first.summary
    start.write_bytes((first.run / "policy.safetensors").read_bytes())
    with pytest.raises(RunError, match=r"policy to start from is another \([0-9a-f]{16} then, [0-9a-f]{16} now\)"):
        squeeze(teacher, tmp_path / "run", policy_from=str(start))


def test_a_policy_that_is_not_there_is_refused_before_anything_is_made(teacher: Teacher, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"policy_from must name a run with a policy, but there is no .*nowhere"):
        squeeze(teacher, tmp_path / "run", policy_from=str(tmp_path / "nowhere"))
    assert not (tmp_path / "run").exists()


def test_saved_student_comes_back(done: us.Result, teacher: Teacher, tmp_path: Path) -> None:
    done.save(tmp_path / "student")
    images = torch.randn(5, 1, 8, 8)
    with torch.no_grad():
        expected = done.student(images)
        assert torch.equal(load_student(tmp_path / "student", trust_code=True)(images), expected)
        assert torch.equal(load_student(tmp_path / "student", teacher=Tiny())(images), expected)
    with pytest.raises(us.UnderstudyError, match="was made for Space"):
        load_student(tmp_path / "student", teacher=Tiny(width=4))


def test_a_teacher_made_in_python_is_needed_again(teacher: Teacher, tmp_path: Path) -> None:
    method = UniformWidth(students=2)
    squeeze(teacher.module, tmp_path / "run", method=method).save(tmp_path / "student")
    with pytest.raises(ModelError, match="only Python can make it again"):
        load_student(tmp_path / "student")
    assert isinstance(load_student(tmp_path / "student", Tiny()), Tiny)
    with pytest.raises(ModelError, match=r"must have a model\.json"):
        load_student(tmp_path)


def test_a_start_may_be_a_module_or_its_folder(teacher: Teacher, tmp_path: Path) -> None:
    method, narrower = UniformWidth(students=3), UniformWidth(students=4)
    first = squeeze(teacher.module, tmp_path / "first", method=method, goal=us.Goal(params="2x"))
    with pytest.raises(ModelError, match=r"a start must be the folder of a student, or a finished run .* is neither"):
        squeeze(teacher.module, tmp_path / "second", start=tmp_path / "first")
    first.save(tmp_path / "first" / "student")
    goal = us.Goal(params="4x")
    found = [
        squeeze(teacher.module, tmp_path / name, method=narrower, goal=goal, start=start)
        for name, start in (("module", first.student), ("folder", tmp_path / "first"))
    ]
    assert outcome(tmp_path / "folder") == outcome(tmp_path / "module")
    images = torch.randn(3, 1, 8, 8)
    for result, made_of in zip(found, (first.student, Tiny()), strict=True):  # what each is cut from, or was at first
        result.save(tmp_path / "student")
        with torch.no_grad():
            assert torch.equal(load_student(tmp_path / "student", made_of)(images), result.student(images))


def test_a_student_that_is_saved_again_leaves_nothing_of_a_killed_writer(done: us.Result, tmp_path: Path) -> None:
    (tmp_path / "own.partial").write_text("the user's own")
    (tmp_path / "student.safetensors.host-1-2.partial").write_text("half of it")
    done.save(tmp_path)
    with pytest.raises(ModelError, match=r"must be accessible, but .*space\.json/model\.json is not: Not a directory"):
        done.save(tmp_path / "space.json")
    assert [path.name for path in tmp_path.glob("*.partial")] == ["own.partial"]


def test_a_run_folder_is_no_teacher(done: us.Result) -> None:
    with pytest.raises(ModelError, match=r"one that `understudy teach` made, but .* is a run's"):
        us.load_teacher(done.run)


def test_labels_must_be_the_teachers_classes(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"one logit for each class.*with 10 classes that is \(32, 10\), but got \(32, 7\)"
    ):
        squeeze(Tiny(classes=7), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_images_must_be_what_the_teacher_takes(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"must take the inputs of the data, here float32 \(32, 1, 8, 8\)"):
        squeeze(Tiny(in_channels=3), tmp_path / "run")


def test_a_teacher_that_gives_nan_is_refused(tmp_path: Path) -> None:
    broken = Tiny()
    nn.init.constant_(broken.classifier.bias, float("nan"))
    with pytest.raises(ModelError, match="finite outputs"):
        squeeze(broken, tmp_path / "run")


def test_a_goal_out_of_reach_is_refused_before_anything_is_made(teacher: Teacher, tmp_path: Path) -> None:
    with pytest.raises(
        GoalError,
        match=r"(?s)params: asked for 40 parameters \(for a factor, write '40x'\), the least is [\d,]+ parameters",
    ) as caught:
        squeeze(teacher, tmp_path / "run", goal=us.Goal(params="40", macs="2x"))
    assert "macs:" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_a_goal_that_no_student_reached_lists_the_nearest(teacher: Teacher, tmp_path: Path) -> None:
    # Nothing but the reward tells this search of the budget, and it has one student.
    blind = us.N2N(removal_updates=1, shrinkage_updates=0, rollouts=1, draws_per_rollout=1, rules="paper")
    with pytest.raises(
        GoalError, match=r"(?s)must keep the budgets \(500 parameters\), but none did.*parameters, .* MACs"
    ):
        squeeze(teacher, tmp_path / "run", method=blind, goal=us.Goal(params="500"))


@pytest.mark.parametrize(
    ("changed", "line"),
    [
        ({"seed": 3}, "seed was 0, is 3"),
        ({"goal": us.Goal(params="5x")}, "goal.params was '4x', is '5x'"),
        ({"method": RandomSearch()}, "method was 'n2n', is 'random'"),
        ({"final": Final(students=1, training=Training(epochs=9))}, "final.training.epochs was 2, is 9"),
    ],
)
def test_a_run_of_other_settings_is_refused(
    teacher: Teacher, done: us.Result, changed: dict[str, Any], line: str
) -> None:
    with pytest.raises(RunError, match=r"the settings that it was started with|teacher, data and settings") as caught:
        squeeze(teacher, done.run, **{"goal": us.Goal(params="4x", score_drop=0.9), **changed})
    assert line in str(caught.value)


def test_a_run_of_another_teacher_or_data_is_refused(teacher: Teacher, done: us.Result) -> None:
    goal = us.Goal(params="4x", score_drop=0.9)
    with pytest.raises(RunError, match=r"weights are others \([0-9a-f]{16} then, [0-9a-f]{16} now\)") as caught:
        squeeze(Tiny(), done.run, goal=goal)
    assert "the data are others" not in str(caught.value)
    other = {
        "method": METHOD,
        "widths": WIDTHS,
        "goal": goal,
        "candidates": CANDIDATES,
        "final": FINAL,
        "device": DEVICE,
    }
    with pytest.raises(RunError, match=r"the data are others"):
        us.compress(teacher, Data.digits(seed=1), run=done.run, progress=False, **other)


def test_impossible_settings_are_all_listed(teacher: Teacher, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"(?s)students must be at least 1, but got 0.*views must be at least 0"):
        squeeze(teacher, tmp_path / "run", final=Final(students=0, views=-1))
    assert not (tmp_path / "run").exists()


def test_a_folder_of_something_else_is_refused(teacher: Teacher, tmp_path: Path) -> None:
    (tmp_path / "letters.txt").write_text("dear")
    wrong = nn.Linear(3, 10)  # the folder is looked at first
    for network in (teacher, wrong):
        with pytest.raises(RunError, match=r"must be new, empty or hold a config\.toml, but .* holds letters\.txt"):
            squeeze(network, tmp_path)


def test_a_folder_that_cannot_be_written_is_refused(teacher: Teacher, tmp_path: Path, monkeypatch: Any) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="the folder must be writable"):
        squeeze(teacher, tmp_path / "file" / "run")

    def read_only(path: Path, content: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system", str(path))

    monkeypatch.setattr(run_module, "write_whole", read_only)
    with pytest.raises(RunError, match=r"the folder must be writable.*Read-only file system"):
        squeeze(teacher, tmp_path / "run")


@pytest.mark.parametrize(
    ("place", "way"),
    [
        ("understudy.jobs.finals.write_whole", "logits is a cache and can go, so can runs"),
        ("understudy.models.weights.write_whole", "remove runs"),  # the run's first file
    ],
)
def test_a_full_disk_says_what_to_free_and_how_to_go_on(
    teacher: Teacher, done: us.Result, tmp_path: Path, monkeypatch: Any, place: str, way: str
) -> None:
    def full(path: Path, content: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    goal = us.Goal(params="4x", score_drop=0.9)
    with monkeypatch.context() as m:
        m.setattr(place, full)
        with pytest.raises(
            RunError,
            match=rf"(?s)no space left on the device that holds .*To free some.*{way}.*with: the same call or command$",
        ):
            squeeze(teacher, tmp_path / "run", goal=goal)
    squeeze(teacher, tmp_path / "run", goal=goal)
    assert outcome(tmp_path / "run") == outcome(done.run)


def test_a_folder_in_use_is_refused(teacher: Teacher, done: us.Result) -> None:
    with (done.run / ".lock").open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(RunError, match="written by one process at a time"):
            squeeze(teacher, done.run, goal=us.Goal(params="4x", score_drop=0.9))


def test_a_run_of_another_format_is_refused(teacher: Teacher, tmp_path: Path) -> None:
    squeeze(teacher, tmp_path / "run", method=UniformWidth(students=2))
    texts = {path: path.read_text() for path in (tmp_path / "run").glob("*.json")}
    for found, way in ((99, "pip install --upgrade understudy"), (1, "make it anew, or use the version that made it")):
        for path, text in texts.items():  # format 1 said accuracy
            changed = text.replace('"format": 2', f'"format": {found}').replace('"score"', '"accuracy"')
            write_json(path, json.loads(changed))
        with pytest.raises(RunError, match=f"has format {found}, but this version of understudy reads format 2: {way}"):
            squeeze(teacher, tmp_path / "run", method=UniformWidth(students=2))


def test_other_versions_are_logged(teacher: Teacher, done: us.Result, tmp_path: Path) -> None:
    identity = json.loads((done.run / "identity.json").read_text())
    write_json(done.run / "identity.json", {**identity, "versions": {"torch": "0.4"}})
    squeeze(teacher, done.run, goal=us.Goal(params="4x", score_drop=0.9))
    assert "started with torch 0.4 and goes on with" in (done.run / "run.log").read_text()
