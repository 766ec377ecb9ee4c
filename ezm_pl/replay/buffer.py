"""Per-task prioritised replay in flat arrays (docs/algorithm.md, "Several tasks").

An environment's steps fill a *block* of `block_size` positions; the first `tail` steps of what
follows are stored behind them, so every position has a whole window of `unroll + td` steps in its own
row. A position can be sampled as soon as its window is complete, or its episode has ended.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ezm_pl.replay.returns import ReturnScale
from ezm_pl.replay.segment_tree import SegmentTree

_OPEN, _TRUNCATED, _TERMINATED = 0, 1, 2
_STORED = ("observation", "action", "reward", "born")
PRIORITY_FLOOR = 1e-6


def _take(stored: NDArray[Any], start: NDArray[np.int64], length: int) -> NDArray[Any]:
    """`[B, length, ...]`: as many steps of `[T, rows, width, ...]` from each of `start` `[B]` on.

    Steps of all rows are counted through. A window is one run of memory, and to numpy here one item of a
    type as long as itself, so that it is copied at once. (torch's `index_select` has several threads, and
    is faster on an idle machine; beside other work its threads wait for each other.)
    """
    step = stored[0, 0, 0].nbytes
    runs = np.ndarray(stored.nbytes // step - length + 1, f"V{length * step}", stored, strides=step)
    return runs[start].view(stored.dtype).reshape(-1, length, *stored.shape[3:])


class ReplayError(ValueError):
    """A buffer that cannot be loaded into this experiment, in one line."""


@dataclass(frozen=True)
class Windows:
    """A batch of windows, `B` positions of `U` unroll and `n` TD steps.

    Steps past an episode's end repeat its last observation and hold zero actions and rewards.

    Attributes:
        task: `[B]` int64.
        observation: `[B, U + n + 1, O]` float32.
        action: `[B, U, A]` float32.
        reward: `[B, U + n]` float32.
        length: `[B]` int64, real steps in the window.
        terminated: `[B]` bool, whether the window ends in a termination (not a time limit).
        return_scale: `[B]` float32, the scale of its task's returns so far.
        weight: `[B]` float32 importance weights.
        largest: `[T]` float64, the largest weight of each task before they were normalised by it.
        age: `[B]` int64, transitions that its task has stored since.
        leaf, born: `[B]` int64, where the position lies and which data it is, for `update_priorities`.
    """

    task: NDArray[np.int64]
    observation: NDArray[np.float32]
    action: NDArray[np.float32]
    reward: NDArray[np.float32]
    length: NDArray[np.int64]
    terminated: NDArray[np.bool_]
    return_scale: NDArray[np.float32]
    weight: NDArray[np.float32]
    largest: NDArray[np.float64]
    age: NDArray[np.int64]
    leaf: NDArray[np.int64]
    born: NDArray[np.int64]


@dataclass
class Snapshot:
    """What a buffer holds beside its rows, at one instant; `R` rows a task are in use.

    Attributes:
        steps: `[T, R]` int64 steps stored in each row, its tail included.
        first_born: `[T, R]` int64 birth number of each row's first step: tells data of a row apart.
        ended: `[T, R]` uint8, how a row's episode ended in it.
        priority: `[T, R * block_size]` float64.
        next_row, added: `[T]` int64 counters of the ring.
        return_squares, return_count: `[T]` float64, see `ReturnScale`.
        random: state of the sampling generator.
    """

    steps: NDArray[np.int64]
    first_born: NDArray[np.int64]
    ended: NDArray[np.uint8]
    priority: NDArray[np.float64]
    next_row: NDArray[np.int64]
    added: NDArray[np.int64]
    return_squares: NDArray[np.float64]
    return_count: NDArray[np.float64]
    random: dict[str, Any]

    def complete(self, width: int) -> NDArray[np.bool_]:
        """`[T, R]`: rows to which nothing will be added, `width` being a row's length with its tail."""
        return (self.steps > 0) & ((self.ended != _OPEN) | (self.steps >= width))

    def drop(self, task: NDArray[np.int64], row: NDArray[np.int64]) -> None:
        """Empties rows `[K]`."""
        self.steps[task, row] = 0
        self.priority.reshape(*self.steps.shape, -1)[task, row] = 0

    def problem(self, buffer: ReplayBuffer) -> str | None:
        """Why `buffer` cannot take this up; None where it can. Shapes are right already."""
        width = buffer.block_size + buffer.tail
        stored = self.steps > 0
        filled = np.arange(buffer.block_size) < self.steps[:, :, None]
        wrong = {
            "steps": (self.steps < 0) | (self.steps > width),
            "ended": self.ended > _TERMINATED,
            "birth numbers": stored & ((self.first_born < 0) | (self.first_born >= self.added[:, None])),
            "priorities": ~np.isfinite(self.priority) | (self.priority < 0),
            "priorities of empty positions": (self.priority.reshape(filled.shape) > 0) & ~filled,
            "next rows": (self.next_row < 0) | (self.next_row >= buffer.rows),
            "scales of returns": ~(np.isfinite(self.return_squares) & np.isfinite(self.return_count)),
        }
        names = [name for name, where in wrong.items() if where.any()]
        return f"holds impossible {', '.join(names)}" if names else None


class ReplayBuffer:
    """`T` ring buffers of blocks, one a task. All methods may be called from any thread.

    Args:
        task_ids: `[N]` the task of each environment row.
        tasks: `T`.
        observation_size, action_size: padded `O` and `A`.
        capacity: transitions a task, rounded up to whole blocks.
        block_size: positions a block; at least `unroll_steps + td_steps`.
        unroll_steps, td_steps: `U` and `n`.
        priority_exponent, importance_exponent, min_importance: of prioritised sampling
            (Schaul et al. 2016); weights are normalised by the task's batch maximum.
        shared: sample over all tasks by priority (the ablation) instead of equally from each.
        discount: a step, for the scale of returns.
        observation_dtype: `float32`, or `float16`: half the memory, values rounded to 11 bits (a relative
            error of at most 2^-11, or 2^-25 where that is more) and clipped to +-65504.
        seed: of the sampling.
    """

    def __init__(
        self,
        task_ids: NDArray[np.int64],
        *,
        tasks: int,
        observation_size: int,
        action_size: int,
        capacity: int,
        block_size: int,
        unroll_steps: int,
        td_steps: int,
        discount: float,
        priority_exponent: float = 1.0,
        importance_exponent: float = 1.0,
        min_importance: float = 0.1,
        shared: bool = False,
        observation_dtype: str = "float32",
        seed: np.random.SeedSequence | int = 0,
    ) -> None:
        self.tail = unroll_steps + td_steps
        if self.tail > block_size:
            raise ValueError(f"unroll_steps + td_steps = {self.tail} is longer than a block of {block_size}")
        envs = int(np.bincount(task_ids, minlength=tasks).max())
        # Each environment may hold two rows open, and must always find a third.
        rows = max(-(-capacity // block_size), 2 * envs + 1)
        self.tasks, self.rows, self.block_size, self.unroll_steps = tasks, rows, block_size, unroll_steps
        self.priority_exponent, self.importance_exponent = priority_exponent, importance_exponent
        self.min_importance, self.shared = min_importance, shared
        width = block_size + self.tail
        self.observation = np.zeros((tasks, rows, width, observation_size), observation_dtype)
        self.action = np.zeros((tasks, rows, width, action_size), np.float32)
        self.reward = np.zeros((tasks, rows, width), np.float32)
        self.born = np.full((tasks, rows, block_size), -1, np.int64)
        self.steps = np.zeros((tasks, rows), np.int64)
        self.ended = np.zeros((tasks, rows), np.uint8)
        self.next_row = np.zeros(tasks, np.int64)
        self.added = np.zeros(tasks, np.int64)
        self.tree = SegmentTree(tasks, rows * block_size)
        self.returns = ReturnScale(np.asarray(task_ids, np.int64), tasks, discount)
        self._task = np.asarray(task_ids, np.int64)
        self._row = np.full(len(task_ids), -1, np.int64)
        self._previous = np.full(len(task_ids), -1, np.int64)
        self._position = np.zeros(len(task_ids), np.int64)
        self.generator = np.random.default_rng(seed)
        self._lock = threading.Lock()

    @staticmethod
    def estimate_bytes(
        *,
        tasks: int,
        observation_size: int,
        action_size: int,
        capacity: int,
        block_size: int,
        tail: int,
        observation_dtype: str = "float32",
    ) -> int:
        """Bytes that full buffers of this size hold, priorities included."""
        stored = tasks * capacity * (1 + tail / block_size)
        step = np.dtype(observation_dtype).itemsize * observation_size + 4 * (action_size + 1)
        trees = tasks * 2 * (1 << (capacity - 1).bit_length()) * 12
        return int(stored * step + tasks * capacity * 8 + trees)

    @property
    def nbytes(self) -> int:
        """Bytes that all arrays take when full."""
        return self.tree.nbytes + sum(a.nbytes for a in vars(self).values() if isinstance(a, np.ndarray))

    def __len__(self) -> int:
        """Positions stored over all tasks."""
        return int((self.born >= 0).sum())

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
        observation, next_observation = self._as_stored(observation), self._as_stored(next_observation)
        with self._lock:
            for env in np.flatnonzero(self._row < 0):
                self._row[env] = self._allocate(int(self._task[env]))
                self._position[env] = 0
            self._write(self._row, self._position, observation, action, reward, next_observation)
            self.born[self._task, self._row, self._position] = self._birth_numbers()
            # The block before this one takes the same steps as its tail.
            tail = np.flatnonzero((self._previous >= 0) & (self._position < self.tail))
            self._write(
                self._previous,
                self.block_size + self._position,
                observation,
                action,
                reward,
                next_observation,
                tail,
            )
            done = terminated | truncated
            self.returns.update(reward, done)
            kind = np.where(terminated, _TERMINATED, _TRUNCATED)
            everyone = np.arange(len(self._task))
            self._open_positions(everyone, self._row, done, kind)
            self._open_positions(tail, self._previous, done, kind)
            self._position += 1
            full = ~done & (self._position == self.block_size)
            self._previous[full] = self._row[full]
            self._previous[done] = -1
            self._row[full | done] = -1

    def _as_stored(self, observation: NDArray[np.float32]) -> NDArray[np.floating]:
        dtype = self.observation.dtype
        if dtype == np.float32:
            return observation
        most = np.finfo(dtype).max
        return np.clip(observation, -most, most).astype(dtype)

    def _birth_numbers(self) -> NDArray[np.int64]:
        counts = np.bincount(self._task, minlength=self.tasks)
        first = np.concatenate([[0], np.cumsum(counts)[:-1]])
        order = np.empty(len(self._task), np.int64)
        by_task = np.argsort(self._task, kind="stable")
        order[by_task] = np.arange(len(self._task)) - first[self._task[by_task]]
        numbers = self.added[self._task] + order
        self.added += counts
        return numbers

    def _allocate(self, task: int) -> int:
        row = int(self.next_row[task])
        # Short episodes can send the ring round while others fill their block: those rows are passed over.
        mine = self._task == task
        while row in self._row[mine] or row in self._previous[mine]:
            row = (row + 1) % self.rows
        self.next_row[task] = (row + 1) % self.rows
        leaves = row * self.block_size + np.arange(self.block_size)
        if self.steps[task, row]:
            self.tree.set(np.full(self.block_size, task), leaves, np.zeros(self.block_size))
        self.born[task, row] = -1
        self.steps[task, row] = 0
        self.ended[task, row] = _OPEN
        return row

    def _write(
        self,
        row: NDArray[np.int64],
        at: NDArray[np.int64],
        observation: NDArray[np.floating],
        action: NDArray[np.float32],
        reward: NDArray[np.float32],
        next_observation: NDArray[np.floating],
        envs: NDArray[np.int64] | None = None,
    ) -> None:
        envs = np.arange(len(self._task)) if envs is None else envs
        task, row, at = self._task[envs], row[envs], at[envs]
        self.observation[task, row, at] = observation[envs]
        self.action[task, row, at] = action[envs]
        self.reward[task, row, at] = reward[envs]
        self.steps[task, row] = at + 1
        after = at + 1 < self.observation.shape[2]
        self.observation[task[after], row[after], at[after] + 1] = next_observation[envs[after]]

    def _open_positions(
        self,
        envs: NDArray[np.int64],
        row: NDArray[np.int64],
        done: NDArray[np.bool_],
        kind: NDArray[np.int64],
    ) -> None:
        """Gives a first priority to positions whose windows have just become complete."""
        task, row, done, kind = self._task[envs], row[envs], done[envs], kind[envs]
        steps = self.steps[task, row]
        ready = steps - self.tail
        one = ~done & (ready >= 0) & (ready < self.block_size)
        tasks, leaves = [task[one]], [row[one] * self.block_size + ready[one]]
        for t, r, s in zip(task[done], row[done], steps[done], strict=True):
            positions = np.arange(max(0, s - self.tail), min(self.block_size, s))
            tasks.append(np.full(len(positions), t))
            leaves.append(r * self.block_size + positions)
        self.ended[task[done], row[done]] = kind[done]
        all_tasks = np.concatenate(tasks)
        maximum = self.tree.maximum
        first = np.where(maximum > 0, maximum, 1.0)
        self.tree.set(all_tasks, np.concatenate(leaves), first[all_tasks].astype(np.float64))

    def sample(self, batch_size: int) -> Windows:
        """Draws `batch_size` windows: `batch_size / T` from each task (the remainder goes round).

        The lock is not held while the windows are copied, which is most of the time, so that nobody
        who adds waits for it. A complete window changes only when the ring takes its row for new data.

        Raises:
            ReplayError: a task has nothing to sample yet.
        """
        width = self.block_size + self.tail
        while True:
            with self._lock:
                task = self._draw_tasks(batch_size)
                total = self.tree.total[task]
                if (total <= 0).any():
                    raise ReplayError("a task has no complete window to sample yet")
                counts = np.bincount(task, minlength=self.tasks)
                first = np.cumsum(counts) - counts
                within = np.arange(batch_size) - first[task] + self.generator.random(batch_size)
                leaf = self.tree.find(task, within / counts[task] * total)
                probability = self.tree.get(task, leaf) / total
                row, position = np.divmod(leaf, self.block_size)
                # From here on rows of all tasks are counted through: one index costs numpy less than three.
                row += task * self.rows
                place = row * self.block_size + position
                left = self.steps.take(row) - position
                terminated = (left <= self.tail) & (self.ended.take(row) == _TERMINATED)
                born = self.born.take(place)
                age = self.added[task] - 1 - born
                return_scale = self.returns.scale[task]
            length = np.minimum(left, self.tail)
            observation, action, reward = self._windows(row * width + position, length)
            with self._lock:
                if (self.born.take(place) == born).all():
                    break
        weight = (np.maximum(probability, 1e-12)) ** -self.importance_exponent
        largest = np.zeros(self.tasks)
        np.maximum.at(largest, task, weight)
        importance = np.clip(weight / largest[task], self.min_importance, 1).astype(np.float32)
        return Windows(
            task=task,
            observation=observation,
            action=action,
            reward=reward,
            length=length,
            terminated=terminated,
            return_scale=return_scale,
            weight=importance,
            largest=largest,
            age=age,
            leaf=leaf,
            born=born,
        )

    def _windows(
        self, start: NDArray[np.int64], length: NDArray[np.int64]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
        """Observations, actions and rewards of windows `[B]` as in `Windows`.

        Args:
            start: `[B]` where they begin, in steps of all rows one after the other.
            length: `[B]` real steps.
        """
        observation = _take(self.observation, start, self.tail + 1)
        if observation.dtype != np.float32:
            observation = torch.from_numpy(observation).float().numpy()  # numpy: ten times as long
        action = _take(self.action, start, self.unroll_steps)
        reward = _take(self.reward, start, self.tail)
        short = np.flatnonzero(length < self.tail)
        last = np.minimum(np.arange(self.tail + 1), length[short, None])
        observation[short] = observation[short[:, None], last]
        real = np.arange(self.tail) < length[short, None]
        action[short] *= real[:, : self.unroll_steps, None]
        reward[short] *= real
        return observation, action, reward

    def _draw_tasks(self, batch_size: int) -> NDArray[np.int64]:
        if self.shared:
            share = self.tree.total / max(self.tree.total.sum(), 1e-12)
            return np.sort(self.generator.choice(self.tasks, batch_size, p=share)).astype(np.int64)
        counts = np.full(self.tasks, batch_size // self.tasks)
        extra = self.generator.permutation(self.tasks)[: batch_size % self.tasks]
        counts[extra] += 1
        return np.repeat(np.arange(self.tasks), counts)

    def update_priorities(
        self,
        task: NDArray[np.int64],
        leaf: NDArray[np.int64],
        born: NDArray[np.int64],
        error: NDArray[np.float32],
    ) -> None:
        """Sets priorities `[B]` from value errors `[B]`; positions overwritten since are left alone."""
        priority = (np.abs(error).astype(np.float64) + PRIORITY_FLOOR) ** self.priority_exponent
        with self._lock:
            row, position = np.divmod(leaf, self.block_size)
            same = (self.born[task, row, position] == born) & np.isfinite(priority)
            self.tree.set(task[same], leaf[same], priority[same])

    def snapshot(self) -> Snapshot:
        """Counters and priorities of this instant; the rows themselves are copied by `copy_rows`."""
        with self._lock:
            some = np.flatnonzero(self.steps.any(0))
            used = int(some[-1]) + 1 if len(some) else 0
            return Snapshot(
                steps=self.steps[:, :used].copy(),
                first_born=self.born[:, :used, 0].copy(),
                ended=self.ended[:, :used].copy(),
                priority=self.tree.front(used * self.block_size),
                next_row=self.next_row.copy(),
                added=self.added.copy(),
                return_squares=self.returns.squares.copy(),
                return_count=self.returns.count.copy(),
                random=dict(self.generator.bit_generator.state),
            )

    def copy_rows(
        self, task: NDArray[np.int64], row: NDArray[np.int64], first_born: NDArray[np.int64], into: NDArray
    ) -> NDArray[np.bool_]:
        """Copies rows `[K]` into records `[K]` (see `ReplayStore`); which of them still hold that data.

        Steps are only ever added to a row, until the ring takes it again: what a snapshot says of a row
        holds for a later copy of it.
        """
        with self._lock:
            for i, (t, r) in enumerate(zip(task, row, strict=True)):
                for name in _STORED:
                    into[name][i] = getattr(self, name)[t, r]
            return self.born[task, row, 0] == first_born

    def fill_rows(self, task: NDArray[np.int64], row: NDArray[np.int64], records: NDArray) -> None:
        """Puts records `[K]` into rows `[K]`: data only, `restore` makes them count."""
        with self._lock:
            for i, (t, r) in enumerate(zip(task, row, strict=True)):
                for name in _STORED:
                    getattr(self, name)[t, r] = records[name][i]

    def restore(self, snapshot: Snapshot) -> None:
        """Takes up a snapshot whose rows have been filled, in a buffer that nothing was added to.

        Episodes that were open then count as truncated.
        """
        with self._lock:
            used = snapshot.steps.shape[1]
            self.steps[:, :used] = snapshot.steps
            self.ended[:, :used] = snapshot.ended
            self.born[np.arange(self.block_size) >= self.steps[:, :, None]] = -1
            self.next_row[:], self.added[:] = snapshot.next_row, snapshot.added
            self.returns.squares[:] = snapshot.return_squares
            self.returns.count[:] = snapshot.return_count
            leaves = np.arange(used * self.block_size)
            for task in range(self.tasks):
                self.tree.set(np.full(len(leaves), task), leaves, snapshot.priority[task])
            self._row[:] = self._previous[:] = -1
            complete = self.steps >= self.block_size + self.tail
            for task, row in zip(
                *np.nonzero((self.ended == _OPEN) & (self.steps > 0) & ~complete), strict=True
            ):
                steps = int(self.steps[task, row])
                positions = np.arange(max(0, steps - self.tail + 1), min(self.block_size, steps))
                self.ended[task, row] = _TRUNCATED
                first = float(self.tree.maximum[task]) or 1.0
                at = row * self.block_size + positions
                self.tree.set(np.full(len(at), task), at, np.full(len(at), first))
