from __future__ import annotations

import ast
import re
from dataclasses import dataclass
from pathlib import Path

import pytest

from understudy.config.job import Compression
from understudy.config.methods import N2N, Decore, Method, OwnMethod, RandomSearch, UniformWidth
from understudy.config.text import Settings, build, differences, flat, merged, of_toml, read_toml, settings_of, to_toml
from understudy.config.training import Augmentation, Candidates, Final, Training
from understudy.config.widths import Widths
from understudy.core.errors import ConfigError
from understudy.core.goal import Goal

ROOT = Path(__file__).parents[2]
CHANGED = Compression(
    method=N2N(rollouts=3),
    widths=Widths(factors=(0.5, 1.0), round_to=4),
    policy_from="runs/other",
    goal=Goal(params="10x", score_drop=0.01),
    augmentation=Augmentation(crop=1),
    candidates=Candidates(training=Training(lr=1)),
    final=Final(training=Training(loss="kl+ce")),
    seed=7,
)
PRUNED = Compression(method=Decore(penalty=50, training=Training(epochs=2, loss="kl+ce")))


@pytest.mark.parametrize("compression", [Compression(), CHANGED, Compression(method=UniformWidth(students=3)), PRUNED])
def test_toml_and_back(compression: Compression) -> None:
    assert of_toml(to_toml(compression), source="x") == compression


def test_toml_has_the_table_of_the_chosen_method_only() -> None:
    tables = settings_of(Compression(method=RandomSearch(students=5)))
    assert tables["method"] == "random" and tables["random"]["students"] == 5
    assert "n2n" not in tables and "uniform" not in tables


@dataclass(frozen=True, kw_only=True)
class Mine(Method):
    students: int = 30
    heat: float = 0.5


def test_a_method_of_the_callers_own_is_recorded_by_what_it_prints_as() -> None:
    text = to_toml(Compression(method=Mine(heat=0.25), seed=3))
    was = of_toml(text, source="x")
    assert was.method == OwnMethod(kind="Mine", settings="Mine(students=30, heat=0.25)", students=30) and was.seed == 3
    assert (was.method.called, was.method.expected_students) == ("Mine", 30)
    assert differences(was, Compression(method=Mine(heat=0.25), seed=3)) == []
    assert differences(was, Compression(method=Mine(heat=1.0), seed=3)) == [
        "own.settings was 'Mine(students=30, heat=0.25)', is 'Mine(students=30, heat=1.0)'"
    ]
    assert differences(was, Compression(seed=3)) == ["method was 'own', is 'n2n'"]


def test_tables_are_merged_value_by_value() -> None:
    assert merged({"a": 1, "b": {"c": 2, "d": 3}}, {"b": {"c": 4}, "e": 5}) == {"a": 1, "b": {"c": 4, "d": 3}, "e": 5}


def test_every_mistake_is_listed_with_the_nearest_spelling() -> None:
    wrong = {
        "sed": 1,
        "method": "n3n",
        "epochs": 3,
        "goal": {"parms": "10x", "score": 3},
        "candidates": {"examples": "many", "training": {"lr": True}},
        "widths": {"factors": [0.5, "x"]},
        "final": 3,
    }
    with pytest.raises(ConfigError) as caught:
        build(Settings, wrong, source="job.toml")
    assert [line.strip() for line in str(caught.value).splitlines()] == [
        "invalid settings in job.toml:",
        "there is no setting 'sed' (did you mean 'seed'?)",
        "there is no setting 'epochs'",
        "there is no setting 'goal.parms' (did you mean 'params'?)",
        "goal 'score' must be a number in 0..1, but got 3.0 (3% is 0.03)",
        "final must be a table, but got 3",
        "widths.factors must be a tuple of a number, but got (0.5, 'x')",
        "candidates.training.lr must be a number, but got True",
        "candidates.examples must be an integer, but got 'many'",
        "method must be one of n2n, decore, archcomp, random, optuna, uniform, free, allocate, "
        "but got 'n3n' (did you mean 'n2n'?)",
    ]


def test_a_number_is_as_good_as_an_amount() -> None:
    assert build(Settings, {"goal": {"params": 74000}}, source="x").goal == Goal(params="74000")


def test_settings_of_a_method_that_is_not_chosen_are_refused() -> None:
    with pytest.raises(ConfigError, match="method is 'n2n', but there are settings for 'random'"):
        Settings(random=RandomSearch(students=3)).compression()


def test_differences_name_what_was_and_what_is() -> None:
    was, now = Compression(seed=1), Compression(goal=Goal(macs="2x"), final=Final(students=1))
    assert differences(was, now) == [
        "seed was 1, is 0",
        "goal.macs was not set, is '2x'",
        "final.students was 2, is 1",
    ]


def test_files_that_are_no_toml(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"must be readable, but .*no\.toml is not: No such file"):
        read_toml(tmp_path / "no.toml")
    (tmp_path / "job.toml").write_text("seed 3")
    with pytest.raises(ConfigError, match="must be TOML"):
        read_toml(tmp_path / "job.toml")
    (tmp_path / "job.toml").write_text(f"seed = {'[' * 5000}")
    with pytest.raises(ConfigError, match=r"must be TOML, but .* recursion"):
        read_toml(tmp_path / "job.toml")


def test_a_file_of_an_editor_that_marks_its_encoding_is_read(tmp_path: Path) -> None:
    (tmp_path / "job.toml").write_text('seed = 3\r\ndata = "ä"\r\n', encoding="utf-8-sig")
    assert read_toml(tmp_path / "job.toml") == {"seed": 3, "data": "ä"}


def named_in(text: str, tables: set[str]) -> set[str]:
    """Return what looks like a setting of one of the tables in a text, be it code's strings, prose or a command."""
    flags = {found.replace("-", "_") for found in re.findall(r"--([a-z0-9]+(?:\.[a-z0-9-]+)+)", text)}
    dotted = re.findall(r"(?<![\w./{-])([a-z0-9]+(?:\.[a-z_]+)+)\b(?![/(-])", text)
    return {name for name in (*flags, *dotted) if name.split(".")[0] in tables}


def test_settings_that_messages_and_pages_name_exist() -> None:
    known = {name for name, _ in flat(Settings())}
    tables = {name.split(".")[0] for name in known if "." in name} - {"random"}  # Python's module
    whole = {name.rpartition(".")[0] for name in known} | {f"{table}.md" for table in tables}
    texts = [
        (f"{path}:{part.lineno}", part.value)
        for path in (ROOT / "src").rglob("*.py")
        for part in ast.walk(ast.parse(path.read_text()))
        if isinstance(part, ast.Constant) and isinstance(part.value, str)
    ]
    pages = {ROOT / "README.md", *(ROOT / "docs").glob("*.md")} - {ROOT / "docs" / "history.md"}  # of other versions
    texts += [(str(path), path.read_text()) for path in pages]
    named = [(place, named_in(text, tables) - known - whole) for place, text in texts]
    assert [found for found in named if found[1]] == []
