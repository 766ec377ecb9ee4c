"""A short run whose tasks are given in words, and where it lies."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.console import Console

from ezm_pl.spec import SpecError, build_experiment
from ezm_pl.spec.descriptions import check_encoder
from ezm_pl.tracking.runs.train import train

TASKS = ["dmc-cartpole-balance", "dmc-pendulum-swingup"]
"""With observations of 5 and of 3 numbers."""


@pytest.fixture(scope="session")
def encoder() -> None:
    """Skips where the extra that embeds sentences is not installed."""
    try:
        check_encoder("this test")
    except SpecError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def workplace(encoder: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with a run, in which the tests work."""
    folder = tmp_path_factory.mktemp("language")
    spec = {
        "name": "words",
        "preset": "smoke",
        "tasks": TASKS,
        "model": {"task_conditioning": "text"},
        "env": {"action_repeat": 50},
        "optim": {"total_updates": 6, "averaging": 0.5},
        "eval": {"every": 6, "video": False},
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        assert train(build_experiment(spec), resume=None, console=Console(quiet=True)) == 0
        yield folder


@pytest.fixture(scope="session")
def checkpoint(workplace: Path) -> Path:
    """The run's last checkpoint."""
    (found,) = (workplace / "mlruns" / "runs").glob("*/checkpoints/last.ckpt")
    return found
