"""The MLflow tracking store: where it is, and how it is opened without noise and without telemetry."""

from __future__ import annotations

import logging
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from ezm_pl.spec import SpecError

if TYPE_CHECKING:
    from mlflow import MlflowClient

DEFAULT_URI = "sqlite:///mlruns/mlflow.db"
ARTIFACTS = Path("mlruns/artifacts")
SQLITE = "sqlite:///"
_IN_ADDRESS = re.compile(r"(//[^/\s:@]*):[^/\s@]+@")
PATIENCE = {"MLFLOW_HTTP_REQUEST_TIMEOUT": "15", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2"}
"""Environment of MLflow, unless it is set already: its own patience with a server is 8 times 2 minutes."""
_LOUD = ("mlflow.store", "urllib3.connectionpool")
"""Loggers that report, at every attempt and at length, what is raised to us anyway."""
QUIET = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
}
"""Environment of MLflow, in this process and in the UI's server: no telemetry, no chatter."""


def tracking_uri(configured: str | None = None) -> str:
    """The store's address: a spec's `tracking.uri`, else MLFLOW_TRACKING_URI, else `DEFAULT_URI`."""
    return configured or os.environ.get("MLFLOW_TRACKING_URI") or DEFAULT_URI


def shown(uri: str) -> str:
    """`uri` for people to read: a password in it is starred out."""
    password = urlsplit(uri).password
    return uri.replace(f":{password}@", ":***@") if password else uri


def first_line(error: BaseException) -> str:
    """The first line of an error's message, passwords in addresses starred out."""
    cause: BaseException | None = error
    while cause is not None and not hasattr(cause, "orig"):  # what the database's driver said says most
        cause = cause.__cause__ or cause.__context__
    text = str(getattr(cause, "orig", None) or error).strip()
    line = text.splitlines()[0] if text else type(error).__name__
    return _IN_ADDRESS.sub(r"\1:***@", line)


def store_errors() -> tuple[type[Exception], ...]:
    """What a tracking store raises that is away, full, read-only, or lacks its database's driver."""
    import requests
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    return (MlflowException, SQLAlchemyError, requests.RequestException, OSError, ImportError)


def open_store(uri: str) -> MlflowClient:
    """A client of the tracking store at `uri`; a SQLite database is made when it does not exist.

    Raises:
        SpecError: the store cannot be opened or does not answer.
    """
    os.environ.update(QUIET)
    for name in _LOUD:
        logging.getLogger(name).setLevel(logging.CRITICAL)
    for name, value in PATIENCE.items():
        os.environ.setdefault(name, value)
    import requests
    from mlflow import MlflowClient

    given = shown(uri)
    try:
        if uri.startswith(("http://", "https://")):
            requests.get(uri, timeout=10)  # MLflow itself would retry for minutes
        elif uri.startswith(SQLITE):
            database = Path(uri.removeprefix(SQLITE)).resolve()  # MLflow caches stores by address
            database.parent.mkdir(parents=True, exist_ok=True)
            for path in (database.parent, database):
                if path.exists() and not os.access(path, os.W_OK):  # MLflow would try for minutes
                    raise SpecError(f"tracking address {given!r} cannot be opened: {path} is read-only")
            uri = f"{SQLITE}{database}"
        elif "://" not in uri:
            expected = f"{SQLITE}FILE, http://HOST:PORT or postgresql://..."
            raise SpecError(f"tracking address {given!r}: {expected} expected")
        client = MlflowClient(uri)
        client.search_experiments(max_results=1)
    except store_errors() as error:
        raise SpecError(f"tracking address {given!r} cannot be opened: {first_line(error)}") from None
    return client


def experiment_id(client: MlflowClient, name: str, *, uri: str) -> str:
    """Id of the MLflow experiment `name`, made when it does not exist, artifacts beside a SQLite store.

    Raises:
        SpecError: an experiment of this name lies in MLflow's trash.
    """
    experiment = client.get_experiment_by_name(name)
    if experiment is None:
        location = str(ARTIFACTS) if uri.startswith(SQLITE) else None
        kind = {"mlflow.experimentKind": "custom_model_development"}  # the UI shows training runs, not traces
        return client.create_experiment(name, artifact_location=location, tags=kind)
    if experiment.lifecycle_stage == "deleted":
        raise SpecError(
            f"tracking.experiment {name!r} was deleted in MLflow; restore it or choose another name"
        )
    return experiment.experiment_id
