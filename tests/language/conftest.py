"""Short runs, one with tasks in words and one with ids, and the folder in which they lie."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.console import Console

from ezm_pl.spec import SpecError, build_experiment
from ezm_pl.spec.descriptions import check_encoder
from ezm_pl.tracking.runs.train import train

CHECKPOINTS = "mlruns/runs/*/checkpoints/last.ckpt"
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
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder in which the tests work."""
    folder = tmp_path_factory.mktemp("language")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        yield folder


def trained(workplace: Path, conditioning: str) -> Path:
    """The last checkpoint of a short run."""
    spec = {
        "name": conditioning,
        "preset": "smoke",
        "tasks": TASKS,
        "model": {"task_conditioning": conditioning},
        "env": {"action_repeat": 50},
        "optim": {"total_updates": 6, "averaging": 0.5},
        "eval": {"every": 6, "video": False},
    }
    before = set(workplace.glob(CHECKPOINTS))
    assert train(build_experiment(spec), resume=None, console=Console(quiet=True)) == 0
    (found,) = set(workplace.glob(CHECKPOINTS)) - before
    return found


@pytest.fixture(scope="session")
def checkpoint(encoder: None, workplace: Path) -> Path:
    """Of a run whose tasks are given in words."""
    return trained(workplace, "text")


@pytest.fixture(scope="session")
def id_checkpoint(workplace: Path) -> Path:
    """Of a run whose tasks have ids."""
    return trained(workplace, "id")
