"""Help, from the fields of a command and their docstrings: the common flags, or all of them. No torch."""

from __future__ import annotations

import ast
import inspect
import itertools
import textwrap
import types
from collections.abc import Iterator
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from rich.text import Text

from understudy.cli.common import Command

_FLAGS_WIDE = 30  # columns of the flags; the text stands beside them
_WIDEST = 110
_TYPES = {int: "INT", float: "FLOAT"}


@dataclass(frozen=True)
class Flag:
    """One flag of a command."""

    field: str  # dotted name of the field
    spelled: str  # as it is typed
    text: str
    default: str  # empty where saying it would tell nothing


def help_text(name: str, kind: type[Command], *, everything: bool, width: int) -> Text:
    """Return the help of a command; `everything` lists its flags by the tables of a job file."""
    flags = {flag.field: flag for flag in flags_of(kind)}
    short = kind.sections if kind.sections and not everything else ()
    sections = dict(short) if short else _tables(kind, flags)
    width = min(width, _WIDEST)
    shown = Text(f"usage: understudy {name} {_usage(flags)}\n\n")
    shown.append("\n".join(_filled(inspect.getdoc(kind) or "", width)) + "\n")
    for heading, names in sections.items():
        shown.append(f"\n{heading}\n", style="bold")
        for field in names:
            shown.append("\n".join(_rows(flags[field], width)) + "\n")
    if short:
        rest = len(flags) - sum(map(len, sections.values()))
        shown.append(f"\n--help-all shows the other {rest} settings as well.\n")
    return shown


def example(kind: type[Command]) -> str:
    """Return the first example of a command's docstring, all its lines."""
    first, *more = (inspect.getdoc(kind) or "").partition("Examples:\n")[2].splitlines()
    return "\n".join([first, *itertools.takewhile(lambda line: line.startswith("    "), more)])


def flags_of(kind: type, prefix: str = "", flag: str = "") -> Iterator[Flag]:
    """Yield the flags of a class of settings, in the order of its fields."""
    hints, texts = get_type_hints(kind, include_extras=True), _docstrings(kind)
    for f in fields(kind):
        hint, marks = _bare(hints[f.name])
        given = next((mark.name for mark in marks if getattr(mark, "name", None) is not None), f.name)
        spelled = f"{flag}{given}".replace("_", "-")
        if is_dataclass(hint):
            default = _default(f)
            assert isinstance(hint, type)
            yield from _with_defaults(hint, default, f"{prefix}{f.name}.", f"{spelled}." if given else flag)
            continue
        text, default = texts[f.name], _default(f)
        yield Flag(f"{prefix}{f.name}", _spelled(spelled, hint, marks), text, _said(default, text))


def _with_defaults(kind: type, values: Any, prefix: str, flag: str) -> Iterator[Flag]:
    """Yield the flags of a nested table, whose defaults are those of the table that it stands in."""
    for found in flags_of(kind, prefix, flag):
        value = values
        for part in found.field.removeprefix(prefix).split("."):
            value = getattr(value, part)
        # What is said of a setting that is left out does not hold in a table that has a default of its own.
        text = found.text if value is None else found.text.partition(" Left out: ")[0]
        yield Flag(found.field, found.spelled, text, _said(value, text))


def _default(f: Field[Any]) -> Any:
    return f.default_factory() if f.default_factory is not MISSING else f.default


def _bare(hint: Any) -> tuple[Any, tuple[Any, ...]]:
    """Return the type without None, and what it is annotated with."""
    if get_origin(hint) is Annotated:
        inner, marks = _bare(get_args(hint)[0])
        return inner, (*hint.__metadata__, *marks)
    if get_origin(hint) in (Union, types.UnionType):
        return _bare(next(option for option in get_args(hint) if option is not type(None)))
    return hint, ()


def _spelled(name: str, hint: Any, marks: tuple[Any, ...]) -> str:
    if "Positional" in map(str, marks):
        return name.upper()
    if hint is bool:
        alone = "FlagCreatePairsOff" in map(str, marks)
        head, dot, leaf = name.rpartition(".")
        return f"--{name}" if alone else f"--{name}, --{head}{dot}no-{leaf}"
    return f"--{name} {_metavar(name, hint)}"


def _metavar(name: str, hint: Any) -> str:
    if get_origin(hint) is Literal:
        return "|".join(map(str, get_args(hint)))
    if get_origin(hint) is tuple:
        return f"{_metavar(name, get_args(hint)[0])} ..."
    return _TYPES.get(hint) or ("AMOUNT" if "." not in name and name in _AMOUNTS else "TEXT" if hint is str else "PATH")


_AMOUNTS = {"params", "macs", "size-mb", "memory-mb", "latency-ms"}


def _said(default: Any, text: str) -> str:
    if default is MISSING:
        return "required"
    if default is None or default is False or default in ((), "") or "efault" in text:
        return ""
    return f"default: {' '.join(map(str, default)) if isinstance(default, tuple) else default}"


def _docstrings(kind: type) -> dict[str, str]:
    """Return the docstring of each field: the text that follows it in the source."""
    found: dict[str, str] = {}
    for parent in reversed(kind.__mro__[:-1]):
        (body,) = ast.parse(textwrap.dedent(inspect.getsource(parent))).body
        assert isinstance(body, ast.ClassDef)
        for line, after in zip(body.body, body.body[1:], strict=False):
            if isinstance(line, ast.AnnAssign) and isinstance(after, ast.Expr) and isinstance(line.target, ast.Name):
                found[line.target.id] = " ".join(str(ast.literal_eval(after.value)).split())
    return found


def _usage(flags: dict[str, Flag]) -> str:
    required = [flag.spelled for flag in flags.values() if flag.default == "required"]
    first = [
        flag.spelled for flag in flags.values() if not flag.spelled.startswith("--") and flag.default != "required"
    ]
    return " ".join([*required, *(f"[{name}]" for name in first), "[options]"])


def _tables(kind: type, flags: dict[str, Flag]) -> dict[str, tuple[str, ...]]:
    """Return all flags by table; those of none come first."""
    found: dict[str, list[str]] = {}
    for name in flags:
        found.setdefault(name.rpartition(".")[0], []).append(name)
    return {f"[{table}]" if table else "Options": tuple(names) for table, names in found.items()}


def _filled(text: str, width: int) -> Iterator[str]:
    """Yield a docstring's lines, each paragraph filled; lines that are indented, which are commands, stay."""
    for number, paragraph in enumerate(text.split("\n\n")):
        yield from [""] if number else []
        prose = [line for line in paragraph.splitlines() if not line.startswith(" ")]
        yield from textwrap.wrap(" ".join(prose), width, break_on_hyphens=False)
        yield from (line for line in paragraph.splitlines() if line.startswith(" "))


def _rows(flag: Flag, width: int) -> Iterator[str]:
    text = f"{flag.text} [{flag.default}]" if flag.default else flag.text
    lines = textwrap.wrap(text, max(30, width - _FLAGS_WIDE - 4), break_on_hyphens=False)
    spelled = f"  {flag.spelled}"
    if len(spelled) > _FLAGS_WIDE + 2:
        yield spelled
        spelled = ""
    for i, line in enumerate(lines or [""]):
        yield f"{spelled if i == 0 else '':<{_FLAGS_WIDE + 3}} {line}".rstrip()
