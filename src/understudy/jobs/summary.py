"""The figures of a finished run, measured. The one place where the test split is read."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from understudy.core.evaluation import Evaluation
from understudy.core.goal import Reward
from understudy.core.summary import Accuracy, FinalStudent, Network, SearchTotals, Summary, asked_and_obtained
from understudy.core.timing import Comparison
from understudy.data import AnySplit
from understudy.graph.copies import copied
from understudy.jobs.latency import beside_teacher
from understudy.jobs.task import Task
from understudy.runs.folder import Run, versions
from understudy.training.compute import Compute, cores, device_named
from understudy.training.loop import accuracy


def summarise(
    task: Task,
    run: Run,
    reward: Reward,
    compute: Compute,
    student: nn.Module,
    *,
    best: Evaluation,
    finished: Sequence[Evaluation],
) -> Summary:
    """Return all figures of a run, of which those of the test split and the times are measured here.

    Args:
        task: what was done.
        run: where.
        reward: whose budgets count.
        compute: how accuracy is computed.
        student: the winner.
        best: its evaluation after the final training.
        finished: the evaluations of all final students.
    """
    assert best.cost is not None, "what was trained has a cost"
    teacher, searched = task.teacher.module, run.evaluations()
    examples, test = len(task.data.val), task.data.test

    def tested(model: nn.Module) -> Accuracy | None:
        return None if test is None else _measured(task, model, test, compute)

    found = Network(cost=best.cost, val=Accuracy(value=best.accuracy, examples=examples), test=tested(student))
    return Summary(
        name=best.architecture.digest,
        teacher=Network(
            cost=reward.teacher_cost,
            val=Accuracy(value=reward.teacher_accuracy, examples=examples),
            test=tested(teacher),
        ),
        student=found,
        latency=_latency(task, student),
        goal=asked_and_obtained(task.settings.goal, reward, found),
        search=SearchTotals(
            students=len(searched),
            stopped=sum(e.status == "stopped" for e in searched),
            failed=sum(e.status == "failed" for e in searched),
            seconds=round(sum(e.seconds for e in searched), 1),
        ),
        finals=tuple(
            FinalStudent(name=e.architecture.digest, val=e.accuracy, status=e.status, seconds=round(e.seconds, 1))
            for e in finished
        ),
        compute=compute.name,
        versions=versions(),
    )


def _measured(task: Task, model: nn.Module, split: AnySplit, compute: Compute) -> Accuracy:
    placed = compute.place(copied(model))
    right = accuracy(placed, split.to(compute.device), normalise=task.data.normalise, compute=compute)
    return Accuracy(value=right, examples=len(split))


def _latency(task: Task, student: nn.Module) -> tuple[Comparison, ...]:
    """Return how student and teacher compare, on a processor with one thread and with all cores."""
    one = beside_teacher(task, student)
    if device_named(task.settings.device.device).type != "cpu" or cores() == 1:
        return (one,)
    return one, beside_teacher(task, student, threads=cores())
