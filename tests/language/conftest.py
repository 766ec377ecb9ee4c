"""Short runs, one with tasks in words and one with ids, and the folder in which they lie."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from workplaces import train_briefly, work_in

from ezm_pl.spec import SpecError
from ezm_pl.spec.descriptions import check_encoder

CHECKPOINTS = "mlruns/runs/*/checkpoints/last.ckpt"


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
    with work_in(tmp_path_factory.mktemp("language")) as folder:
        yield folder


def trained(workplace: Path, conditioning: str) -> Path:
    """The last checkpoint of a short run."""
    before = set(workplace.glob(CHECKPOINTS))
    train_briefly(
        conditioning,
        model={"task_conditioning": conditioning},
        optim={"total_updates": 6, "averaging": 0.5},
        eval={"every": 6, "video": False},
    )
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
