"""A sweep as MLflow holds it: its grid points, their trials and each seed's run. Nothing else is asked."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from ezm_pl.spec import SpecError
from ezm_pl.spec.errors import nearest
from ezm_pl.tracking.runs.metrics import ENV_STEPS, EVALUATION
from ezm_pl.tracking.runs.mlflow_run import RESUME
from ezm_pl.tracking.runs.run_lookup import last_recorded_uri
from ezm_pl.tracking.store import EmptyStore, open_store, shown, tracking_uris
from ezm_pl.tracking.sweep import tags

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

_PAGE = 1000


@dataclass(frozen=True)
class SeedRun:
    """One seed of one trial: a training run.

    Attributes:
        run_id: MLflow's.
        trial: number within the grid point.
        seed: of the experiment.
        state: the trial's, one of the values of `tags.STATE`.
        values: searched fields (dotted) and their values.
        params: all of the run's params.
        metrics: newest value of each metric.
        tags: all of the run's tags.
        start: when it began, seconds since the epoch.
        seconds: wall-clock from start to end; NaN while it runs.
    """

    run_id: str
    trial: int
    seed: int
    state: str
    values: Mapping[str, Any]
    params: Mapping[str, str]
    metrics: Mapping[str, float]
    tags: Mapping[str, str]
    start: float
    seconds: float

    @property
    def env_steps(self) -> float:
        """Control steps per task so far; NaN where none were logged."""
        return self.metrics.get(ENV_STEPS, np.nan)

    @property
    def uninterrupted(self) -> bool:
        """Whether `seconds` is training alone; that of a resumed run counts the pause."""
        return not any(name.startswith(RESUME) for name in self.tags)

    @property
    def objective(self) -> float:
        """What the sweep optimises, of this run; NaN where it was not logged."""
        return self.metrics.get(tags.OBJECTIVE, np.nan)

    def final_return(self, task: str, protocol: str) -> float:
        """Return of the last evaluation of `task`; NaN where there is none."""
        return self.metrics.get(f"{EVALUATION}{task}/return_{protocol}", np.nan)


@dataclass(frozen=True)
class Trial:
    """Values for the searched fields, tried with several seeds.

    Attributes:
        number: within its grid point.
        state: `complete`, `pruned`, `failed` or `running`.
        values: searched fields and their values.
        runs: the newest run of each seed, by seed.
    """

    number: int
    state: str
    values: Mapping[str, Any]
    runs: tuple[SeedRun, ...]

    @property
    def objective(self) -> float:
        """Mean over its seeds; NaN where a seed has none."""
        return float(np.mean([run.objective for run in self.runs]))


@dataclass(frozen=True)
class Point:
    """A grid point: one number of tasks, or one suite.

    Attributes:
        label: such as `hb-8`.
        tasks: names.
        trials: by number.
        attempts: every run of it, those that a later attempt replaced too.
    """

    label: str
    tasks: tuple[str, ...]
    trials: tuple[Trial, ...]
    attempts: tuple[SeedRun, ...]

    def of_state(self, state: str) -> list[Trial]:
        """Trials in that state."""
        return [trial for trial in self.trials if trial.state == state]

    def best(self, direction: str) -> Trial | None:
        """The complete trial with the best mean objective (`maximize` or `minimize`); None without one."""
        complete = [trial for trial in self.of_state(tags.COMPLETE) if trial.runs]
        if not complete:
            return None
        sign = -1.0 if direction == "minimize" else 1.0
        return max(complete, key=lambda t: (np.isfinite(t.objective), sign * np.nan_to_num(t.objective)))


@dataclass(frozen=True)
class Sweep:
    """Everything that MLflow knows of a sweep.

    Attributes:
        run_id: of the sweep's own run.
        name: the sweep's.
        status: of its run, MLflow's word: RUNNING, FINISHED, KILLED, FAILED.
        params: of its run.
        points: grid points by number of tasks; of variants, the reference first.
        shared_tasks: tasks that all grid points have in common, in the order of the smallest.
        spec: text of `sweep.yaml`; empty where it is missing.
    """

    run_id: str
    name: str
    status: str
    params: Mapping[str, str]
    points: tuple[Point, ...]
    shared_tasks: tuple[str, ...]
    spec: str

    @property
    def direction(self) -> Literal["maximize", "minimize"]:
        """Which way is better."""
        return "minimize" if self.params.get("direction") == "minimize" else "maximize"

    @property
    def runs(self) -> list[SeedRun]:
        """Every run of every grid point."""
        return [run for point in self.points for run in point.attempts]

    @property
    def partial(self) -> bool:
        """Whether more is to come: the sweep, or a trial of it, has not ended."""
        return self.status != "FINISHED" or any(point.of_state(tags.RUNNING) for point in self.points)

    @property
    def tasks(self) -> tuple[str, ...]:
        """Tasks of any grid point; the shared ones first."""
        every = (*self.shared_tasks, *(task for point in self.points for task in point.tasks))
        return tuple(dict.fromkeys(every))

    @property
    def searched(self) -> tuple[str, ...]:
        """Searched fields, dotted."""
        return tuple(dict.fromkeys(name for run in self.runs for name in run.values))

    @property
    def reference(self) -> str | None:
        """Of variants of an experiment: the grid point that is the experiment itself; None elsewhere."""
        return self.params.get(tags.REFERENCE)

    @property
    def protocol(self) -> str:
        """The protocol that scores are of."""
        return next((run.tags["protocol"] for run in self.runs if "protocol" in run.tags), "ezm")


def open_sweep(reference: str, uri: str | None = None) -> tuple[MlflowClient, Sweep]:
    """A client of the tracking store, and the sweep in it that `reference` names (see `find_sweep`).

    Args:
        reference: what was typed.
        uri: of the store; None: the first of `tracking_uris` that holds it.

    Raises:
        SpecError: as `find_sweep`, or the store cannot be opened.
    """
    problems = []
    for store in tracking_uris(uri, last_recorded_uri()):
        where = shown(store)
        try:
            client = open_store(store, create=False)
            return client, read_sweep(client, find_sweep(client, reference, where=where))
        except EmptyStore:
            problems.append(_no_sweep(where))
        except SpecError as error:
            problems.append(str(error).removeprefix(f"SWEEP {reference}: "))
    raise SpecError(f"SWEEP {reference}: {'; '.join(problems)}")


def _no_sweep(where: str) -> str:
    return f"there is no sweep in {where} yet; `ezm sweep run` makes one"


def find_sweep(client: MlflowClient, reference: str, *, where: str) -> Run:
    """The sweep's own run behind `last`, a run id (or the start of one), or a sweep's name or key.

    Of several sweeps of one name the newest.

    Args:
        client: of the tracking store.
        reference: what was typed.
        where: the store's address, for messages.

    Raises:
        SpecError: no such sweep, or more than one id that starts like this.
    """
    sweeps = search_runs(client, _experiments(client), f"tags.`{tags.LEVEL}` = '{tags.SWEEP}'")
    if not sweeps:
        raise SpecError(f"SWEEP {reference}: {_no_sweep(where)}")
    if reference == "last":
        return sweeps[0]
    named = [
        run
        for run in sweeps
        if reference in (*map(run.data.tags.get, (tags.NAME, tags.KEY)), run.info.run_name)
    ]
    if named:
        return named[0]
    matches = [run for run in sweeps if run.info.run_id.startswith(reference)]
    if len(matches) == 1:
        return matches[0]
    if matches:
        raise SpecError(f"SWEEP {reference}: {len(matches)} sweeps' run ids start like this")
    names = [run.data.tags.get(tags.NAME, run.info.run_name) for run in sweeps]
    hint = nearest(reference, ["last", *names])
    raise SpecError(f"SWEEP {reference}: no such sweep in {where} ({len(sweeps)} sweeps){hint}")


def read_sweep(client: MlflowClient, run: Run) -> Sweep:
    """Reads the sweep whose own run is `run`."""
    children = search_runs(client, _experiments(client), f"tags.`{tags.ID}` = '{run.info.run_id}'")
    attempts: dict[str, list[SeedRun]] = {}
    tasks: dict[str, tuple[str, ...]] = {}
    for child in sorted(children, key=lambda child: child.info.start_time):
        label = child.data.tags.get(tags.POINT_LABEL, "")
        if "tasks" in child.data.tags:
            tasks.setdefault(label, _names(child.data.tags["tasks"]))
        if child.data.tags.get(tags.LEVEL) == tags.TRIAL:
            attempts.setdefault(label, []).append(_seed_run(child))
    points = [_point(label, names, attempts.get(label, [])) for label, names in tasks.items()]
    if tags.REFERENCE not in run.data.params:  # variants stay as they were begun, the reference first
        points.sort(key=lambda point: len(point.tasks))
    return Sweep(
        run_id=run.info.run_id,
        name=run.data.tags.get(tags.NAME) or run.info.run_name,
        status=run.info.status,
        params=run.data.params,
        points=tuple(points),
        shared_tasks=_shared(points, run, children),
        spec=_spec(client, run.info.run_id),
    )


def search_runs(client: MlflowClient, experiments: list[str], condition: str) -> list[Run]:
    """All runs of some experiments (ids) that meet a condition of MLflow's search, the newest first."""
    found: list[Run] = []
    token = None
    while experiments:
        page = client.search_runs(
            experiments, condition, max_results=_PAGE, order_by=["start_time DESC"], page_token=token
        )
        found += page
        token = page.token
        if not token:
            break
    return found


def _experiments(client: MlflowClient) -> list[str]:
    return [e.experiment_id for e in client.search_experiments(max_results=_PAGE)]


def _seed_run(run: Run) -> SeedRun:
    info, data = run.info, run.data
    start = info.start_time / 1000
    searched: dict[str, Any] = json.loads(data.tags.get(tags.SEARCHED, "{}"))
    return SeedRun(
        run_id=info.run_id,
        trial=int(data.tags.get(tags.NUMBER, 0)),
        seed=int(data.tags.get(tags.SEED, 0)),
        state=data.tags.get(tags.STATE, tags.RUNNING),
        values={name: _plain(value) for name, value in searched.items()},
        params=data.params,
        metrics=data.metrics,
        tags=data.tags,
        start=start,
        seconds=info.end_time / 1000 - start if info.end_time else np.nan,
    )


def _plain(value: Any) -> bool | int | float | str:
    """Choices that are not plain (lists, null) as their JSON."""
    return value if isinstance(value, bool | int | float | str) else json.dumps(value)


def _point(label: str, names: tuple[str, ...], attempts: Sequence[SeedRun]) -> Point:
    """Of several attempts at a seed the newest counts."""
    newest: dict[int, dict[int, SeedRun]] = {}
    for run in attempts:
        newest.setdefault(run.trial, {})[run.seed] = run
    trials = []
    for number, by_seed in sorted(newest.items()):
        runs = tuple(by_seed[seed] for seed in sorted(by_seed))
        latest = max(runs, key=lambda run: run.start)
        trials.append(Trial(number, _state(runs), latest.values, runs))
    return Point(label, names, tuple(trials), tuple(attempts))


def _state(runs: Sequence[SeedRun]) -> str:
    """The trial's state: all seeds carry it; while they do not agree, the least settled one holds."""
    states = {run.state for run in runs}
    return next(s for s in (tags.RUNNING, tags.FAILED, tags.PRUNED, tags.COMPLETE, *states) if s in states)


def _shared(points: Sequence[Point], sweep: Run, children: Sequence[Run]) -> tuple[str, ...]:
    """As tagged, for points that have not begun count too; else what the points have in common."""
    for run in (sweep, *children):
        if tags.SHARED_TASKS in run.data.tags:
            return _names(run.data.tags[tags.SHARED_TASKS])
    if not points:
        return ()
    common = set.intersection(*(set(point.tasks) for point in points))
    return tuple(task for task in points[0].tasks if task in common)


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())


def _spec(client: MlflowClient, run_id: str) -> str:
    from mlflow.exceptions import MlflowException

    with tempfile.TemporaryDirectory() as folder:
        try:
            copy = client.download_artifacts(run_id, tags.SPEC_FILE, folder)
        except (MlflowException, OSError):  # no such artifact, or its folder is on another machine
            return ""
        return Path(copy).read_text(encoding="utf-8")
