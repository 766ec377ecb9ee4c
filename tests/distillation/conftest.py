"""A short run to distil, and where it lies."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from short_runs import runs, settings
from workplaces import train_briefly, work_in

from ezm_pl.cli import main


@pytest.fixture(scope="session")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with a run of two tasks of different sizes, which the tests work in."""
    with work_in(tmp_path_factory.mktemp("distillation")) as folder:
        train_briefly("teacher")
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
