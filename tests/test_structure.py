"""Rules about the whole: arrows between files, what loads torch, public names, sizes, what is never written."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from types import ModuleType

import pytest

import understudy

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "src" / "understudy"
SOURCES = sorted(PACKAGE.rglob("*.py"))

PUBLIC = {
    "Allocate",
    "ArchComp",
    "Architecture",
    "Augmentation",
    "Candidates",
    "Compression",
    "Cost",
    "Data",
    "Decore",
    "Device",
    "Evaluation",
    "Final",
    "Free",
    "Goal",
    "Method",
    "N2N",
    "Objective",
    "OptunaSearch",
    "Problem",
    "RandomSearch",
    "Result",
    "Searcher",
    "Space",
    "Teaching",
    "Training",
    "UnderstudyError",
    "UniformWidth",
    "Widths",
    "analyse",
    "build",
    "compress",
    "errors",
    "load_student",
    "load_teacher",
    "paper",
    "predict",
    "prove",
    "rebuild",
    "teach",
    "zoo",
}

# Folder -> the folders that it may see besides itself. `config` and what is above it in the list need no torch.
FOLDERS: dict[str, list[str]] = {
    "core": [],
    "config": ["core"],
    "graph": ["core", "config"],
    "surgery": ["core", "config", "graph"],
    "cost": ["core", "config", "graph", "surgery"],
    "proof": ["core", "config", "graph", "surgery", "cost"],
    "data": ["core", "config"],
    "models": ["core", "config", "graph", "surgery", "data"],
    "training": ["core", "config", "graph", "surgery", "cost", "data", "models"],
    "methods": ["core", "config"],
    "runs": ["core", "config"],
    "report": ["core", "config", "methods", "runs"],
    "export": ["core", "config", "graph", "surgery", "cost", "data", "models"],
    "testing": ["core", "config", "methods"],
    "jobs": [
        "core",
        "config",
        "graph",
        "surgery",
        "cost",
        "proof",
        "data",
        "models",
        "training",
        "methods",
        "runs",
        "report",
        "export",
    ],
}
# The package itself offers names of every folder, and nobody below the command line imports it.
TOP = {"cli", "", "__main__"}


def name_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


def is_typing_only(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)


def imports_of(path: Path) -> Iterator[str]:
    """Yield the modules of ours that a file imports when it runs, wherever in the file."""
    modules = {name_of(source) for source in SOURCES}
    waiting: list[ast.AST] = [ast.parse(path.read_text())]
    while waiting:
        node = waiting.pop()
        if is_typing_only(node):
            continue
        waiting.extend(ast.iter_child_nodes(node))
        found: list[str] = []
        if isinstance(node, ast.Import):
            found = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}:{node.lineno} imports relatively"
            found = [f"{node.module}.{alias.name}" for alias in node.names]
        for name in found:
            inner = name.removeprefix("understudy").removeprefix(".")
            if name.split(".")[0] == "understudy":
                yield inner if inner in modules else inner.rpartition(".")[0]


def folder_of(module: str) -> str:
    return module.partition(".")[0]


def test_every_folder_has_its_arrows() -> None:
    assert {folder_of(name_of(path)) for path in SOURCES} - TOP == set(FOLDERS)


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_imports_between_folders_point_one_way(path: Path) -> None:
    module = name_of(path)
    seen = {folder_of(name) for name in imports_of(path)}
    if folder_of(module) in TOP:
        assert seen - {*FOLDERS, *({"cli", ""} if folder_of(module) in ("cli", "__main__") else set())} == set()
    else:
        assert seen - {folder_of(module), *FOLDERS[folder_of(module)]} == set()


def test_imports_between_files_have_no_circle() -> None:
    waiting = {name_of(path): set(imports_of(path)) - {name_of(path)} for path in SOURCES}
    while free := {module for module, needs in waiting.items() if not needs}:
        waiting = {module: needs - free for module, needs in waiting.items() if module not in free}
    assert waiting == {}


def test_what_promises_to_load_without_torch_does() -> None:
    promised = [
        name_of(path) for path in SOURCES if "No torch" in (ast.get_docstring(ast.parse(path.read_text())) or "")
    ]
    assert {"core.evaluation", "core.goal", "config.text", "runs.store", "runs.workers.local"} <= set(promised)
    modules = ["", "core.errors", "core.architecture", "methods.base", "jobs.search", *promised]
    code = (
        "import sys, importlib\n"
        f"for name in {modules}:\n"
        "    importlib.import_module(f'understudy.{name}'.rstrip('.'))\n"
        "    print(name, *[heavy for heavy in ('torch', 'optuna', 'sklearn') if heavy in sys.modules])\n"
    )
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert [line.rstrip() for line in loaded.splitlines()] == modules


def test_public_names_are_the_listed_ones() -> None:
    assert sorted(understudy.__all__) == sorted(PUBLIC)
    assert dir(understudy) == sorted({*PUBLIC, "__version__"})


@pytest.mark.parametrize("name", sorted(PUBLIC))
def test_public_names_can_be_loaded(name: str) -> None:
    found = getattr(understudy, name)
    module = found.__name__ if isinstance(found, ModuleType) else found.__module__
    assert module.startswith("understudy.")


def test_unknown_names_are_attribute_errors() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Architectur'"):
        _ = understudy.Architectur


def length(function: ast.FunctionDef) -> int:
    """Lines of a function but for its docstring."""
    documented = ast.get_docstring(function) is not None
    start = (function.body[0].end_lineno or 0) + 1 if documented else function.lineno
    return (function.end_lineno or 0) - start + 1


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_sizes(path: Path) -> None:
    text = path.read_text()
    assert text.count("\n") <= 450
    functions = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.FunctionDef)]
    assert [function.name for function in functions if length(function) > 50] == []
    for function in functions:
        positional = [a for a in function.args.posonlyargs + function.args.args if a.arg not in ("self", "cls")]
        assert len(positional) <= 6, f"{function.name} has more than 6 positional parameters"


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_nothing_unpickles_files(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call):
            text = ast.unparse(node)
            called = ast.unparse(node.func)
            assert called != "pickle.load" and "allow_pickle=True" not in text
            assert called != "torch.load" or "weights_only=True" in text
            # Between a driver and the processes that it started itself.
            assert called != "pickle.loads" or name_of(path).startswith("runs.workers")


# Taken apart, so that this file does not hold what it looks for.
FORBIDDEN = {
    "a path of one machine": r"(?<![\w.])/(" + "|".join(["wo" + "rk", "ho" + "me", "ro" + "ot", "Us" + "ers"]) + r")/",
    "a package index": r"(extra-)?index" + r"-url|trusted" + r"-host|files\.python" + r"hosted",
    "a secret": r"BEGIN [A-Z ]*PRIVATE " + r"KEY|gh[pousr]_[A-Za-z0-9]{36}|AKIA[0-9A-Z]{16}",
}


SUFFIXES = {"", ".md", ".py", ".toml", ".txt", ".cfg", ".yml", ".json", ".ipynb"}


def texts() -> Iterator[Path]:
    folders = (ROOT / name for name in ("src", "tests", "docs", "examples", "benchmarks", ".ci"))
    for path in chain(ROOT.iterdir(), *(folder.rglob("*") for folder in folders if folder.exists())):
        if path.is_file() and path.name != ".git" and path.suffix in SUFFIXES:
            yield path


def test_no_file_names_what_it_should_not() -> None:
    paths = list(texts())
    assert len(paths) > 20
    for path in paths:
        for what, pattern in FORBIDDEN.items():
            found = re.search(pattern, path.read_text())
            assert not found, f"{path.relative_to(ROOT)} names {what}: {found and found[0]!r}"
