"""Lightning's logger of a run: metrics against updates, and evaluations against environment steps too."""

from __future__ import annotations

import logging
import time
import warnings
from argparse import Namespace
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import MLFlowLogger
from lightning.pytorch.utilities import rank_zero_only

from ezm_pl.tracking.fault_tolerance.sender import Sender
from ezm_pl.tracking.runs.metrics import BY_ENV_STEPS, COUNTERS, ENV_STEPS, EVALUATION

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Metric


def quiet_lightning() -> None:
    """Silences Lightning's tips and its list of accelerators that are absent."""
    logging.getLogger("lightning").setLevel(logging.WARNING)
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)


class RunId(Callback):
    """Writes the MLflow run's id into every checkpoint, so that a copy shows which run it belongs to.

    Args:
        run_id: MLflow's.
    """

    def __init__(self, run_id: str) -> None:
        self.run_id = run_id

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Adds the id."""
        checkpoint["run_id"] = self.run_id


class RunLogger(MLFlowLogger):
    """Writes the metrics of an MLflow run that already exists; its status and params are not touched.

    They are sent by a thread (see `Sender`): training waits for no store.

    MLflow has one step axis. Here it is the number of updates. Every set of metrics includes
    `env_steps`, so that the UI can use it as the x axis (chart settings: X-axis, Metric). Evaluations
    are written a second time as `by_env_steps/*` with environment steps as the step, so that runs
    which collect at different speeds compare at equal experience.

    A run that is resumed after a crash repeats the updates since its last checkpoint. MLflow cannot
    delete points, so points that the run already has are not written again: each metric continues
    after its last step. A counter continues when it has reached its last value again.
    """

    def __init__(
        self, client: MlflowClient, run_id: str, tell: Callable[[str], None] = warnings.warn
    ) -> None:
        """Logs to `run_id` through `client`; `tell` takes lines for the user."""
        super().__init__(tracking_uri=client.tracking_uri, run_id=run_id)
        self._client = client
        self._env_steps: float | None = None
        written = client.get_run(run_id).to_proto().data.metrics
        self._last_step = {metric.key: metric.step for metric in written}
        self._last_value = {metric.key: metric.value for metric in written if metric.key in COUNTERS}
        self.sender = Sender(client, run_id, tell)

    @property
    def experiment(self) -> MlflowClient:
        """The store's client; unlike Lightning's own, asking for it sends nothing."""
        return self._client

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Writes `metrics` at `step` updates (see the class)."""
        from mlflow.entities import Metric

        values = {name: float(value) for name, value in metrics.items() if name != "epoch"}
        if not values:
            return
        self._env_steps = values.setdefault(ENV_STEPS, self._env_steps or 0.0)
        now = int(time.time() * 1000)
        points = [Metric(name, value, now, step or 0) for name, value in values.items()]
        points = [point for point in points if self._is_new(point)]
        evaluations = [
            Metric(BY_ENV_STEPS + point.key.removeprefix(EVALUATION), point.value, now, int(self._env_steps))
            for point in points
            if point.key.startswith(EVALUATION)
        ]
        # Several may share a step: once all has been collected, updates go on.
        points += [point for point in evaluations if point.step >= self._last_step.get(point.key, 0)]
        self._last_step |= {point.key: point.step for point in points}
        if points:
            self.sender.put(points)

    def _is_new(self, point: Metric) -> bool:
        behind = point.key in self._last_value and point.value < self._last_value[point.key]
        return not behind and point.step > self._last_step.get(point.key, -1)

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Nothing: the whole resolved spec is the run's params already."""

    @rank_zero_only
    def finalize(self, status: str = "success") -> None:
        """Nothing: `train` writes how the run ended."""
