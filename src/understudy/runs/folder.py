"""The run folder: what decides a run, and what it has found out. No torch.

Every file is written whole or not at all, so a run that was killed at any moment can be continued.

    config.toml          the settings, written first
    identity.json        digests of teacher, data and Space; versions; the settings again, as config.toml may be edited
                         or be damaged
    source.json          how the teacher and the data were named, for `understudy resume`
    space.json           what the teacher allows
    compute.json         the precision and memory format that were chosen
    teacher.json         the teacher's cost and validation score; teacher.safetensors beside it
    crashes.json         which students crashed their process, if any did; crashes.trace: how this process crashed
    study.db             every evaluation (Optuna, SQLite), or study.json: the name of the study in a shared database
    unsent/              evaluations that a database which was away did not get yet
    policy.safetensors   what the searcher or the agents have learned
    policy_from.safetensors  what it started from, if it started from another run's
    start/               the student that is cut in the teacher's place, if one is
    decore/              DECORE's loop, see prune.py
    logits/              the teacher's logits, a cache that can be deleted
    students/            the finished students: NAME.safetensors, and NAME.json once it is complete
    predictions.npz      what teacher and student answered on the test split
    summary.json         the final table
    report.html          the page, if one was made
    run.log
"""

from __future__ import annotations

import logging
import shlex
import sys
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

from understudy.config.job import Compression
from understudy.config.text import differences, of_toml, to_toml
from understudy.core.architecture import Space
from understudy.core.errors import ConfigError, DamageError, RunError
from understudy.core.evaluation import Evaluation
from understudy.core.files import check_format, read_json, read_text, understood, write_json, write_whole
from understudy.core.int8 import FileSizes
from understudy.runs.claim import AGAIN, claimed, is_locked, refuse_unusable
from understudy.runs.database import refuse_silent, study_claimed
from understudy.runs.store import Store

FORMAT = 2  # 1: `accuracy` where `score` is now
State = Literal["finished", "running", "stopped"]
_CONFIG, _IDENTITY = "config.toml", "identity.json"
_MARKERS = (_CONFIG, _IDENTITY)  # either holds the settings
_log = logging.getLogger("understudy")


@dataclass(frozen=True, kw_only=True)
class Identity:
    """What a run belongs to, by digest. Versions may change; then results may differ in the last bits."""

    teacher: str
    data: str
    space: str
    policy: str = ""  # that the search starts from, if it does
    start: str = ""  # the network that is cut, if it is not the teacher
    objective: str = ""  # the caller's own, which the settings do not tell apart
    versions: Mapping[str, str] = field(default_factory=lambda: versions())


def versions() -> dict[str, str]:
    """Return the versions of what decides a result."""
    found: dict[str, str] = {}
    for name in ("understudy", "torch", "numpy", "optuna"):
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


class Run:
    """One run folder. `Run(folder)` reads; `Run.open` checks it at the door and keeps others out.

    Raises:
        RunError: the folder holds no run, or one of another format.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        if not is_run(self.folder):
            raise RunError(f"a run is a folder with a config.toml, but there is none in {self.folder}")
        self._lock: Any = None
        identity = self.recall("identity")
        if identity is not None:
            check_format(identity.get("format"), FORMAT, what=f"the run {self.folder}", error=RunError)

    @classmethod
    @contextmanager
    def open(cls, folder: str | Path, settings: Compression, identity: Identity) -> Iterator[Run]:
        """Open a run for writing: a new one, or one of the very same teacher, data and settings to continue.

        Inside, a full or closed disk is a RunError, and what is logged goes to run.log too.

        Raises:
            RunError: the folder is not a run's, cannot be written, is in use, or belongs to something
                else; then every difference is listed.
        """
        folder = Path(folder)
        refuse_silent(settings.device.storage)
        with claimed(folder, markers=_MARKERS, again=lambda: _again(folder)):
            if not (folder / _CONFIG).exists():
                text = to_toml(cls(folder).settings if is_run(folder) else settings)
                of_toml(text, source="the settings")  # what could not be read again is refused
                write_whole(folder / _CONFIG, text)
            run = cls(folder)
            run._check_same(settings, identity)
            address = settings.device.storage
            with _logging_to(folder / "run.log"), study_claimed(address, run.study_name if address else ""):
                run._note_versions(identity)
                yield run

    @staticmethod
    def refuse(folder: Path) -> None:
        """Refuse a folder that cannot be opened for writing, before anything that takes its time.

        Raises:
            RunError: it is not a run's, cannot be written or is in use.
        """
        refuse_unusable(folder, markers=_MARKERS)

    @property
    def study(self) -> Path:
        """The SQLite file of the store."""
        return self.folder / "study.db"

    @property
    def study_name(self) -> str:
        """The name of its study in a database that runs share; it is drawn when it is first asked for."""
        known = self.recall("study")
        if known is None:
            known = {"name": f"{self.folder.resolve().name}-{uuid.uuid4().hex[:8]}"}
            self.remember("study", known)
        return str(known["name"])

    def store(self, space: Space, *, copy: bool = False) -> Store:
        """Open the store of its evaluations, in its folder or in the database that its settings name.

        With `copy`, look at a copy of the one in its folder.

        Raises:
            RunError: it cannot be opened.
        """
        address = self.settings.device.storage
        if not address:
            return Store(self.study, space, copy=copy)
        return Store(address, space, name=self.study_name, unsent=self.folder / "unsent")

    @property
    def policy(self) -> Path:
        """What the searcher has learned."""
        return self.folder / "policy.safetensors"

    @property
    def policy_from(self) -> Path:
        """What the searcher started from, if it did not start anew."""
        return self.folder / "policy_from.safetensors"

    @property
    def start(self) -> Path:
        """The folder of the student that is cut in the teacher's place, if one is."""
        return self.folder / "start"

    @property
    def logits(self) -> Path:
        """The folder of the teacher's cached logits."""
        return self.folder / "logits"

    @property
    def predictions(self) -> Path:
        """What teacher and student answered on the test split; not there without one."""
        return self.folder / "predictions.npz"

    @property
    def students(self) -> Path:
        """The folder of the finished students."""
        return self.folder / "students"

    @property
    def settings(self) -> Compression:
        """The settings that the run was started with; a method of the caller's own as an `OwnMethod`.

        Raises:
            ConfigError: config.toml was edited into something impossible, or is damaged.
            RunError: it is not there, and identity.json is damaged.
        """
        path = self.folder / _CONFIG
        if not path.is_file() and (started := self._started) is not None:
            return started
        try:
            if not (text := read_text(path, ConfigError)).strip():
                raise ConfigError(f"a run's settings must be in its {_CONFIG}, but {path} is empty")
            return of_toml(text, source=str(path))
        except ConfigError as error:
            way = (
                "move it away: without it the run goes on with the settings that it was started with"
                if (self.folder / _IDENTITY).is_file()
                else "give another run folder: nothing was found out in this one yet"
            )
            raise ConfigError(f"{error}. Mend it or {way}") from error

    @property
    def _started(self) -> Compression | None:
        """The settings that the run was started with, or None before they are written down."""
        text = (self.recall("identity") or {}).get("settings")
        return None if text is None else of_toml(text, source=str(self.folder / _IDENTITY))

    @property
    def space(self) -> Space | None:
        """What the teacher allows, or None before that is known.

        Raises:
            RunError: space.json is damaged.
        """
        path = self.folder / "space.json"
        if not path.is_file():
            return None
        text = read_text(path, DamageError)
        with understood(path, DamageError):
            found = Space.from_json(text)
        known = (self.recall("identity") or {}).get("space", found.digest)
        if found.digest != known:
            raise DamageError(
                f"{path} must be as it was written, but is damaged: it is Space {found.digest}, not {known}"
            )
        return found

    @property
    def state(self) -> State:
        """Whether it is finished, being worked on, or can be continued."""
        if (self.folder / "summary.json").is_file():
            return "finished"
        return "running" if is_locked(self.folder) else "stopped"

    def evaluations(self) -> list[Evaluation]:
        """Return what the search has found so far, in order, with the latencies that were measured.

        Where the goal asks for 8 bits, with the bytes of a file in them.

        Raises:
            RunError: the store cannot be read.
        """
        begun = self.study.is_file() or self.recall("study") is not None
        if self.space is None or not begun:
            return []
        with self.store(self.space, copy=True) as store:
            found = self.with_latencies(store.all())
        int8 = self.recall("int8")
        if int8 is None:
            return found
        with understood(self.folder / "int8.json", DamageError):
            sizes = FileSizes.from_json(int8)
        return [e if e.cost is None else replace(e, cost=sizes.cost(e.cost, e.architecture)) for e in found]

    def with_latencies(self, evaluations: Iterable[Evaluation]) -> list[Evaluation]:
        """Return evaluations with the latencies that were measured of their students, where there are some."""
        latencies = (self.recall("latency") or {}).get("students", {})
        return [_with_latency(e, latencies.get(e.architecture.digest)) for e in evaluations]

    def remember(self, name: str, values: Mapping[str, Any]) -> None:
        """Write values to NAME.json."""
        write_json(self.folder / f"{name}.json", values)

    def recall(self, name: str) -> dict[str, Any] | None:
        """Return what `remember` wrote under that name, or None.

        Raises:
            RunError: the file is damaged.
        """
        path = self.folder / f"{name}.json"
        return read_json(path, DamageError) if path.is_file() else None

    def _check_same(self, settings: Compression, identity: Identity) -> None:
        now = {name: value for name, value in asdict(identity).items() if name != "versions"}
        was = self.recall("identity")
        unlike = [
            _changed(name, was.get(name), value)
            for name, value in now.items()
            if was is not None and was.get(name, "") != value
        ]
        started = self._started or self.settings
        # Where students are trained, and how many at a time, decides nothing. config.toml may have been edited.
        apart = ("device.workers ", "device.cluster ")
        changed = dict.fromkeys([*differences(started, settings), *differences(started, self.settings)])
        unlike += [line for line in changed if not line.startswith(apart)]
        if unlike:
            raise RunError(
                f"a run is continued with the teacher, data and settings that it was started with, but for "
                f"{self.folder}:\n  " + "\n  ".join(unlike) + "\nGive another run folder, or the same settings."
            )
        if was is None:
            more = {"versions": dict(identity.versions), "settings": to_toml(self.settings)}
            self.remember("identity", {"format": FORMAT, **now, **more})

    def _note_versions(self, identity: Identity) -> None:
        was = (self.recall("identity") or {}).get("versions", {})
        for name, now in identity.versions.items():
            if was.get(name, now) != now:
                _log.warning(
                    "this run was started with %s %s and goes on with %s: results may differ in the last bits",
                    name, was[name], now,
                )  # fmt: skip


_UNLIKE = {
    "teacher": "the teacher's weights are others",
    "data": "the data are others: their images, labels, splits or normalisation",
    "space": "what the teacher allows is something else: its structure, or the rules of this version",
    "policy": "the policy to start from is another",
    "start": "the student to start from is another",
    "objective": "your own objective is another: its class, its fields or the names of its functions",
}


def _changed(name: str, was: str | None, now: str) -> str:
    """Return a line that says what is not the same, and by which digests that was noticed."""
    if not was or not now:
        return f"{_UNLIKE[name]}: there {'was one' if was else 'was none'}, there {'is one' if now else 'is none'}"
    return f"{_UNLIKE[name]} ({was} then, {now} now)"


def runs_in(folder: str | Path) -> list[Path]:
    """Return the folders of the runs in a folder, by name; a folder that is a run itself is the first one."""
    root = Path(folder)
    found = [root, *sorted(root.iterdir())] if root.is_dir() else []
    return [path for path in found if is_run(path)]


def is_run(folder: str | Path) -> bool:
    """Say whether a folder is that of a run: its settings are in it."""
    return any((Path(folder) / name).is_file() for name in _MARKERS)


def _again(folder: Path) -> str:
    """Return how a run is continued; the file that makes the teacher is among what it keeps."""
    source = None
    with suppress(RunError):  # what is damaged is told by the call itself
        source = read_json(folder / "source.json", RunError)
    if source is None or None in (source.get("model"), source.get("data")):  # `resume` could not name them
        return AGAIN
    trusted = ["--trust-code"] if (folder / "code").is_dir() else []
    return f"{AGAIN}, or {shlex.join(['understudy', 'resume', str(folder), *trusted])}"


def _with_latency(evaluation: Evaluation, known: Mapping[str, float] | None) -> Evaluation:
    if known is None or evaluation.cost is None:
        return evaluation
    cost = replace(evaluation.cost, latency_ms=known["latency_ms"], latency_spread_ms=known["spread_ms"])
    return replace(evaluation, cost=cost)


class _LogFile(logging.FileHandler):
    """A log whose disk may be full: that ends the run where something is lost by it, with one message."""

    def handleError(self, record: logging.LogRecord) -> None:
        """Print no traceback for what the disk refuses."""
        if not isinstance(sys.exc_info()[1], OSError):
            super().handleError(record)


@contextmanager
def _logging_to(path: Path) -> Iterator[None]:
    handler = _LogFile(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    level = _log.level
    _log.addHandler(handler)
    _log.setLevel(logging.INFO)
    try:
        yield
    finally:
        _log.removeHandler(handler)
        _log.setLevel(level)
        handler.close()
