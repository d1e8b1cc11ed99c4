"""What goes wrong with a student: what is a failed evaluation, and what is raised."""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.support.textures import FINAL
from understudy.core.architecture import Architecture
from understudy.core.errors import CrashError, DataError, MachineError, RunError, SurgeryError
from understudy.training import evaluator as module
from understudy.training import teacher_logits
from understudy.training.evaluator import Evaluator


def test_a_student_that_cannot_be_built_is_a_failed_evaluation(
    make: Callable[..., Evaluator], narrow: Architecture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def build(*args: object, **settings: object) -> nn.Module:
        raise SurgeryError("at node add: 48 and 64 channels meet")

    monkeypatch.setattr(module.surgery, "build", build)
    evaluation, student = make().evaluate(narrow)
    assert student is None
    assert (evaluation.status, evaluation.score) == ("failed", 0.0)
    assert evaluation.error == "SurgeryError: at node add: 48 and 64 channels meet"
    assert evaluation.cost is not None


def test_a_student_that_diverges_is_a_failed_evaluation(
    make: Callable[..., Evaluator], narrow: Architecture, monkeypatch: pytest.MonkeyPatch
) -> None:
    built = module.surgery.build

    def build(*args: Any, **settings: Any) -> nn.Module:
        student = built(*args, **settings)
        with torch.no_grad():
            student.classifier.bias.fill_(float("nan"))
        return student

    monkeypatch.setattr(module.surgery, "build", build)
    evaluation, student = make().evaluate(narrow)
    assert student is None
    assert evaluation.status == "failed"
    assert (evaluation.error or "").startswith("diverged: the loss was nan by step ")


@pytest.mark.parametrize(
    ("raised", "kind", "message"),
    [
        (torch.OutOfMemoryError("tried to get 8 GiB"), MachineError, "^out of memory: tried to get 8 GiB$"),
        (RuntimeError("CUDA error: an illegal memory access"), CrashError, "illegal memory access"),
        (OSError(errno.EIO, "Input/output error"), MachineError, "Input/output error"),
        (OSError(errno.ENOSPC, "No space left on device"), OSError, "No space left"),
        (DataError("dog.png cannot be read"), DataError, "dog.png cannot be read"),
    ],
)
@pytest.mark.parametrize("place", ["train", "scored"])
def test_what_machine_or_data_fail_at_is_no_evaluation(
    make: Callable[..., Evaluator],
    narrow: Architecture,
    monkeypatch: pytest.MonkeyPatch,
    place: str,
    raised: Exception,
    kind: type[Exception],
    message: str,
) -> None:
    def fail(*args: object, **settings: object) -> float:
        raise raised

    evaluator = make()
    assert evaluator.teacher_score > 0
    monkeypatch.setattr(module, place, fail)
    with pytest.raises(kind, match=message):
        evaluator.evaluate(narrow)


def test_a_student_that_cannot_run_in_evaluation_mode_is_a_failed_evaluation(
    make: Callable[..., Evaluator], narrow: Architecture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: object, **settings: object) -> float:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    evaluator = make()
    assert evaluator.teacher_score > 0
    monkeypatch.setattr(module, "scored", fail)
    evaluation, student = evaluator.evaluate(narrow)
    assert student is None
    assert (evaluation.status, evaluation.score) == ("failed", 0.0)
    assert "must run in evaluation mode, but: RuntimeError: mat1 and mat2" in (evaluation.error or "")


def test_what_is_not_the_students_fault_is_raised(
    make: Callable[..., Evaluator], narrow: Architecture, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    make().finish(narrow, FINAL, checkpoint=tmp_path / "final.pt")
    with pytest.raises(RunError, match="a checkpoint continues only the training that wrote it"):
        make().finish(narrow, FINAL, repeat=1, checkpoint=tmp_path / "final.pt")

    def unreadable(*args: object, **settings: object) -> Tensor:
        raise RuntimeError("no such kernel")

    monkeypatch.setattr(teacher_logits, "predict", unreadable)
    with pytest.raises(RuntimeError, match="no such kernel"):
        make(seed=8)(narrow)


def test_a_candidate_that_was_lost_is_a_failed_evaluation(make: Callable[..., Evaluator], narrow: Architecture) -> None:
    evaluator = make()
    lost, found = evaluator.failed(narrow, "the worker process was ended by SIGKILL"), evaluator(narrow)
    assert (lost.status, lost.error, lost.score) == ("failed", "the worker process was ended by SIGKILL", 0.0)
    assert (lost.key, lost.seed) == (found.key, found.seed)
