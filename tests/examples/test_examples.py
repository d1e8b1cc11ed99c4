"""The short forms of the examples of other tasks, and the table that their long forms print."""

from __future__ import annotations

import argparse
from importlib import import_module
from pathlib import Path

import pytest
import torch

from examples.side_by_side import Example, compared, table
from understudy.core.timing import Comparison, Timing
from understudy.jobs import summary

METRICS = {"segmentation": "mean IoU", "minilm": "cosine", "vit": "accuracy", "option_a": "accuracy"}


@pytest.fixture(autouse=True)
def _untimed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Times are no part of an example's table."""
    same = Timing(median=1.0, low=1.0, high=1.0)
    untimed = Comparison(where="1 thread", first=same, second=same, ratio=same)
    monkeypatch.setattr(summary, "_latency", lambda *given: (untimed,))
    monkeypatch.setattr(summary, "_layers", lambda *given: {"layers": []})


def short(name: str, work: Path) -> Example:
    made = import_module(f"examples.{name}").example(work, argparse.Namespace(short=True))
    assert isinstance(made, Example)
    return made


@pytest.mark.parametrize("name", METRICS)
def test_a_student_keeps_the_goal_and_can_be_exported(name: str, tmp_path: Path) -> None:
    made = short(name, tmp_path)
    result = made.compress("random search", 0, tmp_path)
    found = result.summary
    assert found.metric == METRICS[name] and found.kept and found.search.students == made.students == 5
    times = {"minilm": 2.0}.get(name, 4.0)
    assert found.teacher.cost.macs >= times * found.student.cost.macs
    assert result.export(tmp_path / "exported", ["source"]).parity["source"].absolute == 0.0


def test_the_table_has_the_teacher_and_both_searches(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = short("angle", tmp_path)
    found = compared(made, tmp_path)
    assert [line.partition(":")[0] for line in capsys.readouterr().out.splitlines()] == [
        "N2N, seed 0",
        "random search, seed 0",
    ]
    lines = list(table(made, found))
    assert lines[0] == "| | test R2, % | each seed | parameters | MACs |" and lines[2].startswith("| teacher | ")
    best = found["N2N"][0].student.test
    assert best is not None and lines[3].startswith(f"| N2N | {100 * best.value:.2f} | {100 * best.value:.2f} | ")
    searched, final = made.passes()
    assert (searched, final) == (5 * 200, 2 * 400) and "5 students for each search, 1K passes; 800" in lines[-1]

    again = short("angle", tmp_path)  # with the teacher that was left, and runs that are finished
    assert all(torch.equal(a, b) for a, b in zip(made.teacher.parameters(), again.teacher.parameters(), strict=True))  # type: ignore[union-attr]
    assert compared(again, tmp_path) == found


def test_word_pieces_are_those_of_bert() -> None:
    from examples.minilm import PLACES, WordPieces

    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "un", "##aff", "##able", "cafe", "!", "a"]
    found = WordPieces({piece: index for index, piece in enumerate(pieces)})(["Unaffable Café!", "a b " * PLACES])
    assert found["ids"][0].tolist() == [2, 4, 5, 6, 7, 8, 3] + [0] * (PLACES - 7)
    assert found["mask"].sum(1).tolist() == [7, PLACES] and found["ids"][1, :3].tolist() == [2, 9, 1]
