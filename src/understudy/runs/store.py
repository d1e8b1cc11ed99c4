"""The run's memory: one Optuna trial per evaluation. No torch.

The study can be watched with `optuna-dashboard` while a run goes on. What counts is the evaluation in
each trial's user attributes; parameters, values and states are there to be looked at.
"""

from __future__ import annotations

import hashlib
import json
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from understudy.core.architecture import Architecture, Space
from understudy.core.errors import DamageError, RunError
from understudy.core.evaluation import Evaluation
from understudy.core.files import understood, write_whole
from understudy.runs.database import database_errors, open_storage, shown

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.storages import RDBStorage
    from optuna.study import Study
    from optuna.trial import FrozenTrial

FORMAT = 2  # of what stands in the attributes (1: `accuracy` where `score` is now); another one is refused


class Store:
    """The evaluations of one Space, on disk.

    One row per key, written whole or not at all; a row never changes, so adding a known key again
    changes nothing. Only the process that drives the search writes. Close it when done, or use it in
    a `with` statement.

    Args:
        path: SQLite file (made, with its folder, if it does not exist) or the address of a database.
        space: what the evaluated architectures belong to.
        name: of the Optuna study in it.
        unsent: folder for what could not be written because the database was away; it is written at the next opening.
        copy: look at a copy of the file, which is not touched.

    Raises:
        RunError: it cannot be opened, read or written; it is of another format, another version of
            Optuna or another Space.
    """

    def __init__(
        self,
        path: Path | str,
        space: Space,
        *,
        name: str = "candidates",
        unsent: Path | None = None,
        copy: bool = False,
    ) -> None:
        self._address = str(path)
        self._place = shown(self._address)
        self._space, self._name, self._unsent = space, name, unsent
        with database_errors(self._address):
            self._storage = open_storage(self._address, copy=copy)
            try:
                self._study = _study(self._storage, name)
                self._check_door()
                self._evaluations = self._read()
                self._send()
            except BaseException:
                self.close()
                raise

    def add(self, evaluation: Evaluation) -> None:
        """Write an evaluation down; it is on disk when this returns.

        Raises:
            RunError: it could not be written (full disk, file locked or read-only, no connection).
        """
        if evaluation.key in self._evaluations:
            return
        try:
            with database_errors(self._address):
                self._study.add_trial(_trial(evaluation))
        except RunError:
            if self._unsent is not None:
                name = hashlib.sha256(evaluation.key.encode()).hexdigest()[:16]
                write_whole(self._unsent / f"{name}.json", evaluation.to_json())
            raise
        self._evaluations[evaluation.key] = evaluation

    def get(self, key: str) -> Evaluation | None:
        """Return the evaluation with that key (`Evaluation.key`), or None."""
        return self._evaluations.get(key)

    def all(self) -> list[Evaluation]:
        """Return all evaluations in the order in which they were added."""
        return list(self._evaluations.values())

    def close(self) -> None:
        """Let go of the file or the connection."""
        self._storage.remove_session()
        self._storage.engine.dispose()

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _send(self) -> None:
        """Write what could not be written before."""
        for path in sorted(self._unsent.glob("*.json")) if self._unsent is not None else ():
            self.add(Evaluation.from_json(self._space, path.read_text(encoding="utf-8")))
            path.unlink()

    def _check_door(self) -> None:
        found = self._study.user_attrs
        if "space" not in found and not self._study.get_trials(deepcopy=False):
            self._study.set_user_attr("format", FORMAT)
            self._study.set_user_attr("space", self._space.digest)  # the last one: the store is complete
            return
        if found.get("format") != FORMAT:
            raise RunError(
                f"a store must be of format {FORMAT}, but {self._place} is of format {found.get('format')}; "
                "start a new run, or use the version of understudy that made this one"
            )
        if found.get("space") != self._space.digest:
            raise RunError(
                f"a store holds evaluations of one teacher: {self._place} is of Space {found.get('space')}, "
                f"but this teacher's is {self._space.digest}; start a new run for it"
            )

    def _read(self) -> dict[str, Evaluation]:
        with understood(Path(self._place), DamageError):
            evaluations = [Evaluation.from_json(self._space, text) for text in _texts(self._storage, self._name)]
        return {evaluation.key: evaluation for evaluation in evaluations}


def _texts(storage: RDBStorage, name: str) -> list[str]:
    """Return what `add` wrote, in order.

    From Optuna's tables: it would make objects of every parameter of every trial first, which takes it half a minute
    for 10,000 trials.
    """
    from sqlalchemy import column, select, table

    study = storage.get_study_id_from_name(name)
    trials = table("trials", column("trial_id"), column("study_id"), column("number"))
    attributes = table("trial_user_attributes", column("trial_id"), column("key"), column("value_json"))
    wanted = (
        select(attributes.c.value_json)
        .join_from(attributes, trials, attributes.c.trial_id == trials.c.trial_id)
        .where(trials.c.study_id == study, attributes.c.key == "evaluation")
        .order_by(trials.c.number)
    )
    with storage.engine.connect() as connection:
        return [json.loads(text) for text in connection.execute(wanted).scalars()]


def _study(storage: RDBStorage, name: str) -> Study:
    import optuna

    study = optuna.create_study(
        storage=storage, study_name=name, directions=["maximize", "minimize"], load_if_exists=True
    )
    if study.metric_names is None:
        study.set_metric_names(["score", "parameters"])
    return study


def _trial(evaluation: Evaluation) -> FrozenTrial:
    from optuna.trial import TrialState, create_trial

    states = {"ok": TrialState.COMPLETE, "stopped": TrialState.PRUNED, "failed": TrialState.FAIL}
    values = None
    if evaluation.status != "failed":
        assert evaluation.cost is not None, f"{evaluation.architecture.digest} was trained, so it has a cost"
        values = [evaluation.score, evaluation.cost.parameters]
    params, distributions = _parameters(evaluation.architecture)
    attributes = {"evaluation": evaluation.to_json(), "digest": evaluation.architecture.digest}
    if evaluation.error is not None:
        attributes["error"] = evaluation.error
    trial = create_trial(
        state=states[evaluation.status],
        values=values,
        params=params,
        distributions=distributions,
        user_attrs=attributes,
    )
    assert trial.datetime_complete is not None
    trial.datetime_start = trial.datetime_complete - timedelta(seconds=evaluation.seconds)
    return trial


def _parameters(architecture: Architecture) -> tuple[dict[str, Any], dict[str, BaseDistribution]]:
    """Return every decision of the Space as a parameter, those that keep the teacher's value as well."""
    from optuna.distributions import CategoricalDistribution, IntDistribution

    params: dict[str, Any] = {}
    distributions: dict[str, BaseDistribution] = {}
    for unit in architecture.space.units:
        params[f"remove {unit.name}"] = unit.name in architecture.removed
        distributions[f"remove {unit.name}"] = CategoricalDistribution((False, True))
    for group in architecture.space.groups:
        params[f"width {group.name}"] = architecture.width(group.name)
        distributions[f"width {group.name}"] = IntDistribution(group.step, group.width, step=group.step)
    for layer in architecture.space.layers:
        if len(layer.kernels) > 1:
            params[f"kernel {layer.name}"] = architecture.kernel(layer.name)
            distributions[f"kernel {layer.name}"] = CategoricalDistribution(layer.kernels)
    return params, distributions
