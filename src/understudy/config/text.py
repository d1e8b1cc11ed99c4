"""Settings as text: TOML both ways, every mistake at once, what differs between two of them. No torch.

`Settings` is `Compression` as flags and files spell it: the method by name, with a table for each.
"""

from __future__ import annotations

import dataclasses
import difflib
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

import tomli_w

from understudy.config.checked import Checked, checked_together, invalid, mistakes_in, plain
from understudy.config.job import Compression
from understudy.config.methods import N2N, ArchComp, Decore, Method, OptunaSearch, RandomSearch, UniformWidth
from understudy.config.training import Augmentation, Candidates, Device, Final
from understudy.core.errors import ConfigError, UnderstudyError, did_you_mean
from understudy.core.goal import Goal

T = TypeVar("T")
MethodName = Literal["n2n", "decore", "archcomp", "random", "optuna", "uniform"]
METHODS: dict[MethodName, type[Method]] = {
    "n2n": N2N,
    "decore": Decore,
    "archcomp": ArchComp,
    "random": RandomSearch,
    "optuna": OptunaSearch,
    "uniform": UniformWidth,
}


@dataclass(frozen=True, kw_only=True)
class Settings(Checked):
    """The settings of a compression, as flags and files spell them."""

    method: MethodName = "n2n"
    """How students are found: n2n and archcomp search, decore prunes in training; the others are yardsticks."""
    seed: int = 0
    """Of the search and of every student in it."""
    goal: Goal = field(default_factory=Goal)
    """What is wanted of the student."""
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
    augmentation: Augmentation = field(default_factory=Augmentation)
    """How training images are varied, for candidates and final students."""
    candidates: Candidates = field(default_factory=Candidates)
    """How proposals are evaluated."""
    final: Final = field(default_factory=Final)
    """How the best are trained in the end."""
    device: Device = field(default_factory=Device)
    """Where things run."""

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
        shared = {f.name: getattr(self, f.name) for f in fields(Compression) if f.name != "method"}
        return Compression(method=getattr(self, self.method), **shared)

    @classmethod
    def of(cls, compression: Compression) -> Settings:
        """Return the settings of a compression."""
        name = next(name for name, kind in METHODS.items() if isinstance(compression.method, kind))
        shared: dict[str, Any] = {
            f.name: getattr(compression, f.name) for f in fields(Compression) if f.name != "method"
        }
        shared[name] = compression.method
        return cls(method=name, **shared)

    def to_toml(self) -> str:
        """Return these settings as TOML, with the table of the chosen method alone."""
        values = asdict(self)
        for name in METHODS:
            if name != self.method:
                del values[name]
        return tomli_w.dumps(_without_none(values))


def expected_students(method: Method) -> int:
    """Return how many students a method proposes, those that it proposes twice included."""
    if isinstance(method, N2N):
        return (method.removal_updates + method.shrinkage_updates + method.refinement_updates) * method.rollouts
    if isinstance(method, Decore):
        return 1
    return method.students


def read_toml(path: Path) -> dict[str, Any]:
    """Return what a TOML file says.

    Raises:
        ConfigError: there is no such file, or it is not TOML.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"a settings file must be readable, but {path} is not: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"a settings file must be TOML, but {path} is not: {error}") from error


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


def differences(was: T, now: T) -> list[str]:
    """Return a line for each setting that differs: its name, what it was, what it is."""
    after = dict(flat(now))
    return [f"{name} was {_said(value)}, is {_said(after[name])}" for name, value in flat(was) if value != after[name]]


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
