"""A sweep's own runs in MLflow, also where MLflow is away for a while. Real stores, no training."""

from __future__ import annotations

import itertools
import json
import shutil
import sqlite3
import threading
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from optuna.exceptions import StorageInternalError
from optuna.trial import TrialState
from rich.console import Console
from sweep_helpers import claimed, write
from workplaces import work_in

from ezm_pl.cli import main
from ezm_pl.spec import Experiment
from ezm_pl.spec.sweep_plan import load_sweep
from ezm_pl.sweeps import mlflow_sweep, patience, trial, worker
from ezm_pl.sweeps.mlflow_sweep import MlflowSweep
from ezm_pl.sweeps.patience import Patience
from ezm_pl.sweeps.queue import Claim, Queue, stored_sweeps
from ezm_pl.sweeps.storage import open_storage
from ezm_pl.sweeps.worker import run_sweep
from ezm_pl.tracking.fault_tolerance.sender import UNSENT
from ezm_pl.tracking.runs.run_lookup import RUNS
from ezm_pl.tracking.runs.train import Part
from ezm_pl.tracking.store import open_store
from ezm_pl.tracking.sweep import tags
from ezm_pl.tracking.sweep.runs import open_sweep

FOREVER = 10**9
PARTS = {"no_path": {"loss": {"path": 0.0}}, "no_temporal": {"loss": {"temporal": 0.0}}}


@dataclass
class Store:
    """A client of a real store that refuses the next `refusals` requests."""

    client: MlflowClient
    refusals: int = 0
    refused: list[str] = field(default_factory=list)

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def request(*arguments: Any, **options: Any) -> Any:
            if self.refusals:
                self.refusals -= 1
                self.refused.append(name)
                raise MlflowException("connection refused\nand more of it")
            return getattr(self.client, name)(*arguments, **options)

        return request


@pytest.fixture
def store(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The store of the tiny sweep, in its folder, which is the working directory; nobody waits long."""
    with work_in(folder):
        store = Store(open_store("sqlite:///mlruns/mlflow.db"))
        monkeypatch.setattr(mlflow_sweep, "open_store", lambda uri: store)
        monkeypatch.setattr(patience, "_RETRY_SECONDS", (0.0,))
        yield store


@pytest.fixture
def queue(store: Store) -> Queue:
    """Of the tiny sweep: two grid points of two trials."""
    queue = Queue(open_storage(None), load_sweep("sweep.yaml"))
    queue.fill()
    return queue


def statuses(store: Store, level: str) -> dict[str, str]:
    """A level's runs: name to status, of trials also to the trial's state."""
    found = store.client.search_runs(["1"], f"tags.`{tags.LEVEL}` = '{level}'")
    return {run.info.run_name: run.info.status + run.data.tags.get(tags.STATE, "") for run in found}


def pretend(store: Store, refusals: Callable[[Claim], int]) -> Callable[..., float]:
    """In place of `run_trial`: a run without training, after whose end the store refuses some requests."""

    def run_trial(claim: Claim, sweep: MlflowSweep, patience: Patience) -> float:
        name = f"{claim.point.label} {claim.slot}"
        made = store.client.create_run(
            sweep.experiment_id, tags=sweep.trial_tags(claim, seed=0), run_name=name
        )
        store.client.set_terminated(made.info.run_id)
        store.refusals = refusals(claim)
        return 0.5

    return run_trial


def work(console: Console) -> tuple[int, str]:
    with console.capture() as said:
        code = run_sweep(load_sweep("sweep.yaml"), storage_url=None, console=console)
    return code, said.get()


def test_a_finished_point_is_not_opened_again(queue: Queue, store: Store) -> None:
    tracked = MlflowSweep(queue)
    tracked.begin()
    first, second = (point.label for point in queue.plan.points)
    for _ in range(3):  # two of the first point, one of the second
        queue.finish(claimed(queue), TrialState.COMPLETE, 0.5)
    tracked.close_finished()
    names = {first: f"{first}: 1 task", second: f"{second}: 1 task"}
    assert statuses(store, tags.POINT) == {names[first]: "FINISHED", names[second]: "RUNNING"}
    tracked.begin()
    assert statuses(store, tags.POINT) == {names[first]: "FINISHED", names[second]: "RUNNING"}
    tracked.interrupt()
    assert statuses(store, tags.POINT) == {names[first]: "FINISHED", names[second]: "KILLED"}
    tracked.begin()
    assert statuses(store, tags.POINT) == {names[first]: "FINISHED", names[second]: "RUNNING"}


def test_params_that_a_killed_worker_did_not_log_are_logged_by_the_next(store: Store) -> None:
    write(Path.cwd(), direction="minimize")
    queue = Queue(open_storage(None), load_sweep("sweep.yaml"))
    queue.fill()
    run_id = MlflowSweep(queue).sweep_id
    logged = store.client.get_run(run_id).data.params
    with closing(sqlite3.connect("mlruns/mlflow.db")) as database, database:
        database.execute("DELETE FROM params WHERE key != 'base'")
    MlflowSweep(queue).begin()
    assert store.client.get_run(run_id).data.params == logged
    assert open_sweep("last")[1].direction == "minimize"


def test_runs_beyond_mlflow_s_page_are_found(
    queue: Queue, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracked, claim = MlflowSweep(queue), claimed(queue)
    named = tracked.trial_tags(claim, seed=0)
    made = [
        store.client.create_run(tracked.experiment_id, tags=named, start_time=1000 + n).info.run_id
        for n in range(5)
    ]
    pages = store.client.search_runs
    monkeypatch.setattr(
        store.client, "search_runs", lambda *given, **more: pages(*given, **{**more, "max_results": 2})
    )
    assert [run.info.run_id for run in tracked.trial_runs(claim)] == made[::-1]


def test_a_worker_outlasts_an_absence_at_the_end_of_trials(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    # One refusal: the first trials cannot be marked. Four: the last one's point cannot be closed either.
    last = "dmc-pendulum-swingup"
    monkeypatch.setattr(
        trial, "run_trial", pretend(store, lambda c: 4 if (c.point.label, c.slot) == (last, 1) else 1)
    )
    code, said = work(Console(width=200))
    assert code == 0 and "Traceback" not in said
    assert len(store.refused) == 7
    assert said.count("MLflow does not answer: connection refused. The sweep tries again later\n") == 4
    assert said.count("MLflow answers again") == 4
    assert said.splitlines()[-1] == "done: 4 trials: 4 complete"
    assert set(statuses(store, tags.TRIAL).values()) == {"FINISHEDcomplete"}
    assert (
        set(statuses(store, tags.POINT).values()) == set(statuses(store, tags.SWEEP).values()) == {"FINISHED"}
    )


def test_other_workers_get_the_lock_while_a_worker_waits_for_mlflow_at_last(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MLflow stays away until another worker has had the lock."""
    monkeypatch.setattr(patience, "_RETRY_SECONDS", (0.1,))
    monkeypatch.setattr(patience, "PATIENCE_SECONDS", 30.0)
    last = "dmc-pendulum-swingup"
    monkeypatch.setattr(
        trial, "run_trial", pretend(store, lambda c: FOREVER if (c.point.label, c.slot) == (last, 1) else 0)
    )

    def other_worker() -> None:
        while len(store.refused) < 3:  # the trial's mark, its point's end, and then the last try
            time.sleep(0.01)
        with open_storage(None).alone():
            store.refusals = 0

    other = threading.Thread(target=other_worker, daemon=True)
    other.start()
    code, said = work(Console(width=200))
    assert code == 0 and "MLflow could not be told" not in said
    assert set(statuses(store, tags.SWEEP).values()) == {"FINISHED"}
    other.join()


def test_a_worker_outlasts_an_absence_of_the_storage_of_trials(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Many calls of the queue fail; no trial loses its result, nor one of its two attempts."""
    for name, period in {"is_done": 2, "claim": 2, "finish": 2, "trials": 7}.items():
        fails_at_times(monkeypatch, name, period)
    monkeypatch.setattr(trial, "run_trial", pretend(store, lambda c: 0))
    code, said = work(Console(width=200))
    assert code == 0 and "Traceback" not in said
    assert "the storage of trials does not answer: connection refused. The sweep tries again later\n" in said
    assert "the storage of trials answers again" in said and "MLflow" not in said
    assert said.splitlines()[-1] == "done: 4 trials: 4 complete"


def fails_at_times(monkeypatch: pytest.MonkeyPatch, name: str, period: int) -> None:
    """One of `period` calls of a method of `Queue` finds no storage."""
    real, fails = getattr(Queue, name), itertools.cycle([*[False] * (period - 1), True])

    def method(*arguments: Any) -> Any:
        if next(fails):
            raise StorageInternalError("connection refused")
        return real(*arguments)

    monkeypatch.setattr(Queue, name, method)


def test_an_evaluation_that_the_storage_does_not_take_is_not_pruned(queue: Queue) -> None:
    class Away:
        def report(self, value: float, step: int) -> None:
            raise StorageInternalError("connection refused")

    claim = replace(claimed(queue), trial=Away())
    watch = trial.TrialWatch(claim, "eval/score", (), reports=True)
    evaluation = SimpleNamespace(updates=4, metrics=lambda: {"eval/score": 0.5})
    data = SimpleNamespace(sync=SimpleNamespace(interrupted=threading.Event()))
    module = SimpleNamespace(evaluations=[evaluation], data=data, experiment=SimpleNamespace(max_steps=8))
    trainer = SimpleNamespace(logger=None, callback_metrics={}, should_stop=False)
    watch.on_validation_end(trainer, module)  # type: ignore[arg-type]
    assert not watch.pruned and not trainer.should_stop


def test_what_this_machine_cannot_train_is_one_line_before_anything_is_stored(
    store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(Path.cwd(), experiment={"replay": {"capacity": 10**11}, "collect": {"env_steps": 10**12}})
    assert main(["sweep", "run", "sweep.yaml"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("ezm: grid point dmc-cartpole-balance: replay needs ")
    assert stored_sweeps(open_storage(None)) == {}
    write(Path.cwd())
    assert load_sweep("sweep.yaml").points, "the settings can be mended under the same name"


def test_a_store_that_fails_once_it_is_open_is_one_line(
    store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    store.refusals = 1
    assert main(["sweep", "run", "sweep.yaml"]) == 2
    Path("mlruns/artifacts").write_text("a file where the folder has to be")
    assert main(["sweep", "run", "sweep.yaml"]) == 2
    refused, unwritten = capsys.readouterr().err.splitlines()
    assert refused == "ezm: the sweep cannot be tracked in sqlite:///mlruns/mlflow.db: connection refused"
    assert unwritten.startswith("ezm: the sweep cannot be tracked in sqlite:///mlruns/mlflow.db: ")
    assert "mlruns/artifacts" in unwritten.rpartition("mlflow.db")[2]


def test_a_storage_that_stays_away_is_one_line(
    store: Store, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(patience, "PATIENCE_SECONDS", -1.0)
    fails_at_times(monkeypatch, "claim", 1)
    assert main(["sweep", "run", "sweep.yaml"]) == 1
    line = capsys.readouterr().err.splitlines()[-1]
    assert (
        line
        == "ezm: the storage of trials does not answer: connection refused; the same command goes on later"
    )


def test_a_finished_sweep_asks_nothing_of_this_machine(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial, "run_trial", pretend(store, lambda c: 0))
    asked: list[str] = []
    monkeypatch.setattr(worker, "check_tasks", lambda tasks, backend: asked.extend(tasks))
    assert work(Console(width=200))[0] == 0
    assert asked == ["dmc-cartpole-balance", "dmc-pendulum-swingup"]
    assert "already finished" in work(Console(width=200))[1]
    assert len(asked) == 2


def test_the_stored_spec_holds_the_variants_of_every_command(store: Store) -> None:
    path = Path("parts.yaml")
    path.write_text(yaml.safe_dump({"name": "parts", "base": "base.yaml", "variants": PARTS}))
    for label in PARTS:
        queue = Queue(open_storage(None), load_sweep(path, only=[label]))
        queue.fill()
        tracked = MlflowSweep(queue)
        tracked.begin()
    (run,) = store.client.search_runs(["1"], f"tags.`{tags.LEVEL}` = '{tags.SWEEP}'")
    (Path("artifacts")).mkdir()
    saved = shutil.copy(
        store.client.download_artifacts(run.info.run_id, tags.SPEC_FILE, "artifacts"), "again.yaml"
    )
    assert [point.label for point in load_sweep(saved).points] == ["full", *PARTS]


def test_what_mlflow_was_never_told_the_same_command_tells_it(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(patience, "PATIENCE_SECONDS", -1.0)
    monkeypatch.setattr(
        trial,
        "run_trial",
        pretend(store, lambda c: FOREVER if c.slot == 1 and "pend" in c.point.label else 0),
    )
    code, said = work(Console(width=200))
    assert code == 0 and "Traceback" not in said
    assert "MLflow could not be told that the sweep has ended; the same command tells it" in said
    store.refusals = 0
    assert set(statuses(store, tags.SWEEP).values()) == {"RUNNING"}
    code, said = work(Console(width=200))
    assert code == 0 and "already finished" in said
    assert set(statuses(store, tags.TRIAL).values()) == {"FINISHEDcomplete"}
    assert set(statuses(store, tags.SWEEP).values()) == {"FINISHED"}


def test_interrupted_while_mlflow_is_away(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def run_trial(claim: Claim, sweep: MlflowSweep, patience: Patience) -> float:
        store.refusals = FOREVER
        raise KeyboardInterrupt

    monkeypatch.setattr(trial, "run_trial", run_trial)
    code, said = work(Console(width=200))
    assert code == 130
    assert "MLflow does not answer: connection refused" in said
    assert "the same command continues it" in said


def test_a_finished_training_s_result_waits_for_mlflow(
    queue: Queue, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MLflow goes away before the last evaluation: its metrics lie on the disk, its run is RUNNING."""
    sweep, claim = MlflowSweep(queue), claimed(queue)
    said: list[str] = []

    def train(experiment: Experiment, *, resume: None, console: Console, part: Part) -> int:
        run_id = store.client.create_run(sweep.experiment_id, tags=dict(part.tags)).info.run_id
        store.client.log_metric(run_id, "eval/score", 0.25, timestamp=1000, step=4)
        (RUNS / run_id).mkdir(parents=True)
        (RUNS / run_id / UNSENT).write_text(json.dumps(["eval/score", 0.75, 2000, 8]))
        (watch,) = part.callbacks
        watch.setup(SimpleNamespace(logger=SimpleNamespace(version=run_id)), None, "fit")  # type: ignore[arg-type]
        store.refusals = 3
        return 0

    monkeypatch.setattr(trial, "train", train)
    assert trial.run_trial(claim, sweep, Patience(said.append)) == 0.75
    assert len(store.refused) == 3
    assert [line.partition(":")[0] for line in said] == ["MLflow does not answer", "MLflow answers again"]
    (run,) = sweep.trial_runs(claim)
    assert (run.info.status, run.data.metrics[tags.OBJECTIVE]) == ("FINISHED", 0.75)
    assert not (RUNS / run.info.run_id / UNSENT).exists()
    assert trial.run_trial(claim, sweep, Patience(said.append)) == 0.75, "it is not trained again"

    monkeypatch.setattr(patience, "PATIENCE_SECONDS", -1.0)
    store.refusals = FOREVER
    with pytest.raises(MlflowException):
        trial.run_trial(claim, sweep, Patience(said.append))


def test_an_earlier_attempt_is_given_up_after_an_absence_of_mlflow(
    queue: Queue, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The attempt's checkpoint is not on this disk; MLflow goes away once the attempt was found."""
    sweep, claim = MlflowSweep(queue), claimed(queue)
    seed = sweep.plan.seed(claim.slot, 0)
    dead = store.client.create_run(sweep.experiment_id, tags=sweep.trial_tags(claim, seed)).info.run_id
    find = MlflowSweep.trial_runs

    def found(*arguments: Any) -> Any:
        runs = find(*arguments)
        store.refusals = 2
        return runs

    def train(experiment: Experiment, *, resume: None, console: Console, part: Part) -> int:
        run_id = store.client.create_run(sweep.experiment_id, tags=dict(part.tags)).info.run_id
        store.client.log_metric(run_id, "eval/score", 0.5)
        (watch,) = part.callbacks
        watch.setup(SimpleNamespace(logger=SimpleNamespace(version=run_id)), None, "fit")  # type: ignore[arg-type]
        return 0

    monkeypatch.setattr(MlflowSweep, "trial_runs", found)
    monkeypatch.setattr(trial, "train", train)
    assert trial.run_trial(claim, sweep, Patience(lambda line: None)) == 0.5
    assert store.refused == ["set_tag", "set_tag"]
    run = store.client.get_run(dead)
    assert (run.info.status, run.data.tags[tags.STATE]) == ("KILLED", tags.FAILED)
