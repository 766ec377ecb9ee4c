"""Runs of a few updates on two dm_control tasks, and Ctrl-C at chosen moments.

An action is held for 25 control steps, so that an evaluation is 40 decisions; a window is complete
after 10 decisions of 2 rows, which are 500 control steps per task.
"""

from __future__ import annotations

import signal
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from training_helpers import make_experiment

from ezm_pl.envs import sizes
from ezm_pl.replay import ReplayBuffer, ReplayStore
from ezm_pl.spec import Experiment
from ezm_pl.spec.presets import merge
from ezm_pl.training import FitResult, SelfPlayDataModule, fit
from ezm_pl.training.fault_tolerance.checkpoint import read_checkpoint, shard, write_checkpoint

UPDATES = 6


def fit_experiment(document: dict[str, Any] | None = None) -> Experiment:
    """Six updates, evaluated and saved at the end only."""
    base: dict[str, Any] = {
        "env": {"action_repeat": 25, "num_envs": 2},
        "optim": {"total_updates": UPDATES, "batch_size": 8, "refresh_every": 3},
        "collect": {"env_steps": 1500, "random_steps": 600},
        "search": {"num_simulations": 4},
        "eval": {"every": 1000},
        "trainer": {"checkpoint_every": 1000, "log_every": 2},
    }
    return make_experiment(merge(base, document or {}))


def run(experiment: Experiment, folder: Path, *callbacks: Callback, **settings: Any) -> FitResult:
    """`fit` without Lightning's advice; asserts that no thread is left behind."""
    before = set(threading.enumerate())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return fit(experiment, folder, callbacks=list(callbacks), **settings)
        finally:
            assert set(threading.enumerate()) == before, "a thread is left behind"
            assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def draw_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    """From here on batches are drawn in the pipeline's thread, as for a GPU."""
    start = SelfPlayDataModule.start

    def started(self: SelfPlayDataModule, *arguments: Any) -> None:
        start(self, *arguments)
        assert self.pipeline is not None
        self.pipeline._draw_ahead = True

    monkeypatch.setattr(SelfPlayDataModule, "start", started)


def last(folder: Path) -> Path:
    return folder / "checkpoints" / "last.ckpt"


def contents(path: Path) -> dict[str, Any]:
    return torch.load(path, weights_only=True)


def rewritten(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Changes a checkpoint's contents and gives it the fingerprint that then is right."""
    inside = read_checkpoint(path)
    change(inside)
    write_checkpoint(inside, path)


def replay(experiment: Experiment, folder: Path, name: str = "last.ckpt") -> ReplayBuffer:
    """The buffer that was saved with a checkpoint."""
    path = folder / "checkpoints" / name
    data = SelfPlayDataModule(experiment, sizes(experiment.tasks))
    assert ReplayStore(data.buffer, shard(path, 0)).load(contents(path)["replay"]["save"]) == []
    return data.buffer


class CtrlC(Callback):
    """Presses Ctrl-C: after an update, or when an evaluation starts (within fit, or after it)."""

    def __init__(self, moment: str, update: int = 3, times: int = 1) -> None:
        self.moment, self.update, self.times = moment, update, times

    def press(self) -> None:
        for _ in range(self.times):
            signal.raise_signal(signal.SIGINT)

    def on_train_batch_end(self, trainer: Trainer, module: LightningModule, *args: Any) -> None:
        if self.moment == "training" and trainer.global_step == self.update:
            self.press()

    def on_validation_start(self, trainer: Trainer, module: LightningModule) -> None:
        function = trainer.state.fn
        if self.moment == {"fit": "evaluation", "validate": "final evaluation"}[str(function.value)]:  # type: ignore[union-attr]
            self.press()


class CtrlCInWarmUp(Callback):
    """Presses it from outside, while the main thread waits for the first batch."""

    def on_fit_start(self, trainer: Trainer, module: LightningModule) -> None:
        main = threading.main_thread().ident
        assert main is not None

        def press() -> None:
            data = trainer.datamodule  # type: ignore[attr-defined]
            before = data.sync.control_steps.min()
            for _ in range(2000):
                if int(data.sync.control_steps.min()) >= before + 200:
                    break
                threading.Event().wait(0.01)
            signal.pthread_kill(main, signal.SIGINT)

        threading.Thread(target=press).start()
