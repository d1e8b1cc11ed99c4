from __future__ import annotations

import copy
import multiprocessing
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.support.textures import AUGMENTATION, CANDIDATES, FINAL
from understudy.config.training import Augmentation, Start
from understudy.core.architecture import Architecture
from understudy.core.errors import SurgeryError
from understudy.core.evaluation import Evaluation
from understudy.data import Data
from understudy.graph.analysis import Analysis
from understudy.models.weights import weights_digest
from understudy.training import evaluator as module
from understudy.training import teacher_logits
from understudy.training.evaluator import Evaluator
from understudy.training.loop import Compute, Progress, accuracy, predict, train


def same(one: nn.Module | None, other: nn.Module | None) -> bool:
    assert one is not None
    assert other is not None
    states = one.state_dict(), other.state_dict()
    return all(torch.equal(value, states[1][name]) for name, value in states[0].items())


def timeless(evaluation: Evaluation) -> Evaluation:
    return replace(evaluation, seconds=0.0)


def test_an_evaluation_says_all_of_a_trained_student(
    make: Callable[..., Evaluator], narrow: Architecture, data: Data
) -> None:
    evaluator = make()
    evaluation, student = evaluator.evaluate(narrow)
    assert student is not None
    assert (evaluation.status, evaluation.error) == ("ok", None)
    assert evaluation.architecture is narrow
    assert evaluation.cost is not None
    assert evaluation.cost.parameters == sum(p.numel() for p in student.parameters())
    assert evaluation.score == accuracy(student, data.val, normalise=data.normalise, compute=evaluator.compute)
    assert evaluation.score > 0.5
    assert evaluation.seconds > 0
    assert evaluation.teacher == evaluator.teacher_digest == weights_digest(evaluator.analysis.teacher)
    assert evaluation.data == data.digest
    assert evaluation.recipe == evaluator.recipe_digest
    assert evaluator.teacher_score > 0.9


def test_the_whole_teacher_keeps_its_accuracy(make: Callable[..., Evaluator], analysis: Analysis) -> None:
    evaluator = make(candidates=replace(CANDIDATES, training=replace(CANDIDATES.training, lr=0.0)))
    assert evaluator(analysis.space.full).score == pytest.approx(evaluator.teacher_score, abs=0.05)


@pytest.mark.parametrize("weights", ["fresh", "inherited", "compensated"])
def test_results_depend_on_seed_and_architecture_only(
    weights: str, make: Callable[..., Evaluator], narrow: Architecture, analysis: Analysis, tmp_path: Path
) -> None:
    candidates = replace(CANDIDATES, weights=weights)
    first, student = make(candidates=candidates).evaluate(narrow)
    elsewhere = make(candidates=candidates, folder=tmp_path / "other")
    elsewhere(analysis.space.full)
    torch.rand(5)
    again, twin = elsewhere.evaluate(narrow)
    assert timeless(again) == timeless(first)
    assert same(student, twin)
    other, stranger = make(candidates=candidates, seed=4).evaluate(narrow)
    assert other.seed != first.seed != elsewhere(analysis.space.full).seed
    assert not same(student, stranger)


def test_another_process_gives_the_same_evaluation(make: Callable[..., Evaluator], narrow: Architecture) -> None:
    evaluator = make()
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert timeless(pool.apply(evaluator, (narrow,))) == timeless(evaluator(narrow))


def test_an_evaluator_travels_without_what_it_can_make_again(
    make: Callable[..., Evaluator], narrow: Architecture
) -> None:
    evaluator = make(candidates=replace(CANDIDATES, weights="compensated"))
    evaluator.prepare()
    expected = evaluator(narrow)
    assert evaluator.glance(narrow) > 0.0
    copied = pickle.loads(pickle.dumps(evaluator))
    assert not {"recipe", "_teacher", "_val", "_recording", "_glanced"} & set(copied.__dict__)
    assert {"teacher_score", "teacher_digest"} <= set(copied.__dict__)
    there = Architecture.from_json(copied.analysis.space, narrow.to_json())
    assert timeless(copied(there)) == timeless(expected)


def test_compensated_students_start_nearer_to_the_teacher(
    make: Callable[..., Evaluator], narrow: Architecture, analysis: Analysis, tmp_path: Path
) -> None:
    kinds: tuple[Start, ...] = ("fresh", "inherited", "compensated")
    still = replace(CANDIDATES.training, epochs=1, lr=0.0)
    made = {kind: make(candidates=replace(CANDIDATES, weights=kind, training=still)) for kind in kinds}
    found = {kind: evaluator(narrow).score for kind, evaluator in made.items()}
    assert found["compensated"] >= found["inherited"] > found["fresh"]
    assert found["compensated"] > 0.9 * made["compensated"].teacher_score
    assert len({evaluator.recipe_digest for evaluator in made.values()}) == len(kinds)


def test_a_glance_ranks_students_without_training(
    make: Callable[..., Evaluator], narrow: Architecture, analysis: Analysis, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluator = make()
    narrower = analysis.space.architecture(widths={"conv1": 2, "conv2": 2})
    glances = [evaluator.glance(architecture) for architecture in (analysis.space.full, narrow, narrower)]
    assert glances == sorted(glances)
    assert glances[0] < 1e-6 < 3.0 * glances[1] < glances[2] < 1.0
    assert pickle.loads(pickle.dumps(evaluator)).glance(narrow) == glances[1]

    def refused(*arguments: Any, **named: Any) -> nn.Module:
        raise SurgeryError("8 and 4 channels meet")

    monkeypatch.setattr(module.surgery, "build", refused)
    assert evaluator.glance(narrow) == float("inf")


def test_neither_the_teacher_nor_the_random_state_is_touched(
    make: Callable[..., Evaluator], narrow: Architecture, analysis: Analysis, device: torch.device
) -> None:
    teacher, state = analysis.teacher, torch.get_rng_state()
    before, tensors = copy.deepcopy(teacher), [p.data_ptr() for p in teacher.parameters()]
    compute = Compute(device=device, dtype=torch.bfloat16, memory_format=torch.channels_last, threads=1)
    evaluator = make(compute=compute, candidates=replace(CANDIDATES, weights="compensated"))
    evaluator.prepare()
    evaluator(narrow)
    assert same(teacher, before)
    assert [p.data_ptr() for p in teacher.parameters()] == tensors
    assert [m.training for m in teacher.modules()] == [m.training for m in before.modules()]
    assert [p.stride() for p in teacher.parameters()] == [p.stride() for p in before.parameters()]
    assert torch.equal(torch.get_rng_state(), state)


def test_the_recipe_is_all_that_decides_a_score(make: Callable[..., Evaluator], tmp_path: Path) -> None:
    recipe = make().recipe_digest
    assert len(recipe) == 16
    assert make(folder=tmp_path, compute=Compute(threads=2)).recipe_digest == recipe
    changes: list[dict[str, Any]] = [
        {"seed": 4},
        {"augmentation": Augmentation(flip=True)},
        {"candidates": replace(CANDIDATES, training=replace(CANDIDATES.training, lr=0.01))},
        {"candidates": replace(CANDIDATES, stop_below=0.1)},
        {"compute": Compute(dtype=torch.bfloat16)},
        {"compute": Compute(memory_format=torch.channels_last)},
    ]
    recipes = [make(**change).recipe_digest for change in changes]
    assert len({recipe, *recipes}) == len(changes) + 1


def test_a_hopeless_student_is_stopped_after_its_first_epoch(
    make: Callable[..., Evaluator], narrow: Architecture, monkeypatch: pytest.MonkeyPatch
) -> None:
    epochs: list[int] = []
    peek = Evaluator.peek

    def counted(self: Evaluator, student: nn.Module) -> float:
        epochs.append(1)
        return peek(self, student)

    monkeypatch.setattr(Evaluator, "peek", counted)
    evaluator = make(
        candidates=replace(CANDIDATES, weights="fresh", training=replace(CANDIDATES.training, lr=1e-9), stop_below=0.9)
    )
    evaluation, student = evaluator.evaluate(narrow)
    assert (evaluation.status, evaluation.error, epochs) == ("stopped", None, [1])
    assert evaluation.score < 0.9 * evaluator.teacher_score
    assert student is not None
    assert make(candidates=replace(CANDIDATES, stop_below=0.3))(narrow).status == "ok"
    assert len(epochs) == 2


def test_logits_are_the_teachers_on_the_views_of_each_epoch(
    make: Callable[..., Evaluator], data: Data, analysis: Analysis
) -> None:
    evaluator = make()
    recipe = evaluator.recipe
    assert recipe.logits is not None
    assert len(recipe.split) == 90
    assert recipe.split.labels.bincount().tolist() == [30, 30, 30]
    for number in (0, 1):
        epoch = recipe.views.epoch(number)
        expected = predict(
            copy.deepcopy(analysis.teacher).to(evaluator.compute.device), recipe.split,
            normalise=data.normalise, compute=evaluator.compute, epoch=epoch,
        )  # fmt: skip
        assert torch.equal(recipe.logits.epoch(number), expected.half().cpu())
    assert not torch.equal(recipe.logits.epoch(0), recipe.logits.epoch(1))


@pytest.mark.parametrize(("scale", "dtype"), [(1.0, torch.float16), (1e6, torch.float32)])
def test_logits_beyond_the_range_of_float16_are_kept(
    scale: float, dtype: torch.dtype, make: Callable[..., Evaluator]
) -> None:
    known = make().recipe.logits
    assert known is not None
    teacher = copy.deepcopy(known.teacher)
    head = [module for module in teacher.modules() if isinstance(module, nn.Linear)][-1]
    with torch.no_grad():
        head.weight.mul_(scale)
    logits = replace(known, teacher=teacher, key=f"scaled by {scale}")
    expected = predict(teacher, logits.split, normalise=logits.normalise, compute=logits.compute,
                       epoch=logits.views.epoch(0)).cpu()  # fmt: skip
    assert (expected.abs().max() > 65504) == (scale > 1)
    kept = logits.epoch(0)
    assert kept.dtype == dtype and torch.equal(kept, expected.to(dtype))


@pytest.mark.parametrize(("augmentation", "files"), [(AUGMENTATION, 2), (Augmentation(), 1)])
def test_logits_are_computed_once(
    augmentation: Augmentation,
    files: int,
    make: Callable[..., Evaluator],
    narrow: Architecture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls: list[int] = []

    def counted(*args: Any, **settings: Any) -> Tensor:
        calls.append(1)
        return predict(*args, **settings)

    monkeypatch.setattr(teacher_logits, "predict", counted)
    told: list[float] = []
    evaluator = make(augmentation=augmentation)
    evaluator.prepare(on_part=told.append)
    assert told == sorted(told) and {1, 2} <= set(told)
    assert len(calls) == files
    assert [path.suffix for path in evaluator.folder.iterdir()] == [".npy"] * files
    evaluator(narrow)
    make(augmentation=augmentation)(narrow)  # another process finds the files
    assert len(calls) == files
    make(augmentation=augmentation, seed=9)(narrow)
    assert len(calls) == 2 * files


def test_a_loss_on_labels_needs_no_logits(make: Callable[..., Evaluator], narrow: Architecture) -> None:
    evaluator = make(candidates=replace(CANDIDATES, training=replace(CANDIDATES.training, loss="ce")))
    evaluator.prepare()
    assert evaluator(narrow).status == "ok"
    assert not evaluator.folder.exists()


def test_all_examples_are_used_where_none_are_counted(make: Callable[..., Evaluator], data: Data) -> None:
    for count in (0, 10_000):
        recipe = make(candidates=replace(CANDIDATES, examples=count)).recipe
        assert torch.equal(recipe.split.labels, data.train.labels)


def statistics_after_training(evaluator: Evaluator, evaluation: Evaluation, recipe: module.Recipe) -> dict[str, Tensor]:
    """Train the evaluation's student by hand and return its state without any recalibration."""
    student = module.surgery.build(evaluator.analysis, evaluation.architecture, seed=evaluation.seed)
    assert recipe.logits is not None
    train(
        student, recipe.split, recipe.training, normalise=evaluator.data.normalise, views=recipe.views,
        compute=evaluator.compute, seed=evaluation.seed, logits=recipe.logits.epoch,
    )  # fmt: skip
    return student.state_dict()


def test_candidates_are_recalibrated_and_final_students_are_not(
    make: Callable[..., Evaluator], narrow: Architecture
) -> None:
    evaluator = make()
    evaluation, student = evaluator.evaluate(narrow)
    trained = statistics_after_training(evaluator, evaluation, evaluator.recipe)
    assert student is not None
    assert torch.equal(student.conv1.weight, trained["conv1.weight"])
    assert not torch.equal(student.bn1.running_mean, trained["bn1.running_mean"])

    evaluation, student = evaluator.finish(narrow, FINAL)
    trained = statistics_after_training(evaluator, evaluation, evaluator.final_recipe(FINAL))
    assert student is not None
    assert torch.equal(student.conv1.weight, trained["conv1.weight"])
    assert torch.equal(student.bn1.running_mean, trained["bn1.running_mean"])


def test_a_final_student_continues_where_it_was_interrupted(
    make: Callable[..., Evaluator], narrow: Architecture, tmp_path: Path
) -> None:
    expected, student = make().finish(narrow, FINAL)
    assert (expected.status, expected.error) == ("ok", None)
    told: list[int] = []

    def kill(progress: Progress, score: float) -> None:
        told.append(progress.epoch)
        if progress.epoch == 3:
            raise KeyboardInterrupt

    path = tmp_path / "final.pt"
    with pytest.raises(KeyboardInterrupt):
        make().finish(narrow, FINAL, checkpoint=path, on_epoch=kill)
    again, twin = make().finish(
        narrow, FINAL, checkpoint=path, on_epoch=lambda progress, score: told.append(progress.epoch)
    )
    assert told == [1, 2, 3, 3]
    assert timeless(again) == timeless(expected)
    assert same(student, twin)
    assert make().finish(narrow, FINAL, checkpoint=path)[0].score == expected.score
    assert told == [1, 2, 3, 3]


def test_a_repeat_is_another_training(make: Callable[..., Evaluator], narrow: Architecture) -> None:
    evaluator = make()
    (first, student), (second, other) = (evaluator.finish(narrow, FINAL, repeat=r) for r in (0, 1))
    assert first.seed != second.seed
    assert first.recipe != second.recipe
    assert not same(student, other)
    orders = [evaluator.final_recipe(FINAL, r).views.epoch(0).order.tolist() for r in (0, 1)]
    assert orders[0] != orders[1]


def test_a_digest_of_weights_sees_values_names_and_types() -> None:
    first = nn.BatchNorm1d(3)
    digest = weights_digest(first)
    assert len(digest) == 16
    assert weights_digest(copy.deepcopy(first)) == digest
    second = copy.deepcopy(first)
    second.num_batches_tracked += 1
    others = [second, nn.Sequential(first), copy.deepcopy(first).bfloat16(), nn.BatchNorm1d(4)]
    assert len({digest, *map(weights_digest, others)}) == 5
