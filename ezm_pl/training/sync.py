"""What the ranks of a run agree on between updates: go on, wait, stop, fail; and what they count."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ezm_pl.replay import ReplayBuffer, Windows, return_scale
from ezm_pl.selfplay import Collector, CollectorError
from ezm_pl.training.ranks import RankError, Ranks


class RankSync:
    """One rank's side of the agreement. All ranks call its methods together, from their main threads.

    Args:
        ranks: this one among the others.
        tasks: `T`.
        min_importance: the smallest importance weight.
        on_interrupt: called when all ranks have agreed to stop.

    Attributes:
        collector: whose steps are counted; None while nothing is collected.
        asked_to_stop: set on a rank that a signal has reached.
        interrupted: set once all ranks have agreed to stop.
        ranks_in_sync: whether all ranks are known to be at the same place, so that they can save together.
    """

    def __init__(
        self, ranks: Ranks, tasks: int, min_importance: float, on_interrupt: Callable[[], None]
    ) -> None:
        self.ranks, self._min_importance, self._on_interrupt = ranks, min_importance, on_interrupt
        self.collector: Collector | None = None
        self.asked_to_stop, self.interrupted = threading.Event(), threading.Event()
        self.ranks_in_sync = ranks.size == 1
        self._steps = np.zeros((ranks.size, tasks), np.int64)
        # Diverged episodes and restarted workers: this rank's, those of its earlier sessions, all ranks'.
        self._own_faults = np.zeros(2, np.int64)
        self._earlier_faults = np.zeros(2, np.int64)
        self._faults = np.zeros(2, np.int64)

    def count(self, collector: Collector) -> None:
        """Counts the steps and faults of `collector` from here on."""
        self.collector, self._earlier_faults = collector, self._own_faults.copy()

    @property
    def collected(self) -> int:
        """Control steps per task that this rank has collected: the least of all tasks."""
        return int(self._own_steps().min())

    @property
    def control_steps(self) -> NDArray[np.int64]:
        """Control steps per task over all ranks `[T]`; the other ranks' are those last gathered."""
        self._own_steps()
        return self._steps.sum(0)

    @property
    def faults(self) -> tuple[int, int]:
        """Diverged episodes and restarted workers of the whole run, over all ranks, as last gathered."""
        diverged, restarts = self._faults.tolist()
        return diverged, restarts

    def _own_steps(self) -> NDArray[np.int64]:
        if self.collector is not None:
            self._steps[self.ranks.rank] = self.collector.control_steps
            now = (self.collector.diverged, self.collector.worker_restarts)
            self._own_faults = self._earlier_faults + now
        return self._steps[self.ranks.rank]

    def all_gather_counts(self) -> None:
        """Brings `control_steps` and `faults` up to date."""
        told = self.ranks.gather(np.concatenate([self._own_steps(), self._own_faults]))
        self._steps[:] = told[:, :-2]
        self._faults = told[:, -2:].sum(0).astype(np.int64)

    def sync_ranks(self, windows: Windows | None, buffer: ReplayBuffer) -> Windows | None:
        """Decides with all ranks what they do next.

        Args:
            windows: this rank's next batch; None while it has to wait for collection.
            buffer: this rank's replay.

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
        tasks, returns = self._steps.shape[1], buffer.returns
        flags = [collector.failed, self.asked_to_stop.is_set(), windows is None]
        max_weight = np.zeros(tasks) if windows is None else windows.max_weight
        told = np.concatenate([flags, self._own_steps(), returns.squares, returns.count, max_weight])
        everyone = self.ranks.gather(told)
        failed, asked, waits = everyone[:, :3].T > 0
        steps, squares, counts, max_weights = everyone[:, 3:].reshape(-1, 4, tasks).swapaxes(0, 1)
        self._steps[:] = steps
        if failed.any():
            self._fail(collector)
        if asked.any():
            self.interrupt()
        if windows is None or waits.any() or asked.any():
            return None
        scale = return_scale(squares.sum(0), counts.sum(0))
        share = max_weight / np.maximum(max_weights.max(0), 1e-300)
        return dataclasses.replace(
            windows,
            weight=np.clip(windows.weight * share[windows.task], self._min_importance, 1).astype(np.float32),
            return_scale=scale[windows.task],
        )

    def _fail(self, collector: Collector) -> None:
        own: CollectorError | None = None
        try:
            collector.check()
        except CollectorError as error:
            own = error
        said = self.ranks.gather_objects(None if own is None else str(own))
        self.ranks_in_sync = True
        if own is not None:
            raise own
        raise RankError("; ".join(f"rank {rank}: {text}" for rank, text in enumerate(said) if text))

    def ask_to_stop(self) -> None:
        """Called by a signal handler: all ranks stop as soon as they have agreed to."""
        self.asked_to_stop.set()
        if self.ranks.size == 1:
            self.interrupt()

    def interrupt(self) -> None:
        """Ends training after the present update; all ranks call this together."""
        self.interrupted.set()
        self._on_interrupt()

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint holds of the counts."""
        return {
            "control_steps": torch.from_numpy(self.control_steps),
            "rank_steps": torch.from_numpy(self._steps.copy()),
            "faults": torch.from_numpy(self._faults.copy()),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes up what `state_dict` gave; steps of another number of ranks are shared out equally."""
        steps = state["rank_steps"].numpy()
        same = steps.shape == self._steps.shape
        self._steps[:] = steps if same else steps.sum(0) // self.ranks.size
        self._faults = state["faults"].numpy().copy()
        if self.ranks.rank == 0:  # rank 0 carries the sum over ranks on
            self._own_faults = self._faults.copy()
