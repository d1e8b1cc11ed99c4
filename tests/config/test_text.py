from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from understudy.config.job import Compression
from understudy.config.methods import N2N, Decore, RandomSearch, UniformWidth
from understudy.config.text import Settings, build, differences, expected_students, read_toml
from understudy.config.training import Augmentation, Candidates, Final, Training
from understudy.core.errors import ConfigError
from understudy.core.goal import Goal

CHANGED = Compression(
    method=N2N(rollouts=3, factors=(0.5, 1.0), shrink_kernels=False),
    goal=Goal(params="10x", accuracy_drop=0.01),
    augmentation=Augmentation(crop=1),
    candidates=Candidates(lr=1),
    final=Final(training=Training(loss="kl")),
    seed=7,
)
PRUNED = Compression(method=Decore(penalty=50, training=Training(epochs=2, loss="kl")))


@pytest.mark.parametrize("compression", [Compression(), CHANGED, Compression(method=UniformWidth(students=3)), PRUNED])
def test_toml_and_back(compression: Compression) -> None:
    text = Settings.of(compression).to_toml()
    assert build(Settings, tomllib.loads(text), source="x").compression() == compression


def test_toml_has_the_table_of_the_chosen_method_only() -> None:
    tables = tomllib.loads(Settings.of(Compression(method=RandomSearch(students=5))).to_toml())
    assert tables["method"] == "random" and tables["random"]["students"] == 5
    assert "n2n" not in tables and "uniform" not in tables


def test_every_mistake_is_listed_with_the_nearest_spelling() -> None:
    wrong = {
        "sed": 1,
        "method": "n3n",
        "epochs": 3,
        "goal": {"parms": "10x", "accuracy": 3},
        "candidates": {"epochs": "many", "lr": True},
        "n2n": {"factors": [0.5, "x"]},
        "final": 3,
    }
    with pytest.raises(ConfigError) as caught:
        build(Settings, wrong, source="job.toml")
    assert [line.strip() for line in str(caught.value).splitlines()] == [
        "invalid settings in job.toml:",
        "there is no setting 'sed' (did you mean 'seed'?)",
        "there is no setting 'epochs' (did you mean 'candidates.epochs'?)",
        "there is no setting 'goal.parms' (did you mean 'params'?)",
        "goal 'accuracy' must be in 0..1, but got 3.0",
        "final must be a table, but got 3",
        "method must be one of n2n, decore, archcomp, random, optuna, uniform, but got 'n3n' (did you mean 'n2n'?)",
        "n2n.factors must be a tuple of a number, but got (0.5, 'x')",
        "candidates.epochs must be an integer, but got 'many'",
        "candidates.lr must be a number, but got True",
    ]


def test_a_number_is_as_good_as_an_amount() -> None:
    assert build(Settings, {"goal": {"params": 74000}}, source="x").goal == Goal(params="74000")


def test_settings_of_a_method_that_is_not_chosen_are_refused() -> None:
    with pytest.raises(ConfigError, match="method is 'n2n', but there are settings for 'random'"):
        Settings(random=RandomSearch(students=3)).compression()


def test_differences_name_what_was_and_what_is() -> None:
    was, now = Settings.of(Compression(seed=1)), Settings.of(Compression(goal=Goal(macs="2x"), final=Final(students=1)))
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


def test_expected_students() -> None:
    methods = (
        N2N(removal_updates=3, shrinkage_updates=4, rollouts=5),
        N2N(removal_updates=0, shrinkage_updates=0, refinement_updates=2, rollouts=3),
        RandomSearch(students=9),
        UniformWidth(students=2),
    )
    assert [expected_students(method) for method in methods] == [35, 6, 9, 2]
