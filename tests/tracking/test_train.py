"""Whole runs, as a person starts and stops them: real training, in processes of their own."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import fork_server
import psutil
import pytest
import yaml
from rich.console import Console
from workplaces import new_project

from ezm_pl.spec import Experiment
from ezm_pl.tracking.store import open_store

PATIENCE = 600
"""Seconds a command may take on a machine that is busy with other things; idle, each takes about 30."""

pytestmark = pytest.mark.timeout(2 * PATIENCE)

SPEC = {
    "name": "trial",
    "preset": "smoke",
    "tasks": ["dmc-cartpole-balance", "dmc-pendulum-swingup"],
    "env": {"action_repeat": 20},
    "eval": {"every": 10, "at_start": False},
    "optim": {"total_updates": 20},
}
LONG = [
    "--set",
    "optim.total_updates=100000",
    "--set",
    "collect.env_steps=2000000",
    "--set",
    "eval.every=100000",
]


SECRET = "planted-4f1d9c"
"""In the environment of every run; nowhere in what runs write."""


def ran(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """`ezm`, run to its end."""
    return fork_server.run(arguments, cwd=folder, timeout=PATIENCE)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A workplace with the spec in it, and one finished run."""
    folder = new_project(tmp_path_factory.mktemp("runs"))
    (folder / "spec.yaml").write_text(yaml.safe_dump(SPEC))
    with pytest.MonkeyPatch.context() as patch:
        # MLflow leaves its address in the environment of a process that has used it.
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        patch.setenv("SOME_SERVICE_TOKEN", SECRET)
        yield folder


def statuses(folder: Path) -> dict[str, str]:
    """Run id to status, the newest first."""
    client = open_store(f"sqlite:///{folder}/mlruns/mlflow.db")
    experiment = client.get_experiment_by_name("ezm")
    return {run.info.run_id: run.info.status for run in client.search_runs([experiment.experiment_id])}


def stopped(
    folder: Path, *arguments: str, when: str, number: signal.Signals = signal.SIGINT
) -> tuple[int, str]:
    """Starts `ezm`, sends its process group a signal once a file matching `when` is written, and waits.

    Returns:
        The exit code and what was printed.
    """
    before = _written(folder, when)
    with (folder / "out.txt").open("w+") as out:
        process = fork_server.start(
            arguments, cwd=folder, stdout=out, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            while process.poll() is None and _written(folder, when) == before:
                time.sleep(0.05)
            os.killpg(process.pid, number)
            code = process.wait(timeout=PATIENCE)
            left = [p for p in psutil.process_iter() if _session(p.pid) == process.pid and _alive(p)]
            assert left == []
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
        out.seek(0)
        return code, out.read()


def _written(folder: Path, pattern: str) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.glob(pattern)}


def _session(pid: int) -> int | None:
    try:
        return os.getsid(pid)
    except ProcessLookupError:
        return None


def _alive(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_a_run_to_its_end(folder: Path) -> None:
    done = ran(folder, "train", "spec.yaml")
    assert done.returncode == 0, done.stderr
    assert re.search(
        r"^replay: (?!0\.0)\d+\.\d\d [KM]iB when full, of \d+\.\d GiB free$", done.stdout, re.MULTILINE
    )
    assert "Warning" not in done.stderr
    last = done.stdout.splitlines()[-14:]
    assert any("dmc-cartpole-balance" in line for line in last)
    assert any("mean score" in line for line in last)
    assert re.match(r"20 updates, \d+ env steps per task \([\d,]+ in all\), ", last[-2])
    assert last[-1] == "curves, videos and artifacts: ezm ui (http://127.0.0.1:5000)"
    (run_id,) = statuses(folder)
    assert statuses(folder)[run_id] == "FINISHED"
    client = open_store(f"sqlite:///{folder}/mlruns/mlflow.db")
    artifacts = {
        file.path for top in ("checkpoints", "figures") for file in client.list_artifacts(run_id, top)
    }
    assert artifacts == {"checkpoints/last.ckpt", "checkpoints/best.ckpt", "figures/returns.png"}
    steps = [point.step for point in client.get_metric_history(run_id, "eval/score")]
    assert steps == [10, 20]
    metrics = client.get_run(run_id).data.metrics
    assert {"train/loss/total", "train/loss/policy", "time/updates_per_second", "env_steps"} <= metrics.keys()
    assert "eval/dmc-cartpole-balance/return_humanoidbench" in metrics


def test_no_secret_of_the_environment_is_written(folder: Path) -> None:
    files = [path for path in (folder / "mlruns").rglob("*") if path.is_file()]
    assert len(files) > 10
    assert not any(SECRET.encode() in path.read_bytes() for path in files)


def test_its_checkpoint_is_evaluated(folder: Path) -> None:
    done = ran(folder, "eval", "--episodes", "2")
    assert done.returncode == 0, done.stderr
    assert "mean of 2 episodes per task" in done.stdout
    assert re.search(r"20 updates, \d+ env steps per task", done.stdout)
    shutil.copy(next(folder.glob("mlruns/runs/*/checkpoints/best.ckpt")), folder.parent / "x.ckpt")
    alone = ran(folder, "eval", "../x.ckpt", "--episodes", "1", "--no-search")
    assert alone.returncode == 0, alone.stderr
    assert "by the policy alone" in re.sub(r"\s+", " ", alone.stdout)


def test_a_checkpoint_of_another_spec_is_refused(folder: Path) -> None:
    before = statuses(folder)
    changes = ["--set", "loss.value=0.5", "--set", "seed=3"]
    done = ran(folder, "train", "spec.yaml", "--resume", "last", *changes)
    assert done.returncode == 2
    (only,) = done.stderr.splitlines()
    assert "another spec" in only
    assert "loss.value: 0.25 -> 0.5" in only
    assert "seed: 0 -> 3" in only
    assert statuses(folder) == before


def test_a_damaged_checkpoint_is_one_line(folder: Path) -> None:
    broken = folder / "elsewhere" / "checkpoints" / "last.ckpt"
    broken.parent.mkdir(parents=True)
    broken.write_text("not a checkpoint")
    for arguments in (["train", "spec.yaml", "--resume", str(broken)], ["eval", str(broken)]):
        done = ran(folder, *arguments)
        assert done.returncode == 2
        (only,) = done.stderr.splitlines()
        assert "not a readable checkpoint" in only


def test_without_replay_a_lost_one_does_not_matter(folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    for replay in copy.glob("mlruns/runs/*/checkpoints/replay"):
        shutil.rmtree(replay)
    longer = ["train", "spec.yaml", "--resume", "last", "--set", "optim.total_updates=22"]
    assert ran(copy, *longer).returncode == 2
    done = ran(copy, *longer, "--set", "replay.save=false")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-2].startswith("22 updates, ")


@pytest.mark.parametrize(
    ("number", "exit_code"), [(signal.SIGINT, 130), (signal.SIGTERM, 75), (signal.SIGUSR1, 75)]
)
def test_interrupted_and_resumed(folder: Path, number: signal.Signals, exit_code: int) -> None:
    before = statuses(folder)
    spec = [
        "train",
        "spec.yaml",
        *LONG,
        "--set",
        "trainer.checkpoint_every=5",
        "--set",
        f"seed={int(number)}",
    ]
    code, printed = stopped(folder, *spec, when="mlruns/runs/*/checkpoints/last.ckpt", number=number)
    assert code == exit_code, printed
    assert "Traceback" not in printed
    (run_id,) = statuses(folder).keys() - before.keys()
    assert statuses(folder)[run_id] == "KILLED"
    assert (folder / "mlruns" / "runs" / run_id / "checkpoints" / "last.ckpt").is_file()
    client = open_store(f"sqlite:///{folder}/mlruns/mlflow.db")
    reached = client.get_run(run_id).data.metrics["env_steps"]
    copy = folder / "mlruns" / "artifacts" / run_id / "artifacts" / "checkpoints" / "last.ckpt"
    resume = str(copy) if number == signal.SIGTERM else "last"
    code, printed = stopped(folder, *spec, "--resume", resume, when="mlruns/runs/*/checkpoints/last.ckpt")
    assert code == 130, printed
    assert statuses(folder).keys() - before.keys() == {run_id}
    assert client.get_run(run_id).data.metrics["env_steps"] >= reached
    assert client.get_run(run_id).data.tags["resume.1"] == "same spec"


def test_stopped_before_its_first_update_and_resumed(folder: Path) -> None:
    before = statuses(folder)
    spec = ["train", "spec.yaml", *LONG, "--set", "seed=77"]
    code, printed = stopped(folder, *spec, when="mlruns/runs/*/experiment.yaml")
    assert code == 130, printed
    (run_id,) = statuses(folder).keys() - before.keys()
    assert statuses(folder)[run_id] == "KILLED"
    code, printed = stopped(folder, *spec, "--resume", "last", when=f"mlruns/runs/{run_id}/lock")
    assert code == 130, printed
    assert statuses(folder)[run_id] == "KILLED"


def test_a_failure_reaches_the_user_and_marks_the_run(
    folder: Path, experiment: Experiment, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ezm_pl.tracking.runs.train import train

    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError("in the middle of training")

    monkeypatch.chdir(folder)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setattr("ezm_pl.training.fit", broken)
    before = statuses(folder)
    with pytest.raises(ZeroDivisionError, match="in the middle of training"):
        train(experiment, resume=None, console=Console(quiet=True))
    (run_id,) = statuses(folder).keys() - before.keys()
    assert statuses(folder)[run_id] == "FAILED"


def test_a_lack_of_memory_is_one_line(folder: Path) -> None:
    before = statuses(folder)
    done = ran(folder, "train", "spec.yaml", "--set", "model.latent_size=1000000")
    assert done.returncode == 1
    (only,) = done.stderr.splitlines()
    assert only.startswith("ezm: out of memory: ") and "lower optim.batch_size, the model's sizes" in only
    (run_id,) = statuses(folder).keys() - before.keys()
    assert statuses(folder)[run_id] == "FAILED"


def test_two_ranks_are_one_run(folder: Path) -> None:
    """Lightning starts the second rank; rank 0 alone tracks and prints."""
    before = statuses(folder)
    two = ["--set", "trainer.accelerator=cpu", "--set", "trainer.devices=2", "--set", "trainer.strategy=ddp"]
    done = ran(folder, "train", "spec.yaml", *two)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Returns after") == 1
    (run_id,) = statuses(folder).keys() - before.keys()
    assert statuses(folder)[run_id] == "FINISHED"
    checkpoints = folder / "mlruns" / "runs" / run_id / "checkpoints"
    assert {"last.ckpt", "best.ckpt"} <= {path.name for path in checkpoints.iterdir()}
    client = open_store(f"sqlite:///{folder}/mlruns/mlflow.db")
    assert [point.step for point in client.get_metric_history(run_id, "eval/score")] == [10, 20]


@pytest.mark.slow
def test_two_ranks_of_torchrun_are_one_run(folder: Path) -> None:
    before = statuses(folder)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "-m", "ezm_pl"]
    two = ["--set", "trainer.accelerator=cpu", "--set", "trainer.devices=2"]
    done = subprocess.run([*torchrun, "train", "spec.yaml", *two], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (run_id,) = statuses(folder).keys() - before.keys()
    assert statuses(folder)[run_id] == "FINISHED"


def test_nothing_around_it_decides_a_run(folder: Path) -> None:
    """Leftovers of a launcher, consoles that take nothing; the profiler's report is kept."""
    before = statuses(folder)
    profiled = ["train", "spec.yaml", "--set", "trainer.profiler=simple"]
    environment = {**os.environ, "RANK": "1", "LOCAL_RANK": "1", "SLURM_PROCID": "1"}
    with open("/dev/full", "w") as full:
        process = fork_server.start(profiled, cwd=folder, env=environment, stdout=full, stderr=full)
    assert process.wait(PATIENCE) == 0
    (run_id,) = statuses(folder).keys() - before.keys()
    assert statuses(folder)[run_id] == "FINISHED"
    client = open_store(f"sqlite:///{folder}/mlruns/mlflow.db")
    reports = [file.path for file in client.list_artifacts(run_id, "profile")]
    assert "profile/fit-profile.txt" in reports
    (report,) = folder.glob(f"mlruns/runs/{run_id}/fit-profile*.txt")
    assert "run_training_batch" in report.read_text(encoding="utf-8")


def test_a_trainer_that_cannot_work_makes_no_run(folder: Path) -> None:
    before = statuses(folder)
    two = ["--set", "trainer.accelerator=cpu", "--set", "trainer.devices=2", "--set", "optim.batch_size=33"]
    done = ran(folder, "train", "spec.yaml", *two)
    assert done.returncode == 2
    (only,) = done.stderr.splitlines()
    assert only == "ezm: optim.batch_size 33 cannot be divided equally among 2 ranks"
    assert statuses(folder) == before
