from __future__ import annotations

from dataclasses import fields

import pytest

from understudy.core.evaluation import Cost
from understudy.core.figures import FIGURES, amount, digits, standard_error
from understudy.core.goal import Budgets, Goal


def test_the_table_names_what_goals_and_costs_have() -> None:
    assert {f.goal for f in FIGURES} == {f.name for f in fields(Goal)} - {"score", "score_drop", "runtime", "int8"}
    assert [f.name for f in FIGURES] == [f.name for f in fields(Budgets) if f.name != "score"]
    known = {f.name for f in fields(Cost)}
    assert {f.field for f in FIGURES} | {f.stand_in for f in FIGURES if f.stand_in} <= known
    assert all((f.stand_in is not None) == f.measured for f in FIGURES)


def test_a_figure_is_read_from_a_cost_and_put_into_words() -> None:
    cost = Cost(parameters=74_000, macs=2, weight_bytes=296_000)
    found = {f.name: f.of(cost) for f in FIGURES}
    assert found == {"parameters": 74_000, "macs": 2, "size_mb": 0.296, "memory_mb": 0.0, "latency_ms": None}
    assert [f.text(1234.5) for f in FIGURES[:3]] == ["1,234 parameters", "1,234 MACs", "1,234 MB"]
    assert [f.text(1) for f in FIGURES[:3]] == ["1 parameter", "1 MAC", "1 MB"]


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0, "0"), (999, "999"), (999.6, "1K"), (1000, "1K"), (24_300, "24.3K"), (999_499, "999K"), (999_600, "1M"),
        (1.5e6, "1.5M"), (999.6e6, "1G"), (2e9, "2G"), (999.6e9, "1,000G"), (12_345e9, "12,345G"),
    ],
)  # fmt: skip
def test_amounts_have_three_digits_and_no_exponent(number: float, text: str) -> None:
    assert amount(number) == text


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0.0, "0"),
        (0.0123, "0.0123"),
        (2.0, "2"),
        (999.4, "999"),
        (999.6, "1,000"),
        (-1234.6, "-1,235"),
        (1e6, "1,000,000"),
    ],
)
def test_numbers_of_three_digits_have_no_exponent_where_they_are_large(number: float, text: str) -> None:
    assert digits(number) == text


def test_the_standard_error_of_an_accuracy() -> None:
    assert standard_error(0.9, 100) == pytest.approx(0.03)
    assert standard_error(1.0, 100) == standard_error(0.0, 100) == 0.0
