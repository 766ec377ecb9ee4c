"""The LightningDataModule: batches stream from replay while a background thread collects."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable, Iterator
from typing import Any

import lightning as L
import numpy as np
import psutil
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, IterableDataset

from ezm_pl.envs import MultiTaskVectorEnv, TaskSizes
from ezm_pl.replay import ReplayBuffer, Windows, return_scale
from ezm_pl.selfplay import Clock, Collector, CollectorError, Lockstep, Pacing, WeightStore
from ezm_pl.spec import Experiment
from ezm_pl.spec.seeds import stream
from ezm_pl.training.ahead import Ahead
from ezm_pl.training.batch import Batch, Targets
from ezm_pl.training.evaluation import evaluation_envs
from ezm_pl.training.hardware import reanalysis_threads
from ezm_pl.training.ranks import RankError, Ranks, rank_share
from ezm_pl.training.reanalysis import InBackground
from ezm_pl.world_model import InferenceModel


class MemoryRefused(ValueError):
    """The replay buffers of this experiment cannot fit into this machine's memory."""


class _Stream(IterableDataset[Batch]):
    """Endless batches; waits for warm-up and for collection to keep up, on all ranks.

    For a GPU the next batch is drawn, and pinned, while the learner computes. On the CPU drawing would
    take the time from the learner itself; there reanalysis begins as soon as a batch is drawn, which is
    one update ahead (Lightning's own prefetching).
    """

    def __init__(self, data: SelfPlayDataModule) -> None:
        self.data = data

    def __iter__(self) -> Iterator[Batch]:
        data = self.data
        if not data.draw_ahead:
            for drawn in self._draw(data.clock):
                if data.background is not None:
                    data.background.begin(drawn, data.updates)
                yield drawn
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
        windows: Windows | None = None
        collector = data.collector
        assert collector is not None, "the collector starts in EZMModule.on_fit_start"
        while data.collector is collector and not data.interrupted.is_set():
            if windows is None and not collector.failed:
                if not collector.warm:
                    data.asked_to_stop.wait(0.05)
                else:
                    clock.lap("other")
                    ready = data.pacing.wait_to_learn(timeout=0.5)
                    clock.lap("waiting")
                    if ready:
                        windows = data.buffer.sample(data.share.optim.batch_size)
                        clock.lap("sampling")
            agreed = data.agree(windows)
            if agreed is not None:
                windows = None
                yield Batch.from_windows(agreed)


class _Once(IterableDataset[int]):
    """One item: an evaluation is one validation step."""

    def __iter__(self) -> Iterator[int]:
        yield 0


class SelfPlayDataModule(L.LightningDataModule):
    """Replay, pacing and the collector thread of one rank.

    Args:
        experiment: the run's spec.
        sizes: padded sizes and masks of its tasks.
        ranks: this one among the others.

    Attributes:
        share: what this rank does of the experiment.
        background: on the CPU, while collection runs, what reanalyses batches.
        asked_to_stop: set on a rank that a signal has reached.
        interrupted: set once all ranks have agreed to stop.
        in_step: whether all ranks are known to be at the same place, so that they can save together.

    Raises:
        MemoryRefused: the buffers would not fit, said before they are made.
        SpecError: the batch cannot be divided among the ranks.
    """

    def __init__(self, experiment: Experiment, sizes: TaskSizes, ranks: Ranks | None = None) -> None:
        super().__init__()
        self.experiment, self.sizes, self.ranks = experiment, sizes, ranks or Ranks()
        self.share = rank_share(experiment, self.ranks)
        self.store = WeightStore()
        self.asked_to_stop = threading.Event()
        self.interrupted = threading.Event()
        self.in_step = self.ranks.size == 1
        self.collector: Collector | None = None
        self.clock = Clock()
        self.draw_ahead = False
        self.ahead: Ahead[Batch] | None = None
        self.background: InBackground | None = None
        # Asked for here: once training has begun, torch has fewer in this thread.
        self._reanalysis_threads = reanalysis_threads(experiment.model.latent_size, self.ranks.local)
        self._steps = np.zeros((self.ranks.size, len(experiment.tasks)), np.int64)
        # Diverged episodes and restarted workers: this rank's, its earlier sittings', all ranks'.
        self._own_faults = np.zeros(2, np.int64)
        self._earlier_faults = np.zeros(2, np.int64)
        self._faults = np.zeros(2, np.int64)
        self.updates = 0
        collect = self.share.collect
        pacing = Lockstep if experiment.trainer.deterministic else Pacing
        self.pacing = pacing(
            experiment.optim.total_updates, collect.env_steps - collect.random_steps, collect.max_lead
        )
        self._buffer: ReplayBuffer | None = None
        self._evaluation_envs: MultiTaskVectorEnv | None = None
        self.check_memory()

    def replay_bytes(self) -> int:
        """What the full buffers of this machine's ranks will hold, in bytes."""
        spec = self.share
        stored = -(-spec.collect.env_steps // spec.env.action_repeat)
        return self.ranks.local * ReplayBuffer.estimate_bytes(
            tasks=len(spec.tasks),
            observation_size=self.sizes.obs_size,
            action_size=self.sizes.action_size,
            capacity=min(spec.replay.capacity, stored),
            block_size=spec.replay.block_size,
            tail=spec.targets.unroll_steps + spec.targets.td_steps,
            observation_dtype=spec.replay.observation_dtype,
        )

    def memory(self) -> str:
        """A line on what the buffers will take."""
        needed, there = self.replay_bytes(), psutil.virtual_memory().available / 2**30
        units = (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10))
        unit, size = next((pair for pair in units if needed >= 0.1 * pair[1]), units[-1])
        return f"replay: {needed / size:.2f} {unit} when full, of {there:.1f} GiB free"

    def check_memory(self) -> None:
        """Raises `MemoryRefused` if full buffers would leave no room for anything else."""
        needed, there = self.replay_bytes(), psutil.virtual_memory().available
        if needed > 0.9 * there:
            full = self.share.replay.observation_dtype == "float32"
            halve = "set replay.observation_dtype to float16, " if full else ""
            raise MemoryRefused(
                f"replay needs {needed / 2**30:.1f} GiB when full and {there / 2**30:.1f} GiB are free: "
                f"{halve}lower replay.capacity, or train fewer tasks"
            )

    @property
    def buffer(self) -> ReplayBuffer:
        """This rank's replay, made on first use."""
        if self._buffer is None:
            spec = self.share
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
                observation_dtype=spec.replay.observation_dtype,
                seed=stream(spec.seed, "replay", self.ranks.rank),
            )
        return self._buffer

    def start_collecting(
        self, actor: InferenceModel, device: torch.device, reanalyse: Callable[[Batch, int], Targets]
    ) -> None:
        """Starts the collector thread, from where an earlier run stopped if there was one.

        Args:
            actor: the collector's network. device: that it and the learner compute on.
            reanalyse: gives a batch's targets; on the CPU `background` calls it from when one is drawn.
        """
        if device.type == "cpu":
            self.background = InBackground(reanalyse, self._reanalysis_threads)
        # Ranks agree before each batch, and only from the main thread; in lockstep nothing runs ahead.
        alone = self.ranks.size == 1 and not self.experiment.trainer.deterministic
        self.draw_ahead = device.type == "cuda" and alone
        collected = int(self._steps[self.ranks.rank].min())
        self.pacing.restore(self.updates, max(0, collected - self.share.collect.random_steps))
        self._earlier_faults = self._own_faults.copy()
        self.collector = Collector(
            self.share,
            self.sizes,
            self.buffer,
            actor,
            self.store,
            self.pacing,
            device=device,
            rank=self.ranks.rank,
            collected=collected,
        )
        self.collector.start()

    @property
    def control_steps(self) -> NDArray[np.int64]:
        """Control steps a task so far, over all ranks `[T]`: the other ranks' as last heard."""
        self._count_own()
        return self._steps.sum(0)

    @property
    def faults(self) -> tuple[int, int]:
        """Diverged episodes and restarted workers of the whole run, over all ranks, as last heard."""
        diverged, restarts = self._faults.tolist()
        return diverged, restarts

    def _count_own(self) -> NDArray[np.int64]:
        """Control steps `[T]` of this rank; its faults are counted, too."""
        if self.collector is not None:
            self._steps[self.ranks.rank] = self.collector.control_steps
            now = (self.collector.diverged, self.collector.worker_restarts)
            self._own_faults = self._earlier_faults + now
        return self._steps[self.ranks.rank]

    def hear_counts(self) -> None:
        """Brings `control_steps` and `faults` up to date; all ranks call this together."""
        told = self.ranks.gather(np.concatenate([self._count_own(), self._own_faults]))
        self._steps[:] = told[:, :-2]
        self._faults = told[:, -2:].sum(0).astype(np.int64)

    def agree(self, windows: Windows | None) -> Windows | None:
        """What all ranks do next; they call this together, from their main threads.

        Args:
            windows: this rank's next batch; None while it has to wait for collection.

        Returns:
            The batch, with importance weights and return scales over all ranks, once every rank has
            one. None: to wait, or, with `interrupted` set, to stop.

        Raises:
            CollectorError: this rank's collector has failed.
            RankError: another rank's collector has failed.
        """
        collector = self.collector
        if self.ranks.size == 1:
            if collector is not None:
                collector.check()
            return windows
        assert collector is not None
        tasks, returns = len(self.experiment.tasks), self.buffer.returns
        flags = [collector.failed, self.asked_to_stop.is_set(), windows is None]
        largest = np.zeros(tasks) if windows is None else windows.largest
        told = np.concatenate([flags, self._count_own(), returns.squares, returns.count, largest])
        everyone = self.ranks.gather(told)
        failed, asked, waits = everyone[:, :3].T > 0
        steps, squares, counts, largest_of_all = everyone[:, 3:].reshape(-1, 4, tasks).swapaxes(0, 1)
        self._steps[:] = steps
        if failed.any():
            self._fail(collector)
        if asked.any():
            self.stop()
        if windows is None or waits.any() or asked.any():
            return None
        scale = return_scale(squares.sum(0), counts.sum(0))
        share = largest / np.maximum(largest_of_all.max(0), 1e-300)
        least = self.experiment.replay.min_importance
        return dataclasses.replace(
            windows,
            weight=np.clip(windows.weight * share[windows.task], least, 1).astype(np.float32),
            return_scale=scale[windows.task],
        )

    def _fail(self, collector: Collector) -> None:
        own: CollectorError | None = None
        try:
            collector.check()
        except CollectorError as error:
            own = error
        said = self.ranks.gather_objects(None if own is None else str(own))
        self.in_step = True
        if own is not None:
            raise own
        raise RankError("; ".join(f"rank {rank}: {text}" for rank, text in enumerate(said) if text))

    def ask_to_stop(self) -> None:
        """What a signal does: this rank wants to stop, and does so as soon as all ranks have heard."""
        self.asked_to_stop.set()
        if self.ranks.size == 1:
            self.stop()

    def stop(self) -> None:
        """Ends training after the present update, on all ranks if they call this together."""
        self.interrupted.set()
        if self.trainer is not None:
            self.trainer.should_stop = True

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
            self._evaluation_envs = evaluation_envs(
                self.experiment, self.experiment.eval.episodes, tasks=self.evaluated_tasks
            )
        return self._evaluation_envs

    @property
    def evaluated_tasks(self) -> list[int]:
        """The tasks whose episodes this rank plays; none where there are more ranks than tasks."""
        return list(range(self.ranks.rank, len(self.experiment.tasks), self.ranks.size))

    def teardown(self, stage: str) -> None:
        """Stops the threads and closes all environments, also after an error."""
        if self.collector is not None and stage == "fit":
            collector = self.collector
            collector.stop()  # first: it wakes whoever waits for collection
            self._count_own()
            self.collector = None
            if self.ahead is not None:
                self.ahead.stop()
                self.ahead = None
        if self.background is not None and stage == "fit":
            self.background.stop()
            self.background = None
        if self._evaluation_envs is not None:
            self._evaluation_envs.close()
            self._evaluation_envs = None

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint holds of collection; the buffers lie in a file beside it."""
        return {
            "control_steps": torch.from_numpy(self.control_steps),
            "rank_steps": torch.from_numpy(self._steps.copy()),
            "faults": torch.from_numpy(self._faults.copy()),
            "updates": self.updates,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes up what `state_dict` gave."""
        steps = state_dict["rank_steps"].numpy()
        same = steps.shape == self._steps.shape
        self._steps[:] = steps if same else steps.sum(0) // self.ranks.size
        self._faults = state_dict["faults"].numpy().copy()
        if self.ranks.rank == 0:  # the sum over ranks is what goes on
            self._own_faults = self._faults.copy()
        self.updates = state_dict["updates"]
