"""Optuna's remarks are held back until the last thread that asked for it has left."""

from __future__ import annotations

import warnings
from concurrent.futures import ThreadPoolExecutor

import optuna
import pytest

from understudy.core.quiet import quiet_optuna


def _warn() -> None:
    warnings.warn("is experimental", optuna.exceptions.ExperimentalWarning, stacklevel=1)


def test_what_one_thread_leaves_stays_quiet_for_the_others() -> None:
    verbosity, filters = optuna.logging.get_verbosity(), list(warnings.filters)
    first, second = quiet_optuna(), quiet_optuna()
    with ThreadPoolExecutor(1) as other:
        other.submit(first.__enter__).result()
        second.__enter__()
        other.submit(first.__exit__, None, None, None).result()
    _warn()
    assert optuna.logging.get_verbosity() == optuna.logging.ERROR
    second.__exit__(None, None, None)
    assert (optuna.logging.get_verbosity(), warnings.filters) == (verbosity, filters)
    with pytest.raises(optuna.exceptions.ExperimentalWarning):
        _warn()
