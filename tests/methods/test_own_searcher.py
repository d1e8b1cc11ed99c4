"""A method of a user's own, as docs/own-searcher.md has it: resumed, stored and listed like any other."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

import understudy as us
from tests.support.tiny import Tiny, outcome, squeeze
from understudy.cli import main
from understudy.core.errors import ConfigError, RunError
from understudy.methods.base import Searcher
from understudy.runs.folder import Run
from understudy.testing.contracts import SearcherContract
from understudy.testing.landscapes import toy_problem

PAGE = Path(__file__).parent.parent.parent / "docs" / "own-searcher.md"
GOAL = us.Goal(params="2x")


def load(folder: Path) -> ModuleType:
    """Return the code of the page as a module."""
    code = PAGE.read_text(encoding="utf-8").partition("```python\n")[2].partition("```")[0]
    file = folder / "annealing.py"
    file.write_text(code, encoding="utf-8")
    spec = importlib.util.spec_from_file_location("annealing", file)
    assert spec is not None and spec.loader is not None
    module = sys.modules["annealing"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def page(tmp_path: Path) -> Iterator[ModuleType]:
    yield load(tmp_path)
    del sys.modules["annealing"]


class TestAnnealing(SearcherContract):
    def make(self, seed: int) -> Searcher:
        import tempfile

        with tempfile.TemporaryDirectory() as folder:
            method = load(Path(folder)).Annealing(students=20)
        searcher: Searcher = method.searcher(toy_problem(params="20x", seed=seed))
        return searcher


def test_it_is_stored_continued_and_listed(
    page: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    runs, teacher, method = tmp_path / "runs", Tiny(), page.Annealing(students=10)
    whole = squeeze(teacher, runs / "whole", method=method, goal=GOAL)
    assert whole.kept and len({e.architecture for e in Run(whole.run).evaluations()}) > 3
    learn, calls = page.Annealer.learn, list[int]()

    def interrupted(self: Searcher, evaluations: list[us.Evaluation]) -> None:
        calls.append(len(evaluations))
        if len(calls) == 2:
            raise KeyboardInterrupt
        learn(self, evaluations)

    with monkeypatch.context() as patch:
        patch.setattr(page.Annealer, "learn", interrupted)
        with pytest.raises(KeyboardInterrupt):
            squeeze(teacher, runs / "stopped", method=method, goal=GOAL)
    squeeze(teacher, runs / "stopped", method=method, goal=GOAL)
    assert outcome(runs / "stopped") == outcome(runs / "whole")
    with pytest.raises(
        RunError, match=r"own\.settings was 'Annealing\(students=10, heat=0\.1\)', is 'Anneal.*heat=0\.2"
    ):
        squeeze(teacher, runs / "whole", method=page.Annealing(students=10, heat=0.2), goal=GOAL)
    capsys.readouterr()
    assert main(["runs", str(runs)]) == 0
    assert "Annealing" in capsys.readouterr().out
    assert main(["resume", str(runs / "whole")]) == 2
    assert "was started in Python" in " ".join(capsys.readouterr().err.split())


def test_its_settings_check_themselves(page: ModuleType) -> None:
    with pytest.raises(ConfigError, match="students must be an integer, but got '10'"):
        page.Annealing(students="10")


def test_a_method_needs_a_searcher() -> None:
    with pytest.raises(NotImplementedError, match="Method must have a method `searcher"):
        us.Method().searcher(toy_problem())


def test_a_policy_is_for_methods_that_start_from_one(page: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"policy_from needs a method that can start from a policy, .* 'Annealing'"):
        squeeze(Tiny(), tmp_path / "run", method=page.Annealing(students=5), policy_from="runs/other")
