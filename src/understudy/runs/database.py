"""Where a study is kept: an SQLite file in the run folder, or a database that several runs share. No torch."""

from __future__ import annotations

import contextlib
import hashlib
import json
import sqlite3
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from understudy.core.errors import DamageError, RunError
from understudy.core.extras import optional
from understudy.core.files import write_whole
from understudy.core.quiet import quiet_optuna

if TYPE_CHECKING:
    from optuna.storages import RDBStorage

_LOCK_SECONDS = 20.0  # how long to wait for another process that writes to the same SQLite file
_WAYS = {  # out of what is no damage, by the beginning of SQLite's name of it
    "SQLITE_BUSY": ": close what else has it open",
    "SQLITE_LOCKED": ": close what else has it open",
    "SQLITE_READONLY": ": make it and its folder writable",
    "SQLITE_CANTOPEN": ": make it and its folder accessible",
    "SQLITE_IOERR": ": see whether the disk works, and `ulimit -f`",
    "SQLITE_FULL": "",
    "SQLITE_NOMEM": "",
}
_NONSENSE = (sqlite3.Error, UnicodeDecodeError, json.JSONDecodeError, LookupError)  # that a damaged file ends in


def open_storage(address: str, *, copy: bool = False) -> RDBStorage:
    """Return Optuna's storage of a file, made if it does not exist, or of the address of a database.

    Args:
        address: the file or the database.
        copy: a copy of the file in memory, to look at: Optuna writes whenever it opens one, which may be on a
            read-only disk, or be written by a run that goes on.

    Raises:
        ExtraError: the driver of that database is not installed.
    """
    from optuna.storages import RDBStorage

    if copy and "://" not in address:
        with contextlib.closing(sqlite3.connect(address, timeout=_LOCK_SECONDS)) as file:
            memory = sqlite3.connect(":memory:", check_same_thread=False)
            file.backup(memory)
        return _in_memory(memory)
    if "://" in address:
        # Tables that two processes make at the same time collide; a connection that broke, as when the server was
        # restarted, is noticed before it is used.
        with _locked(address, "tables", wait=True):
            return RDBStorage(_with_driver(address), engine_kwargs={"pool_pre_ping": True})
    if not Path(address).exists():
        write_whole(Path(address), _new_database())
    # The path goes around the address, in which %, ?, # and {} would have a meaning of their own.
    connect = partial(sqlite3.connect, address, timeout=_LOCK_SECONDS, check_same_thread=False)
    return RDBStorage("sqlite:///file", engine_kwargs={"creator": connect})


def refuse_silent(address: str) -> None:
    """Refuse a database that does not answer, before anything is written.

    Raises:
        RunError: it does not.
    """
    if "://" not in address:
        return
    from sqlalchemy import create_engine
    from sqlalchemy.pool import NullPool

    with database_errors(address):
        create_engine(_with_driver(address), poolclass=NullPool).connect().close()


@contextlib.contextmanager
def study_claimed(address: str, name: str) -> Iterator[None]:
    """Keep other drivers away from a study in a database, from any machine; the server lets go if this process dies.

    PostgreSQL only: elsewhere the lock on the run folder has to do.

    Raises:
        RunError: another process drives it, or the database does not answer.
    """
    with _locked(address, name) as free:
        if not free:
            raise RunError(
                f"a study is driven by one process at a time, but {name!r} in {shown(address)} is in use by another, "
                "perhaps on another machine"
            )
        yield


@contextlib.contextmanager
def _locked(address: str, name: str, *, wait: bool = False) -> Iterator[bool]:
    """Hold the lock of a name that the server keeps until this process dies, and say whether it was free.

    Where the server is no PostgreSQL nothing is locked.
    """
    if not address.startswith(("postgresql", "postgres:")):
        yield True
        return
    from sqlalchemy import create_engine, text
    from sqlalchemy.exc import SQLAlchemyError
    from sqlalchemy.pool import NullPool

    number = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big", signed=True)
    lock = "pg_advisory_lock" if wait else "pg_try_advisory_lock"
    with database_errors(address):
        engine = create_engine(_with_driver(address), poolclass=NullPool, isolation_level="AUTOCOMMIT")
        connection = engine.connect()
        answer = connection.execute(text(f"select {lock}(:number)"), {"number": number}).scalar()
    try:
        yield wait or bool(answer)
    finally:
        with contextlib.suppress(SQLAlchemyError):  # the server may be gone by now, and with it the lock
            connection.close()


@contextlib.contextmanager
def database_errors(address: str) -> Iterator[None]:
    """Keep Optuna quiet, and name the place in what goes wrong with a database.

    Raises:
        RunError: something did; a DamageError if what is in a file makes no sense.
    """
    import optuna
    from sqlalchemy.exc import SQLAlchemyError

    try:
        with quiet_optuna():
            yield
    except (*_NONSENSE, SQLAlchemyError, optuna.exceptions.OptunaError, ImportError, OSError, RuntimeError) as error:
        cause = _cause(error)
        name = getattr(cause, "sqlite_errorname", "")
        way = next((way for beginning, way in _WAYS.items() if name.startswith(beginning)), None)
        kind = DamageError if way is None and isinstance(cause, _NONSENSE) else RunError
        said = (str(cause).strip() or type(cause).__name__).splitlines()[0]
        raise kind(f"the store {shown(address)} cannot be used: {said}{way or ''}") from error


def shown(address: str) -> str:
    """Return an address as people may see it: without a password."""
    if "://" not in address:
        return address
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError

    try:
        return make_url(address).render_as_string(hide_password=True)
    except ArgumentError:
        return "(an address that cannot be read)"


def _with_driver(address: str) -> str:
    """Name the driver that the extra brings where an address names none."""
    scheme, _, rest = address.partition("://")
    if scheme in ("postgresql", "postgres"):
        optional("psycopg", extra="postgresql")
        return f"postgresql+psycopg://{rest}"
    return address


def _new_database() -> bytes:
    """Return an SQLite file of Optuna's tables.

    Made in place, a kill between a table and its index would leave studies whose names are not unique.
    """
    with contextlib.closing(sqlite3.connect(":memory:", check_same_thread=False)) as memory:
        storage = _in_memory(memory)
        storage.remove_session()
        content = memory.serialize()
        storage.engine.dispose()
        return content


def _in_memory(memory: sqlite3.Connection) -> RDBStorage:
    from optuna.storages import RDBStorage
    from sqlalchemy.pool import StaticPool

    settings: dict[str, Any] = {"creator": lambda: memory, "poolclass": StaticPool}
    return RDBStorage("sqlite:///file", engine_kwargs=settings)


def _cause(error: BaseException) -> BaseException:
    """Return what the database itself raised, without SQL or advice around it."""
    while error.__cause__ is not None:
        error = error.__cause__
    return getattr(error, "orig", None) or error
