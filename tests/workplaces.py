"""Project folders that tests work in, and a short run of two tasks."""

from __future__ import annotations

import atexit
import functools
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from rich.console import Console

from ezm_pl.spec import build_experiment
from ezm_pl.tracking.runs.train import train
from ezm_pl.tracking.store import open_store

TASKS = ["dmc-cartpole-balance", "dmc-pendulum-swingup"]
"""With observations of 5 and of 3 numbers."""


@functools.cache
def empty_store() -> Path:
    """A database with MLflow's tables, which take seconds to make; for copies."""
    folder = tempfile.mkdtemp(prefix="ezm-store-")
    atexit.register(shutil.rmtree, folder)
    open_store(f"sqlite:///{folder}/mlflow.db")
    return Path(folder) / "mlflow.db"


def new_project(folder: Path) -> Path:
    """Makes `folder` a project whose tracking store is there, and empty."""
    (folder / "mlruns").mkdir(parents=True, exist_ok=True)
    shutil.copy(empty_store(), folder / "mlruns" / "mlflow.db")
    return folder


@contextmanager
def work_in(folder: Path) -> Iterator[Path]:
    """Makes a folder with an empty store the working directory; the machine's own tracking is not seen."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("MLFLOW_TRACKING_URI", "")  # so that what MLflow leaves there is taken away at the end
        patch.delenv("MLFLOW_TRACKING_URI")
        yield new_project(folder)


def train_briefly(name: str, **sections: object) -> None:
    """Trains `TASKS` for four updates, here; `sections` of the spec go over these settings."""
    spec = {
        "name": name,
        "preset": "smoke",
        "tasks": TASKS,
        "env": {"action_repeat": 50},
        "optim": {"total_updates": 4},
        "eval": {"every": 4},
    }
    assert train(build_experiment(spec | sections), resume=None, console=Console(quiet=True)) == 0
