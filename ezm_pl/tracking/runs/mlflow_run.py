"""One MLflow run and its folder: creates, reopens and ends it, and logs its artifacts."""

from __future__ import annotations

import fcntl
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from ezm_pl.spec import Experiment, SpecError, dump_experiment
from ezm_pl.tracking.console import count
from ezm_pl.tracking.fault_tolerance.sender import UNSENT, send_left
from ezm_pl.tracking.host import git_tags, host_tags
from ezm_pl.tracking.runs.params import spec_params
from ezm_pl.tracking.runs.run_lookup import RUNS, SPEC, STORE, SavedRun
from ezm_pl.tracking.store import (
    EmptyStore,
    experiment_id,
    open_store,
    shown,
    store_errors,
    tracking_uri,
    tracking_uris,
)

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run as MlflowRun

Status = Literal["FINISHED", "KILLED", "FAILED"]
_PARAMS_PER_REQUEST = 100
RESUME = "resume."
"""Prefix of the tags that say what each resumed session changed: `resume.1`, `resume.2`, ..."""


@dataclass(frozen=True)
class Run:
    """An MLflow run being written.

    Attributes:
        client: of its tracking store.
        run_id: MLflow's.
        name: as the UI shows it.
        directory: `mlruns/runs/<run_id>`: checkpoints and replay.
        store: the tracking store's address as it was given.
    """

    client: MlflowClient
    run_id: str
    name: str
    directory: Path
    store: str

    def log_file(self, file: Path, folder: str) -> None:
        """Copies `file` to the run's artifacts, under `folder`; nothing where it does not exist."""
        if file.is_file():
            self.client.log_artifact(self.run_id, str(file), folder)

    def end(self, status: Status) -> None:
        """Writes how the run ended."""
        self.client.set_terminated(self.run_id, status)


@dataclass(frozen=True)
class SpecFile:
    """What a run keeps of its spec.

    Attributes:
        name: of the file in its folder and among its artifacts.
        text: of the file.
        params: MLflow's, one per field.
    """

    name: Path
    text: str
    params: Mapping[str, str]

    @classmethod
    def of(cls, experiment: Experiment) -> SpecFile:
        """Of an experiment."""
        return cls(SPEC, dump_experiment(experiment), spec_params(experiment))


def new_run(
    experiment: Experiment,
    *,
    name: str | None = None,
    tags: Mapping[str, str] | None = None,
    spec: SpecFile | None = None,
) -> Run:
    """Makes a run in the spec's tracking store: name, tags, params, spec file.

    Args:
        experiment: the resolved spec.
        name: in place of `run_name`'s.
        tags: beside those of every run, such as a sweep's.
        spec: of a run that is not the experiment's training, but was made from it.

    Raises:
        SpecError: the store cannot be opened.
    """
    spec = spec or SpecFile.of(experiment)
    uri = tracking_uri(experiment.tracking.uri)
    client = open_store(uri)
    all_tags = {
        "preset": experiment.preset,
        "protocol": experiment.env.protocol,
        "tasks": ", ".join(experiment.tasks),
        "num_tasks": str(len(experiment.tasks)),
        **host_tags(),
        **git_tags(),
        **(tags or {}),
        **experiment.tracking.tags,
    }
    name = name or run_name(experiment)
    where = experiment_id(client, experiment.tracking.experiment, uri=uri)
    run_id = client.create_run(where, tags=all_tags, run_name=name).info.run_id
    run = Run(client, run_id, name, RUNS / run_id, uri)
    with failed_if_raises(run):
        run.directory.mkdir(parents=True)
        _log_params(client, run_id, spec.params)
        _write_spec(run, spec)
    return run


def reopened_run(
    saved: SavedRun,
    experiment: Experiment,
    *,
    tags: Mapping[str, str] | None = None,
    spec: SpecFile | None = None,
) -> Run:
    """Takes up the MLflow run that `saved` belongs to; params stay, what has changed becomes a tag.

    Points that an earlier session could not send are sent first.

    Args:
        saved: the run.
        experiment: the resolved spec.
        tags, spec: as for `new_run`.

    Raises:
        SpecError: the store cannot be opened, or does not hold the run.
    """
    spec = spec or SpecFile.of(experiment)
    uri, client, old = stored_run(saved, option="--resume", configured=experiment.tracking.uri)
    if old.info.lifecycle_stage == "deleted":
        raise SpecError(f"--resume: run {saved.run_id} was deleted in MLflow; restore it first")
    params = spec.params
    _log_params(client, saved.run_id, {key: v for key, v in params.items() if key not in old.data.params})
    changes = [
        f"{key}: {old.data.params[key]} -> {value}"
        for key, value in params.items()
        if key in old.data.params and old.data.params[key] != value
    ]
    client.set_tag(saved.run_id, f"{RESUME}{resumes(old) + 1}", "; ".join(changes) or "same spec")
    run = Run(client, saved.run_id, old.info.run_name, saved.directory, uri)
    _write_spec(run, spec)
    client.update_run(saved.run_id, "RUNNING")
    with failed_if_raises(run):
        send_left(client, run.run_id, run.directory / UNSENT)
        for key, value in (tags or {}).items():
            client.set_tag(run.run_id, key, value)
    return run


def resumes(run: MlflowRun) -> int:
    """How often a run was resumed."""
    return sum(key.startswith(RESUME) for key in run.data.tags)


def last_params(run: MlflowRun) -> dict[str, str]:
    """A run's params as its last session had them: MLflow's own stay those of the first."""
    said = run.data.tags.get(f"{RESUME}{resumes(run)}", "")
    changed = (re.fullmatch(r"(\S+): .* -> (.*)", each) for each in said.split("; "))
    return run.data.params | {each[1]: each[2] for each in changed if each}


@contextmanager
def failed_if_raises(run: Run) -> Iterator[None]:
    """Whatever is raised inside, the run does not stay RUNNING."""
    try:
        yield
    except BaseException:
        with suppress(*store_errors()):
            run.end("FAILED")
        raise


def stored_run(
    saved: SavedRun, *, option: str = "RUN", configured: str | None = None
) -> tuple[str, MlflowClient, MlflowRun]:
    """Finds a run of this disk in its tracking store; makes nothing.

    Args:
        saved: the run.
        option: how it was named, for messages.
        configured: a spec's `tracking.uri`, which is asked alone.

    Returns:
        The store's address, a client of it, and MLflow's record of the run.

    Raises:
        SpecError: no store that it can be in holds it.
    """
    from mlflow.exceptions import MlflowException

    problems = []
    for uri in tracking_uris(configured, saved.recorded_uri):
        try:
            client = open_store(uri, create=False)
            return uri, client, client.get_run(saved.run_id)
        except (MlflowException, EmptyStore):
            problems.append(f"run {saved.run_id} is not in the tracking store {shown(uri)}")
        except SpecError as error:
            problems.append(str(error))
    raise SpecError(f"{option}: {'; '.join(problems)}")


def run_name(experiment: Experiment) -> str:
    """`quickstart 3 tasks laptop seed 0, 11-22 13:05`: tells runs apart in a list."""
    tasks, began = count(len(experiment.tasks), "task"), time.strftime("%m-%d %H:%M")
    return f"{experiment.name} {tasks} {experiment.preset} seed {experiment.seed}, {began}"


@contextmanager
def run_lock(directory: Path) -> Iterator[None]:
    """Holds a run's folder for this process.

    Raises:
        SpecError: another process is training this run, or its folder cannot be written to.
    """
    try:
        lock = (directory / "lock").open("w")
    except OSError as error:
        raise SpecError(f"{directory} cannot be written to: {error.strerror}") from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise SpecError(f"--resume: run {directory.name} is being trained by another process") from None
        yield


def _log_params(client: MlflowClient, run_id: str, params: Mapping[str, str]) -> None:
    from mlflow.entities import Param

    entities = [Param(key, value) for key, value in params.items()]
    for first in range(0, len(entities), _PARAMS_PER_REQUEST):
        client.log_batch(run_id, params=entities[first : first + _PARAMS_PER_REQUEST])


def _write_spec(run: Run, spec: SpecFile) -> None:
    path = run.directory / spec.name
    path.write_text(spec.text, encoding="utf-8")
    run.client.log_artifact(run.run_id, str(path))
    if shown(run.store) == run.store:
        (run.directory / STORE).write_text(run.store, encoding="utf-8")
