"""What a person sees while training: the progress bar and the self-play metrics."""

from __future__ import annotations

import itertools
import math
import time
from typing import Any

import numpy as np
import psutil
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

from ezm_pl.selfplay import shares
from ezm_pl.training.agent_module import AgentModule
from ezm_pl.training.data import SelfPlayDataModule
from ezm_pl.training.lightning_internals import UpdatesBar


class SelfPlayMetrics(Callback):
    """Logs self-play returns, throughput, waiting times and memory every few updates.

    Names: `selfplay/<task>/return` (training episodes, under the run's protocol), `env_steps` (control
    steps per task), `time/*` (rates per second, and what shares of their time the learner and the
    collector spend on what: each side's add up to 1), `device/*`. Returns and steps are those of all
    ranks, other figures this rank's; Lightning logs those of rank 0.

    Args:
        every: updates between logs.
    """

    def __init__(self, every: int) -> None:
        self.every = every
        self.latest: dict[str, float] = {}
        self._mark = (0.0, 0, 0.0)
        self._parts: dict[str, dict[str, float]] = {}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Starts the timers, so that set-up does not count."""
        self._mark, self._parts = self._now(trainer), self._timers(trainer)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Logs when it is time."""
        data: SelfPlayDataModule = trainer.datamodule  # type: ignore[attr-defined]
        collector = data.collector
        if collector is None or trainer.global_step % self.every:
            return
        data.sync.all_gather_counts()
        now = self._now(trainer)
        seconds, updates, steps = np.subtract(now, self._mark)
        parts = self._timers(trainer)
        before, self._mark, self._parts = self._parts, now, parts
        seconds = max(seconds, 1e-9)
        tasks = len(data.experiment.tasks)
        diverged, restarts = data.sync.faults
        metrics = {
            "step": float(trainer.global_step),  # Lightning's x axis would be one less
            "env_steps": float(data.sync.control_steps.mean()),
            "time/updates_per_second": updates / seconds,
            "time/env_steps_per_second": steps * tasks / seconds,
            "selfplay/diverged_episodes": float(diverged),
            "selfplay/worker_restarts": float(restarts),
            "device/process_memory_gib": psutil.Process().memory_info().rss / 2**30,
            "device/cpu_percent": psutil.cpu_percent(),
        }
        for side, reading in parts.items():
            for part, share in shares(before.get(side, {}), reading).items():
                metrics[f"time/{side}_{part}_share"] = share
        ended = []
        while collector.episodes:
            ended.append(collector.episodes.popleft())
        returns: dict[int, list[float]] = {}
        for episode in itertools.chain(*data.ranks.gather_objects(ended)):
            returns.setdefault(episode.task, []).append(episode.episode_return)
        for task, values in returns.items():
            metrics[f"selfplay/{data.experiment.tasks[task]}/return"] = float(np.mean(values))
        self.latest |= metrics
        pl_module.log_dict(metrics)

    @staticmethod
    def _now(trainer: Trainer) -> tuple[float, int, float]:
        data: SelfPlayDataModule = trainer.datamodule  # type: ignore[attr-defined]
        return time.perf_counter(), trainer.global_step, float(data.sync.control_steps.mean())

    @staticmethod
    def _timers(trainer: Trainer) -> dict[str, dict[str, float]]:
        data: SelfPlayDataModule = trainer.datamodule  # type: ignore[attr-defined]
        timers = {"learner": data.timer, "collector": data.collector.timer if data.collector else None}
        return {side: timer.read() for side, timer in timers.items() if timer is not None}


class TrainingBar(UpdatesBar):
    """Lightning's Rich bar with what matters here: rates, steps per task, the last score, evaluations."""

    def evaluated(self, pl_module: AgentModule) -> str:
        """How many episodes."""
        spec = pl_module.experiment
        return f"{len(spec.tasks) * spec.eval.episodes} episodes"

    def get_metrics(  # type: ignore[override]
        self, trainer: Trainer, pl_module: AgentModule
    ) -> dict[str, int | str | float | dict[str, float]]:
        """Short named figures behind the bar."""
        shown: dict[str, int | str | float | dict[str, float]] = {}
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, SelfPlayMetrics) and callback.latest:
                latest = callback.latest
                shown["updates/s"] = f"{latest['time/updates_per_second']:.1f}"
                shown["env steps/s"] = f"{latest['time/env_steps_per_second']:.0f}"
        steps = trainer.datamodule.sync.control_steps  # type: ignore[attr-defined]
        shown["steps/task"] = f"{int(steps.mean()):,}"
        evaluations = pl_module.evaluations
        score = evaluations[-1].score if evaluations else math.nan
        shown["score"] = "-" if math.isnan(score) else f"{score:.3f}"
        return shown
