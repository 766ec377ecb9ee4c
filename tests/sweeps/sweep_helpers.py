"""A tiny sweep, and `ezm` as a person runs it."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import fork_server
import yaml
from workplaces import new_project

from ezm_pl.sweeps.queue import Claim, Queue

BASE: dict[str, Any] = {
    "name": "tiny",
    "preset": "smoke",
    "tasks": ["dmc-cartpole-balance"],
    "env": {"action_repeat": 50},
    "eval": {"every": 4},
    "optim": {"total_updates": 8},
    "trainer": {"checkpoint_every": 4},
}
SWEEP: dict[str, Any] = {
    "name": "tiny",
    "base": "base.yaml",
    "tasks": ["dmc-cartpole-balance", "dmc-pendulum-swingup"],
    "search": {"loss.value": {"low": 0.1, "high": 1.0, "log": True}},
    "trials": 2,
}


def write(folder: Path, **changes: Any) -> Path:
    """`sweep.yaml` and its base in `folder`, with `changes` of the sweep."""
    folder.mkdir(exist_ok=True)
    (folder / "base.yaml").write_text(yaml.safe_dump(BASE))
    path = folder / "sweep.yaml"
    path.write_text(yaml.safe_dump({**SWEEP, **changes}))
    return path


def claimed(queue: Queue) -> Claim:
    """The next waiting trial of a sweep that has one."""
    claim = queue.claim()
    assert claim is not None
    return claim


def environment() -> dict[str, str]:
    """This process's, without MLflow's traces in it, one thread per process."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("MLFLOW")}
    return {**kept, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}


def run_ezm(folder: Path, *arguments: str, timeout: float = 600) -> subprocess.CompletedProcess[str]:
    """Runs `ezm` in `folder`, where a store is made ready, to its end."""
    if not (folder / "mlruns").exists():
        new_project(folder)
    return fork_server.run(arguments, cwd=folder, env=environment(), timeout=timeout)
