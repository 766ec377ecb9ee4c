"""A real MLflow server that hangs, dies and comes back, and one that is not there at all."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import fork_server
import pytest
import requests
import yaml

from ezm_pl.spec import Experiment
from ezm_pl.tracking.fault_tolerance import sender
from ezm_pl.tracking.fault_tolerance.sender import UNSENT, send_left
from ezm_pl.tracking.runs.logger import RunLogger
from ezm_pl.tracking.runs.mlflow_run import new_run
from ezm_pl.tracking.store import first_line

SPEC = {
    "name": "trial",
    "preset": "smoke",
    "tasks": ["dmc-cartpole-balance"],
    "env": {"action_repeat": 20},
    "eval": {"every": 100_000, "at_start": False},
    "optim": {"total_updates": 100_000},
    "collect": {"env_steps": 2_000_000},
    "trainer": {"log_every": 5, "checkpoint_every": 5},
}

pytestmark = pytest.mark.timeout(900)


class Server:
    """`mlflow server` on loopback, with a database that outlives it."""

    def __init__(self, folder: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.folder, self.uri = folder, f"http://127.0.0.1:{self.port}"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        store = f"sqlite:///{self.folder}/server.db"
        command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", store]
        command += ["--host", "127.0.0.1", "--port", str(self.port), "--workers", "1"]
        command += ["--artifacts-destination", str(self.folder / "artifacts")]
        quiet = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        with (self.folder / "server.txt").open("a") as log:
            self.process = subprocess.Popen(
                command, env={**os.environ, **quiet}, stdout=log, stderr=log, start_new_session=True
            )
        for _ in range(600):
            try:
                if requests.get(f"{self.uri}/health", timeout=5).ok:
                    return
            except requests.RequestException:
                time.sleep(0.2)
        raise AssertionError((self.folder / "server.txt").read_text())

    def send(self, number: signal.Signals) -> None:
        assert self.process is not None
        os.killpg(self.process.pid, number)
        if number == signal.SIGKILL:
            self.process.wait()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("server"))
    server.start()
    yield server
    if server.process is not None and server.process.poll() is None:
        server.send(signal.SIGKILL)


def wait_for(said: list[str], start: str) -> str:
    for _ in range(900):
        for line in said:
            if line.startswith(start):
                return line
        time.sleep(0.1)
    raise AssertionError(f"never said {start!r}: {said}")


def test_metrics_wait_while_the_server_is_away(
    server: Server, experiment: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "2")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    run, said, threads = new_run(experiment), [], set(threading.enumerate())
    logger = RunLogger(run.client, run.run_id, said.append)
    logged: list[float] = []

    def log(step: int) -> None:
        """An update's metrics; training must not wait for them."""
        start = time.perf_counter()
        logger.log_metrics({"train/loss/total": float(step), "env_steps": step}, step=step)
        assert time.perf_counter() - start < 0.5
        logged.append(time.time())

    def history() -> list[int]:
        points = run.client.get_metric_history(run.run_id, "train/loss/total")
        assert all(abs(p.timestamp / 1000 - logged[p.step - 1]) < 0.6 for p in points), "times of logging"
        return [p.step for p in points]

    log(1)
    assert logger.sender.flush(60) and said == []
    server.send(signal.SIGSTOP)
    for step in range(2, 6):
        log(step)
    line = wait_for(said, "MLflow does not accept metrics")
    assert "Training goes on" in line and "\n" not in line
    time.sleep(3)
    server.send(signal.SIGCONT)
    assert logger.sender.flush(60)
    wait_for(said, "MLflow is back after")
    assert len(said) == 2, "told once when it goes and once when it returns"
    assert history() == [1, 2, 3, 4, 5]

    server.send(signal.SIGKILL)
    log(6)
    time.sleep(4)
    server.start()
    assert logger.sender.flush(60)
    assert len(said) in (3, 4) and history() == [1, 2, 3, 4, 5, 6]

    server.send(signal.SIGKILL)
    log(7)
    log(8)
    left = tmp_path / UNSENT
    text = logger.sender.close(1.0, left)
    assert text == f"4 metric points could not be sent and are in {left}; --resume sends them first"
    assert set(threading.enumerate()) == threads
    with left.open("a") as file:
        file.write('["cut off", 1.')
    server.start()
    assert send_left(run.client, run.run_id, left) == 4
    assert history() == [1, 2, 3, 4, 5, 6, 7, 8] and not left.exists()


def test_what_is_kept_is_bounded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, server: Server) -> None:
    from mlflow import MlflowClient
    from mlflow.entities import Metric

    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setattr(sender, "MOST_POINTS", 10)
    kept = sender.Sender(MlflowClient("http://127.0.0.1:1"), "nobody", lambda line: None)
    for step in range(25):
        kept.put([Metric("x", 0.0, 0, step)])
    text = kept.close(0.0, tmp_path / UNSENT)
    assert text is not None and text.startswith("15 metric points were dropped: too many to keep. 10")
    steps = [int(line.rstrip("]").split()[-1]) for line in (tmp_path / UNSENT).read_text().splitlines()]
    assert steps == list(range(15, 25)), "the newest are kept"


def test_a_refusal_is_told_and_not_repeated(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflow import MlflowClient
    from mlflow.entities import Metric

    said: list[str] = []
    refused = sender.Sender(MlflowClient(server.uri), "no-such-run", said.append)
    refused.put([Metric("x", 0.0, 0, 0)])
    assert refused.flush(60) and refused.close(0.0, Path("nowhere")) is None
    assert len(said) == 1 and said[0].startswith("MLflow refuses 1 metric points: RESOURCE_DOES_NOT_EXIST")


def ezm(folder: Path, uri: str) -> fork_server.Forked:
    (folder / "spec.yaml").write_text(yaml.safe_dump(SPEC))
    patience = {"MLFLOW_HTTP_REQUEST_TIMEOUT": "2", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"}
    environment = {**os.environ, **patience, "MLFLOW_TRACKING_URI": uri}
    pipe = subprocess.PIPE
    return fork_server.start(["train", "spec.yaml"], cwd=folder, env=environment, stdout=pipe, stderr=pipe)


def test_a_run_goes_on_without_its_server(server: Server, tmp_path: Path) -> None:
    process = ezm(tmp_path, server.uri)
    try:
        checkpoint = "mlruns/runs/*/checkpoints/last.ckpt"
        while not list(tmp_path.glob(checkpoint)):
            assert process.poll() is None, "".join(process.communicate())[-6000:]
            time.sleep(0.1)
        server.send(signal.SIGKILL)
        (path,) = tmp_path.glob(checkpoint)
        saved = path.stat().st_mtime
        while path.stat().st_mtime < saved + 10:  # it trains and saves on
            assert process.poll() is None, "".join(process.communicate())[-6000:]
            time.sleep(0.1)
        sent = time.time()
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=300)
    finally:
        process.kill()
    assert process.returncode == 75, out + err
    assert path.stat().st_mtime - sent < 30, "the checkpoint is written soon after SIGTERM"
    assert "Traceback" not in out + err
    words = " ".join(out.split())
    assert words.count("MLflow does not accept metrics") == 1
    assert "metric points could not be sent and are in mlruns/runs/" in words
    assert "MLflow could not be told that the run is KILLED" in words
    assert list(tmp_path.glob(f"mlruns/runs/*/{UNSENT}"))


@pytest.mark.parametrize("kind", ["nobody listens", "never answers"])
def test_no_server_at_the_start_is_one_line(kind: str, tmp_path: Path) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        if kind == "never answers":
            silent.listen()
        start = time.monotonic()
        process = ezm(tmp_path, f"http://user:hunter2@127.0.0.1:{silent.getsockname()[1]}")
        out, err = process.communicate(timeout=120)
    assert process.returncode == 2, out + err
    (line,) = err.splitlines()
    assert line.startswith("ezm: tracking address 'http://user:***@127.0.0.1:")
    assert "hunter2" not in out + err
    assert time.monotonic() - start < 60
    assert not (tmp_path / "mlruns" / "runs").exists()


def test_passwords_are_starred_in_any_message() -> None:
    error = RuntimeError("could not reach postgresql://ezm:hunter2@db/runs and http://a:b@c\nmore")
    assert first_line(error) == "could not reach postgresql://ezm:***@db/runs and http://a:***@c"
