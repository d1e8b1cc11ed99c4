"""The guard at the door of a folder that is written: it is ours, and nobody else writes there. No torch."""

from __future__ import annotations

import errno
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from understudy.core.errors import MachineError, RunError, UnderstudyError
from understudy.core.files import FULL, LARGER, path_of, sweep

try:
    import fcntl
except ImportError:  # Windows: nothing there keeps two drivers out of one folder
    fcntl = None  # type: ignore[assignment]

AGAIN = "the same call or command"  # of Python or of a shell
_LOCK = ".lock"
_LOCK_ATTEMPTS, _LOCK_PAUSE = 6, 0.1  # and seconds between two of them
_FULL_TEXTS = ("No space left on device", "database or disk is full")


@contextmanager
def claimed(folder: Path, *, markers: Sequence[str], again: Callable[[], str]) -> Iterator[None]:
    """Make a folder and keep others out of it; inside, a full or closed disk is a RunError.

    Args:
        folder: a new or empty one, or one that holds one of the files `markers`.
        markers: the files that tell whose folder it is, the most telling one first.
        again: says, when it is interrupted, how it is continued.

    Raises:
        RunError: it cannot be written, is in use, is another's, or the disk is full.
    """
    new = not folder.exists()
    with _guard(folder, again):
        lock = _locked(folder)
        try:
            _check_contents(folder, markers)
            sweep(folder)
            yield
        finally:
            if new and not any(path.name != _LOCK for path in folder.iterdir()):  # refused before anything was done
                shutil.rmtree(folder)
            lock.close()


def refuse_unusable(folder: Path, *, markers: Sequence[str]) -> None:
    """Refuse a folder that `claimed` would refuse, before anything that takes its time; a new one is not made.

    Raises:
        RunError: as `claimed`.
    """
    path_of(folder, "the folder", RunError)
    if folder.exists() or folder.is_symlink():
        with claimed(folder, markers=markers, again=lambda: AGAIN):
            return
    place = next(parent for parent in folder.absolute().parents if parent.exists())
    if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
        raise RunError(f"the folder must be writable, but {folder} cannot be made in {place}")


def _check_contents(folder: Path, markers: Sequence[str]) -> None:
    strangers = [path.name for path in folder.iterdir() if not path.name.startswith(".")]
    if strangers and not set(markers).intersection(strangers):
        held = ", ".join(sorted(strangers)[:3])
        raise RunError(f"the folder must be new, empty or hold a {markers[0]}, but {folder} holds {held}")


def _locked(folder: Path) -> Any:
    """Take the folder; the system gives it back when the file is closed or the process dies."""
    if folder.is_symlink() and not folder.exists():
        raise RunError(f"a folder must be one, but {folder} is a link to {folder.readlink()}, which is not there")
    if folder.exists() and not folder.is_dir():
        raise RunError(f"a folder must be one, but {folder} is a file: give another name, or move that away")
    folder.mkdir(parents=True, exist_ok=True)
    file = (folder / _LOCK).open("ab")
    if fcntl is None:
        return file
    for attempt in range(_LOCK_ATTEMPTS):  # who looks whether it is locked holds it for a moment
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(_LOCK_PAUSE * (attempt + 1 < _LOCK_ATTEMPTS))
        except OSError as error:  # some network file systems, and then SQLite cannot work there either
            file.close()
            raise RunError(
                f"a folder must lie on a file system that has locks, but that of {folder} has none ({error.strerror}): "
                "give a folder on another disk, such as a local one"
            ) from error
        else:
            return file
    file.close()
    raise RunError(f"a folder is written by one process at a time, but {folder} is in use by another")


def is_locked(folder: Path) -> bool:
    """Say whether a process writes there; nothing is changed and no process is refused by that."""
    if fcntl is None:
        return False
    try:
        with (folder / _LOCK).open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # there is none, or it may not be read
        return False
    return False


@contextmanager
def _guard(folder: Path, again: Callable[[], str]) -> Iterator[None]:
    try:
        yield
    except MachineError as error:
        raise type(error)(f"{error}. Nothing that was finished is lost; continue with: {again()}") from error
    except Exception as error:
        reason = _disk_trouble(error, folder, again())
        if reason is None:
            raise
        raise RunError(reason) from error


def _disk_trouble(error: BaseException, folder: Path, again: str) -> str | None:
    causes = [error, *filter(None, (error.__cause__, error.__context__))]
    codes = {cause.errno for cause in causes if isinstance(cause, OSError)}
    texts = " ".join(map(str, causes))
    if codes.intersection(FULL) or any(text in texts for text in _FULL_TEXTS):
        cache = folder / "logits"  # a teacher's folder has none
        way = f"{cache} is a cache and can go, so can runs" if cache.is_dir() else "remove runs"
        return (
            f"no space left on the device that holds {folder}{_free(folder)}. To free some: {way} that you no longer "
            f"need. Nothing that was finished is lost; continue with: {again}"
        )
    if errno.EFBIG in codes:
        return (
            f"a file may have only so many bytes here, but one in {folder} needs more: {LARGER}. Nothing that was "
            f"finished is lost; continue with: {again}"
        )
    if isinstance(error, UnderstudyError):  # it says itself what is wrong with which file
        return None
    own = [cause for cause in causes if isinstance(cause, OSError) and _inside(cause.filename, folder)]
    if own:
        place = own[0].filename2 or own[0].filename  # of a file that moves, where it should go
        return f"the folder must be writable, but {folder} is not: {own[0].strerror} ({place})"
    return None


def _inside(name: Any, folder: Path) -> bool:
    """Say whether that file is in the folder, or is one that the folder lies in."""
    if not isinstance(name, (str, Path)):
        return False
    file, root = Path(name).resolve(), folder.resolve()
    return file.is_relative_to(root) or root.is_relative_to(file)


def _free(folder: Path) -> str:
    with suppress(OSError):
        return f" ({shutil.disk_usage(folder).free / 1e6:.0f} MB free)"
    return ""
