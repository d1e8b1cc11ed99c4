from __future__ import annotations

from typing import Any

import pytest

from understudy.report.tables import in_a_line, result_table

TEACHER = {"parameters": 1000, "macs": 5000, "size_mb": 0.004, "memory_mb": 0.1, "val": 0.9, "test": 0.88}
SUMMARY: dict[str, Any] = {
    "teacher": TEACHER,
    "student": {**TEACHER, "parameters": 100, "val": 0.85, "threads": 1},
    "goal": [
        {"name": "params", "asked": "10x", "limit": 100.0, "obtained": 100, "kept": True},
        {"name": "accuracy_drop", "asked": "0.01", "limit": 0.89, "obtained": 0.85, "kept": False},
    ],
}


def test_a_run_in_a_line() -> None:
    assert in_a_line(SUMMARY) == (
        "100 parameters (10.0x fewer), 85.00% on validation, teacher 90.00%; not kept: accuracy_drop"
    )
    kept = {**SUMMARY, "goal": SUMMARY["goal"][:1]}
    assert in_a_line(kept).endswith("; all budgets kept")
    assert in_a_line({**SUMMARY, "goal": []}).endswith("teacher 90.00%")


@pytest.mark.parametrize("width", [60, 200])
def test_a_table_fits_the_width_that_it_gets(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    lines = str(result_table(SUMMARY)).splitlines()
    assert max(map(len, lines)) <= width
    assert any("accuracy_drop" in line for line in lines)
