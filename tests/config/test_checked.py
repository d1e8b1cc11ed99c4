from __future__ import annotations

from dataclasses import fields
from typing import Any

import numpy as np
import pytest

import understudy as us
from understudy.config.checked import Checked, check, checked_together
from understudy.config.text import of_toml, to_toml
from understudy.core.errors import ConfigError


@pytest.mark.parametrize(
    ("kind", "settings", "text"),
    [
        (
            us.Training,
            {"optimizer": "SGD"},
            "optimizer must be one of adam, adamw, sgd, but got 'SGD' (did you mean 'sgd'?)",
        ),
        (us.Training, {"schedule": "cosine"}, "schedule must be one of one-cycle, constant, but got 'cosine'"),
        (us.Training, {"loss": "crossentropy"}, "loss must be one of"),
        (us.Training, {"epochs": 0}, "epochs must be at least 1, but got 0"),
        (us.Training, {"epochs": 2.0}, "epochs must be an integer, but got 2.0"),
        (us.Training, {"lr": float("nan")}, "lr must be at least 0, but got nan"),
        (us.Training, {"lr": float("inf")}, "lr must be at least 0, but got inf"),
        (us.Training, {"lr": 10**400}, "lr must be at least 0, but got 1000"),
        (us.Training, {"epochs": 10**23}, "epochs must be at most 1,000,000,000, but got 100000000000000000000000"),
        (us.Device, {"threads": 10**9}, "threads must be at most 1,024, but got 1000000000"),
        (us.Compression, {"seed": -1}, "seed must be in 0..9.22337e+18, but got -1"),
        (us.Teaching, {"seed": 2**64}, "seed must be in 0..9.22337e+18"),
        (us.Candidates, {"stop_below": 1.5}, "stop_below must be in 0..1, but got 1.5"),
        (us.Candidates, {"weights": "frsh"}, "(did you mean 'fresh'?)"),
        (us.Augmentation, {"flip": 1}, "flip must be true or false, but got 1"),
        (us.Widths, {"factors": ()}, "factors must be at least one number, each in 0..1, above 0, but got ()"),
        (us.Widths, {"factors": [0.5]}, "factors must be a tuple of a number, but got [0.5]"),
        (us.Widths, {"factors": (1.0, 0.5)}, "factors must rise, but got (1.0, 0.5)"),
        (us.N2N, {"shrinkage_updates": 0}, "must be at least 1"),
        (us.Compression, {"method": "n2n"}, "method must be"),
        (us.Compression, {"seed": "3"}, "seed must be an integer, but got '3'"),
        (us.Final, {"training": None}, "training must be a us.Training, but got None"),
    ],
)
def test_settings_refuse_what_cannot_be_meant(kind: Any, settings: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        kind(**settings)
    assert text in str(caught.value) and kind.__name__ in str(caught.value)


def test_all_mistakes_come_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        us.Training(optimizer="SGD", epochs=-1, label_smoothing=2)  # type: ignore[arg-type]
    assert len(str(caught.value).splitlines()) == 4


def test_tables_can_be_checked_together() -> None:
    with checked_together():
        job = us.Compression(candidates=us.Candidates(examples=-1), final=us.Final(students=0))
    with pytest.raises(ConfigError) as caught:
        check(job, "job.toml")
    lines = [line.strip() for line in str(caught.value).splitlines()]
    assert lines[0] == "invalid settings in job.toml:"
    assert lines[1:] == [
        "candidates.examples must be at least 0, but got -1",
        "final.students must be at least 1, but got 0",
    ]


def test_an_integer_is_a_number_and_none_where_it_may_be() -> None:
    assert us.Training(lr=1).lr == 1
    assert us.Compression(policy_from=None).policy_from is None


def test_numbers_of_numpy_are_as_good() -> None:
    job = us.Compression(seed=np.int64(3), final=us.Final(training=us.Training(lr=np.float32(0.5), epochs=np.uint8(2))))
    assert job == us.Compression(seed=3, final=us.Final(training=us.Training(lr=0.5, epochs=2)))
    assert of_toml(to_toml(job), source="here") == job
    for wrong in (np.array([1, 2]), np.bool_(True)):
        with pytest.raises(ConfigError, match="optimizer must be one of adam"):
            us.Training(optimizer=wrong)  # type: ignore[arg-type]


def test_every_field_is_checked() -> None:
    kinds = (us.Training, us.Augmentation, us.Device, us.Candidates, us.Final, us.Teaching, us.Compression, us.Widths)
    assert us.Compression.__dataclass_fields__.keys() >= {"widths", "policy_from"}
    for kind in (*kinds, us.N2N, us.Decore, us.ArchComp, us.RandomSearch, us.OptunaSearch, us.UniformWidth):
        assert issubclass(kind, Checked)
        for name in (f.name for f in fields(kind)):
            with pytest.raises(ConfigError, match=name):
                kind(**{name: object()})
