from __future__ import annotations

import pytest

from tests.core.test_summary import summary
from understudy.core.goal import Goal
from understudy.report.tables import in_a_line, result_table


def test_a_run_in_a_line() -> None:
    figures = "90,000 parameters (11.1x fewer), 88.00% on validation, teacher 90.00%"
    assert in_a_line(summary()) == f"{figures}; not kept: latency_ms"
    assert in_a_line(summary(Goal(params="10x"))) == f"{figures}; all budgets kept"
    assert in_a_line(summary(Goal())) == figures


@pytest.mark.parametrize("width", [100, 200])
def test_a_table_fits_the_width_that_it_gets(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    lines = str(result_table(summary())).splitlines()
    assert max(map(len, lines)) <= width
    assert any("score_drop" in line for line in lines)
