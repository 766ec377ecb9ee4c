"""Steps of episodes in blocks of flat arrays.

An environment's steps fill the `block_size` positions of a block, episode after episode, and then the next
block of its task's ring. The observation after an episode's last step takes one position, which is never
sampled: an episode of L steps takes L + 1 positions, or L if it ends where its block does.

The steps that follow a block are stored a second time in its overlap of `U + n` steps, so that every
position's window of `U` unroll and `n` TD steps lies in one block.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from ezm_pl.replay.windows import copy_windows
from ezm_pl.spec.experiment import ReplaySpec, TargetSpec

Positions = tuple[NDArray[np.int64], NDArray[np.int64]]
"""Task and index `[M]`; the index of position `p` of block `k` is `k * block_size + p`."""


def blocks_per_task(replay: ReplaySpec, envs_per_task: int) -> int:
    """Blocks in a task's ring. An environment writes to two at most, and must always find a third."""
    return max(-(-replay.capacity // replay.block_size), 2 * envs_per_task + 1)


class Blocks:
    """A ring of `K` blocks per task.

    Args:
        task_ids: `[N]` task of each environment.
        replay: `capacity` positions per task are rounded up to whole blocks.
        targets: `overlap = unroll_steps + td_steps` is the length of a window, at most a block.
        observation_size, action_size: padded `O` and `A`.

    Attributes:
        observation, action, reward: `[T, K, W, O]`, `[T, K, W, A]` and `[T, K, W]`, where
            `W = block_size + overlap`.
        transition_id: `[T, K, block_size]` int64, counts the transitions of a task; -1 without a transition.
        length: `[T, K, block_size]` int32, real steps in a position's window; 0 until it is complete.
        terminated: `[T, K, block_size]` bool, whether the window ends in a termination.
        steps: `[T, K]` int64 steps stored in each block, its overlap included.
        next_block: `[T]` int64, where the ring goes on.
        added: `[T]` int64 transitions stored so far.
    """

    STEP_FIELDS = ("observation", "action", "reward", "transition_id", "length", "terminated")

    def __init__(
        self,
        task_ids: NDArray[np.int64],
        replay: ReplaySpec,
        targets: TargetSpec,
        *,
        observation_size: int,
        action_size: int,
    ) -> None:
        self.block_size, self.unroll_steps = replay.block_size, targets.unroll_steps
        self.overlap = targets.unroll_steps + targets.td_steps
        if self.overlap > self.block_size:
            raise ValueError(
                f"unroll_steps + td_steps = {self.overlap} is longer than a block of {self.block_size}"
            )
        envs_per_task = np.bincount(task_ids)
        self.num_blocks = blocks_per_task(replay, int(envs_per_task.max()))
        self.tasks, self.width = len(envs_per_task), self.block_size + self.overlap
        self.task_ids = np.asarray(task_ids, np.int64)
        ring = (self.tasks, self.num_blocks)
        self.observation = np.zeros((*ring, self.width, observation_size), replay.observation_dtype)
        self.action = np.zeros((*ring, self.width, action_size), np.float32)
        self.reward = np.zeros((*ring, self.width), np.float32)
        self.transition_id = np.full((*ring, self.block_size), -1, np.int64)
        self.length = np.zeros((*ring, self.block_size), np.int32)
        self.terminated = np.zeros((*ring, self.block_size), bool)
        self.steps = np.zeros(ring, np.int64)
        self.next_block = np.zeros(self.tasks, np.int64)
        self.added = np.zeros(self.tasks, np.int64)
        # Per environment: the block being filled, the one before it while its overlap is, and where.
        envs = len(self.task_ids)
        self._block, self._previous = np.full(envs, -1, np.int64), np.full(envs, -1, np.int64)
        self._position, self._episode_steps = np.zeros(envs, np.int64), np.zeros(envs, np.int64)

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays."""
        return sum(array.nbytes for array in vars(self).values() if isinstance(array, np.ndarray))

    def allocate(self) -> Positions:
        """Gives a block to each environment that needs one: the oldest that no environment writes to.

        Returns:
            The positions whose data this evicts.
        """
        envs = np.flatnonzero(self._block < 0)
        if not len(envs):
            return envs, envs
        for env in envs:
            self._block[env] = self._next_free(int(self.task_ids[env]))
        self._position[envs] = 0
        task, block = self.task_ids[envs], self._block[envs]
        held = self.steps[task, block] > 0
        self.steps[task, block] = 0
        self.transition_id[task, block] = -1
        self.length[task, block] = 0
        index = block[held, None] * self.block_size + np.arange(self.block_size)
        return np.repeat(task[held], self.block_size), index.ravel()

    def _next_free(self, task: int) -> int:
        block, mine = int(self.next_block[task]), self.task_ids == task
        while block in self._block[mine] or block in self._previous[mine]:
            block = (block + 1) % self.num_blocks
        self.next_block[task] = (block + 1) % self.num_blocks
        return block

    def add(
        self,
        observation: NDArray[np.float32],
        action: NDArray[np.float32],
        reward: NDArray[np.float32],
        terminated: NDArray[np.bool_],
        truncated: NDArray[np.bool_],
        next_observation: NDArray[np.float32],
    ) -> Positions:
        """Stores one step of every environment, each of which has a block (see `ReplayBuffer.add`).

        Returns:
            The positions whose windows this completes.
        """
        done = terminated | truncated
        step = (self._as_stored(observation), action, reward, self._as_stored(next_observation))
        task, position = self.task_ids, self._position
        self._write(np.arange(len(task)), self._block, position, step)
        self.transition_id[task, self._block, position] = self._next_ids()
        overlapping = np.flatnonzero(self._previous >= 0)
        self._write(overlapping, self._previous, self.block_size + position, step)
        self._episode_steps += 1
        completed = self._complete_windows(terminated, done)

        position = self._position = np.minimum(position + 1 + done, self.block_size)
        self.steps[task, self._block] = position
        self._episode_steps[done] = 0
        full = position == self.block_size
        self._previous[done | (position >= self.overlap - 1)] = -1
        self._previous[full & ~done] = self._block[full & ~done]
        self._block[full] = -1
        return completed

    def _as_stored(self, observation: NDArray[np.float32]) -> NDArray[np.floating]:
        dtype = self.observation.dtype
        if dtype == np.float32:
            return observation
        most = np.finfo(dtype).max
        return np.clip(observation, -most, most).astype(dtype)

    def _write(
        self,
        envs: NDArray[np.int64],
        block: NDArray[np.int64],
        at: NDArray[np.int64],
        step: tuple[NDArray[np.floating], ...],
    ) -> None:
        """Stores the step of `envs` `[M]` at place `at[envs]` of `block[envs]`."""
        observation, action, reward, next_observation = step
        task, block, at = self.task_ids[envs], block[envs], at[envs]
        self.observation[task, block, at] = observation[envs]
        self.action[task, block, at] = action[envs]
        self.reward[task, block, at] = reward[envs]
        self.observation[task, block, at + 1] = next_observation[envs]
        self.steps[task, block] = at + 1

    def _next_ids(self) -> NDArray[np.int64]:
        """Numbers `[N]` of the transitions being added, in the order of the environments."""
        counts = np.bincount(self.task_ids, minlength=self.tasks)
        first = np.cumsum(counts) - counts
        order = np.empty(len(self.task_ids), np.int64)
        by_task = np.argsort(self.task_ids, kind="stable")
        order[by_task] = np.arange(len(self.task_ids)) - first[self.task_ids[by_task]]
        ids = self.added[self.task_ids] + order
        self.added += counts
        return ids

    def _complete_windows(self, terminated: NDArray[np.bool_], done: NDArray[np.bool_]) -> Positions:
        """Marks the windows that end with the newest step: all open ones of an ended episode, else one."""
        back = np.arange(self.overlap)
        episode_steps = self._episode_steps[:, None]
        env, back = np.nonzero((back < episode_steps) & (done[:, None] | (back == self.overlap - 1)))
        position = self._position[env] - back
        block = np.where(position < 0, self._previous[env], self._block[env])
        position[position < 0] += self.block_size
        task = self.task_ids[env]
        self.length[task, block, position] = back + 1
        self.terminated[task, block, position] = terminated[env]
        return task, block * self.block_size + position

    def read(
        self, start: NDArray[np.int64], length: NDArray[np.int64]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
        """Observations, actions and rewards of windows `[B]` as in `Windows`.

        Args:
            start: `[B]` flat index of the first position of each window, `task * K * block_size + index`.
            length: `[B]` real steps.
        """
        start = start + start // self.block_size * self.overlap
        observation = copy_windows(self.observation, start, self.overlap + 1)
        if observation.dtype != np.float32:
            observation = torch.from_numpy(observation).float().numpy()  # numpy: ten times as long
        action = copy_windows(self.action, start, self.unroll_steps)
        reward = copy_windows(self.reward, start, self.overlap)
        short = np.flatnonzero(length < self.overlap)
        last = np.minimum(np.arange(self.overlap + 1), length[short, None])
        observation[short] = observation[short[:, None], last]
        real = np.arange(self.overlap) < length[short, None]
        # Not a product with zero: behind the end lies another episode, or what was never written.
        action[short] = np.where(real[:, : self.unroll_steps, None], action[short], 0)
        reward[short] = np.where(real, reward[short], 0)
        return observation, action, reward

    def complete(self) -> NDArray[np.bool_]:
        """`[T, K]`: blocks that hold steps and that no environment writes to."""
        complete = self.steps > 0
        for block in (self._block, self._previous):
            held = block >= 0
            complete[self.task_ids[held], block[held]] = False
        return complete

    def close(self, unfinished: NDArray[np.bool_]) -> Positions:
        """Ends all episodes as truncated, in a buffer that has been loaded.

        Args:
            unfinished: `[T, K, block_size]` positions whose windows are incomplete.

        Returns:
            The positions whose windows this completes.
        """
        task, block, position = np.nonzero(unfinished)
        self.length[unfinished] = np.minimum(self.overlap, self.steps[task, block] - position)
        self.terminated[unfinished] = False
        self._block[:] = self._previous[:] = -1
        self._episode_steps[:] = 0
        return task, block * self.block_size + position
