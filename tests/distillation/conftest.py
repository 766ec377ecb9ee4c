"""A short run to distil, and where it lies."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.console import Console
from short_runs import runs, settings

from ezm_pl.cli import main
from ezm_pl.spec import build_experiment
from ezm_pl.tracking.runs.train import train

TASKS = ["dmc-cartpole-balance", "dmc-pendulum-swingup"]
"""With observations of 5 and of 3 numbers."""


@pytest.fixture(scope="session")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with a run of two tasks of different sizes, which the tests work in."""
    folder = tmp_path_factory.mktemp("distillation")
    spec = {
        "name": "teacher",
        "preset": "smoke",
        "tasks": TASKS,
        "env": {"action_repeat": 50},
        "optim": {"total_updates": 4},
        "eval": {"every": 4},
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        assert train(build_experiment(spec), resume=None, console=Console(quiet=True)) == 0
        yield folder


@pytest.fixture(scope="session")
def teacher_checkpoint(workplace: Path) -> Path:
    """The run's last checkpoint."""
    (checkpoint,) = (workplace / "mlruns" / "runs").glob("*/checkpoints/last.ckpt")
    return checkpoint


@pytest.fixture(scope="session")
def student_checkpoint(workplace: Path, teacher_checkpoint: Path) -> Path:
    """Of a distillation of the last run with its replay."""
    assert main(["distill", "last", *settings()]) == 0
    return workplace / "mlruns" / "runs" / runs(workplace)[0].info.run_id / "checkpoints" / "student.ckpt"
