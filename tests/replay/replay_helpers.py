"""Environments that count their steps, so that every number in a window says where it came from.

The observation before step `t` of episode `e` in row `i` is `[i, e, t]`; the action `[i, e, t]` likewise;
the reward is `1000 i + 100 e + t`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ezm_pl.replay import ReplayBuffer, Windows
from ezm_pl.spec.experiment import ReplaySpec, TargetSpec

TERMINATED, TRUNCATED = "terminated", "truncated"


def make_buffer(task_ids: list[int], **changes: Any) -> ReplayBuffer:
    """A small buffer: blocks of 6, unroll 2 and 2 TD steps (so windows of 4), no discounting."""
    settings = {"observation_size": 3, "action_size": 3, "capacity": 600, "block_size": 6} | changes
    targets = {"unroll_steps": 2, "td_steps": 2, "discount": 0.5}
    targets |= {name: settings.pop(name) for name in targets if name in settings}
    sizes = {name: settings.pop(name) for name in ("observation_size", "action_size")}
    seed = settings.pop("seed", 0)
    return ReplayBuffer(np.array(task_ids), ReplaySpec(**settings), TargetSpec(**targets), **sizes, seed=seed)


class CountingRows:
    """`N` rows of counting episodes that are fed to a buffer."""

    def __init__(self, buffer: ReplayBuffer, rows: int) -> None:
        self.buffer = buffer
        self.episode = np.zeros(rows, np.int64)
        self.step = np.zeros(rows, np.int64)
        self.terminations: set[tuple[int, int]] = set()
        self.lengths: dict[tuple[int, int], int] = {}

    def observation(self, ahead: int = 0) -> NDArray[np.float32]:
        rows = np.arange(len(self.episode))
        return np.stack([rows, self.episode, self.step + ahead], 1).astype(np.float32)

    def play(self, ends: dict[int, str] | None = None) -> None:
        """One step of every row; `ends` names the rows whose episode ends with it, and how."""
        ends = ends or {}
        rows = range(len(self.episode))
        observation = self.observation()
        reward = (1000 * observation[:, 0] + 100 * observation[:, 1] + observation[:, 2]).astype(np.float32)
        for i in ends:
            self.lengths[i, int(self.episode[i])] = int(self.step[i]) + 1
            if ends[i] == TERMINATED:
                self.terminations.add((i, int(self.episode[i])))
        self.buffer.add(
            observation,
            observation,
            reward,
            np.array([ends.get(i) == TERMINATED for i in rows]),
            np.array([ends.get(i) == TRUNCATED for i in rows]),
            self.observation(ahead=1),
        )
        for i in rows:
            self.step[i] = 0 if i in ends else self.step[i] + 1
            self.episode[i] += i in ends

    def play_episode(self, steps: int, end: str | None) -> None:
        """An episode of every row, with this end (None: still open)."""
        for t in range(steps):
            self.play(dict.fromkeys(range(len(self.episode)), end) if end and t == steps - 1 else None)


def check_window(windows: Windows, i: int, rows: CountingRows, unroll: int, td: int) -> tuple[int, int, int]:
    """Asserts that a window tells one episode's steps in order; returns its row, episode and step."""
    row, episode, first = (int(x) for x in windows.observation[i, 0])
    length = int(windows.length[i])
    known = rows.lengths.get((row, episode))
    assert 1 <= length <= unroll + td
    if known is None:
        assert length == unroll + td, "a window of an open episode is complete"
    else:
        assert length == min(unroll + td, known - first)
    ended_inside = known is not None and known - first <= unroll + td
    assert bool(windows.terminated[i]) == (ended_inside and (row, episode) in rows.terminations)
    for k in range(unroll + td + 1):
        assert windows.observation[i, k].tolist() == [row, episode, first + min(k, length)]
    for k in range(unroll):
        expected = [row, episode, first + k] if k < length else [0, 0, 0]
        assert windows.action[i, k].tolist() == expected
    for k in range(unroll + td):
        expected_reward = 1000 * row + 100 * episode + first + k if k < length else 0
        assert windows.reward[i, k] == expected_reward
    return row, episode, first


def samplable(buffer: ReplayBuffer, task: int = 0) -> list[list[int]]:
    """`[row, episode, step]` of every position that has a priority, in ring order."""
    blocks = buffer.blocks
    found = np.flatnonzero(buffer.tree.front(blocks.num_blocks * blocks.block_size)[task] > 0)
    block, position = np.divmod(found, blocks.block_size)
    return [[int(x) for x in blocks.observation[task, b, p]] for b, p in zip(block, position, strict=True)]
