from __future__ import annotations

import io

import pytest
from rich.table import Table

from understudy.core.console import LEAST, Console


@pytest.mark.parametrize("columns", [20, 200])
def test_a_narrow_terminal_cuts_no_numbers_off(columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    table = Table("", "teacher", "student", "change")
    table.add_row("parameters", "272,186", "18,562 (≤ 27,218)", "14.7x smaller")
    console = Console(file=io.StringIO())
    console.print(table)
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert "18,562 (≤ 27,218)" in shown and "14.7x smaller" in shown
    assert console.width == max(columns, LEAST)
    assert Console(stderr=True).width == columns  # where progress is drawn over and over
