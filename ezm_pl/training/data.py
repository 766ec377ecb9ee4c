"""The LightningDataModule: replay, the collector thread and the pipeline of one rank."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import lightning as L
import numpy as np
import torch
from torch.utils.data import DataLoader

from ezm_pl.envs import TaskSizes
from ezm_pl.replay import ReplayBuffer, Windows
from ezm_pl.search import ActFn
from ezm_pl.selfplay import Actor, Collector, Lockstep, Pacing, PhaseTimer, WeightStore
from ezm_pl.spec import Experiment
from ezm_pl.spec.seeds import stream
from ezm_pl.training.batch import Batch
from ezm_pl.training.hardware import reanalysis_threads
from ezm_pl.training.memory import check_memory
from ezm_pl.training.pipeline import Pipeline, Prepared
from ezm_pl.training.ranks import Ranks, per_rank
from ezm_pl.training.sync import RankSync


class SelfPlayDataModule(L.LightningDataModule):
    """Streams batches with targets while a background thread collects.

    Args:
        experiment: the run's spec.
        sizes: padded sizes and masks of its tasks.
        ranks: this one among the others.

    Attributes:
        per_rank: the spec of this rank.
        sync: what the ranks agree on, and what they have counted.
        store: the newest weights for the actor.
        pacing: keeps collection and learning in step; counts the updates.
        timer: of the learner's phases.
        collector, pipeline: while there is training.

    Raises:
        MemoryRefused: the buffers would not fit, raised before they are made.
        SpecError: the batch cannot be divided among the ranks.
    """

    def __init__(self, experiment: Experiment, sizes: TaskSizes, ranks: Ranks | None = None) -> None:
        super().__init__()
        self.experiment, self.sizes, self.ranks = experiment, sizes, ranks or Ranks()
        self.per_rank = per_rank(experiment, self.ranks)
        check_memory(self.per_rank, sizes, self.ranks.local)
        self.sync = RankSync(
            self.ranks, len(experiment.tasks), experiment.replay.min_importance, self._stop_trainer
        )
        self.store = WeightStore()
        collect = self.per_rank.collect
        pacing = Lockstep if experiment.trainer.deterministic else Pacing
        self.pacing = pacing(
            experiment.optim.total_updates, collect.env_steps - collect.random_steps, collect.max_lead
        )
        self.timer = self._draw_timer = PhaseTimer()
        self.collector: Collector | None = None
        self.pipeline: Pipeline[Any] | None = None
        # Asked for here: once training has begun, torch has fewer threads in this one.
        self._reanalysis_threads = reanalysis_threads(experiment.model.latent_size, self.ranks.local)
        self._buffer: ReplayBuffer | None = None

    @property
    def buffer(self) -> ReplayBuffer:
        """This rank's replay, made on first use."""
        if self._buffer is None:
            spec = self.per_rank
            self._buffer = ReplayBuffer(
                np.repeat(np.arange(len(spec.tasks)), spec.env.num_envs),
                spec.replay,
                spec.windows,
                observation_size=self.sizes.obs_size,
                action_size=self.sizes.action_size,
                seed=stream(spec.seed, "replay", self.ranks.rank),
            )
        return self._buffer

    def start(
        self, actor: Actor, act: ActFn, device: torch.device, targets: Callable[[Batch, int], Any]
    ) -> None:
        """Starts the collector and the pipeline, from where an earlier session stopped if there was one.

        Args:
            actor: the collector's network.
            act: how it decides.
            device: of the collector and the learner.
            targets: gives a batch's targets, at a number of updates done.
        """
        self.timer = PhaseTimer(device)
        # Ranks agree before each batch, and only from the main thread; in lockstep nothing runs ahead.
        alone = self.ranks.size == 1 and not self.experiment.trainer.deterministic
        draw_ahead = device.type == "cuda" and alone
        # A timer is one thread's.
        self._draw_timer = PhaseTimer() if draw_ahead else self.timer
        self.pipeline = Pipeline(
            self._draws,
            targets,
            lambda: self.pacing.updates,
            device=device,
            draw_ahead=draw_ahead,
            threads=self._reanalysis_threads,
        )
        collected = self.sync.collected
        self.pacing.collected(max(0, collected - self.per_rank.collect.random_steps))
        self.collector = Collector(
            self.per_rank,
            self.sizes,
            self.buffer,
            actor,
            act,
            self.store,
            self.pacing,
            device=device,
            rank=self.ranks.rank,
            collected=collected,
        )
        self.sync.count(self.collector)
        self.collector.start()

    def _draws(self) -> Iterator[Batch]:
        """Batches on the host; waits for warm-up and for collection to keep up, on all ranks."""
        windows: Windows | None = None
        collector, sync, timer = self.collector, self.sync, self._draw_timer
        assert collector is not None and self.pipeline is not None
        while self.collector is collector and not sync.interrupted.is_set():
            if windows is None and not collector.failed:
                if not collector.warm:
                    sync.asked_to_stop.wait(0.05)
                else:
                    with timer("waiting"):
                        ready = self.pacing.wait_to_learn(timeout=0.5)
                    if ready:
                        with timer("sampling"):
                            windows = self.buffer.sample(self.per_rank.optim.batch_size)
            agreed = sync.sync_ranks(windows, self.buffer)
            if agreed is not None:
                windows = None
                yield Batch.from_windows(agreed)

    def _stop_trainer(self) -> None:
        if self.trainer is not None:
            self.trainer.should_stop = True

    def train_dataloader(self) -> DataLoader[Prepared[Any]]:
        """Endless batches with targets."""
        assert self.pipeline is not None, "the module's on_fit_start starts it"
        return DataLoader(self.pipeline, batch_size=None)

    def val_dataloader(self) -> list[int]:
        """A single item: the whole evaluation is one step."""
        return [0]

    def teardown(self, stage: str) -> None:
        """Stops the threads, also after an error."""
        if stage != "fit":
            return
        if self.collector is not None:
            self.collector.stop()  # first: it wakes the thread that waits for collection
            self.collector = None
        if self.pipeline is not None:
            self.pipeline.stop()
            self.pipeline = None

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint holds of collection; the buffers lie in a folder beside it."""
        return {**self.sync.state_dict(), "updates": self.pacing.updates}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes up what `state_dict` gave."""
        self.sync.load_state_dict(state_dict)
        self.pacing.updated(state_dict["updates"])
