"""A tracking store of the test's own, in a folder of its own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from workplaces import work_in

from ezm_pl.spec import Experiment, build_experiment


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The working directory of a module's tests; nothing of the machine's own tracking is seen."""
    with work_in(tmp_path_factory.mktemp("workplace")) as folder:
        yield folder


@pytest.fixture(scope="session")
def experiment() -> Experiment:
    """Two tasks, seconds long."""
    return build_experiment({"name": "trial", "preset": "smoke", "tasks": ["h1-stand", "h1-walk"]})
