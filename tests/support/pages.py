"""The code of the pages: every block of README.md and docs/, and how its commands are run in seconds."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from understudy.cli import main

ROOT = Path(__file__).parent.parent.parent
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
HISTORY = ROOT / "docs" / "history.md"  # commands of earlier versions

_PINNED = ["--device.device=cpu", "--device.precision=fp32", "--device.memory-format=contiguous", "--device.threads=1"]
_SHORT = {
    "compress": [
        *("--widths.round-to=1", "--widths.min-width=2", "--candidates.training.epochs=1", "--candidates.examples=128"),
        *("--final.students=1", "--final.training.epochs=1", "--untrained", "--device.workers=0", *_PINNED),
    ],
    "n2n": ["--n2n.shrinkage-updates=1", "--n2n.rollouts=2"],
    "decore": ["--decore.training.epochs=1"],
    "teach": ["--training.epochs=1", *_PINNED],
}
_DROPPED = ("--score-drop", "--score", "--latency-ms")  # what so short a training cannot promise


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    page: Path
    language: str
    title: str
    text: str


def blocks(page: Path) -> list[Block]:
    """Return the fenced blocks of a page, in order."""
    pattern = r'^( *)```(\w*)(?: title="([^"\n]*)")?\n(.*?)^\1```$'
    found = re.findall(pattern, page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    return [Block(page, language, title, textwrap.dedent(text)) for _, language, title, text in found]


def commands(block: Block) -> Iterator[list[str]]:
    """Yield the words of each command of a block, comments left out; "..." stands for more of them."""
    for line in block.text.replace("\\\n", " ").splitlines():
        if words := shlex.split(line, comments=True):
            yield words


def run_short(words: list[str], folder: Path) -> int:
    """Run a command in a folder, the present one, with settings that need seconds; return its exit code."""
    if words[0] != "understudy":
        shell = f'PATH={shlex.quote(str(Path(sys.executable).parent))}:"$PATH"; {shlex.join(words)}'
        return subprocess.run(["bash", "-c", shell], cwd=folder).returncode
    short = _SHORT.get(words[1], [])
    if words[1] == "compress":
        method = words[words.index("--method") + 1] if "--method" in words else "n2n"
        short = [*short, *_SHORT.get(method, [])]
    names, kept, skipped = [flag.partition("=")[0] for flag in short], [], False
    for word in words[1:]:
        if not skipped and word.partition("=")[0] not in (*names, *_DROPPED):
            kept.append(word)
        skipped = not skipped and word in (*names, *_DROPPED)
    return main([*kept, *short])


def run_page(page: Path, folder: Path) -> list[str]:
    """Write the files of a page to a folder and run its commands there, all in one other process, in their order.

    Blocks with a title but no Python are examples. What a test checks while it runs would take as long again.

    Returns:
        The first word after `understudy` or `python` of each command.
    """
    args = [sys.executable, "-m", "tests.support.pages", str(page)]
    path = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "src")])}
    done = subprocess.run(args, cwd=folder, env=path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return [line.removeprefix("ran ") for line in done.stdout.splitlines() if line.startswith("ran ")]


def _run_here(page: Path) -> None:
    for block in blocks(page):
        if block.language == "python" and block.title:
            Path(block.title).write_text(block.text, encoding="utf-8")
        elif block.language == "bash" and not block.title:
            for words in commands(block):
                if words[0] in ("pip", "cd", "make") or words[1] == "--help":
                    continue
                code = run_short(words, Path.cwd())
                # So short a training may miss a budget (1); any other code is an error.
                assert code in ((0, 1) if words[1] in ("compress", "resume") else (0,)), (words, code)
                print(f"ran {words[1]}", flush=True)


if __name__ == "__main__":
    _run_here(Path(sys.argv[1]))
