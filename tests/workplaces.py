"""Project folders that tests work in, and a short run of two tasks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from rich.console import Console

from ezm_pl.spec import build_experiment
from ezm_pl.tracking.runs.train import train

TASKS = ["dmc-cartpole-balance", "dmc-pendulum-swingup"]
"""With observations of 5 and of 3 numbers."""


@contextmanager
def work_in(folder: Path) -> Iterator[Path]:
    """Makes a folder the working directory; nothing of the machine's own tracking is seen."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        yield folder


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
