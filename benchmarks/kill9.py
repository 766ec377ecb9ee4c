"""Kills a training run with SIGKILL at random moments, resumes it each time, and checks that nothing is lost.

    python benchmarks/kill9.py [--kills 30] [--seed 0] [--folder DIR]

A run of the smoke preset on dm_control tasks, saved every few updates. After each kill: the newest
checkpoint is valid, at most `trainer.checkpoint_every` updates older than what MLflow has seen, and the
run comes back.
At the end: FINISHED in MLflow, every metric's steps rise, counters never fall, the buffers are consistent.
"""

from __future__ import annotations

import argparse
import itertools
import os
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import yaml
from mlflow import MlflowClient
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from ezm_pl.envs import sizes
from ezm_pl.replay import ReplayBuffer, ReplayStore
from ezm_pl.spec import build_experiment
from ezm_pl.tracking.runs.metrics import COUNTERS
from ezm_pl.tracking.store import open_store
from ezm_pl.training import SelfPlayDataModule, newest_valid
from ezm_pl.training.fault_tolerance.checkpoint import read_checkpoint, replay_of, shard

EVERY = 10
PATIENCE = 300
"""Seconds within which a run must have begun to train, on a busy machine."""


def spec(updates: int) -> dict:
    """A small run: its replay turns over several times, so that segments are written and dropped."""
    return {
        "name": "kill9",
        "preset": "smoke",
        "tasks": ["dmc-cartpole-balance", "dmc-pendulum-swingup"],
        "env": {"workers": "threads", "action_repeat": 10},
        "search": {"num_simulations": 4},
        "replay": {"capacity": 1000, "block_size": 20},
        "optim": {"total_updates": updates, "batch_size": 16},
        "collect": {"env_steps": 400 + 50 * updates, "random_steps": 400, "max_lead": 0.1},
        "eval": {"every": 50, "episodes": 1, "at_start": False, "video": False},
        "trainer": {"checkpoint_every": EVERY, "log_every": 1, "accelerator": "cpu", "devices": 1},
    }


@dataclass
class Session:
    """One process of the run: where it began, what MLflow saw of it, what the disk had when it was killed."""

    began: int
    logged: int
    saved: int
    seconds: float

    @property
    def lost(self) -> int:
        return max(0, self.logged - self.saved)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--folder", type=Path, help="to work in; default: a temporary one")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        sessions = killed_run(folder, args.kills, args.seed)
        buffer = check_end(folder)
    table = Table("kill", "began at", "last logged", "checkpoint", "lost updates", "seconds")
    for number, session in enumerate(sessions, 1):
        row = (number, session.began, session.logged, session.saved, session.lost, f"{session.seconds:.1f}")
        table.add_row(*map(str, row))
    Console(width=100).print(table)
    lost = [session.lost for session in sessions]
    print(
        f"{len(sessions)} kills, {len(sessions)} resumed; lost updates: mean {np.mean(lost):.1f}, "
        f"most {max(lost)} (trainer.checkpoint_every: {EVERY}); "
        f"{len(buffer)} transitions in the end, consistent"
    )


def killed_run(folder: Path, kills: int, seed: int) -> list[Session]:
    """Trains in `folder` to the end, killed `kills` times on the way."""
    random = np.random.default_rng(seed)
    document = spec(updates=25 * kills)
    (folder / "spec.yaml").write_text(yaml.safe_dump(document))
    sessions: list[Session] = []
    run: Path | None = None
    while len(sessions) < kills:
        began, seen = (saved_step(run), logged_step(folder, run)) if run else (0, 0)
        started = time.perf_counter()
        process = start(folder, resume=run is not None)
        try:
            # Past its last save by up to two intervals, and then at any moment, within a save as well.
            run = wait_for(process, folder, run, seen + int(random.integers(1, 2 * EVERY)))
            time.sleep(float(random.uniform(0, 0.5)))
            if process.poll() is not None:
                raise SystemExit(
                    f"the run ended by itself (code {process.returncode}); more updates are needed"
                )
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        session = Session(began, logged_step(folder, run), saved_step(run), time.perf_counter() - started)
        assert session.saved >= began, f"kill {len(sessions) + 1}: the checkpoint is older than before"
        assert session.lost <= EVERY, f"kill {len(sessions) + 1}: {session.lost} updates lost"
        sessions.append(session)
        print(f"kill {len(sessions)}: {session}", file=sys.stderr, flush=True)
    process = start(folder, resume=True)
    code = process.wait()
    assert code == 0, (folder / "out.txt").read_text()[-2000:]
    return sessions


def start(folder: Path, *, resume: bool) -> subprocess.Popen[bytes]:
    """`ezm train` in a session of its own."""
    command = [
        sys.executable,
        "-m",
        "ezm_pl",
        "train",
        "spec.yaml",
        *(["--resume", "last"] if resume else []),
    ]
    package = str(Path(__file__).resolve().parents[1])
    with (folder / "out.txt").open("ab") as out:
        return subprocess.Popen(
            command,
            cwd=folder,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env={**os.environ, "PYTHONPATH": package, "OMP_NUM_THREADS": "1"},
        )


def wait_for(process: subprocess.Popen[bytes], folder: Path, run: Path | None, step: int) -> Path:
    """Waits until MLflow has seen update `step`; the run's folder."""
    until = time.monotonic() + PATIENCE
    while process.poll() is None and time.monotonic() < until:
        if run is None:
            run = (
                next(folder.glob("mlruns/runs/*/lock"), Path()).parent
                if any(folder.glob("mlruns/runs/*/lock"))
                else None
            )
        elif logged_step(folder, run) >= step:
            return run
        time.sleep(0.05)
    tail = (folder / "out.txt").read_text()[-2000:]
    raise SystemExit(f"update {step} was not reached within {PATIENCE} s (code {process.poll()}):\n{tail}")


def client_of(folder: Path) -> MlflowClient:
    return open_store(f"sqlite:///{folder.resolve()}/mlruns/mlflow.db")


def logged_step(folder: Path, run: Path) -> int:
    """The last update that MLflow has a loss of."""
    written = client_of(folder).get_run(run.name).to_proto().data.metrics
    return max((metric.step for metric in written if metric.key == "train/loss/total"), default=0)


def saved_step(run: Path) -> int:
    """The update of the newest valid checkpoint; 0 where none has been written yet."""
    last = run / "checkpoints" / "last.ckpt"
    return int(read_checkpoint(newest_valid(last)[0])["global_step"]) if last.exists() else 0


def check_end(folder: Path) -> ReplayBuffer:
    """Asserts what must hold of the run once it has finished; its buffers."""
    client = client_of(folder)
    (run,) = client.search_runs([client.get_experiment_by_name("ezm").experiment_id])
    assert run.info.status == "FINISHED", run.info.status
    for name in run.data.metrics:
        history = client.get_metric_history(run.info.run_id, name)
        steps = [point.step for point in sorted(history, key=lambda point: point.timestamp)]
        assert all(a < b for a, b in itertools.pairwise(steps)), f"{name}: steps {steps}"
        if name in COUNTERS:
            values = [point.value for point in sorted(history, key=lambda point: point.step)]
            assert values == sorted(values), f"{name} falls"
    document = yaml.safe_load((folder / "spec.yaml").read_text())
    updates = document["optim"]["total_updates"]
    losses = [p.step for p in client.get_metric_history(run.info.run_id, "train/loss/total")]
    assert sorted(losses) == list(range(1, updates + 1)), "a gap or a repeat"
    scores = [p.step for p in client.get_metric_history(run.info.run_id, "eval/score")]
    assert sorted(scores) == list(range(50, updates + 1, 50)) + [updates] * (updates % 50 > 0)
    last = folder / "mlruns" / "runs" / run.info.run_id / "checkpoints" / "last.ckpt"
    saved = replay_of(read_checkpoint(last))
    assert saved is not None
    experiment = build_experiment(document)
    buffer = SelfPlayDataModule(experiment, sizes(experiment.tasks)).buffer
    notes = ReplayStore(buffer, shard(last, 0)).load(saved[0])
    assert notes == [], notes
    check_buffer(buffer)
    return buffer


def check_buffer(buffer: ReplayBuffer) -> None:
    """Asserts that every stored transition has a complete window and a priority, and nothing else has."""
    blocks = buffer.blocks
    priority: NDArray = buffer.tree.front(blocks.num_blocks * blocks.block_size)
    stored = blocks.transition_id >= 0
    assert stored.any((1, 2)).all(), "a task has nothing stored"
    assert np.isfinite(priority).all() and (priority >= 0).all()
    assert ((priority.reshape(stored.shape) > 0) == stored).all() and ((blocks.length > 0) == stored).all()
    end = np.arange(blocks.block_size) + blocks.length
    assert (end[stored] <= np.broadcast_to(blocks.steps[:, :, None], stored.shape)[stored]).all()
    assert (buffer.tree.total > 0).all()
    for task, block in np.argwhere(blocks.steps > 0):
        steps = blocks.steps[task, block]
        for values in (blocks.observation, blocks.action, blocks.reward):
            assert np.isfinite(values[task, block, :steps]).all()
        ids = blocks.transition_id[task, block]
        assert (np.diff(ids[ids >= 0]) > 0).all()


if __name__ == "__main__":
    main()
