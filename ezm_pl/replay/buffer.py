"""Per-task prioritised replay (docs/algorithm.md, "Several tasks")."""

from __future__ import annotations

import threading

import numpy as np
from numpy.typing import NDArray

from ezm_pl.replay.blocks import Blocks, Positions, blocks_per_task
from ezm_pl.replay.returns import ReturnScale
from ezm_pl.replay.segment_tree import SegmentTree
from ezm_pl.replay.snapshot import Snapshot
from ezm_pl.replay.windows import Windows
from ezm_pl.spec.experiment import ReplaySpec, TargetSpec

PRIORITY_FLOOR = 1e-6


class ReplayError(ValueError):
    """A buffer that cannot be loaded into this experiment, in one line."""


class ReplayBuffer:
    """One ring of transitions per task, sampled by priority (Schaul et al. 2016).

    A position can be sampled as soon as its window of `unroll_steps + td_steps` steps is complete, or its
    episode has ended. All methods may be called from any thread.

    Args:
        task_ids: `[N]` the task of each environment; every task has one.
        replay: capacity, block size, exponents of prioritised sampling, and the type of stored observations:
            `float16` rounds to 11 bits (a relative error of at most 2^-11, or 2^-25 where that is more)
            and clips to +-65504.
        targets: `U`, `n` and the discount, for the scale of returns.
        observation_size, action_size: padded `O` and `A`.
        seed: of the sampling.

    Raises:
        ValueError: a window is longer than a block.
    """

    def __init__(
        self,
        task_ids: NDArray[np.int64],
        replay: ReplaySpec,
        targets: TargetSpec,
        *,
        observation_size: int,
        action_size: int,
        seed: np.random.SeedSequence | int = 0,
    ) -> None:
        self.spec = replay
        self.blocks = Blocks(
            task_ids, replay, targets, observation_size=observation_size, action_size=action_size
        )
        self.tasks = self.blocks.tasks
        self.tree = SegmentTree(self.tasks, self.blocks.num_blocks * self.blocks.block_size)
        self.returns = ReturnScale(self.blocks.task_ids, self.tasks, targets.discount)
        self.generator = np.random.default_rng(seed)
        self._lock = threading.Lock()

    @staticmethod
    def estimate_bytes(
        replay: ReplaySpec,
        targets: TargetSpec,
        *,
        tasks: int,
        envs_per_task: int,
        steps: int,
        observation_size: int,
        action_size: int,
    ) -> int:
        """Bytes that buffers hold, priorities included, once `steps` steps of each task have been added."""
        per_task = min(steps, blocks_per_task(replay, envs_per_task) * replay.block_size)
        positions = tasks * per_task
        stored = positions * (1 + (targets.unroll_steps + targets.td_steps) / replay.block_size)
        step = np.dtype(replay.observation_dtype).itemsize * observation_size + 4 * (action_size + 1)
        trees = tasks * 2 * (1 << (per_task - 1).bit_length()) * 12
        return int(stored * step + positions * 13 + trees)

    @property
    def nbytes(self) -> int:
        """Bytes that all arrays take when full."""
        return self.tree.nbytes + self.blocks.nbytes

    def __len__(self) -> int:
        """Transitions stored over all tasks."""
        return int((self.blocks.transition_id >= 0).sum())

    @property
    def ready(self) -> bool:
        """Whether every task has something to sample."""
        return bool((self.tree.total > 0).all())

    def add(
        self,
        observation: NDArray[np.float32],
        action: NDArray[np.float32],
        reward: NDArray[np.float32],
        terminated: NDArray[np.bool_],
        truncated: NDArray[np.bool_],
        next_observation: NDArray[np.float32],
    ) -> None:
        """Stores one step of every environment.

        Args:
            observation: `[N, O]` before the action.
            action: `[N, A]`.
            reward: `[N]`.
            terminated, truncated: `[N]`; a truncated episode bootstraps from its last observation.
            next_observation: `[N, O]` after the action (of the ended episode, not of the next one).
        """
        with self._lock:
            task, index = self.blocks.allocate()
            if len(task):
                self.tree.set(task, index, np.zeros(len(task)))
            self._set_first_priority(
                self.blocks.add(observation, action, reward, terminated, truncated, next_observation)
            )
            self.returns.update(reward, terminated | truncated)

    def _set_first_priority(self, positions: Positions) -> None:
        """New positions get the largest priority of their table: 1 where there is none yet."""
        task, index = positions
        largest = np.full(self.tasks, self.tree.maximum.max()) if self.spec.shared else self.tree.maximum
        first = np.where(largest > 0, largest, 1.0).astype(np.float64)
        self.tree.set(task, index, first[task])

    def sample(self, batch_size: int) -> Windows:
        """Draws `batch_size` windows: `batch_size / T` from each task; the remainder goes to random tasks.

        The lock is not held while the windows are copied, which is most of the time, so that adding does not
        wait. A complete window changes only when the ring evicts its block; then the batch is drawn again.

        Raises:
            ReplayError: a task has nothing to sample yet.
        """
        blocks = self.blocks
        while True:
            with self._lock:
                if not self.ready:
                    raise ReplayError("a task has no complete window to sample yet")
                task = self._draw_tasks(batch_size)
                index, probability = self._draw_positions(task)
                # Flat indices over all tasks: one index costs numpy less than three.
                flat = index + task * (blocks.num_blocks * blocks.block_size)
                length = blocks.length.take(flat).astype(np.int64)
                terminated = blocks.terminated.take(flat)
                transition_id = blocks.transition_id.take(flat)
                age = blocks.added[task] - 1 - transition_id
                return_scale = self.returns.scale[task]
            observation, action, reward = blocks.read(flat, length)
            with self._lock:
                if (blocks.transition_id.take(flat) == transition_id).all():
                    break
        weight = np.maximum(probability, 1e-12) ** -self.spec.importance_exponent
        max_weight = np.zeros(self.tasks)
        np.maximum.at(max_weight, task, weight)
        if self.spec.shared:
            max_weight[:] = max_weight.max()
        return Windows(
            task=task,
            observation=observation,
            action=action,
            reward=reward,
            length=length,
            terminated=terminated,
            return_scale=return_scale,
            weight=np.clip(weight / max_weight[task], self.spec.min_importance, 1).astype(np.float32),
            max_weight=max_weight,
            age=age,
            replay_index=index,
            transition_id=transition_id,
        )

    def _draw_tasks(self, batch_size: int) -> NDArray[np.int64]:
        if self.spec.shared:
            share = self.tree.total / self.tree.total.sum()
            return np.sort(self.generator.choice(self.tasks, batch_size, p=share)).astype(np.int64)
        counts = np.full(self.tasks, batch_size // self.tasks)
        extra = self.generator.permutation(self.tasks)[: batch_size % self.tasks]
        counts[extra] += 1
        return np.repeat(np.arange(self.tasks), counts)

    def _draw_positions(self, task: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Index and probability `[B]` of a position of each task `[B]` (sorted), stratified within a task.

        The probability is of the task's own priorities, or of all where the tasks share a table.
        """
        total = self.tree.total[task]
        counts = np.bincount(task, minlength=self.tasks)
        first = np.cumsum(counts) - counts
        stratum = np.arange(len(task)) - first[task] + self.generator.random(len(task))
        index = self.tree.find(task, stratum / counts[task] * total)
        return index, self.tree.get(task, index) / (self.tree.total.sum() if self.spec.shared else total)

    def update_priorities(
        self,
        task: NDArray[np.int64],
        index: NDArray[np.int64],
        transition_id: NDArray[np.int64],
        error: NDArray[np.float32],
    ) -> None:
        """Sets priorities `[B]` from value errors `[B]`; positions overwritten since are left alone.

        Args:
            task, index, transition_id: `[B]` of `Windows`, where the index is `replay_index`.
            error: `[B]`; those that are not finite change nothing.
        """
        priority = (np.abs(error).astype(np.float64) + PRIORITY_FLOOR) ** self.spec.priority_exponent
        with self._lock:
            block, position = np.divmod(index, self.blocks.block_size)
            same = (self.blocks.transition_id[task, block, position] == transition_id) & np.isfinite(priority)
            self.tree.set(task[same], index[same], priority[same])

    def newest_observations(self, task: int, count: int) -> NDArray[np.float32]:
        """The observations `[at most count, O]` of a task's newest transitions, the newest last."""
        blocks = self.blocks
        with self._lock:
            ids = blocks.transition_id[task].ravel()
            stored = int(np.count_nonzero(ids >= 0))
            newest = np.argsort(ids)[len(ids) - min(count, stored) :]
            block, position = np.divmod(newest, blocks.block_size)
            return blocks.observation[task, block, position].astype(np.float32)

    def snapshot(self) -> Snapshot:
        """Counters and priorities of this instant; the blocks themselves are copied by `copy_blocks`."""
        blocks = self.blocks
        with self._lock:
            in_use = np.flatnonzero(blocks.steps.any(0))
            used, size = int(in_use[-1]) + 1 if len(in_use) else 0, blocks.block_size
            return Snapshot(
                steps=blocks.steps[:, :used].copy(),
                first_id=blocks.transition_id[:, :used, 0].copy(),
                complete=blocks.complete()[:, :used].astype(np.uint8),
                priority=self.tree.front(used * size).reshape(self.tasks, used, size),
                next_block=blocks.next_block.copy(),
                added=blocks.added.copy(),
                return_squares=self.returns.squares.copy(),
                return_count=self.returns.count.copy(),
                random=dict(self.generator.bit_generator.state),
            )

    def copy_blocks(
        self, task: NDArray[np.int64], block: NDArray[np.int64], first_id: NDArray[np.int64], into: NDArray
    ) -> NDArray[np.bool_]:
        """Copies blocks `[M]` into records `[M]` (see `ReplayStore`); which of them still hold that data.

        Steps are only ever added to a block, until the ring evicts it: what a snapshot says of a block
        holds for a later copy of it.
        """
        with self._lock:
            for i, (t, b) in enumerate(zip(task, block, strict=True)):
                for name in Blocks.STEP_FIELDS:
                    into[name][i] = getattr(self.blocks, name)[t, b]
            return self.blocks.transition_id[task, block, 0] == first_id

    def fill_blocks(self, task: NDArray[np.int64], block: NDArray[np.int64], records: NDArray) -> None:
        """Copies records `[M]` into blocks `[M]`: data only, which `restore` makes count."""
        with self._lock:
            for i, (t, b) in enumerate(zip(task, block, strict=True)):
                for name in Blocks.STEP_FIELDS:
                    getattr(self.blocks, name)[t, b] = records[name][i]

    def restore(self, snapshot: Snapshot) -> None:
        """Takes up a snapshot whose blocks have been filled, in a buffer that nothing was added to.

        Episodes that were open then count as truncated.
        """
        blocks = self.blocks
        with self._lock:
            used = snapshot.steps.shape[1]
            blocks.steps[:, :used] = snapshot.steps
            empty = np.arange(blocks.block_size) >= blocks.steps[:, :, None]
            blocks.transition_id[empty], blocks.length[empty] = -1, 0
            blocks.next_block[:], blocks.added[:] = snapshot.next_block, snapshot.added
            self.returns.squares[:] = snapshot.return_squares
            self.returns.count[:] = snapshot.return_count
            index = np.arange(used * blocks.block_size)
            for task in range(self.tasks):
                self.tree.set(np.full(len(index), task), index, snapshot.priority[task].ravel())
            unfinished = blocks.transition_id >= 0
            unfinished[:, :used] &= (snapshot.complete == 0)[:, :, None] & (snapshot.priority == 0)
            self._set_first_priority(blocks.close(unfinished))
