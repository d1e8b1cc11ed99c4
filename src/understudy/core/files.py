"""Files that are whole or not there. No torch."""

from __future__ import annotations

import os
from pathlib import Path

_PARTIAL = ".partial"


def write_whole(path: Path, content: bytes | memoryview | str) -> None:
    """Write a file that is whole or not there, also after a power cut and with several writers."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}{_PARTIAL}")
    with partial.open("wb") as file:
        file.write(content.encode() if isinstance(content, str) else content)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def sweep(folder: Path) -> None:
    """Remove what writers that were killed left in a folder and below it; nobody may be writing there."""
    for partial in folder.rglob(f"*{_PARTIAL}"):
        partial.unlink()
