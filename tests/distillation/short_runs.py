"""Settings of a distillation that takes seconds, and where its run is found."""

from __future__ import annotations

from pathlib import Path

import mlflow

SHORT = {
    "replay_rows": 40,
    "visited_rows": 24,
    "num_envs": 2,
    "updates": 60,
    "batch_size": 32,
    "eval_every": 30,
    "episodes": 1,
    "checkpoint_every": 20,
    "log_every": 10,
    "student.width": 16,
}


def settings(**other: int) -> list[str]:
    """`--set` arguments of a short distillation."""
    return [word for name, value in (SHORT | other).items() for word in ("--set", f"{name}={value}")]


def runs(workplace: Path) -> list[mlflow.entities.Run]:
    """All distillations, the newest first."""
    client = mlflow.MlflowClient(f"sqlite:///{workplace}/mlruns/mlflow.db")
    ids = [each.experiment_id for each in client.search_experiments()]
    return client.search_runs(ids, "tags.kind = 'distillation'")
