"""Files that are whole or not there, and reading them back. No torch."""

from __future__ import annotations

import errno
import glob
import itertools
import json
import os
import socket
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

try:
    import fcntl
except ImportError:  # Windows: nothing there keeps two writers out of one folder
    fcntl = None  # type: ignore[assignment]

from understudy.core.errors import ArchitectureError, ConfigError, UnderstudyError, a_kind
from understudy.core.written import summed, unsummed

FULL = (errno.ENOSPC, errno.EDQUOT)
LARGER = "raise that limit (ulimit -f)"
_PARTIAL = ".partial"
_SHOWN = 120  # characters of a path
_counter = itertools.count()


def write_whole(path: Path, content: bytes | memoryview | str) -> None:
    """Write a file that is whole or not there, also after a power cut and with several writers on several machines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # A disk may be shared by machines, whose processes have the same numbers.
    writer = f"{socket.gethostname()}-{os.getpid()}-{next(_counter)}"
    partial = path.with_name(f"{path.name}.{writer}{_PARTIAL}")
    try:
        with partial.open("wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except BaseException as error:
        with suppress(OSError):  # the disk may be full: a part of a file is in the way then
            partial.unlink(missing_ok=True)
        if isinstance(error, OSError):
            error.filename = error.filename or str(path)  # what fails as it is written does not know its name
        raise


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Write a JSON object, whole or not at all, with a sum by which `read_json` tells damage."""
    write_whole(path, json.dumps(summed(values), indent=1) + "\n")


def sweep(folder: Path) -> None:
    """Remove what writers that were killed left in a folder and below it; nobody may be writing there."""
    for partial in folder.rglob(f"*{_PARTIAL}"):
        partial.unlink()


@contextmanager
def one_writer(folder: Path, what: str, error: type[UnderstudyError]) -> Iterator[None]:
    """Make a folder and keep other writers of its kind out, for what leaves no file of its own there to lock.

    Raises:
        UnderstudyError: of the kind given, if another one is writing there, or it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise error(trouble_of(e) or str(e)) from e
    if fcntl is None:
        yield
        return
    place = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # of a file system without locks
            try:
                fcntl.flock(place, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as e:
                raise error(
                    f"{what} is written by one process at a time, but another one writes {folder}: let it end, or give "
                    "another folder"
                ) from e
        yield
    finally:
        os.close(place)


def remove(path: Path) -> None:
    """Remove a file, if it is there, with what writers of it that were killed left; nobody may be writing it."""
    path.unlink(missing_ok=True)
    for partial in path.parent.glob(f"{glob.escape(path.name)}.*{_PARTIAL}"):
        partial.unlink()


def path_of(given: Any, called: str, error: type[UnderstudyError]) -> Path:
    """Return what a caller gave as a path, with the home folder for a `~` at its beginning, as a shell has it.

    Raises:
        UnderstudyError: of the kind given, if it is no path, or one that the system does not take.
    """
    if not isinstance(given, str | os.PathLike):
        raise error(f"{called} must be a path, but got {a_kind(given)}")
    path = Path(given)
    with suppress(RuntimeError):  # nobody of that name
        path = path.expanduser()
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):  # who reads it says that there is none
        pass
    except (OSError, ValueError) as e:  # too long, in a circle, out of reach, or with a zero in it
        name = repr(str(path)[:_SHOWN])
        raise error(
            f"{called} must be a path that can be reached, but {name} is not: {getattr(e, 'strerror', e)}"
        ) from e
    return path


def refuse_removed_folder() -> None:
    """Refuse to work in a folder that is gone, in which torch cannot load all of itself, nor processes be started.

    Raises:
        ConfigError: the current folder is gone.
    """
    try:
        Path.cwd()
    except FileNotFoundError as e:
        raise ConfigError(
            "understudy must be called from a folder that exists, but the current folder was removed: go to another "
            "one (cd, or os.chdir in Python)"
        ) from e


def read_text(path: Path, error: type[UnderstudyError]) -> str:
    """Return a text file's content.

    Raises:
        UnderstudyError: of the kind given, if it cannot be read or is no text.
    """
    try:
        return path.read_text(encoding="utf-8")
    except OSError as e:
        raise error(f"{path} must be readable, but is not: {e.strerror or e}") from e
    except UnicodeDecodeError as e:
        raise error(f"{path} must be text in UTF-8, but is damaged at byte {e.start}") from e


def read_json(path: Path, error: type[UnderstudyError]) -> dict[str, Any]:
    """Return the object of a JSON file; one that `write_json` wrote is held against its sum.

    Raises:
        UnderstudyError: of the kind given, if it cannot be read, is no JSON object or is damaged.
    """
    text = read_text(path, error)
    try:
        found = json.loads(text)
    except (json.JSONDecodeError, RecursionError) as e:
        raise error(f"{path} must be a JSON file, but is damaged or cut short: {e}") from e
    if not isinstance(found, dict):
        raise error(f"{path} must hold a JSON object, but holds {type(found).__name__}")
    try:
        return unsummed(found)
    except ValueError as e:
        raise error(f"{path} must be as it was written, but is damaged: {e}") from e


def check_sums(path: Path) -> None:
    """Hold what a zip file, such as torch writes, holds against the sums in it; who reads it may not look at them.

    Raises:
        zipfile.BadZipFile: it is damaged.
    """
    with zipfile.ZipFile(path) as archive:
        if (damaged := archive.testzip()) is not None:
            raise zipfile.BadZipFile(f"{damaged} in {path} is not as it was written")


@contextmanager
def understood(path: Path, error: type[UnderstudyError]) -> Iterator[None]:
    """Say that a file of ours is damaged where what was read from it makes no sense inside.

    Raises:
        UnderstudyError: of the kind given.
    """
    try:
        yield
    except ArchitectureError as e:  # of what was read back; it does not know from which file
        raise error(f"{path} must be as it was written, but is damaged: {e}") from e
    except UnderstudyError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as e:
        raise error(f"{path} must be as it was written, but is damaged: {type(e).__name__}: {e}") from e


def trouble_of(error: OSError) -> str | None:
    """Return what a user can mend of a file or disk, in a sentence; None of any other error of the system."""
    name = error.filename2 or error.filename  # of a file that moves, where it should go
    place = "" if name is None else f" {name}"
    if error.errno in FULL:
        return f"there must be space on the disk, but there is none left for{place or ' what is written'}"
    if error.errno == errno.EFBIG:
        return f"a file may have only so many bytes here, but{place or ' one'} needs more: {LARGER}"
    return f"files and folders must be accessible, but{place} is not: {error.strerror}" if place else None


def check_format(found: Any, known: int, *, what: str, error: type[UnderstudyError]) -> None:
    """Refuse what another version wrote in another format.

    Raises:
        UnderstudyError: of the kind given; the message names both formats.
    """
    if found == known:
        return
    later = isinstance(found, int) and found > known
    way = "pip install --upgrade understudy" if later else "make it anew, or use the version that made it"
    raise error(f"{what} has format {found}, but this version of understudy reads format {known}: {way}")
