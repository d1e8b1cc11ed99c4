from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from understudy.core.architecture import Group, Space
from understudy.core.errors import ArchitectureError
from understudy.core.evaluation import Cost, Evaluation

SPACE = Space(layers=(), groups=(Group(name="a", width=16),), units=())
EVALUATION = Evaluation(
    architecture=SPACE.architecture(widths={"a": 8}),
    teacher="t",
    data="d",
    recipe="r",
    cost=Cost(parameters=10, macs=20, weight_bytes=40),
    score=0.5,
    seconds=1.5,
    seed=3,
)


@pytest.mark.parametrize("value", [EVALUATION, EVALUATION.with_error("diverged"), replace(EVALUATION, cost=None)])
def test_json_both_ways(value: Evaluation) -> None:
    assert Evaluation.from_json(SPACE, value.to_json()) == value


def test_json_of_another_space_is_refused() -> None:
    other = Space(layers=(), groups=(Group(name="a", width=8),), units=())
    with pytest.raises(ArchitectureError, match=r"belongs to the teacher.*start="):
        Evaluation.from_json(other, EVALUATION.to_json())


TEXT = EVALUATION.to_json()


@pytest.mark.parametrize("text", ["", "{}", "[]", TEXT[:80], TEXT.replace('"score"', '"store"'), None])
def test_what_is_no_evaluation_is_refused(text: Any) -> None:
    with pytest.raises(ArchitectureError, match="an evaluation must be what to_json wrote, but got"):
        Evaluation.from_json(SPACE, text)
    with pytest.raises(ArchitectureError, match=r"must be of a Space, .* but got None"):
        Evaluation.from_json(None, TEXT)  # type: ignore[arg-type]


def test_an_answer_counts_only_where_everything_agrees() -> None:
    keys = {replace(EVALUATION, **{name: "x"}).key for name in ("teacher", "data", "recipe")}
    keys.add(replace(EVALUATION, architecture=SPACE.full).key)
    assert len(keys | {EVALUATION.key}) == 5
    assert replace(EVALUATION, seconds=9.0).key == EVALUATION.key


def test_a_failure_keeps_its_reason() -> None:
    failed = EVALUATION.with_error("out of memory")
    assert (failed.status, failed.error, failed.score) == ("failed", "out of memory", 0.0)
