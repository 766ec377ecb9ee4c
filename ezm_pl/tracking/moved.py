"""Artifacts of a project that was moved or copied: MLflow stores absolute addresses, which then mislead."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from urllib.parse import unquote, urlsplit

_COLUMNS = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "source"),
    ("model_versions", "storage_location"),
)
"""Where MLflow's database holds addresses of artifacts."""
_BUSY_SECONDS = 30


def point_at_own_artifacts(database: Path) -> None:
    """Points a SQLite store at the artifacts beside it, where they came along with the database.

    An experiment is changed only if its artifacts are said to be in another folder, while the folder of
    one of its runs lies beside this database. Run ids are unique, so that folder was moved or copied.
    """
    here = database.parent / "artifacts"
    if not here.is_dir():
        return
    with closing(sqlite3.connect(database, timeout=_BUSY_SECONDS)) as connection, connection:
        found = connection.execute("SELECT experiment_id, artifact_location FROM experiments").fetchall()
        for experiment, location in found:
            if _local(location) in (None, here):
                continue
            runs = connection.execute("SELECT run_uuid FROM runs WHERE experiment_id = ?", (experiment,))
            if any((here / run).is_dir() for (run,) in runs):
                _replace(connection, location, here.as_uri())


def _local(location: str | None) -> Path | None:
    """The folder that an address means, as MLflow reads it; None where it is not on this machine."""
    parts = urlsplit(location or "")
    if parts.scheme not in ("", "file") or not location:
        return None
    return Path(unquote(parts.path if parts.scheme else location))


def _replace(connection: sqlite3.Connection, old: str, new: str) -> None:
    """Replaces the folder `old` by `new` at the beginning of every address of an artifact."""
    tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    for table, column in _COLUMNS:
        if table in tables:
            connection.execute(
                f"UPDATE {table} SET {column} = ? || substr({column}, ?) "
                f"WHERE {column} = ? OR substr({column}, 1, ?) = ?",
                (new, len(old) + 1, old, len(old) + 1, f"{old}/"),
            )
