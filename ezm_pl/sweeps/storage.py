"""Where studies are stored, and the lock that lets one worker at a time change who does what."""

from __future__ import annotations

import fcntl
import os
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ezm_pl.spec import SpecError
from ezm_pl.tracking.store import SQLITE, has_tables, shown, sqlite_file, sqlite_url

if TYPE_CHECKING:
    from optuna.storages import RDBStorage

DEFAULT_STORAGE = "sqlite:///mlruns/optuna.db"
HEARTBEAT_SECONDS, GRACE_SECONDS = 20, 120
"""Seconds between a worker's heartbeats, and without one before its trial goes back to the queue."""

_BUSY_SECONDS = 60
_POSTGRES = ("postgresql://", "postgres://", "postgresql+psycopg://")


@dataclass(frozen=True)
class Storage:
    """An opened storage.

    Attributes:
        url: as SQLAlchemy takes it.
        optuna: Optuna's view of it, heartbeats on.
    """

    url: str
    optuna: RDBStorage

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Holds the lock of all workers: of this machine (SQLite) or of every machine (PostgreSQL).

        The lock ends with the process that holds it, however the process ends.
        """
        with _lock(self.url):
            yield


def open_storage(url: str | None) -> Storage:
    """Opens the storage at `url` (None: `DEFAULT_STORAGE`), its tables made where there are none.

    Raises:
        SpecError: the storage cannot be opened, or is of a kind that workers cannot share.
    """
    given = url or DEFAULT_STORAGE
    address = _address(given)
    import optuna
    import sqlalchemy
    from optuna.exceptions import OptunaError
    from sqlalchemy.exc import SQLAlchemyError

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    options = {"connect_args": {"timeout": _BUSY_SECONDS}} if address.startswith(SQLITE) else {}
    try:
        with _lock(address), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # heartbeats are marked experimental
            engine = sqlalchemy.create_engine(address, poolclass=sqlalchemy.pool.NullPool, **options)
            has_tables(engine, "studies")
            storage = optuna.storages.RDBStorage(
                address,
                engine_kwargs={"pool_pre_ping": True, **options},
                heartbeat_interval=HEARTBEAT_SECONDS,
                grace_period=GRACE_SECONDS,
            )
    except ImportError as error:
        raise SpecError(
            f"STORAGE {shown(given)!r} needs a driver that is not installed ({error.name or 'psycopg'}): "
            "pip install 'ezm_pl[postgres]'"
        ) from None
    except (SQLAlchemyError, OptunaError, OSError, RuntimeError, ValueError) as error:
        reason = str(getattr(error, "orig", None) or error).strip().splitlines()[0]
        raise SpecError(f"STORAGE {shown(given)!r} cannot be opened: {reason}") from None
    return Storage(address, storage)


def _address(url: str) -> str:
    """`url` with the driver that this project installs."""
    path = sqlite_file(url)
    if path is not None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise SpecError(f"STORAGE {url!r} cannot be opened: {error.strerror}: {path.parent}") from None
        return sqlite_url(path)
    if url.startswith(_POSTGRES):
        return f"postgresql+psycopg://{url.partition('://')[2]}"
    raise SpecError(f"STORAGE {shown(url)!r}: {SQLITE}FILE or postgresql://USER@HOST/DATABASE expected")


@contextmanager
def _lock(url: str) -> Iterator[None]:
    path = sqlite_file(url)
    if path is not None:
        with path.with_name(f"{path.name}.lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield
        return
    import sqlalchemy

    engine = sqlalchemy.create_engine(url, poolclass=sqlalchemy.pool.NullPool, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:  # closing it gives the lock back
        connection.execute(
            sqlalchemy.text("SELECT pg_advisory_lock(:number)"), {"number": zlib.crc32(b"ezm_pl sweeps")}
        )
        yield


def storage_errors() -> tuple[type[Exception], ...]:
    """Exceptions of a storage, or of its lock, that does not answer."""
    from optuna.exceptions import StorageInternalError
    from sqlalchemy.exc import SQLAlchemyError

    return StorageInternalError, SQLAlchemyError


def this_place() -> str:
    """The host and process namespace that process ids of this process belong to."""
    namespace = Path("/proc/self/ns/pid")
    return f"{os.uname().nodename} {os.readlink(namespace) if namespace.exists() else ''}".strip()
