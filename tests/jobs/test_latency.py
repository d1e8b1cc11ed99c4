"""Latency budgets on an imagined clock, so that everything is exact."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rich.console import Console
from torch import Tensor, nn

import understudy as us
from tests.support.tiny import CANDIDATES, DEVICE, FINAL, METHOD, WIDTHS, Tiny, squeeze, teach_tiny
from understudy.config.job import Compression
from understudy.config.methods import N2N, Method, RandomSearch, UniformWidth
from understudy.core.architecture import weighted_layers
from understudy.core.errors import ExtraError, GoalError
from understudy.core.goal import Reward
from understudy.cost.estimate import Point
from understudy.data import Data
from understudy.export.onnx import OnnxModel
from understudy.jobs.dry_run import plan, plan_table
from understudy.jobs.latency import Latencies, beside_teacher, reference_for
from understudy.jobs.task import Task
from understudy.models.spec import Teacher
from understudy.runs.folder import Run

LAYER_MS, WEIGHT_MS = 0.01, 0.001


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Teacher:
    return teach_tiny(tmp_path_factory.mktemp("teacher") / "tiny")


def imagined_ms(network: nn.Module) -> float:
    layers = [m for m in network.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    return sum(LAYER_MS + WEIGHT_MS * layer.weight.numel() for layer in layers)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """An imagined clock; each network that it timed, by its parameters."""
    timed: list[int] = []

    def forward_ms(network: nn.Module, images: Tensor, calls: int) -> float:
        timed.append(sum(p.numel() for p in network.parameters()))
        return imagined_ms(network)

    monkeypatch.setattr("understudy.cost.measure.forward_ms", forward_ms)
    return timed


def task_of(teacher: Teacher, method: Method, latency_ms: str) -> Task:
    settings = Compression(
        method=method,
        widths=WIDTHS,
        goal=us.Goal(latency_ms=latency_ms),
        candidates=CANDIDATES,
        final=FINAL,
        device=DEVICE,
    )
    return Task.of(teacher, Data.digits(), settings)


@pytest.mark.parametrize(
    "method",
    [METHOD, RandomSearch(students=3), UniformWidth(students=3)],
    ids=["n2n", "random", "uniform"],
)
def test_a_search_starts_near_a_latency_budget(
    teacher: Teacher, tmp_path: Path, clock: list[int], method: Method
) -> None:
    task = task_of(teacher, method, "3x")
    reference = reference_for(task, tmp_path / "run")
    assert reference is not None and not (tmp_path / "run").exists()
    with Run.open(tmp_path / "run", task.settings, task.identity) as run:
        latencies = Latencies(task, run, reference)
        budgets = task.settings.goal.budgets(latencies.teacher, 0.9)
        reward = Reward(teacher_cost=latencies.teacher, teacher_score=0.9, budgets=budgets)
        searcher = method.searcher(replace(task.problem(reward), predict=latencies.predict))
        first = searcher.propose()[0]
        expected = latencies.predict(first)
        assert expected is not None and budgets.latency_ms == pytest.approx(imagined_ms(teacher.module) / 3)
        # N2N removes units at first, in view of widths that will shrink.
        assert 0.6 * budgets.latency_ms <= expected.latency_ms <= 1.2 * budgets.latency_ms
        real = latencies.of(first)[0]
        assert real == pytest.approx(imagined_ms(task.build(first)))
        assert real == pytest.approx(expected.latency_ms, rel=0.5)


def test_a_latency_budget_binds(teacher: Teacher, tmp_path: Path, clock: list[int]) -> None:
    method = RandomSearch(students=4)
    result = squeeze(teacher, tmp_path / "run", method=method, goal=us.Goal(latency_ms="3x"))
    (budget,) = result.summary.goal
    own = imagined_ms(teacher.module)
    assert budget.limit == pytest.approx(own / 3) and result.kept
    assert budget.obtained == pytest.approx(imagined_ms(result.student)) and budget.obtained > 0.3 * budget.limit
    found = Run(result.run).evaluations()
    assert len(found) == 4
    task = task_of(teacher, method, "3x")
    assert [e.cost.latency_ms for e in found] == pytest.approx([imagined_ms(task.build(e.architecture)) for e in found])
    # What was measured is never measured again.
    clock.clear()
    assert squeeze(teacher, tmp_path / "run", method=method, goal=us.Goal(latency_ms="3x")).summary == result.summary
    assert clock == []


def test_the_estimate_learns_from_students(teacher: Teacher, tmp_path: Path, clock: list[int]) -> None:
    task = task_of(teacher, METHOD, "2x")
    lone = replace(
        reference_for(task, tmp_path / "run"),
        points=(Point(layers=4, macs=task.cost.macs, latency_ms=imagined_ms(teacher.module)),),
    )
    with Run.open(tmp_path / "run", task.settings, task.identity) as run:
        latencies = Latencies(task, run, lone)
        half = task.space.architecture(widths={group.name: group.width // 2 for group in task.space.groups})
        before = latencies.predict(half).latency_ms
        assert before == pytest.approx(lone.latency_ms * task.predict(half).macs / task.cost.macs)
        evaluation = us.Evaluation(
            architecture=half,
            teacher="",
            data="",
            recipe="",
            cost=task.predict(half),
            score=0.5,
            seconds=1.0,
            seed=0,
        )
        measured = latencies.measured(evaluation)
        assert measured.cost.latency_ms == pytest.approx(imagined_ms(task.build(half)))
        assert abs(latencies.predict(half).latency_ms - measured.cost.latency_ms) < abs(
            before - measured.cost.latency_ms
        )
        assert weighted_layers(half) == 4


def test_a_latency_out_of_reach_is_refused_before_anything_is_made(
    teacher: Teacher, tmp_path: Path, clock: list[int]
) -> None:
    with pytest.raises(GoalError, match=r"asks for 0\.001 ms, and of \d+ architectures .* the fastest takes"):
        squeeze(teacher, tmp_path / "run", goal=us.Goal(latency_ms="0.001"))
    assert not (tmp_path / "run").exists()
    with pytest.raises(GoalError, match="the fastest takes"):
        plan(task_of(teacher, METHOD, "0.001"), untrained=True)


def test_a_dry_run_shows_the_fastest_that_was_measured(teacher: Teacher, clock: list[int]) -> None:
    task = task_of(teacher, METHOD, "2x")
    found = plan(task, untrained=True)
    assert found.latency is not None and found.latency.fastest.latency_ms < found.latency.latency_ms / 2
    console = Console(width=200)
    with console.capture() as capture:
        console.print(plan_table(found))
    assert "measured, teacher" in capture.get()


def test_nothing_is_measured_without_a_goal_for_it(tmp_path: Path, clock: list[int]) -> None:
    task = task_of(Teacher(module=Tiny()), N2N(), "2x")
    plain = replace(task, settings=replace(task.settings, goal=us.Goal(params="2x")))
    assert reference_for(plain, tmp_path / "run") is None and clock == []


def test_the_runtime_of_the_goal_is_timed(teacher: Teacher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both networks are ONNX Runtime's, which give what PyTorch gives; the teacher is exported once."""
    task = task_of(teacher, METHOD, "2x")
    goal = us.Goal(latency_ms="2x", runtime="onnxruntime")
    task = replace(task, settings=replace(task.settings, goal=goal))
    timed: list[nn.Module] = []

    def forward_ms(network: nn.Module, images: Tensor, calls: int) -> float:
        timed.append(network)
        return 1.0

    monkeypatch.setattr("understudy.cost.measure.forward_ms", forward_ms)
    student = task.build(task.space.full.with_width("first.0", 4)).eval()
    assert beside_teacher(task, student).where == beside_teacher(task, student).where == "1 thread, ONNX Runtime"
    own = task.teacher_in_onnxruntime(1)
    students = set(timed) - {own}
    assert own in timed and len(students) == 2 and all(isinstance(network, OnnxModel) for network in students)
    with torch.no_grad():
        assert torch.allclose(own(task.example), task.teacher.module(task.example), atol=1e-5)
        assert all(torch.allclose(one(task.example), student(task.example), atol=1e-5) for one in students)


def test_a_runtime_that_is_missing_is_said_before_any_work(
    teacher: Teacher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ExtraError, match=r"onnxruntime must be installed, but is not: pip install"):
        squeeze(teacher, tmp_path / "run", goal=us.Goal(params="2x", runtime="onnxruntime"))
    assert not (tmp_path / "run").exists()
