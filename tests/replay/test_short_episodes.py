"""Episodes of all lengths against a plain list of them: windows, ages, priorities, capacity and saves."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from ezm_pl.replay import ReplayBuffer, ReplayStore, Windows
from ezm_pl.spec.experiment import ReplaySpec, TargetSpec

UNROLL, TD = 3, 4
WINDOW = UNROLL + TD
TASK_IDS = np.array([0, 0, 1])


def make(capacity: int, block_size: int, seed: int = 0) -> ReplayBuffer:
    return ReplayBuffer(
        TASK_IDS,
        ReplaySpec(capacity=capacity, block_size=block_size),
        TargetSpec(unroll_steps=UNROLL, td_steps=TD),
        observation_size=1,
        action_size=1,
        seed=seed,
    )


class EpisodeLists:
    """Whole episodes in lists; observations are numbers that occur once.

    Args:
        lengths: of the episodes, drawn in this order by whichever environment starts one.
    """

    def __init__(self, lengths: Iterator[int], seed: int) -> None:
        self.lengths, self.random = lengths, np.random.default_rng(seed)
        self.value = 0
        envs = range(len(TASK_IDS))
        self.left = [next(lengths) for _ in envs]
        self.open: list[list[float]] = [[self._new()] for _ in envs]
        self.rewards: list[list[float]] = [[] for _ in envs]
        self.ids: list[list[int]] = [[] for _ in envs]
        self.added = [0, 0]
        self.ended: dict[float, bool] = {}
        """Last observation of each ended episode: whether it was terminated."""
        self.where: dict[float, tuple[int, list[float], list[float], int]] = {}
        """First observation of a window: its task, episode, rewards and place in it."""
        self.priority: dict[tuple[int, int], float] = {}
        self.id_of: dict[float, int] = {}

    def _new(self) -> float:
        self.value += 1
        return float(self.value)

    def step(self, buffer: ReplayBuffer) -> None:
        """One step of every environment, also told to the buffer."""
        before, after, reward = [], [], []
        terminated, truncated = np.zeros(len(TASK_IDS), bool), np.zeros(len(TASK_IDS), bool)
        for env, task in enumerate(TASK_IDS):
            episode, rewards = self.open[env], self.rewards[env]
            self.where[episode[-1]] = (int(task), episode, rewards, len(rewards))
            self.id_of[episode[-1]] = self.added[task]
            self.added[task] += 1
            before.append(episode[-1])
            rewards.append(float(self.random.integers(1, 100)))
            episode.append(self._new())
            reward.append(rewards[-1])
            after.append(episode[-1])
            self.left[env] -= 1
            if self.left[env] == 0:
                kind = terminated if self.random.random() < 0.5 else truncated
                kind[env] = True
                self.ended[episode[-1]] = bool(terminated[env])
                self.open[env], self.rewards[env], self.left[env] = [self._new()], [], next(self.lengths)
        column = np.array(before, np.float32)[:, None]
        buffer.add(
            column,
            -column,
            np.array(reward, np.float32),
            terminated,
            truncated,
            np.array(after, np.float32)[:, None],
        )

    def samplable(self) -> dict[int, list[float]]:
        """First observations of all complete windows of each task, oldest first."""
        found: dict[int, list[float]] = {0: [], 1: []}
        for first, (task, episode, rewards, at) in self.where.items():
            if episode[-1] in self.ended or len(rewards) - at >= WINDOW:
                found[task].append(first)
        return found

    def check(self, windows: Windows) -> None:
        """Asserts that every window is what the episode lists say."""
        for i, first in enumerate(windows.observation[:, 0, 0].tolist()):
            task, episode, rewards, at = self.where[first]
            real = min(WINDOW, len(rewards) - at)
            assert windows.task[i] == task and windows.length[i] == real
            assert windows.terminated[i] == self.ended.get(episode[at + real], False)
            seen = episode[at : at + real + 1]
            assert windows.observation[i, :, 0].tolist() == seen + [seen[-1]] * (WINDOW - real)
            actions = [-x for x in seen[:-1]] + [0.0] * (WINDOW - real)
            assert windows.action[i, :, 0].tolist() == actions[:UNROLL]
            assert windows.reward[i].tolist() == rewards[at : at + real] + [0.0] * (WINDOW - real)
            assert windows.transition_id[i] == self.id_of[first]
            assert windows.age[i] == self.added[task] - 1 - self.id_of[first]


def positions(buffer: ReplayBuffer, task: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Observation and priority of every position that can be sampled."""
    blocks = buffer.blocks
    priority = buffer.tree.front(blocks.num_blocks * blocks.block_size)[task]
    first = blocks.observation[task, :, : blocks.block_size, 0].reshape(-1)
    return first[priority > 0], priority[priority > 0]


def draw(lengths: str, seed: int) -> Iterator[int]:
    random = np.random.default_rng(seed)
    while True:
        yield int(
            {
                "ones": 1,
                "short": random.integers(1, 12),
                "long": random.integers(1, 80),
                "mixed": random.choice([1, 2, 19, 20, 21, 39, 40, 41, 63]),
            }[lengths]
        )


@pytest.mark.parametrize("lengths", ["ones", "short", "long", "mixed"])
@pytest.mark.parametrize("seed", range(3))
def test_against_lists_of_episodes(lengths: str, seed: int) -> None:
    """Blocks of 20, at most 300 positions per task; the ring turns about four times."""
    buffer, lists = make(300, 20, seed), EpisodeLists(draw(lengths, seed), seed)
    told: dict[tuple[int, int], float] = {}
    for t in range(600):
        lists.step(buffer)
        if t < 40 or t % 23 == 0:
            complete = lists.samplable()
            for task in range(2):
                kept, priority = positions(buffer, task)
                newest = complete[task][-len(kept) :] if len(kept) else []
                assert set(kept.tolist()) <= set(complete[task])
                if t < 40:
                    assert len(kept) == len(complete[task]), "nothing is evicted yet"
                # Evicted oldest first, up to the blocks that two environments fill at different times.
                assert len(set(newest) & set(kept.tolist())) >= len(kept) - 3 * 20
                for first, value in zip(kept.tolist(), priority.tolist(), strict=True):
                    assert value == told.get((task, lists.id_of[first]), value)
        if buffer.ready:
            windows = buffer.sample(8)
            lists.check(windows)
            error = lists.random.exponential(size=8).astype(np.float32)
            buffer.update_priorities(windows.task, windows.replay_index, windows.transition_id, error)
            for task, number, value in zip(windows.task, windows.transition_id, error, strict=True):
                told[int(task), int(number)] = float(value) + 1e-6


def test_the_whole_capacity_is_used() -> None:
    """Episodes of 1 to 79 steps, 40 on average: at least 95% of 5,000 transitions, whatever the moment."""
    buffer, lists = make(5000, 20), EpisodeLists(draw("long", 0), 0)
    for t in range(6500):
        lists.step(buffer)
        if t > 5500 and t % 100 == 0:
            stored = (buffer.blocks.transition_id >= 0).sum((1, 2))
            assert (stored >= 0.95 * 5000).all() and (stored <= 5000).all(), stored


def test_an_episode_takes_one_position_more_than_it_has_steps() -> None:
    """None where it ends with its block: 7 + 1 + 11 + 1 = 20."""
    buffer, lists = make(300, 20), EpisodeLists(iter([7] * 3 + [11] * 3 + [20] * 9), 0)
    for _ in range(38):
        lists.step(buffer)
    blocks = buffer.blocks
    assert blocks.transition_id[1, 0, 7] == blocks.transition_id[1, 0, 19] == -1
    assert (blocks.transition_id[1, 0] >= 0).sum() == 18
    assert blocks.transition_id[1, 1].tolist() == list(range(18, 38))


@pytest.mark.parametrize("steps", [5, 19, 21, 26, 47, 400])
def test_saved_in_the_middle_of_episodes(tmp_path: Path, steps: int) -> None:
    """What was open is truncated, everything else is as it was, and the ring goes on."""
    buffer, lists = make(300, 20), EpisodeLists(draw("short", steps), 0)
    for _ in range(steps):
        lists.step(buffer)
    store = ReplayStore(buffer, tmp_path)
    store.write(store.begin("1"))
    loaded = make(300, 20)
    assert ReplayStore(loaded, tmp_path).load("1") == []
    assert len(loaded) == len(buffer)
    for env in range(len(TASK_IDS)):
        lists.ended.setdefault(lists.open[env][-1], False)
        lists.open[env], lists.rewards[env], lists.left[env] = [lists._new()], [], 5
    for task in range(2):
        now = set(positions(loaded, task)[0].tolist())
        assert set(positions(buffer, task)[0].tolist()) <= now <= set(lists.samplable()[task])
        assert len(now) == (loaded.blocks.transition_id[task] >= 0).sum()
    for _ in range(60):
        lists.check(loaded.sample(16))
        lists.step(loaded)


def test_blocks_that_go_on_while_they_are_saved(tmp_path: Path) -> None:
    """The save tells of the instant it was begun at, though episodes have ended in its open blocks since."""
    buffer, lists = make(300, 20), EpisodeLists(iter([9, 9, 9] + [4] * 30), 0)
    for _ in range(7):
        lists.step(buffer)
    store = ReplayStore(buffer, tmp_path)
    plan = store.begin("1")
    firsts = [episode[0] for episode in lists.open]
    for _ in range(6):
        lists.step(buffer)
    store.write(plan)
    loaded = make(300, 20)
    assert ReplayStore(loaded, tmp_path).load("1") == []
    assert len(loaded) == 21 and loaded.ready
    windows = loaded.sample(64)
    for i, first in enumerate(windows.observation[:, 0, 0].tolist()):
        _, episode, _, at = lists.where[first]
        assert episode[0] in firsts and windows.length[i] == 7 - at and not windows.terminated[i]
        assert windows.observation[i, -1, 0] == episode[7]
