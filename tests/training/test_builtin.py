from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from understudy.config.training import Training
from understudy.core.errors import ConfigError, DataError
from understudy.data import Data
from understudy.training.builtin import BUILT_IN, IGNORED
from understudy.training.objectives import Objective

DIGITS = Data.digits()


def score(name: str, output: Any, targets: Any) -> float:
    """Return the score of outputs that come in two batches."""
    objective, outputs = BUILT_IN[name], output if isinstance(output, dict) else {"": output}
    half = len(next(iter(outputs.values()))) // 2
    rows = (slice(0, half), slice(half, None))

    def cut(value: Any, part: slice) -> Any:
        return {k: v[part] for k, v in value.items()} if isinstance(value, dict) else value[part]

    sums = [objective.measure(cut(outputs, part), cut(targets, part)) for part in rows]
    return objective.score([torch.stack(column).sum(0) for column in zip(*sums, strict=True)])


def test_classification_counts_first_guesses() -> None:
    logits = torch.tensor([[1.0, 0], [0, 1], [1, 0], [math.nan, 1]])
    assert score("classification", logits, torch.tensor([0, 1, 1, 1])) == 0.5


def test_several_labels_are_scored_by_f1() -> None:
    logits = torch.tensor([[1.0, -1], [1, 1], [-1, -1], [1, -1]])
    targets = torch.tensor([[1, 0], [1, 0], [0, 1], [0, 0]])  # 4 found, 3 there, 2 rightly
    assert score("multilabel", logits, targets) == pytest.approx(2 * 2 / (4 + 3))


def test_regression_is_scored_by_r2() -> None:
    targets = torch.tensor([1.0, 2, 3, 6])
    assert score("regression", targets[:, None] + 1.0, targets) == pytest.approx(1 - 4 / 14)
    assert score("regression", torch.full((4, 1), 3.0), targets) == pytest.approx(0.0)
    assert score("regression", torch.full((4, 1), math.nan), targets) == 0.0
    assert score("regression", torch.full((4, 1), 5.0), torch.full((4,), 5.0)) == 1.0
    assert score("regression", torch.full((4, 1), 4.0), torch.full((4,), 5.0)) == 0.0


def places(classes: list[list[int]]) -> Tensor:
    return torch.nn.functional.one_hot(torch.tensor(classes), 3).movedim(-1, 1).float()


def test_segmentation_is_scored_by_the_mean_iou_of_classes_that_occur() -> None:
    logits, targets = places([[0, 0, 1], [1, 1, 1]]), torch.tensor([[0, 1, 1], [1, IGNORED, 0]])
    # class 0: 1 of 3, class 1: 2 of 4, class 2 does not occur
    assert score("segmentation", logits, targets) == pytest.approx((1 / 3 + 2 / 4) / 2)
    assert score("pixels", logits, targets) == pytest.approx(3 / 5)


def test_embeddings_are_scored_by_the_mean_cosine() -> None:
    targets = torch.tensor([[1.0, 0], [0, 1]])
    assert score("embedding", torch.tensor([[3.0, 0], [1, 1]]), targets) == pytest.approx((1 + 0.5**0.5) / 2)
    assert score("embedding", -targets, targets) == 0.0


def test_retrieval_is_scored_by_the_nearest_neighbours_that_stay() -> None:
    angles = torch.tensor([0.0, 0.1, 1.0, 1.2, 0.0, 0.1, 1.0, 1.2])  # in two batches of four
    teacher = torch.stack([angles.cos(), angles.sin()], 1)
    assert score("retrieval", 3.0 * teacher, teacher) == 1.0
    turned = teacher.clone()
    turned[1] = teacher[2]  # the nearest of 0 stays 1 or 2, that of 1 becomes 2, that of 2 becomes 1, that of 3 is tied
    found = BUILT_IN["retrieval"].measure({"": turned[:4]}, teacher[:4])
    assert found[1] == 4 and found[0] < 4
    assert score("retrieval", torch.full((8, 2), math.nan), teacher) == 0.0
    assert BUILT_IN["retrieval"].measure({"": teacher[:1]}, teacher[:1])[1] == 0  # has no other
    few = Data.from_inputs(torch.randn(20, 2), val=torch.randn(7, 2))
    with pytest.raises(DataError, match="at least 8 validation examples to find the nearest of, but there are 7"):
        BUILT_IN["retrieval"].check({"": teacher}, None, few)


def test_language_is_scored_by_one_over_the_perplexity() -> None:
    logits = torch.zeros(2, 3, 8)
    assert score("language", logits, torch.tensor([[0, 1, 2], [3, IGNORED, 7]])) == pytest.approx(1 / 8)


def test_agreement_is_one_minus_the_relative_error_of_every_output() -> None:
    teacher = {"a": torch.tensor([[0.0], [2], [4], [6]]), "b.0": torch.ones(4, 2, 2)}
    assert score("agreement", teacher, teacher) == 1.0
    student = {"a": teacher["a"] + 1.0, "b.0": teacher["b.0"]}
    assert score("agreement", student, teacher) == pytest.approx((1 - (4 / 20) ** 0.5 + 1) / 2)
    constant = {"a": torch.full((4, 1), 3.0), "b.0": teacher["b.0"] + 1.0}
    assert score("agreement", constant, teacher) == pytest.approx(0.0)


@pytest.mark.parametrize("name", BUILT_IN)
def test_the_teacher_agrees_with_itself_and_is_what_is_learned(name: str) -> None:
    objective = BUILT_IN[name]
    shape = {"segmentation": (6, 3, 4), "pixels": (6, 3, 4), "language": (6, 4, 3)}.get(name, (6, 3))
    teacher = {"": torch.randn(shape, generator=torch.Generator().manual_seed(0))}
    targets, scales = objective.guesses(teacher), {"": 1.0}
    own = objective.score(list(objective.measure(teacher, targets)))
    other = {"": teacher[""].roll(1, 0)}
    assert 0.0 <= objective.score(list(objective.measure(other, targets))) < own <= 1.0
    assert own == pytest.approx(1.0) or name == "language"
    each, worse = objective.each(teacher, targets, scales), objective.each(other, targets, scales)
    assert each.shape == (6,) and bool(((each >= 0) & (each <= 1)).all()) and each.mean() > worse.mean()
    for loss in ("mse", "mse+ce", "kl+ce"):
        training = Training(loss=loss)
        none = objective.loss(teacher, teacher, None, training, scales)
        assert float(none) == pytest.approx(0.0, abs=1e-6)
        assert float(objective.loss(other, teacher, None, training, scales)) > 0.0
        both = objective.loss(other, teacher, targets, training, scales)
        assert both.shape == () and bool(both.isfinite())


WRONG: list[tuple[str, tuple[int, ...], Any, str]] = [
    ("classification", (2, 7), torch.zeros(2), r"one logit for each class.*that is \(2, 10\), but got \(2, 7\)"),
    (
        "multilabel",
        (2, 3),
        torch.zeros(2),
        r"one target for each number of the output, \(2, 3\), but targets are \(2,\)",
    ),
    ("regression", (2, 3), torch.zeros(2, 2), "one target for each number"),
    ("regression", (2, 3), {"a": torch.zeros(2)}, "targets are dict"),
    ("segmentation", (2, 3), torch.zeros(2), r"logits for each place, \(b, classes, height, width\), but got \(2, 3\)"),
    ("segmentation", (2, 3, 4), torch.zeros(2, 4), r"whole numbers \(2, 4\), but got torch.float32"),
    ("segmentation", (2, 3, 4), torch.full((2, 4), 3), r"in 0..2, or -100 for none, but got 3"),
    ("segmentation", (2, 3, 4), torch.full((2, 4), IGNORED), r"some targets must be in 0..2, but all are -100"),
    ("language", (2, 3), torch.zeros(2), r"\(b, places, vocabulary\)"),
    ("multilabel", (2, 3), torch.full((2, 3), 2), "must be 0 or 1 for each label, but got 2"),
    ("multilabel", (2, 3), torch.full((2, 3), -1.0), "must be 0 or 1 for each label, but got -1"),
]


@pytest.mark.parametrize(("name", "shape", "targets", "message"), WRONG)
def test_what_does_not_fit_is_one_error(name: str, shape: tuple[int, ...], targets: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        BUILT_IN[name].check({"": torch.zeros(shape)}, targets, DIGITS)


def half(outputs: Any, targets: Any) -> Tensor:
    return torch.full((len(targets),), 0.5)


def test_an_objective_of_ones_own() -> None:
    own = Objective(teach={"b": "kl", "a": lambda output, teacher: (output - teacher).abs().mean()}, scored=half)
    outputs = {"a": torch.zeros(2, 3), "b": torch.ones(2, 3), "c": torch.ones(2, 3)}
    assert own.counts(outputs) == ("b", "a") and own.key != Objective(scored=half).key
    loss = own.loss(
        {"b": torch.ones(2, 3), "a": torch.ones(2, 3)}, {"b": torch.ones(2, 3), "a": torch.zeros(2, 3)}, None,
        Training(), {"a": 1.0, "b": 1.0},
    )  # fmt: skip
    assert float(loss) == 0.5
    assert own.score(own.measure(outputs, torch.zeros(2))) == 0.5
    with pytest.raises(DataError, match="teach must name outputs of the model, which are 'x', but names 'b'"):
        own.counts({"x": torch.zeros(2)})
    with pytest.raises(ConfigError, match=r"must be one of mse, kl, cosine, or a function, but got 'msee' \(did you"):
        Objective(teach="msee")
    with pytest.raises(ConfigError, match="must say how a student is scored"):
        Objective().check(outputs, None, DIGITS)
    with pytest.raises(
        DataError, match=r"one number for each example, a tensor of shape \(2,\), but scored returned \(3,\)"
    ):
        Objective(scored=lambda outputs, targets: torch.zeros(3)).measure(outputs, None)
    with pytest.raises(DataError, match="but scored returned a float"):
        Objective(scored=lambda outputs, targets: 0.5).measure(outputs, None)  # type: ignore[arg-type, return-value]
    with pytest.raises(ConfigError, match="scored must be a function of outputs and targets, but got 3"):
        Objective(scored=3)  # type: ignore[arg-type]
