"""A model's own Python file: copied into folders as text, and run only where the caller says so."""

from __future__ import annotations

import ast
import importlib.util
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from understudy.core.errors import ModelError, did_you_mean
from understudy.core.files import read_text, write_whole

FOLDER = "code"


def is_code(name: str) -> bool:
    """Return whether a model's name is FILE.py:FACTORY."""
    path, colon, _ = name.rpartition(":")
    return bool(colon) and path.endswith(".py")


def absolute(name: str) -> str:
    """Return a model's name with the whole path of its file, if it has one."""
    path, _, factory = name.rpartition(":")
    return f"{Path(path).resolve()}:{factory}" if is_code(name) else name


def portable(name: str) -> str:
    """Return a model's name as a folder holds it, in which `write_code` leaves the file."""
    path, _, factory = name.rpartition(":")
    return f"{FOLDER}/{Path(path).name}:{factory}" if is_code(name) else name


def code_of(name: str) -> dict[str, str]:
    """Return the texts, by file name, of a model's file, if it has one, and of the files beside it that it imports.

    Raises:
        ModelError: a file cannot be read.
    """
    if not is_code(name):
        return {}
    path = Path(name.rpartition(":")[0])
    texts: dict[str, str] = {}
    waiting = [path]
    while waiting:
        file = waiting.pop()
        if file.name not in texts and file.is_file():
            texts[file.name] = read_text(file, ModelError)
            waiting += [path.parent / f"{module}.py" for module in _imported(texts[file.name])]
    return texts


def not_copied(name: str) -> list[str]:
    """Return the packages beside a model's file that it imports: folders, which `code_of` leaves out."""
    if not is_code(name):
        return []
    beside = Path(name.rpartition(":")[0]).parent
    modules = {module for text in code_of(name).values() for module in _imported(text)}
    return sorted(module for module in modules if (beside / module).is_dir() and not (beside / f"{module}.py").exists())


def write_code(folder: Path, texts: Mapping[str, str]) -> None:
    """Write the texts into a folder's own folder for code."""
    for name, text in texts.items():
        write_whole(folder / FOLDER / name, text)


def read_code(folder: Path) -> dict[str, str]:
    """Return the texts that `write_code` left, by name."""
    return {file.name: read_text(file, ModelError) for file in sorted((folder / FOLDER).glob("*.py"))}


def allowed(folder: Path, saved: str, *, trust_code: bool, model: str | None) -> str:
    """Return the name of the model that a folder names, to be made.

    Args:
        folder: of a run, a teacher or a student.
        saved: the name in it.
        trust_code: whether code in the folder may be run.
        model: the caller's own name for the model; what it says is run, not what the folder says.

    Raises:
        ModelError: it is code of the folder, and the caller has not allowed it; the message names the file.
    """
    if model is not None:
        return absolute(model)
    if not is_code(saved):
        return saved
    path, _, factory = saved.rpartition(":")
    if Path(path).parts != (FOLDER, Path(path).name):
        raise ModelError(f"a folder's own code must lie in its {FOLDER}/, but {folder} names {path}: give --model")
    if not trust_code:
        raise ModelError(
            f"{folder} needs {folder / path}, which is Python code and is not run unless you allow it. Read it, "
            f"then allow it: --trust-code (in Python: trust_code=True); or name a file of your own, where the command "
            f"has that flag: --model FILE.py:{factory} (model=...); or, in Python, give the module itself"
        )
    return f"{(folder / path).resolve()}:{factory}"


def import_factory(path: Path, factory: str) -> Any:
    """Run a file and return the function in it.

    Raises:
        ModelError: there is no such file or function, or the file fails.
    """
    if not path.is_file():
        raise ModelError(f"a model of your own must be in a file, but there is no {path}{_near(path)}")
    module = _import_file(path.resolve())
    made = getattr(module, factory, None)
    if not callable(made):
        raise ModelError(f"{path} must have a function {factory!r}{did_you_mean(factory, vars(module))}, but has none")
    return made


def _near(path: Path) -> str:
    beside = [str(path.parent / file.name) for file in path.parent.glob("*.py")] if path.parent.is_dir() else []
    return did_you_mean(str(path), beside)


def _import_file(path: Path) -> Any:
    """Import the file by its own name, so that worker processes find the classes in it, too."""
    folder = str(path.parent)
    if folder not in sys.path:
        sys.path.append(folder)  # last: nothing in that folder may stand in for an installed package
    importlib.invalidate_caches()
    if (known := _same_text(path)) is not None:
        return known
    try:
        found = importlib.util.find_spec(path.stem)
    except ValueError:  # a module that was made by hand
        found = None
    if found is None or found.origin is None or not _same_file(Path(found.origin), path):
        other = "" if found is None else f": {found.origin}"
        raise ModelError(
            f"a model file must have a name of its own, but there is another {path.stem!r}{other}; rename {path.name}"
        )
    try:
        return importlib.import_module(path.stem)
    except Exception as error:  # whatever a file may do
        raise ModelError(f"{path} must be importable, but is not: {type(error).__name__}: {error}") from error


def _same_text(path: Path) -> Any:
    """Return the module that was imported from a copy of the file, if there is one."""
    known = sys.modules.get(path.stem)
    origin = getattr(known, "__file__", None)
    if known is None or origin is None or os.path.realpath(origin) == str(path):
        return None
    try:
        return known if Path(origin).read_bytes() == path.read_bytes() else None
    except OSError:  # it was moved
        return None


def _same_file(one: Path, other: Path) -> bool:
    return one.resolve() == other or (one.is_file() and one.read_bytes() == other.read_bytes())


def _imported(text: str) -> Iterator[str]:
    """Yield the first names of what a file imports."""
    try:
        nodes = list(ast.walk(ast.parse(text.removeprefix("\ufeff"))))  # some editors begin a file with that mark
    except SyntaxError:  # said when it is run
        return
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
            yield node.module.partition(".")[0]
