"""The LightningDataModule: batches stream from replay while a background thread collects."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import lightning as L
import numpy as np
import psutil
import torch
from torch.utils.data import DataLoader, IterableDataset

from ezm_pl.envs import MultiTaskVectorEnv, TaskSizes
from ezm_pl.replay import ReplayBuffer
from ezm_pl.selfplay import Clock, Collector, Pacing, WeightStore
from ezm_pl.spec import Experiment
from ezm_pl.spec.seeds import stream
from ezm_pl.training.ahead import Ahead
from ezm_pl.training.batch import Batch
from ezm_pl.training.evaluation import evaluation_envs
from ezm_pl.world_model import InferenceModel


class MemoryRefused(ValueError):
    """The replay buffers of this experiment cannot fit into this machine's memory."""


class _Stream(IterableDataset[Batch]):
    """Endless batches; waits for warm-up and for collection to keep up.

    For a GPU the next batch is drawn, and pinned, while the learner computes. On the CPU that would take
    the time from the learner itself.
    """

    def __init__(self, data: SelfPlayDataModule) -> None:
        self.data = data

    def __iter__(self) -> Iterator[Batch]:
        data = self.data
        if not data.draw_ahead:
            yield from self._draw(data.clock)
            return
        pin = torch.cuda.is_available()
        data.ahead = Ahead(batch.pin_memory() if pin else batch for batch in self._draw(Clock()))
        while True:
            data.clock.lap("other")
            batch = next(data.ahead, None)
            data.clock.lap("waiting")
            if batch is None:
                return
            yield batch

    def _draw(self, clock: Clock) -> Iterator[Batch]:
        data = self.data
        size = data.experiment.optim.batch_size // data.world_size
        collector = data.collector
        assert collector is not None, "the collector starts in EZMModule.on_fit_start"
        while data.collector is collector and not data.interrupted.is_set():
            collector.check()
            if not collector.warm:
                data.interrupted.wait(0.05)
                continue
            clock.lap("other")
            ready = data.pacing.wait_to_learn(timeout=0.5)
            clock.lap("waiting")
            if ready:
                batch = Batch.from_windows(data.buffer.sample(size))
                clock.lap("sampling")
                yield batch


class _Once(IterableDataset[int]):
    """One item: an evaluation is one validation step."""

    def __iter__(self) -> Iterator[int]:
        yield 0


class SelfPlayDataModule(L.LightningDataModule):
    """Replay, pacing and the collector thread of one rank.

    Args:
        experiment: the run's spec.
        sizes: padded sizes and masks of its tasks.

    Raises:
        MemoryRefused: the buffers would not fit, said before they are made.
    """

    def __init__(self, experiment: Experiment, sizes: TaskSizes) -> None:
        super().__init__()
        self.experiment, self.sizes = experiment, sizes
        self.store = WeightStore()
        self.interrupted = threading.Event()
        self.collector: Collector | None = None
        self.world_size = 1
        self.clock = Clock()
        self.draw_ahead = False
        self.ahead: Ahead[Batch] | None = None
        self.control_steps = np.zeros(len(experiment.tasks), np.int64)
        self.updates = 0
        collect = experiment.collect
        self.pacing = Pacing(
            experiment.optim.total_updates, collect.env_steps - collect.random_steps, collect.max_lead
        )
        self._buffer: ReplayBuffer | None = None
        self._evaluation_envs: MultiTaskVectorEnv | None = None
        self.check_memory()

    def replay_bytes(self) -> int:
        """What full buffers will hold, in bytes."""
        spec = self.experiment
        stored = -(-spec.collect.env_steps // spec.env.action_repeat)
        return ReplayBuffer.estimate_bytes(
            tasks=len(spec.tasks),
            observation_size=self.sizes.obs_size,
            action_size=self.sizes.action_size,
            capacity=min(spec.replay.capacity, stored),
            block_size=spec.replay.block_size,
            tail=spec.targets.unroll_steps + spec.targets.td_steps,
        )

    def memory(self) -> str:
        """A line on what the buffers will take."""
        needed, there = self.replay_bytes() / 2**30, psutil.virtual_memory().available / 2**30
        return f"replay: {needed:.2f} GiB when full, of {there:.1f} GiB free"

    def check_memory(self) -> None:
        """Raises `MemoryRefused` if full buffers would leave no room for anything else."""
        needed, there = self.replay_bytes(), psutil.virtual_memory().available
        if needed > 0.9 * there:
            raise MemoryRefused(
                f"replay needs {needed / 2**30:.1f} GiB when full and {there / 2**30:.1f} GiB are free: "
                "lower replay.capacity, or train fewer tasks"
            )

    @property
    def buffer(self) -> ReplayBuffer:
        """This rank's replay, made on first use."""
        if self._buffer is None:
            spec, rank = self.experiment, self.trainer.global_rank if self.trainer else 0
            self._buffer = ReplayBuffer(
                np.repeat(np.arange(len(spec.tasks)), spec.env.num_envs),
                tasks=len(spec.tasks),
                observation_size=self.sizes.obs_size,
                action_size=self.sizes.action_size,
                capacity=spec.replay.capacity,
                block_size=spec.replay.block_size,
                unroll_steps=spec.targets.unroll_steps,
                td_steps=spec.targets.td_steps,
                discount=spec.targets.discount,
                priority_exponent=spec.replay.priority_exponent,
                importance_exponent=spec.replay.importance_exponent,
                min_importance=spec.replay.min_importance,
                shared=spec.replay.shared,
                seed=stream(spec.seed, "replay", rank),
            )
        return self._buffer

    def start_collecting(self, actor: InferenceModel, device: torch.device) -> None:
        """Starts the collector thread, from where an earlier run stopped if there was one."""
        trainer = self.trainer
        assert trainer is not None
        self.world_size, self.draw_ahead = trainer.world_size, device.type == "cuda"
        collected = int(self.control_steps.min())
        self.pacing.restore(self.updates, max(0, collected - self.experiment.collect.random_steps))
        self.collector = Collector(
            self.experiment,
            self.sizes,
            self.buffer,
            actor,
            self.store,
            self.pacing,
            device=device,
            rank=trainer.global_rank,
            collected=collected,
        )
        self.control_steps = self.collector.control_steps
        self.collector.start()

    def updated(self, updates: int) -> None:
        """The learner has done `updates` updates in all."""
        self.updates = updates
        self.pacing.updated(updates)

    def train_dataloader(self) -> DataLoader[Batch]:
        """Endless batches from replay."""
        return DataLoader(_Stream(self), batch_size=None)

    def val_dataloader(self) -> DataLoader[int]:
        """A single item: the whole evaluation is one step."""
        return DataLoader(_Once(), batch_size=None)

    def evaluation_envs(self) -> MultiTaskVectorEnv:
        """The environments of evaluation episodes, made on first use."""
        if self._evaluation_envs is None:
            self._evaluation_envs = evaluation_envs(self.experiment, self.experiment.eval.episodes)
        return self._evaluation_envs

    def teardown(self, stage: str) -> None:
        """Stops the threads and closes all environments, also after an error."""
        if self.collector is not None and stage == "fit":
            collector, self.collector = self.collector, None
            collector.stop()  # first: it wakes whoever waits for collection
            if self.ahead is not None:
                self.ahead.stop()
                self.ahead = None
        if self._evaluation_envs is not None:
            self._evaluation_envs.close()
            self._evaluation_envs = None

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint holds of collection; the buffers lie in a file beside it."""
        return {"control_steps": torch.from_numpy(self.control_steps.copy()), "updates": self.updates}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes up what `state_dict` gave."""
        self.control_steps = state_dict["control_steps"].numpy()
        self.updates = state_dict["updates"]
