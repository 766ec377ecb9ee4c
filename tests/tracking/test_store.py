"""The tracking store's address, and what is asked of it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ezm_pl.spec import SpecError
from ezm_pl.tracking.store import DEFAULT_URI, experiment_id, open_store, shown, tracking_uri


def test_the_spec_wins_then_the_environment_then_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert tracking_uri() == DEFAULT_URI == "sqlite:///mlruns/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://tracking:5000")
    assert tracking_uri() == "http://tracking:5000"
    assert tracking_uri("sqlite:///other.db") == "sqlite:///other.db"


def test_passwords_are_not_shown() -> None:
    assert shown("postgresql://me:secret@host/db") == "postgresql://me:***@host/db"
    assert shown("sqlite:///mlruns/mlflow.db") == "sqlite:///mlruns/mlflow.db"


def test_telemetry_is_off(workplace: Path) -> None:
    """In a process of its own: MLflow asks its environment when it is first imported."""
    code = """
import ezm_pl.sweeps.trial, ezm_pl.sweeps.worker, ezm_pl.tracking.runs.train
from ezm_pl.tracking.store import open_store
open_store("sqlite:///mlruns/mlflow.db")
from mlflow.telemetry.client import get_telemetry_client
assert get_telemetry_client() is None
"""
    without = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")}
    subprocess.run([sys.executable, "-c", code], env=without, check=True, timeout=120)


def test_experiments_are_made_once_with_artifacts_beside(workplace: Path) -> None:
    client = open_store("sqlite:///mlruns/mlflow.db")
    first = experiment_id(client, "walkers", uri="sqlite:///mlruns/mlflow.db")
    assert experiment_id(client, "walkers", uri="sqlite:///mlruns/mlflow.db") == first
    experiment = client.get_experiment(first)
    assert experiment.artifact_location == str(workplace / "mlruns" / "artifacts")
    client.delete_experiment(first)
    with pytest.raises(SpecError, match="'walkers' was deleted in MLflow"):
        experiment_id(client, "walkers", uri="sqlite:///mlruns/mlflow.db")


@pytest.mark.parametrize(
    ("uri", "reason"),
    [
        ("mlruns", "sqlite:///FILE, http://HOST:PORT or postgresql://... expected"),
        ("http://127.0.0.1:9", "cannot be opened"),
        ("sqlite:///broken.db", "file is not a database"),
        ("weird://x", "cannot be opened"),
    ],
)
def test_addresses_that_do_not_open(uri: str, reason: str, workplace: Path) -> None:
    (workplace / "broken.db").write_text("not a database " * 100)
    with pytest.raises(SpecError) as error:
        open_store(uri)
    assert reason in str(error.value)
    assert "\n" not in str(error.value)
