"""One trial: its seeds one after another, each an ordinary tracked run that reports to Optuna."""

from __future__ import annotations

import math
import warnings
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING

from lightning import Callback, LightningModule, Trainer
from optuna.exceptions import StorageInternalError
from rich.console import Console

from ezm_pl.spec import Experiment
from ezm_pl.sweeps.mlflow_sweep import MlflowSweep, trial_name
from ezm_pl.sweeps.patience import Patience
from ezm_pl.sweeps.queue import Claim
from ezm_pl.tracking.fault_tolerance.sender import UNSENT, send_left
from ezm_pl.tracking.runs.run_lookup import RUNS, SPEC
from ezm_pl.tracking.runs.train import Part, train
from ezm_pl.tracking.sweep import tags

if TYPE_CHECKING:
    from mlflow.entities import Run

    from ezm_pl.training import AgentModule


class TrialError(RuntimeError):
    """A trial's run ended without a value of the objective."""


class TrialWatch(Callback):
    """Logs the score over the shared tasks, and reports the objective to Optuna, at each evaluation.

    Args:
        claim: the trial.
        objective: name of the metric.
        shared_tasks: of all grid points; may be none.
        reports: whether to report to Optuna, which keeps one value per step: for a trial's first seed only.

    Attributes:
        run_id: of the MLflow run, once training has begun.
        pruned: whether the pruner has ended it.
    """

    def __init__(self, claim: Claim, objective: str, shared_tasks: tuple[str, ...], *, reports: bool) -> None:
        self.claim, self.objective, self.shared_tasks = claim, objective, shared_tasks
        self.reports, self.pruned = reports, False
        self.run_id = ""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Keeps the run's id, which MLflow may be unable to tell at the end."""
        assert trainer.logger is not None
        self.run_id = str(trainer.logger.version)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Logs, reports and, where the pruner says so, lets training end at this update."""
        module: AgentModule = pl_module  # type: ignore[assignment]
        if not module.evaluations or module.data.sync.interrupted.is_set():
            return
        evaluation = module.evaluations[-1]
        if self.shared_tasks and trainer.logger is not None:
            scores = [s for s in map(evaluation.score_of, self.shared_tasks) if not math.isnan(s)]
            if scores:
                shared = sum(scores) / len(scores)
                trainer.logger.log_metrics({tags.SHARED_SCORE: shared}, step=evaluation.updates)
        value = evaluation.metrics().get(self.objective, trainer.callback_metrics.get(self.objective))
        if not self.reports or value is None or not math.isfinite(value):
            return
        # A run that has ended anyway saves nothing by being pruned.
        ended = evaluation.updates >= module.experiment.max_steps
        # While the storage does not answer, training goes on: there is no pruning at this evaluation.
        with suppress(StorageInternalError), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a resumed run evaluates some updates a second time
            self.claim.trial.report(float(value), evaluation.updates)
            if not ended and self.claim.trial.should_prune():
                self.pruned = trainer.should_stop = True


def run_trial(claim: Claim, sweep: MlflowSweep, patience: Patience) -> float | None:
    """Trains the trial's seeds that have no result yet.

    Where MLflow does not answer before or after a training, that waits, for as long as `patience` has.

    Returns:
        The mean objective over seeds; None when the trial was pruned.

    Raises:
        KeyboardInterrupt: training was interrupted; its checkpoint is written.
        TrialError: a run logged no finite value of the objective.
        Exception: whatever training raised.
    """
    plan, values = sweep.plan, []
    for index in range(plan.spec.seeds):
        seed = plan.seed(claim.slot, index)
        experiment = plan.changed(claim.values, claim.point, seed)
        earlier = patience.insist(partial(sweep.trial_runs, claim, seed))
        done = _finished(earlier)
        if done is None:
            watch = TrialWatch(claim, plan.spec.objective, plan.shared_tasks, reports=index == 0)
            _train_seed(claim, sweep, experiment, watch, earlier, patience)
            if watch.pruned:
                with patience.spare():
                    _settle(sweep, watch.run_id)
                return None
            done = patience.insist(partial(_log_objective, sweep, watch.run_id, plan.spec.objective))
        values.append(done)
    return sum(values) / len(values)


def _finished(runs: list[Run]) -> float | None:
    """The objective of a run that an earlier attempt has finished."""
    finished = (run.data.metrics for run in runs if run.info.status == "FINISHED")
    return next((metrics[tags.OBJECTIVE] for metrics in finished if tags.OBJECTIVE in metrics), None)


def _train_seed(
    claim: Claim,
    sweep: MlflowSweep,
    experiment: Experiment,
    watch: TrialWatch,
    earlier: list[Run],
    patience: Patience,
) -> None:
    """Trains one seed, going on from the checkpoint of an `earlier` attempt where it lies on this disk."""
    seed, ids = experiment.seed, [run.info.run_id for run in earlier]
    resume = next((run_id for run_id in ids if (RUNS / run_id / SPEC).is_file()), None)
    part = Part(trial_name(claim, seed), sweep.trial_tags(claim, seed), (watch,))
    for run_id in ids:
        if run_id != resume:
            patience.insist(partial(sweep.give_up, run_id))
    if train(experiment, resume=resume, console=Console(quiet=True), part=part):
        raise KeyboardInterrupt


def _settle(sweep: MlflowSweep, run_id: str) -> None:
    """Catches up with what MLflow did not take as the training ended: metrics, and that it has."""
    send_left(sweep.client, run_id, RUNS / run_id / UNSENT)
    if sweep.client.get_run(run_id).info.status != "FINISHED":
        sweep.client.set_terminated(run_id, "FINISHED")


def _log_objective(sweep: MlflowSweep, run_id: str, objective: str) -> float:
    """Logs and returns the objective of a run that was trained to its end."""
    from mlflow.entities import Metric

    _settle(sweep, run_id)
    run = sweep.client.get_run(run_id)
    value = run.data.metrics.get(objective, math.nan)
    if not math.isfinite(value):
        raise TrialError(f"run {run_id} logged no finite {objective}")
    history = sweep.client.get_metric_history(run_id, objective)
    last = history[-1]
    metric = Metric(tags.OBJECTIVE, value, last.timestamp, last.step)
    sweep.client.log_batch(run_id, metrics=[metric])
    return value
