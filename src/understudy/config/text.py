"""Settings as text: TOML both ways, every mistake at once, what differs between two of them. No torch.

`Settings` is `Compression` as flags and files spell it: the method by name, with a table for each.
"""

from __future__ import annotations

import dataclasses
import difflib
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields, is_dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

import tomli_w

from understudy.config.checked import checked_together, invalid, mistakes_in, plain
from understudy.config.job import Compression, Job
from understudy.config.methods import (
    N2N,
    Allocate,
    ArchComp,
    Decore,
    Free,
    Method,
    OptunaSearch,
    OwnMethod,
    RandomSearch,
    UniformWidth,
)
from understudy.core.errors import ConfigError, UnderstudyError, did_you_mean

T = TypeVar("T")
MethodName = Literal["n2n", "decore", "archcomp", "random", "optuna", "uniform", "free", "allocate"]
_KINDS: tuple[type[Method], ...] = (*(N2N, Decore, ArchComp, RandomSearch, OptunaSearch, UniformWidth, Free, Allocate),)
METHODS: dict[str, type[Method]] = {kind.name: kind for kind in _KINDS}


@dataclass(frozen=True, kw_only=True)
class Settings(Job):
    """The settings of a compression, as flags and files spell them."""

    method: MethodName = "n2n"
    """n2n and archcomp search, decore prunes while it trains; random, optuna, uniform, free and allocate are
    baselines."""
    n2n: N2N = field(default_factory=N2N)
    """Settings of the method n2n."""
    decore: Decore = field(default_factory=Decore)
    """Settings of the method decore."""
    archcomp: ArchComp = field(default_factory=ArchComp)
    """Settings of the method archcomp."""
    random: RandomSearch = field(default_factory=RandomSearch)
    """Settings of the method random."""
    optuna: OptunaSearch = field(default_factory=OptunaSearch)
    """Settings of the method optuna."""
    uniform: UniformWidth = field(default_factory=UniformWidth)
    """Settings of the method uniform."""
    free: Free = field(default_factory=Free)
    """Settings of the method free, which has none."""
    allocate: Allocate = field(default_factory=Allocate)
    """Settings of the method allocate, which has none."""

    def compression(self) -> Compression:
        """Return these settings as the main job takes them.

        Raises:
            ConfigError: a method that is not the chosen one has settings of its own.
        """
        unused = [name for name, kind in METHODS.items() if name != self.method and getattr(self, name) != kind()]
        if unused:
            raise ConfigError(
                f"only the chosen method can have settings: the method is {self.method!r}, "
                f"but there are settings for {', '.join(map(repr, unused))}"
            )
        return Compression(method=getattr(self, self.method), **{f.name: getattr(self, f.name) for f in fields(Job)})


def settings_of(job: Compression) -> dict[str, Any]:
    """Return a compression as nested tables, as a file of settings has it."""
    return tomllib.loads(to_toml(job))


def merged(tables: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Return nested tables with the values of others in their place."""
    inside = {
        name: merged(tables[name], value)
        for name, value in over.items()
        if isinstance(value, Mapping) and isinstance(tables.get(name), Mapping)
    }
    return {**tables, **over, **inside}


def to_toml(job: Compression) -> str:
    """Return a compression as TOML, with the table of its method; of a caller's own method, what it prints as."""
    known = METHODS.get(job.method.name) is type(job.method) or isinstance(job.method, OwnMethod)
    method = job.method if known else OwnMethod.of(job.method)
    shared = {f.name: getattr(job, f.name) for f in fields(Job)}
    tables = {name: asdict(value) if is_dataclass(value) else value for name, value in shared.items()}  # type: ignore[arg-type]
    return tomli_w.dumps(_without_none({"method": method.name, **tables, method.name: asdict(method)}))


@lru_cache(maxsize=16)  # the settings of a run are asked for at every turn
def of_toml(text: str, *, source: str) -> Compression:
    """Read what `to_toml` wrote; a method of the caller's own is an `OwnMethod`.

    Raises:
        ConfigError: it is no TOML, or its settings are impossible.
    """
    values = _toml(text, source)
    if values.get("method") != OwnMethod.name:
        return build(Settings, values, source=source).compression()
    own = build(OwnMethod, values.pop(OwnMethod.name, {}), source=source, missing="")
    del values["method"]
    return replace(build(Settings, values, source=source).compression(), method=own)


def read_toml(path: Path) -> dict[str, Any]:
    """Return what a TOML file says.

    Raises:
        ConfigError: there is no such file, or it is not TOML.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")  # some editors begin a file with a mark of its encoding
    except OSError as error:
        raise ConfigError(f"a settings file must be readable, but {path} is not: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"a settings file must be TOML, but {path} is not: {error}") from error
    return _toml(text, str(path))


def _toml(text: str, source: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise ConfigError(f"a settings file must be TOML, but {source} is not: {error}") from error


def build(kind: type[T], values: Mapping[str, Any], *, source: str, missing: Any = dataclasses.MISSING) -> T:
    """Build a dataclass of settings from nested tables; what they do not name keeps its default.

    A field without a default that is not named becomes `missing`.

    Raises:
        ConfigError: every unknown key (with the nearest spelling) and every impossible value, at once.
    """
    mistakes: list[str] = []
    with checked_together():
        made: T = _build(kind, values, "", mistakes, missing)
    mistakes += mistakes_in(made)
    if mistakes:
        raise ConfigError(invalid(mistakes, source))
    return made


def differences(was: Compression, now: Compression) -> list[str]:
    """Return a line for each setting that differs: its name, what it was, what it is."""
    before, after = (dict(_leaves(tomllib.loads(to_toml(job)))) for job in (was, now))
    tables = () if was.method.name == now.method.name else (f"{was.method.name}.", f"{now.method.name}.")
    return [
        f"{name} was {_said(before.get(name))}, is {_said(after.get(name))}"
        for name in dict.fromkeys([*after, *before])
        if before.get(name) != after.get(name) and not name.startswith(tables or "?")
    ]


def _leaves(table: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in table.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def flat(settings: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield each setting's dotted name and value."""
    for f in fields(settings):
        value, name = getattr(settings, f.name), prefix + f.name
        if is_dataclass(value):
            yield from flat(value, name + ".")
        else:
            yield name, value


def _said(value: Any) -> str:
    return "not set" if value is None else repr(value)


def _without_none(values: dict[str, Any]) -> dict[str, Any]:
    return {
        name: _without_none(value) if isinstance(value, dict) else value
        for name, value in values.items()
        if value is not None
    }


def _build(kind: Any, values: Mapping[str, Any], prefix: str, mistakes: list[str], missing: Any) -> Any:
    hints = get_type_hints(kind, include_extras=True)
    known = {f.name: f for f in fields(kind) if f.init}
    needed = dataclasses.MISSING
    chosen: dict[str, Any] = {
        name: missing for name, f in known.items() if f.default is needed and f.default_factory is needed
    }
    for key, value in values.items():
        if key not in known:
            mistakes.append(f"there is no setting {prefix + key!r}{_nearest(key, kind)}")
        elif not is_dataclass(plain(hints[key])):
            chosen[key] = _spelled(hints[key], value)
        elif isinstance(value, Mapping):
            if (inside := _build(plain(hints[key]), value, f"{prefix}{key}.", mistakes, missing)) is not None:
                chosen[key] = inside
        else:
            mistakes.append(f"{prefix}{key} must be a table, but got {value!r}")
    try:
        return kind(**chosen)
    except UnderstudyError as error:  # of a value that is no setting of a method, such as a goal
        mistakes.append(str(error))
        return None


def _nearest(key: str, kind: Any) -> str:
    """Suggest a setting of that table, else one of a table inside it."""
    hints = get_type_hints(kind)
    inside = (f"{name}.{f.name}" for name, hint in hints.items() if is_dataclass(hint) for f in fields(hint))
    leaves = {dotted.rpartition(".")[2]: dotted for dotted in inside}
    nearest = difflib.get_close_matches(key, leaves, n=1)
    return did_you_mean(key, hints) or (f" (did you mean {leaves[nearest[0]]!r}?)" if nearest else "")


def _spelled(hint: Any, value: Any) -> Any:
    """Return a value of a file as a setting has it; what does not fit stays as it is, to be found by the check."""
    kind = plain(hint)
    if get_origin(kind) is tuple and isinstance(value, list):
        return tuple(_spelled(get_args(kind)[0], item) for item in value)
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if kind is Path and isinstance(value, str):
        return Path(value)
    # An amount of a goal is a text, but a bare number is as good.
    return str(value) if kind is str and number else float(value) if kind is float and number else value
