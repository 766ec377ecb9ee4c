"""`ezm export`: a trained agent as a model of MLflow's registry, which `mlflow.pyfunc` loads anywhere."""

from __future__ import annotations

import logging
from importlib.metadata import requires, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlflow
import pandas
from mlflow.models import Model, ModelSignature
from mlflow.pyfunc import PythonModel
from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema
from mlflow.types.schema import Array
from packaging.requirements import Requirement
from rich.console import Console

import ezm_pl
from ezm_pl.agent import Agent
from ezm_pl.spec import SpecError
from ezm_pl.tracking.console import say
from ezm_pl.tracking.runs.mlflow_run import stored_run
from ezm_pl.tracking.runs.run_lookup import checkpoint_errors, find_checkpoint, newest_usable
from ezm_pl.tracking.store import first_line, shown, store_errors

if TYPE_CHECKING:
    from mlflow.pyfunc import PythonModelContext

SIGNATURE = ModelSignature(
    inputs=Schema([ColSpec(Array(DataType.double), "observation"), ColSpec(DataType.string, "task")]),
    outputs=Schema([ColSpec(Array(DataType.double), "action")]),
    params=ParamSchema([ParamSpec("plan", DataType.boolean, True)]),
)
"""A row per decision; `plan: false` lets the policy decide alone."""


class RegisteredAgent(PythonModel):
    """An `Agent` behind MLflow's interface."""

    def load_context(self, context: PythonModelContext) -> None:
        """Loads the checkpoint."""
        self.agent = Agent.load(context.artifacts["checkpoint"])

    def predict(
        self, context: Any, model_input: pandas.DataFrame, params: dict[str, Any] | None = None
    ) -> pandas.DataFrame:
        """A row `action` per row of `observation` and `task`."""
        plan = bool((params or {}).get("plan", True))
        rows = zip(model_input["observation"], model_input["task"], strict=True)
        actions = [self.agent.act(observation, task, plan=plan).tolist() for observation, task in rows]
        return pandas.DataFrame({"action": actions})


def _example(agent: Agent) -> pandas.DataFrame:
    """One row, which MLflow tries on the model that it has saved."""
    size = int(agent.sizes.obs_sizes[0])
    return pandas.DataFrame({"observation": [[0.0] * size], "task": [agent.tasks[0]]})


def requirements() -> list[str]:
    """This package's requirements, extras left out, in the versions that are installed."""
    found = []
    for each in map(Requirement, requires("ezm_pl") or ()):
        if each.marker is None or each.marker.evaluate({"extra": ""}):
            extras = f"[{','.join(sorted(each.extras))}]" if each.extras else ""
            # Without what says where a build is from, as in 2.13.0+cpu.
            found.append(f"{each.name}{extras}=={version(each.name).partition('+')[0]}")
    return found


def register_agent(reference: str, name: str, *, console: Console) -> None:
    """Logs a run's agent as a new version of the registered model `name`.

    The version holds the checkpoint and this package's code, and belongs to the run.

    Raises:
        SpecError: no such run, a checkpoint that cannot be read, or a store that takes no model.
    """
    saved = find_checkpoint(reference, option="RUN")
    with checkpoint_errors(f"RUN {reference}"):
        agent = Agent.load(newest_usable(saved.checkpoint, console))
    uri, client, run = stored_run(saved, configured=agent.experiment.tracking.uri)
    mlflow.set_tracking_uri(client.tracking_uri)
    mlflow.set_registry_uri(client.tracking_uri)
    logging.getLogger("mlflow.pyfunc").setLevel(logging.ERROR)  # of pickles: this one names a class, no more
    try:
        mlflow.set_experiment(experiment_id=run.info.experiment_id)
        logged = Model.log(
            artifact_path=None,
            flavor=mlflow.pyfunc,
            name="agent",
            run_id=saved.run_id,
            registered_model_name=name,
            step=agent.updates,
            python_model=RegisteredAgent(),
            artifacts={"checkpoint": str(agent.checkpoint.resolve())},
            code_paths=[str(Path(ezm_pl.__file__).parent)],
            pip_requirements=requirements(),
            signature=SIGNATURE,
            input_example=_example(agent),
        )
    except store_errors() as error:
        raise SpecError(f"{shown(uri)} takes no model {name!r}: {first_line(error)}") from None
    version = logged.registered_model_version
    how = f"mlflow.pyfunc.load_model('models:/{name}/{version}')"
    say(console, f"registered {name}, version {version}: {how}")
