"""Simulators of one task that step together, and go to any saved state: the judge of the diagnostics."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from types import TracebackType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ezm_pl.envs import make
from ezm_pl.envs.core import ControlEnv, EnvState, EpisodeProtocol
from ezm_pl.envs.stepping.thread_pool import ThreadPool
from ezm_pl.envs.stepping.vector import available_cores
from ezm_pl.training.diagnostics.networks import Networks


class Simulators:
    """`N` environments of one task on all cores; a context manager that closes them.

    Args:
        networks: whose task it is, and what to pad observations to.
        task: index of the task.
        count: `N`.
        protocol: whether falls end an episode; None: as in training.
        seed: of the episodes.

    Attributes:
        task_ids: `[N]`, the task's index, on the networks' device.
    """

    def __init__(
        self, networks: Networks, task: int, count: int, *, protocol: EpisodeProtocol | None, seed: int
    ) -> None:
        experiment, env = networks.experiment, networks.experiment.env
        name = experiment.tasks[task]
        self.task_ids = torch.full((count,), task, device=networks.device)
        self._width = int(networks.sizes.obs_sizes[task])
        self._actions = int(networks.sizes.action_sizes[task])
        self._out = np.zeros((count, networks.sizes.obs_size), np.float32)
        self._reward, self._ended = np.zeros(count), np.zeros(count, bool)
        self._truncated = np.zeros(count, bool)
        self._envs: list[ControlEnv] = []
        for number in range(count):
            made: Any = make(
                name,
                backend=env.backend,
                quirks=name not in experiment.without_quirks,
                protocol=protocol or env.protocol,
                seed=seed + number,
                action_repeat=env.action_repeat,
            )
            self._envs.append(made)
        self._pool = ThreadPool(count, min(available_cores(), count) - 1)

    def __enter__(self) -> Simulators:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.close()
        for env in self._envs:
            env.close()

    def __len__(self) -> int:
        return len(self._envs)

    def observation(self) -> Tensor:
        """The present padded observations `[N, O]` on the networks' device, a copy."""
        return torch.tensor(self._out, device=self.task_ids.device)

    def reset(self, row: int) -> None:
        """Starts a new episode in a row."""
        self._ended[row] = False
        self._out[row, : self._width] = self._envs[row].reset()[0]

    def state(self, row: int) -> EnvState:
        """A row's state, to be restored in any row."""
        return self._envs[row].state()

    def restore(self, states: Sequence[EnvState]) -> None:
        """Puts the rows into states `[N]`, each with a whole episode ahead."""
        self._ended[:] = False

        def restore(row: int) -> None:
            # A value is of the task without its time limit.
            state = dataclasses.replace(states[row], elapsed=0)
            self._out[row, : self._width] = self._envs[row].restore(state)

        self._pool.each(restore)

    def step(self, action: Tensor) -> tuple[NDArray[np.float64], NDArray[np.bool_], NDArray[np.bool_]]:
        """Steps the rows whose episodes have not ended under actions `[N, A]`.

        Returns:
            Rewards `[N]` (zero where the episode had ended), and whether it has been terminated, and
            truncated, by this step. Rows that have ended stand still until `reset` or `restore`.
        """
        given = action[:, : self._actions].cpu().numpy()
        terminated = np.zeros(len(self), bool)
        self._reward[:] = self._truncated[:] = 0

        def step(row: int) -> None:
            if self._ended[row]:
                return
            seen, self._reward[row], terminated[row], self._truncated[row], _ = self._envs[row].step(
                given[row]
            )
            self._out[row, : self._width] = seen
            self._ended[row] = terminated[row] or self._truncated[row]

        self._pool.each(step)
        return self._reward.copy(), terminated, self._truncated.copy()
