"""A sweep's runs in MLflow: the sweep, its grid points, and the runs of its trials, found by their tags.

A run and the tags that identify it are made in one request, so that a worker killed at any moment leaves
no run that would be made a second time.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from ezm_pl.spec import SpecError
from ezm_pl.spec.sweep_plan import Point, SweepPlan
from ezm_pl.spec.variants import REFERENCE
from ezm_pl.spec.yaml_file import dump_yaml
from ezm_pl.sweeps.queue import Claim, Queue, have_ended, slot_of, stored_sweeps
from ezm_pl.tracking.console import count
from ezm_pl.tracking.store import experiment_id, first_line, open_store, shown, store_errors, tracking_uri
from ezm_pl.tracking.sweep import tags
from ezm_pl.tracking.sweep.runs import search_runs

if TYPE_CHECKING:
    from mlflow.entities import Run
    from optuna.trial import FrozenTrial

_IDENTITY = "sweep.identity"
"""Tag of the sweep's own run: the sweep's id in its Optuna storage, which knows no run ids of MLflow."""

_RUN_STATE = {"RUNNING": tags.RUNNING, "COMPLETE": tags.COMPLETE, "PRUNED": tags.PRUNED, "FAIL": tags.FAILED}


class MlflowSweep:
    """The runs of a sweep in MLflow."""

    def __init__(self, queue: Queue) -> None:
        """Opens the tracking store.

        Raises:
            SpecError: it cannot be opened or does not answer.
        """
        self.queue, self.plan = queue, queue.plan
        tracking = self.plan.points[0].experiment.tracking
        self._uri = tracking_uri(tracking.uri)
        self.client = open_store(self._uri)
        with self._one_line_errors():
            self.experiment_id = experiment_id(self.client, tracking.experiment, uri=self._uri)
        self._points: dict[str, str] = {}

    @cached_property
    def sweep_id(self) -> str:
        """Run id of the sweep's own run, made where there is none; params that it lacks are logged."""
        from mlflow.entities import Param

        mine = {tags.LEVEL: tags.SWEEP, _IDENTITY: self.queue.identity}
        name = self.plan.spec.name
        run = self._run(mine, {tags.NAME: name, tags.KEY: self.plan.key}, name)
        wanted, there = sweep_params(self.plan), run.data.params
        # A worker that made the run may have died before it logged them.
        if lacking := [Param(key, value) for key, value in wanted.items() if key not in there]:
            self.client.log_batch(run.info.run_id, params=lacking)
        return run.info.run_id

    def point_id(self, point: Point) -> str:
        """Run id of a grid point's run, made where there is none."""
        if point.label not in self._points:
            tasks = point.experiment.tasks
            mine = {tags.PARENT: self.sweep_id, tags.LEVEL: tags.POINT, tags.POINT_LABEL: point.label}
            of_sweep = {tags.ID: self.sweep_id, tags.NAME: self.plan.spec.name}
            named = {**of_sweep, "num_tasks": str(len(tasks)), "tasks": ", ".join(tasks)}
            run = self._run(mine, named, f"{point.label}: {count(len(tasks), 'task')}")
            self._points[point.label] = run.info.run_id
        return self._points[point.label]

    def _run(self, mine: Mapping[str, str], named: Mapping[str, str], name: str) -> Run:
        """The run with the tags `mine`, made with the tags `named` too where there is none."""
        if found := self._find(mine):
            return found[0]
        return self.client.create_run(self.experiment_id, tags={**mine, **named}, run_name=name)

    def begin(self) -> None:
        """Makes what is missing, writes the spec, marks the sweep and its unfinished points as running.

        Raises:
            SpecError: the store does not answer, or its artifacts cannot be written.
        """
        whole = stored_sweeps(self.queue.storage)[self.plan.key]  # also the variants of earlier commands
        with self._one_line_errors():
            self.client.log_text(self.sweep_id, dump_yaml(whole), tags.SPEC_FILE)
            every = {self.point_id(point): have_ended(self.queue.trials(point)) for point in self.plan.points}
            for run_id in (self.sweep_id, *(run_id for run_id, ended in every.items() if not ended)):
                if self.client.get_run(run_id).info.status != "RUNNING":
                    self.client.update_run(run_id, "RUNNING")

    def interrupt(self) -> None:
        """Marks what is still running as killed."""
        for run_id in (*(self.point_id(point) for point in self.plan.points), self.sweep_id):
            if self.client.get_run(run_id).info.status == "RUNNING":
                self.client.set_terminated(run_id, "KILLED")

    def close_finished(self) -> None:
        """Ends the runs of grid points whose trials have all ended, and of the sweep after the last."""
        everything = True
        for point in self.plan.points:
            trials = self.queue.trials(point)
            if not have_ended(trials):
                everything = False
                continue
            run_id = self.point_id(point)
            if self.client.get_run(run_id).info.status == "FINISHED":
                continue
            self._close_runs(point, trials)
            values = [t.value for t in trials if t.state.name == "COMPLETE" and t.value is not None]
            if values:
                best = max(values) if self.plan.spec.direction == "maximize" else min(values)
                self.client.log_metric(run_id, tags.BEST_OBJECTIVE, best)
                self.client.log_metric(run_id, tags.MEAN_OBJECTIVE, sum(values) / len(values))
            self.client.set_terminated(run_id, "FINISHED")
        if everything and self.client.get_run(self.sweep_id).info.status != "FINISHED":
            self.client.set_terminated(self.sweep_id, "FINISHED")

    def _close_runs(self, point: Point, trials: Sequence[FrozenTrial]) -> None:
        """Gives each run of a finished grid point its trial's state, which a worker that died did not."""
        states = {str(slot_of(t)): _RUN_STATE[t.state.name] for t in trials}
        for run in self._find({tags.PARENT: self.point_id(point)}):
            self._end(run, states[run.data.tags[tags.NUMBER]])
            if run.info.status == "RUNNING":
                self.client.set_terminated(run.info.run_id, "FAILED")

    def trial_tags(self, claim: Claim, seed: int) -> dict[str, str]:
        """Tags by which a trial's run is found and filtered."""
        return {
            tags.PARENT: self.point_id(claim.point),
            tags.LEVEL: tags.TRIAL,
            tags.ID: self.sweep_id,
            tags.NAME: self.plan.spec.name,
            tags.POINT_LABEL: claim.point.label,
            tags.NUMBER: str(claim.slot),
            tags.SEED: str(seed),
            tags.STATE: tags.RUNNING,
            tags.SHARED_TASKS: ", ".join(self.plan.shared_tasks),
            tags.SEARCHED: json.dumps(claim.values),
        }

    def trial_runs(self, claim: Claim, seed: int | None = None) -> list[Run]:
        """Runs of a trial (of one `seed`, where given), the newest first."""
        wanted = {tags.PARENT: self.point_id(claim.point), tags.NUMBER: str(claim.slot)}
        return self._find(wanted if seed is None else {**wanted, tags.SEED: str(seed)})

    def mark(self, claim: Claim, state: str) -> None:
        """Writes how a trial ended on its runs; those that were given up have their state already."""
        for run in self.trial_runs(claim):
            self._end(run, state)

    def _end(self, run: Run, state: str) -> None:
        if run.data.tags.get(tags.STATE) == tags.RUNNING:
            self.client.set_tag(run.info.run_id, tags.STATE, state)

    def give_up(self, run_id: str) -> None:
        """Ends the run of a dead attempt whose checkpoint is not on this disk: another one replaces it."""
        self.client.set_tag(run_id, tags.STATE, tags.FAILED)
        self.client.set_terminated(run_id, "KILLED")

    def _find(self, wanted: Mapping[str, str]) -> list[Run]:
        query = " and ".join(f"tags.`{key}` = '{value}'" for key, value in wanted.items())
        return search_runs(self.client, [self.experiment_id], query)

    @contextmanager
    def _one_line_errors(self) -> Iterator[None]:
        """Inside, a store that does not take the sweep's runs is a `SpecError` of one line."""
        try:
            yield
        except store_errors() as error:
            where = shown(self._uri)
            raise SpecError(f"the sweep cannot be tracked in {where}: {first_line(error)}") from None


def trial_name(claim: Claim, seed: int) -> str:
    """`hb-8 · t3 s1`, of a variant `no_path · t0 s1`."""
    return f"{claim.point.label} · t{claim.slot} s{seed}"


def sweep_params(plan: SweepPlan) -> dict[str, str]:
    """The sweep's spec as params of its run."""
    spec = plan.spec
    labels = ", ".join(point.label for point in plan.points)
    return {
        "base": Path(spec.base).name,
        **({tags.REFERENCE: REFERENCE} if spec.variants else {"tasks": labels}),
        "trials": str(spec.trials_per_point),
        "seeds": str(spec.seeds),
        "sampler": spec.sampler,
        "pruner": spec.pruner.kind,
        "objective": spec.objective,
        "direction": spec.direction,
        "preset": plan.points[0].experiment.preset,
        **{f"search.{field}": dimension.text for field, dimension in spec.search.items()},
    }
