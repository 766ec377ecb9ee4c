"""A disk that is full, and one that is read-only: real ones, small and in memory."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import fork_server
import pytest
import yaml

from ezm_pl.spec import Experiment
from ezm_pl.tracking.runs.logger import RunLogger
from ezm_pl.tracking.runs.mlflow_run import new_run

SPEC = {"name": "trial", "preset": "smoke", "tasks": ["h1-walk"]}


def shell(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"{command[0]} is not permitted here: {done.stderr.strip()}")


@pytest.fixture
def disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small_disk: Callable[[Path, str], None]) -> Path:
    """`mlruns/` on 8 MiB of their own."""
    folder = tmp_path / "mlruns"
    small_disk(folder, "8m")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return folder


def until(condition: Callable[[], bool], what: str) -> None:
    for _ in range(600):
        if condition():
            return
        time.sleep(0.1)
    raise AssertionError(what)


def fill(file: Path) -> None:
    with file.open("wb", buffering=0) as full:
        for size in (2**16, 2**12, 1):
            try:
                while True:
                    full.write(b"x" * size)
            except OSError:
                continue


def test_metrics_wait_while_the_disk_is_full(disk: Path, experiment: Experiment) -> None:
    run, said = new_run(experiment), []
    logger = RunLogger(run.client, run.run_id, said.append)
    logger.log_metrics({"train/loss/total": 1.0}, step=1)
    assert logger.sender.flush(60)
    fill(disk / "filler")
    for step in range(2, 150):  # more than what is left in the database's pages
        logger.log_metrics({f"train/loss/number{n}": 1.0 for n in range(20)}, step=step)
    until(lambda: bool(said), "told that the disk is full")
    assert said[0].startswith("MLflow does not accept metrics: ") and "full" in said[0]
    (disk / "filler").unlink()
    assert logger.sender.flush(120)
    until(lambda: len(said) == 2, "told that it is back")
    assert said[1].startswith("MLflow is back after")
    assert logger.sender.close(0.0, run.directory / "unsent") is None
    steps = [p.step for p in run.client.get_metric_history(run.run_id, "train/loss/number7")]
    assert steps == list(range(2, 150))


@pytest.mark.parametrize("used", [False, True], ids=["empty", "with runs in it"])
def test_read_only_mlruns_are_one_line(disk: Path, used: bool) -> None:
    Path("spec.yaml").write_text(yaml.safe_dump(SPEC))
    if used:  # in a process of its own: an open database would keep the disk busy
        make = (
            "from ezm_pl.spec import load_experiment; from ezm_pl.tracking.runs.mlflow_run import new_run; "
            "new_run(load_experiment('spec.yaml'))"
        )
        assert fork_server.run(["-c", make], cwd=Path()).returncode == 0
    shell("mount", "-o", "remount,ro", str(disk))
    done = fork_server.run(["train", "spec.yaml"], cwd=Path())
    assert done.returncode == 2, done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith("ezm: ") and "mlruns" in line
    assert "is read-only" in line
