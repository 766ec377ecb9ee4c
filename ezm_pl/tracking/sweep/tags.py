"""Tags and metrics by which MLflow tells a sweep's runs apart: the sweep, its grid points, its trials.

Three levels, nested by `mlflow.parentRunId`: one run for the sweep (`LEVEL` is `SWEEP`), one for every
grid point (`POINT`), one for every seed of every trial (`TRIAL`). All tags are text.
"""

from __future__ import annotations

PARENT = "mlflow.parentRunId"
"""Run id of the run one level up (MLflow's own tag; its UI nests by it)."""

LEVEL = "sweep.level"
SWEEP, POINT, TRIAL = "sweep", "point", "trial"
"""Values of `LEVEL`."""

ID = "sweep.id"
"""Run id of the sweep's own run; on grid points and trials."""

NAME = "sweep.name"
KEY = "sweep.key"
"""What tells the sweep apart in its Optuna storage: name, preset and grid; on the sweep's own run."""

REFERENCE = "reference"
"""Param of the sweep's own run: label of the grid point that variants of an experiment are compared with."""

POINT_LABEL = "sweep.point"
"""Which grid point, in a word: `hb-8`; on grid points and trials."""

NUMBER = "sweep.trial"
"""The trial's number within its grid point, from 0; its seeds share it."""

SEED = "sweep.seed"
STATE = "sweep.state"
RUNNING, COMPLETE, PRUNED, FAILED = "running", "complete", "pruned", "failed"
"""Values of `STATE`, which is the trial's."""

SHARED_TASKS = "sweep.shared_tasks"
"""Tasks that all grid points have in common, joined by `, `."""

SEARCHED = "sweep.params"
"""JSON of the searched fields (dotted) and the values of this trial."""

OBJECTIVE = "sweep/objective"
"""Metric of a trial's run: the objective's value in this run."""

SHARED_SCORE = "sweep/shared_score"
"""Metric of a trial's run: mean normalised score over the shared tasks, the protocol that of `eval/score`."""

BEST_OBJECTIVE = "sweep/best_objective"
MEAN_OBJECTIVE = "sweep/mean_objective"
"""Metrics of a grid point, over its complete trials."""

SPEC_FILE = "sweep.yaml"
"""Artifact of the sweep's run: the resolved spec."""
