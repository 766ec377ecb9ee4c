"""The MLflow tracking store: which one, and how it is opened without noise and without telemetry."""

from __future__ import annotations

import fcntl
import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote, unquote

from ezm_pl.spec import SpecError
from ezm_pl.tracking.runs.run_lookup import RUNS

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from sqlalchemy import Engine

DEFAULT_URI = "sqlite:///mlruns/mlflow.db"
SQLITE = "sqlite:///"
_DATABASES = ("sqlite", "postgresql", "mysql", "mssql")
_CONNECT_SECONDS = 10
_IN_ADDRESS = re.compile(r"(//[^/\s:@]*):[^/\s]+@")
PATIENCE = {"MLFLOW_HTTP_REQUEST_TIMEOUT": "15", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2"}
"""Environment of MLflow, unless it is set already: its own patience with a server is 8 times 2 minutes."""
_LOUD = ("mlflow.store", "urllib3.connectionpool")
"""Loggers that report every failed attempt at length; the last one is raised anyway."""
QUIET = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
}
"""Environment of MLflow, in this process and in the UI's server: no telemetry, no chatter."""


class EmptyStore(SpecError):
    """A tracking store that does not exist yet, or holds nothing."""


def tracking_uris(configured: str | None = None, recorded: str | None = None) -> list[str]:
    """Addresses of tracking stores, the likeliest first.

    A spec's `tracking.uri` stands alone. Without one: MLFLOW_TRACKING_URI, the address that a run on this
    disk has recorded, and `DEFAULT_URI`, as far as they are given.
    """
    given = (os.environ.get("MLFLOW_TRACKING_URI"), recorded, DEFAULT_URI)
    return [configured] if configured else list(dict.fromkeys(uri for uri in given if uri))


def tracking_uri(configured: str | None = None, recorded: str | None = None) -> str:
    """The first of `tracking_uris`: where a run is tracked."""
    return tracking_uris(configured, recorded)[0]


def shown(uri: str) -> str:
    """`uri` for people to read: a password in it is starred out."""
    return _IN_ADDRESS.sub(r"\1:***@", uri)


def first_line(error: BaseException) -> str:
    """The first line of an error's message, passwords in addresses starred out."""
    cause: BaseException | None = error
    while cause is not None and not hasattr(cause, "orig"):  # the driver's own message says most
        cause = cause.__cause__ or cause.__context__
    text = str(getattr(cause, "orig", None) or error).strip()
    line = text.splitlines()[0] if text else type(error).__name__
    return _IN_ADDRESS.sub(r"\1:***@", line)


def store_errors() -> tuple[type[Exception], ...]:
    """Exceptions of a tracking store that does not answer, is full, is read-only or lacks its driver."""
    import sqlite3

    import requests
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    return (
        MlflowException, SQLAlchemyError, sqlite3.Error, requests.RequestException, OSError, ImportError,
    )  # fmt: skip


def sqlite_file(uri: str) -> Path | None:
    """The absolute path of a SQLite database; None for other addresses, also SQLite's own (`file:x.db`).

    As in SQLAlchemy, %20 in an address stands for a space, and `?` begins the driver's options.
    """
    path = unquote(uri.removeprefix(SQLITE).partition("?")[0])
    if not uri.startswith(SQLITE) or path in ("", ":memory:") or path.startswith("file:"):
        return None
    return Path(os.path.realpath(path))  # `Path.resolve` raises where links lead in a circle


def sqlite_url(file: Path) -> str:
    """The address of a SQLite database, whatever characters its absolute path has.

    Where any needs an escape, slashes get one too: MLflow makes the folder of the path as it is written,
    which must not be a folder named by escapes.
    """
    path = str(file)
    return SQLITE + (path if quote(path) == path else quote(path, safe=""))


def artifacts_folder(uri: str) -> Path | None:
    """Where artifacts of a SQLite store go: beside its database. None: the store decides."""
    file = sqlite_file(uri)
    return file and file.parent / "artifacts"


def open_store(uri: str, *, create: bool = True) -> MlflowClient:
    """A client of the tracking store at `uri`.

    Args:
        uri: its address.
        create: whether to make a database, or its tables, where there are none.

    Raises:
        EmptyStore: it holds nothing yet (without `create`).
        SpecError: it cannot be opened or does not answer.
    """
    os.environ.update(QUIET)
    for name in _LOUD:
        logging.getLogger(name).setLevel(logging.CRITICAL)
    for name, value in PATIENCE.items():
        os.environ.setdefault(name, value)
    refusals: tuple[type[Exception], ...] = (*store_errors(), ValueError)  # also of MLflow's own variables
    try:
        if uri.startswith(("http://", "https://")):
            import requests

            requests.get(uri, timeout=_CONNECT_SECONDS)  # MLflow itself would retry for minutes
            return _client(uri)
        file = sqlite_file(uri)
        if file is not None:
            return _open_sqlite(file, uri, create=create)
        if "://" not in uri or uri.startswith("sqlite:"):
            expected = f"{SQLITE}FILE, http://HOST:PORT or postgresql://..."
            raise SpecError(f"tracking address {shown(uri)!r}: {expected} expected")
        if uri.startswith(_DATABASES):
            _check_tables(uri, uri, create=create)
        return _client(uri)
    except SpecError:
        raise
    except refusals as error:
        raise SpecError(f"tracking address {shown(uri)!r} cannot be opened: {first_line(error)}") from None


def experiment_id(client: MlflowClient, name: str, *, uri: str) -> str:
    """Id of the MLflow experiment `name`, made when it does not exist, artifacts beside a SQLite store.

    Raises:
        SpecError: an experiment of this name lies in MLflow's trash.
    """
    from mlflow.exceptions import MlflowException

    experiment = client.get_experiment_by_name(name)
    if experiment is None:
        folder = artifacts_folder(uri)
        kind = {"mlflow.experimentKind": "custom_model_development"}  # the UI shows training runs, not traces
        try:
            return client.create_experiment(name, folder.as_uri() if folder else None, tags=kind)
        except MlflowException:
            experiment = client.get_experiment_by_name(name)  # another process may have made it just now
            if experiment is None:
                raise
    if experiment.lifecycle_stage == "deleted":
        raise SpecError(
            f"tracking.experiment {name!r} was deleted in MLflow; restore it or choose another name"
        )
    return experiment.experiment_id


def _open_sqlite(file: Path, uri: str, *, create: bool) -> MlflowClient:
    from ezm_pl.tracking.moved import point_at_own_artifacts

    if file.is_dir():
        raise SpecError(f"tracking address {uri!r} cannot be opened: {file} is a folder")
    runs = Path(os.path.realpath(RUNS))
    if file in (runs, *runs.parents):  # a file there would leave no place for runs
        raise SpecError(f"tracking address {uri!r} cannot be opened: {file} has to be a folder")
    if create:
        file.parent.mkdir(parents=True, exist_ok=True)
    elif not file.is_file():
        raise EmptyStore(_nothing_in(uri))
    for path in (file.parent, file):
        if path.exists() and not os.access(path, os.W_OK):
            raise SpecError(f"tracking address {uri!r} cannot be opened: {path} is read-only")
    address = sqlite_url(file)
    with _first_use(file.parent):
        if not _check_tables(address, uri, create=create):
            _make_tables(address, file.parent / "artifacts")
        client = _client(address)
        point_at_own_artifacts(file)
    return client


def _client(uri: str) -> MlflowClient:
    from mlflow import MlflowClient

    client = MlflowClient(uri)
    client.search_experiments(max_results=1)
    return client


def _make_tables(address: str, artifacts: Path) -> None:
    """Makes MLflow's tables. MLflow writes the folder into SQL as it is, so it gets one without quotes."""
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    SqlAlchemyStore(address, artifacts.as_uri())


def _check_tables(address: str, given: str, *, create: bool) -> bool:
    """Whether MLflow's tables are there. Raises what is wrong at once: MLflow would try for two minutes."""
    import sqlalchemy

    options = {"connect_timeout": _CONNECT_SECONDS} if address.startswith("postgresql") else {}
    engine = sqlalchemy.create_engine(address, poolclass=sqlalchemy.pool.NullPool, connect_args=options)
    there = has_tables(engine, "experiments")
    if not there and not create:
        raise EmptyStore(_nothing_in(given))
    return there


def has_tables(engine: Engine, table: str) -> bool:
    """Whether a database holds the tables of the program that makes `table`.

    Raises:
        ValueError: it holds those of another. MLflow and Optuna keep their versions under one name.
    """
    import sqlalchemy

    inspector = sqlalchemy.inspect(engine)
    there = inspector.has_table(table)
    if not there and inspector.has_table("alembic_version"):
        raise ValueError("it holds another program's tables; MLflow and Optuna need a database each")
    return there


def _nothing_in(uri: str) -> str:
    return f"no runs yet: {shown(uri)} holds none; `ezm train SPEC` makes one"


@contextmanager
def _first_use(folder: Path) -> Iterator[None]:
    """Inside, no other process of this machine opens a database in `folder`: its tables are made once."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # a file system without locks
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
