"""Observations that the planner has labelled with its actions.

Shapes: `T` tasks, `O` padded observation, `A` padded action, `B` batch.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ezm_pl.envs import TaskSizes


class Labelled(NamedTuple):
    """A batch: observations `[B, O]`, tasks `[B]`, the planner's actions `[B, A]`."""

    observation: Tensor
    task: Tensor
    action: Tensor


class Rows:
    """All labelled observations, those of replay and those of the student's own visits (DAgger's aggregate).

    One thread adds, another samples: a row counts only when it has been written.

    Args:
        sizes: of the tasks.
        capacity: rows per task.
        seed: of the sampling.
    """

    def __init__(self, sizes: TaskSizes, capacity: int, seed: np.random.SeedSequence) -> None:
        tasks = len(sizes.obs_sizes)
        self.capacity = capacity
        self.observation = np.zeros((tasks, capacity, sizes.obs_size), np.float32)
        self.action = np.zeros((tasks, capacity, sizes.action_size), np.float32)
        self.count = np.zeros(tasks, np.int64)
        self._random = np.random.default_rng(seed)

    @staticmethod
    def estimate_bytes(sizes: TaskSizes, capacity: int) -> int:
        """Bytes that full rows of this size hold."""
        return 4 * len(sizes.obs_sizes) * capacity * (sizes.obs_size + sizes.action_size)

    @property
    def least(self) -> int:
        """Rows of the task that has fewest."""
        return int(self.count.min())

    def add(
        self, observation: NDArray[np.float32], task: NDArray[np.int64], action: NDArray[np.float32]
    ) -> None:
        """Adds rows: `[B, O]`, `[B]` and `[B, A]`. What is over a task's capacity is left out."""
        for index in np.unique(task):
            first = int(self.count[index])
            mine = np.flatnonzero(task == index)[: self.capacity - first]
            self.observation[index, first : first + len(mine)] = observation[mine]
            self.action[index, first : first + len(mine)] = action[mine]
            self.count[index] = first + len(mine)

    def sample(self, batch_size: int) -> Labelled:
        """Draws rows uniformly, tasks in turn from a random one on; every task needs one."""
        tasks = len(self.count)
        task = (np.arange(batch_size) + self._random.integers(tasks)) % tasks
        row = (self._random.random(batch_size) * self.count[task]).astype(np.int64)
        arrays = self.observation[task, row], task, self.action[task, row]
        return Labelled(*map(torch.from_numpy, arrays))

    def state_dict(self) -> dict[str, Any]:
        """The rows so far, as tensors."""
        count = self.count.copy()  # first: rows that are added meanwhile do not count
        used = int(count.max())
        return {
            "count": torch.from_numpy(count),
            "observation": torch.from_numpy(self.observation[:, :used].copy()),
            "action": torch.from_numpy(self.action[:, :used].copy()),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes up what `state_dict` gave, as far as there is room."""
        used = min(self.capacity, state["observation"].shape[1])
        self.observation[:, :used] = state["observation"][:, :used].numpy()
        self.action[:, :used] = state["action"][:, :used].numpy()
        self.count[:] = np.minimum(state["count"].numpy(), self.capacity)
