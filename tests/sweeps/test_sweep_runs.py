"""Whole sweeps, as a person starts, kills and restarts them: real training, in processes of their own."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from collections import Counter
from pathlib import Path

import fork_server
import pytest
from mlflow.entities import Run
from sweep_helpers import environment, run_ezm, write

from ezm_pl.spec.metrics import logged_metrics
from ezm_pl.spec.sweep_plan import from_document, load_sweep
from ezm_pl.sweeps.queue import stored_sweeps
from ezm_pl.sweeps.storage import open_storage
from ezm_pl.tracking.store import open_store
from ezm_pl.tracking.sweep import tags

PATIENCE = 900
pytestmark = pytest.mark.timeout(2 * PATIENCE)

ONE_POINT = {"tasks": ["dmc-cartpole-balance"], "search": {}, "trials": 1}


def runs(folder: Path, level: str) -> list[Run]:
    """A level's runs in MLflow, the oldest first."""
    client = open_store(f"sqlite:///{folder}/mlruns/mlflow.db")
    experiment = client.get_experiment_by_name("ezm")
    found = client.search_runs([experiment.experiment_id], f"tags.`{tags.LEVEL}` = '{level}'")
    return list(reversed(found))


def states(folder: Path) -> Counter[str]:
    """How many of Optuna's trials are in each state, over all grid points."""
    import optuna

    storage = open_storage(f"sqlite:///{folder}/mlruns/optuna.db")
    (plan,) = map(from_document, stored_sweeps(storage).values())
    studies = [f"{plan.key}: {point.label}" for point in plan.points]
    return Counter(
        trial.state.name
        for name in studies
        for trial in optuna.load_study(study_name=name, storage=storage.optuna).trials
    )


def start(folder: Path, *arguments: str) -> fork_server.Forked:
    with (folder / "log.txt").open("ab") as log:
        return fork_server.start(
            ["sweep", *arguments], cwd=folder, env=environment(), stdout=log, stderr=subprocess.STDOUT
        )


def wait_for(folder: Path, pattern: str, process: fork_server.Forked, count: int = 1) -> None:
    """Waits until `count` files match `pattern`, or the process has ended."""
    ends = time.monotonic() + PATIENCE
    while len(list(folder.glob(pattern))) < count and process.poll() is None and time.monotonic() < ends:
        time.sleep(0.05)


def test_killed_in_a_trial_restarted_finished_and_refused(folder: Path) -> None:
    process = start(folder, "run", "sweep.yaml")
    wait_for(folder, "mlruns/runs/*/checkpoints/last.ckpt", process)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert states(folder) == {"RUNNING": 1, "WAITING": 3}
    (begun,) = runs(folder, tags.TRIAL)

    done = run_ezm(folder, "sweep", "run", "sweep.yaml", timeout=PATIENCE)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1] == "done: 4 trials: 4 complete"
    assert states(folder) == {"COMPLETE": 4}
    (sweep,) = runs(folder, tags.SWEEP)
    points, trials = runs(folder, tags.POINT), runs(folder, tags.TRIAL)
    assert {run.info.status for run in (sweep, *points, *trials)} == {"FINISHED"}
    assert sweep.data.params["search.loss.value"] == "0.1 to 1 (log)"
    assert {run.data.tags[tags.PARENT] for run in points} == {sweep.info.run_id}
    assert Counter(
        (run.data.tags[tags.PARENT], run.data.tags[tags.NUMBER], run.data.tags[tags.STATE]) for run in trials
    ) == Counter((point.info.run_id, str(n), "complete") for point in points for n in range(2))
    (again,) = [run for run in trials if run.info.run_id == begun.info.run_id]
    assert again.data.tags["resume.1"] == "same spec"
    experiment = load_sweep(folder / "sweep.yaml").points[0].experiment
    for run in trials:
        assert json.loads(run.data.tags[tags.SEARCHED]) == {
            "loss.value": float(run.data.params["loss.value"])
        }
        assert run.data.metrics[tags.OBJECTIVE] == run.data.metrics["eval/score"]
        ours = {name for name in run.data.metrics if not name.startswith(("by_env_steps/", "sweep/"))}
        said = logged_metrics(experiment.model_copy(update={"tasks": run.data.params["tasks"].split(", ")}))
        assert ours - set(said) <= {"step", "epoch"}
    for point in points:
        of_point = [r for r in trials if r.data.tags[tags.PARENT] == point.info.run_id]
        assert point.data.metrics[tags.BEST_OBJECTIVE] == pytest.approx(
            max(r.data.metrics[tags.OBJECTIVE] for r in of_point)
        )

    done = run_ezm(folder, "sweep", "run", "sweep.yaml", timeout=PATIENCE)
    assert done.returncode == 0
    assert done.stdout.splitlines()[-1] == "the sweep has already finished: 4 trials: 4 complete"
    assert len(runs(folder, tags.TRIAL)) == 4

    done = run_ezm(folder, "sweep", "run", "sweep.yaml", "--seeds", "2", timeout=PATIENCE)
    assert done.returncode == 2
    assert "begun with another spec: seeds: 1 -> 2" in done.stderr.splitlines()[0]


@pytest.mark.slow
def test_a_hopeless_value_is_pruned_early(folder: Path) -> None:
    search = {"loss.value": {"choices": [0.25, 0.3, 1e6]}}
    write(
        folder,
        tasks=["dmc-cartpole-balance"],
        search=search,
        sampler="grid",
        trials=None,
        pruner={"kind": "median", "startup_trials": 2},
        objective="train/loss/total",
        direction="minimize",
    )
    done = run_ezm(folder, "sweep", "run", "sweep.yaml", timeout=PATIENCE)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1] == "done: 3 trials: 2 complete, 1 pruned"
    trials = {run.data.tags[tags.NUMBER]: run for run in runs(folder, tags.TRIAL)}
    assert [trials[n].data.tags[tags.STATE] for n in "012"] == ["complete", "complete", "pruned"]
    assert trials["2"].info.status == "FINISHED"
    client = open_store(f"sqlite:///{folder}/mlruns/mlflow.db")
    steps = [[m.step for m in client.get_metric_history(trials[n].info.run_id, "eval/score")] for n in "02"]
    assert steps == [[4, 8], [4]]


@pytest.mark.slow
def test_a_trial_without_a_result_is_tried_twice_and_the_sweep_goes_on(folder: Path) -> None:
    """No self-play episode ends within the budget, so its return is never logged."""
    write(folder, **ONE_POINT, objective="selfplay/dmc-cartpole-balance/return")
    done = run_ezm(folder, "sweep", "run", "sweep.yaml", timeout=PATIENCE)
    assert done.returncode == 1, done.stderr
    assert done.stdout.splitlines()[-1] == "done: 1 trial: 1 failed"
    assert [f"attempt {n} of 2: TrialError" in done.stdout for n in (1, 2)] == [True, True]
    (run,) = runs(folder, tags.TRIAL)
    assert run.data.tags[tags.STATE] == "failed"


@pytest.mark.slow
def test_one_of_two_workers_is_killed_and_nothing_is_lost_or_counted_twice(folder: Path) -> None:
    write(folder, trials=3)
    first = start(folder, "run", "sweep.yaml")
    wait_for(folder, "mlruns/runs/*/experiment.yaml", first)
    second = start(folder, "worker", "tiny")
    wait_for(folder, "mlruns/runs/*/experiment.yaml", second, count=3)
    second.send_signal(signal.SIGKILL)
    second.wait()
    assert first.wait(timeout=PATIENCE) == 0
    assert states(folder) == {"COMPLETE": 6}
    complete = [run for run in runs(folder, tags.TRIAL) if run.data.tags[tags.STATE] == "complete"]
    counted = Counter((run.data.tags[tags.PARENT], run.data.tags[tags.NUMBER]) for run in complete)
    assert len(counted) == 6
    assert set(counted.values()) == {1}


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 75)])
def test_interrupted_a_trial_goes_back_and_the_same_command_goes_on(
    number: signal.Signals, code: int, folder: Path
) -> None:
    write(folder, **ONE_POINT)
    process = start(folder, "run", "sweep.yaml")
    wait_for(folder, "mlruns/runs/*/checkpoints/last.ckpt", process)
    process.send_signal(number)
    assert process.wait(timeout=PATIENCE) == code
    assert "the same command continues it" in (folder / "log.txt").read_text()
    assert states(folder) == {"WAITING": 1}
    assert [run.info.status for run in runs(folder, tags.SWEEP)] == ["KILLED"]
    done = run_ezm(folder, "sweep", "run", "sweep.yaml", timeout=PATIENCE)
    assert done.returncode == 0, done.stdout + done.stderr
    assert states(folder) == {"COMPLETE": 1}
    assert [run.info.status for run in runs(folder, tags.TRIAL)] == ["FINISHED"]
