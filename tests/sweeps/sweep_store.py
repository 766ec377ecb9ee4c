"""Fills a real MLflow store with a sweep's runs, tagged as the sweep tags them, without training."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from mlflow import MlflowClient
from mlflow.entities import Metric, Param
from workplaces import empty_store

from ezm_pl.spec.tasks import task_facts
from ezm_pl.tracking.store import open_store
from ezm_pl.tracking.sweep import tags

MINUTE = 60_000


@dataclass
class FilledSweep:
    """A sweep being written, its runs ten minutes apart."""

    client: MlflowClient
    uri: str
    run_id: str
    experiment: str
    name: str
    generator: np.random.Generator = field(default_factory=lambda: np.random.default_rng(0))
    clock: int = 1_700_000_000_000

    def point(self, label: str, tasks: Sequence[str]) -> str:
        """A grid point's run."""
        return self._run(
            label,
            {
                tags.PARENT: self.run_id,
                tags.LEVEL: tags.POINT,
                tags.ID: self.run_id,
                tags.POINT_LABEL: label,
                "tasks": ", ".join(tasks),
                "num_tasks": str(len(tasks)),
            },
        )

    def seed(
        self,
        point: str,
        label: str,
        tasks: Sequence[str],
        *,
        shared: Sequence[str],
        score: float,
        trial: int = 0,
        seed: int = 0,
        state: str = tags.COMPLETE,
        values: Mapping[str, Any] | None = None,
        minutes: float = 4.0,
        steps: Sequence[int] = (400, 800),
        without: Sequence[str] = (),
        spread: float = 0.02,
    ) -> str:
        """One seed of a trial, its scores around `score`; `without` names tasks that were not evaluated."""
        self.clock += 10 * MINUTE
        start = self.clock
        run_id = self._run(
            f"{label} trial {trial} seed {seed}",
            {
                tags.PARENT: point,
                tags.LEVEL: tags.TRIAL,
                tags.ID: self.run_id,
                tags.POINT_LABEL: label,
                tags.NUMBER: str(trial),
                tags.SEED: str(seed),
                tags.STATE: state,
                tags.SHARED_TASKS: ", ".join(shared),
                tags.SEARCHED: json.dumps(dict(values or {})),
                "tasks": ", ".join(tasks),
                "num_tasks": str(len(tasks)),
                "protocol": "ezm",
                "host.cpu": "A processor <of & for> tests",
                "git.commit": "0123abcd",
            },
            start=start,
        )
        points: list[Metric] = []

        def log(name: str, value: float, step: int) -> None:
            points.append(Metric(name, value, start + MINUTE * step // 40, step))

        for updates, env_steps in zip((20, 40), steps, strict=False):
            log("env_steps", env_steps, updates)
            log("time/updates_per_second", 10.0, updates)
            for task in tasks:
                if task in without:
                    continue
                value = score * env_steps / steps[-1] + spread * self.generator.normal()
                for protocol, share in (("ezm", 1.0), ("humanoidbench", 0.9)):
                    name, episode_return = f"{task}/return_{protocol}", share * _return(task, value)
                    log(f"eval/{name}", episode_return, updates)
                    log(f"by_env_steps/{name}", episode_return, env_steps)
        if state == tags.COMPLETE:
            log(tags.OBJECTIVE, score, 40)
        self.client.log_batch(run_id, metrics=points, params=[Param("eval.episodes", "1")])
        if state != tags.RUNNING:
            self.client.set_terminated(run_id, end_time=start + int(minutes * MINUTE))
        return run_id

    def finish(self) -> None:
        """Ends the sweep's own run."""
        self.client.set_terminated(self.run_id)

    def _run(self, name: str, marks: dict[str, str], start: int | None = None) -> str:
        run = self.client.create_run(self.experiment, run_name=name, tags=marks, start_time=start)
        return run.info.run_id


def new_sweep(folder: Path, name: str = "scaling", *, params: Mapping[str, str] | None = None) -> FilledSweep:
    """A sweep without grid points, in the store `folder/mlflow.db`."""
    uri = f"sqlite:///{folder / 'mlflow.db'}"
    if not (folder / "mlflow.db").exists():
        shutil.copy(empty_store(), folder)
    client = open_store(uri)
    known = client.get_experiment_by_name("ezm")
    where = known.experiment_id if known else client.create_experiment("ezm", str(folder / "artifacts"))
    run_id = client.create_run(
        where, run_name=name, tags={tags.LEVEL: tags.SWEEP, tags.NAME: name}
    ).info.run_id
    asked = {"objective": "eval/score", "direction": "maximize", "trials": "1", "seeds": "3"} | dict(
        params or {}
    )
    client.log_batch(run_id, params=[Param(key, value) for key, value in asked.items()])
    with tempfile.TemporaryDirectory() as scratch:
        spec = Path(scratch) / tags.SPEC_FILE
        spec.write_text(f"name: {name}\n", encoding="utf-8")
        client.log_artifact(run_id, str(spec))
    return FilledSweep(client, uri, run_id, where, name)


def _return(task: str, score: float) -> float:
    facts = task_facts(task)
    if facts is None:
        return 1000 * score
    return facts.random_score + score * (facts.success_score - facts.random_score)
