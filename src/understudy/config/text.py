"""Settings as text: TOML both ways, every mistake at once, what differs between two of them. No torch.

`Settings` is `Compression` as flags and files spell it: the method by name, with a table for each.
"""

from __future__ import annotations

import dataclasses
import difflib
import tomllib
import types
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import tomli_w

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

_AT_LEAST_ONE = {
    *("epochs", "batch_size", "students", "rollouts", "draws_per_rollout", "hidden", "workers"),
    *("round_to", "min_width", "depths"),
    *("start", "samples", "channels", "draws", "starts"),
}
_SHARES = {
    *("label_smoothing", "baseline_decay", "stop_below", "stage_one_share", "revisit"),
    *("budget_by", "importance", "pooled", "pooled_layers"),
}


@dataclass(frozen=True, kw_only=True)
class Settings:
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
    made: T = _build(kind, values, "", mistakes, missing)
    if mistakes:
        raise ConfigError(f"settings must be known and possible, but in {source}:\n  " + "\n  ".join(mistakes))
    return made


def check(settings: Any) -> None:
    """Refuse numbers that cannot be meant, in any dataclass of settings.

    Raises:
        ConfigError: every impossible number, at once.
    """
    values = dict(flat(settings))
    mistakes = [text for name, value in values.items() if (text := _impossible(name, value))]
    updates = [f"n2n.{stage}_updates" for stage in ("removal", "shrinkage", "refinement")]
    if all(values.get(name) == 0 for name in updates):
        mistakes.append(f"one of {', '.join(updates)} must be at least 1")
    if values.get("n2n.rank_by") and (values["n2n.draws_per_rollout"] == 1 or values["n2n.granularity"] == "layers"):
        mistakes.append("n2n.rank_by needs n2n.draws_per_rollout above 1 and n2n.granularity 'units'")
    if mistakes:
        raise ConfigError("settings must be possible, but " + "; ".join(mistakes))


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


def _impossible(name: str, value: Any) -> str:
    leaf = name.rpartition(".")[2]
    if leaf == "factors" and not (value and all(0 < share <= 1 for share in value)):
        return f"{name} must be shares in 0..1, at least one, but got {value}"
    if isinstance(value, bool) or not isinstance(value, (int, float)) or leaf == "keep_bias":
        return ""
    least = 1 if leaf in _AT_LEAST_ONE else 0
    if not value >= least:
        return f"{name} must be at least {least}, but got {value}"
    return f"{name} must be in 0..1, but got {value}" if leaf in _SHARES and value > 1 else ""


def _build(kind: Any, values: Mapping[str, Any], prefix: str, mistakes: list[str], missing: Any) -> Any:
    hints = get_type_hints(kind)
    known = {f.name: f for f in fields(kind) if f.init}
    chosen: dict[str, Any] = {
        name: missing
        for name, f in known.items()
        if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
    }
    for key, value in values.items():
        if key not in known:
            mistakes.append(f"there is no setting {prefix + key!r}{_nearest(key, kind)}")
        elif is_dataclass(hints[key]) and isinstance(value, Mapping):
            chosen[key] = _build(hints[key], value, f"{prefix}{key}.", mistakes, missing)
        else:
            chosen[key] = _value(hints[key], value, prefix + key, mistakes)
    try:
        return kind(**chosen)
    except UnderstudyError as error:
        mistakes.append(str(error))
    except TypeError:  # a value of the wrong type, which is already among the mistakes
        assert mistakes
    return None


def _nearest(key: str, kind: Any) -> str:
    """Suggest a setting of that table, else one of a table inside it."""
    hints = get_type_hints(kind)
    inside = (f"{name}.{f.name}" for name, hint in hints.items() if is_dataclass(hint) for f in fields(hint))
    leaves = {dotted.rpartition(".")[2]: dotted for dotted in inside}
    nearest = difflib.get_close_matches(key, leaves, n=1)
    return did_you_mean(key, hints) or (f" (did you mean {leaves[nearest[0]]!r}?)" if nearest else "")


def _value(hint: Any, value: Any, name: str, mistakes: list[str]) -> Any:
    if get_origin(hint) in (Union, types.UnionType):
        hint = next(option for option in get_args(hint) if option is not type(None))
    if get_origin(hint) is Literal:
        fits, wanted = value in get_args(hint), "one of " + ", ".join(map(str, get_args(hint)))
    elif get_origin(hint) is tuple:
        inner = get_args(hint)[0]
        fits = isinstance(value, list) and all(_fits(inner, item) for item in value)
        value, wanted = tuple(map(inner, value)) if fits else value, f"a list of {inner.__name__}"
    elif is_dataclass(hint):
        fits, wanted = False, "a table"
    else:
        fits, wanted = _fits(hint, value), hint.__name__
        value = hint(value) if fits else value
    if not fits:
        mistakes.append(f"{name} must be {wanted}, but got {value!r}")
    return value


def _fits(hint: Any, value: Any) -> bool:
    if hint is bool:
        return isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if hint is float:
        return _is_number(value)
    # An amount of a goal is a text, but a bare number is as good.
    return isinstance(value, str) or (hint is str and _is_number(value))


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
