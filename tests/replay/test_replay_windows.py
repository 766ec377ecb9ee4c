"""Windows of experience: block borders, ends of episodes, when a position may be sampled, the ring."""

from __future__ import annotations

import numpy as np
import pytest
from replay_helpers import TERMINATED, TRUNCATED, CountingRows, check_window, make_buffer, samplable

from ezm_pl.replay import ReplayBuffer, ReplayError


def play_one_row(steps: int, end: str | None) -> ReplayBuffer:
    buffer = make_buffer([0])
    CountingRows(buffer, 1).play_episode(steps, end)
    return buffer


@pytest.mark.parametrize("steps", range(1, 20))
def test_a_position_is_samplable_once_its_window_is_complete(steps: int) -> None:
    """Of an open episode of `s` steps, positions 0 .. s - 4 (windows are 4 long), block border or not."""
    assert samplable(play_one_row(steps, None)) == [[0, 0, t] for t in range(steps - 3)]


@pytest.mark.parametrize("end", [TERMINATED, TRUNCATED])
@pytest.mark.parametrize("steps", range(1, 20))
def test_every_position_is_samplable_once_the_episode_has_ended(steps: int, end: str) -> None:
    assert samplable(play_one_row(steps, end)) == [[0, 0, t] for t in range(steps)]


@pytest.mark.parametrize("end", [TERMINATED, TRUNCATED, None])
@pytest.mark.parametrize("steps", [1, 3, 4, 5, 6, 7, 9, 10, 11, 12, 13])
def test_windows_tell_the_episode(steps: int, end: str | None) -> None:
    """Every window, also those across the border at step 6 and at the ends."""
    if end is None and steps < 4:
        return
    buffer = make_buffer([0])
    rows = CountingRows(buffer, 1)
    rows.play_episode(steps, end)
    seen = set()
    for _ in range(30):
        windows = buffer.sample(16)
        seen |= {check_window(windows, i, rows, 2, 2) for i in range(16)}
    assert seen == {(0, 0, t) for t in range(steps if end else steps - 3)}


def only_window(buffer: ReplayBuffer, position: int) -> tuple[list[float], list[float], int, bool]:
    """The steps of observations, the rewards, the length and the termination flag of one position."""
    leaves = np.arange(buffer.blocks.num_blocks * buffer.blocks.block_size)
    priority = (leaves == position).astype(float)
    buffer.tree.set(np.zeros_like(leaves), leaves, priority)
    windows = buffer.sample(1)
    steps = windows.observation[0, :, 2].tolist()
    return steps, windows.reward[0].tolist(), int(windows.length[0]), bool(windows.terminated[0])


def test_a_window_across_a_block_border_by_hand() -> None:
    """Position 4 of a block of 6: steps 6 and 7 come from the next block."""
    assert only_window(play_one_row(9, None), 4) == ([4, 5, 6, 7, 8], [4, 5, 6, 7], 4, False)


def test_a_time_limit_repeats_the_last_observation() -> None:
    """Seven steps, window from 5: steps 5 and 6 are real, the observation after the last one is 7."""
    assert only_window(play_one_row(7, TRUNCATED), 5) == ([5, 6, 7, 7, 7], [5, 6, 0, 0], 2, False)


def test_a_termination_is_flagged_only_inside_the_window() -> None:
    """Nine steps end in a termination: windows from 5 on hold the ninth step, that from 4 does not."""
    assert only_window(play_one_row(9, TERMINATED), 5) == ([5, 6, 7, 8, 9], [5, 6, 7, 8], 4, True)
    assert only_window(play_one_row(9, TERMINATED), 4) == ([4, 5, 6, 7, 8], [4, 5, 6, 7], 4, False)
    # In the second block, which starts at step 6, position 6 of the ring is step 6.
    assert only_window(play_one_row(9, TERMINATED), 6) == ([6, 7, 8, 9, 9], [6, 7, 8, 0], 3, True)


def test_an_episode_that_ends_with_its_block_leaves_no_tail_behind() -> None:
    buffer = make_buffer([0])
    rows = CountingRows(buffer, 1)
    rows.play_episode(6, TERMINATED)
    rows.play_episode(5, TRUNCATED)
    assert samplable(buffer) == [[0, 0, t] for t in range(6)] + [[0, 1, t] for t in range(5)]
    for _ in range(20):
        windows = buffer.sample(16)
        for i in range(16):
            check_window(windows, i, rows, 2, 2)


def test_rows_of_several_tasks_stay_apart() -> None:
    """Rows 0 and 1 play task 0, row 2 plays task 1; episodes end at different times."""
    buffer = make_buffer([0, 0, 1])
    rows = CountingRows(buffer, 3)
    for t in range(40):
        rows.play({i: (TERMINATED, TRUNCATED)[t % 2] for i in range(3) if t % (3 + 2 * i) == 2 + 2 * i})
    for _ in range(20):
        windows = buffer.sample(30)
        for i in range(30):
            row, _, _ = check_window(windows, i, rows, 2, 2)
            assert windows.task[i] == (0, 0, 1)[row]
        assert np.bincount(windows.task).tolist() == [15, 15]


def test_the_ring_forgets_the_oldest_block() -> None:
    """Three rows of 6 positions: the fourth block replaces the first, priorities and all."""
    buffer = make_buffer([0], capacity=18)
    assert buffer.blocks.num_blocks == 3
    rows = CountingRows(buffer, 1)
    rows.play_episode(18, None)
    assert samplable(buffer) == [[0, 0, t] for t in range(15)]
    rows.play_episode(1, None)
    ring = [[0, 0, t] for t in range(6, 16)]
    assert sorted(samplable(buffer)) == ring
    assert len(buffer) == 13
    seen = {check_window(buffer.sample(1), 0, rows, 2, 2)[2] for _ in range(200)}
    assert seen == set(range(6, 16))


def test_priorities_of_overwritten_data_are_not_updated() -> None:
    buffer = make_buffer([0], capacity=18)
    rows = CountingRows(buffer, 1)
    rows.play_episode(18, None)
    old = buffer.sample(32)
    rows.play_episode(6, None)  # replaces steps 0 to 5
    total = float(buffer.tree.total[0])
    gone = old.observation[:, 0, 2] < 6
    assert gone.any() and not gone.all()
    buffer.update_priorities(
        old.task[gone], old.replay_index[gone], old.transition_id[gone], np.full(gone.sum(), 9.0)
    )
    assert float(buffer.tree.total[0]) == total
    kept = ~gone
    buffer.update_priorities(
        old.task[kept], old.replay_index[kept], old.transition_id[kept], np.full(kept.sum(), 9.0)
    )
    assert buffer.tree.get(old.task[kept], old.replay_index[kept]) == pytest.approx(9.0 + 1e-6)


def test_errors_that_are_not_finite_change_no_priority() -> None:
    buffer = play_one_row(9, TERMINATED)
    windows = buffer.sample(3)
    before = buffer.tree.get(windows.task, windows.replay_index)
    buffer.update_priorities(
        windows.task, windows.replay_index, windows.transition_id, np.array([np.nan, np.inf, -np.inf])
    )
    np.testing.assert_array_equal(buffer.tree.get(windows.task, windows.replay_index), before)


def test_age_counts_the_transitions_stored_since() -> None:
    """Two rows per task: 10 steps are 20 transitions, the newest has age 0, the oldest 19."""
    buffer = make_buffer([0, 0, 1])
    rows = CountingRows(buffer, 3)
    rows.play_episode(10, TRUNCATED)
    ages: dict[tuple[int, int], int] = {}
    for _ in range(40):
        windows = buffer.sample(32)
        for i in range(32):
            row, _, step = check_window(windows, i, rows, 2, 2)
            ages[row, step] = int(windows.age[i])
    assert ages == {(row, t): 19 - 2 * t - row for row in (0, 1) for t in range(10)} | {
        (2, t): 9 - t for t in range(10)
    }


def test_short_episodes_of_one_row_spare_the_block_that_another_is_filling() -> None:
    """Row 1 fills a block in three steps and sends the ring round while row 0 fills its own in six."""
    buffer = make_buffer([0, 0], capacity=12)
    assert buffer.blocks.num_blocks == 5
    rows = CountingRows(buffer, 2)
    for t in range(29):
        rows.play({1: TERMINATED})
        if buffer.ready:
            windows = buffer.sample(8)
            for i in range(8):
                check_window(windows, i, rows, 2, 2)
        newest = range(6 * (t // 6), t - 2)  # of row 0's present block
        assert {step for row, _, step in samplable(buffer) if row == 0} >= set(newest)


@pytest.mark.parametrize("shared", [False, True])
def test_sampling_from_nothing_says_so(shared: bool) -> None:
    buffer = make_buffer([0, 1], shared=shared)
    with pytest.raises(ReplayError, match="no complete window"):
        buffer.sample(4)
    rows = CountingRows(buffer, 2)
    for _ in range(3):
        rows.play()
    assert not buffer.ready
    rows.play()
    assert buffer.ready and len(buffer) == 8


def test_a_window_longer_than_a_block_is_refused() -> None:
    with pytest.raises(ValueError, match="longer than a block of 6"):
        make_buffer([0], td_steps=5)


@pytest.mark.parametrize("seed", range(5))
def test_random_episodes_over_a_small_ring(seed: int) -> None:
    """A hundred steps of five rows in three tasks, checked window by window while the ring turns."""
    random = np.random.default_rng(seed)
    buffer = make_buffer([0, 0, 1, 1, 2], capacity=24, seed=seed)
    rows = CountingRows(buffer, 5)
    for _ in range(100):
        ended = np.flatnonzero(random.random(5) < 0.15)
        rows.play({int(i): str(random.choice([TERMINATED, TRUNCATED])) for i in ended})
        if buffer.ready:
            windows = buffer.sample(9)
            for i in range(9):
                row, _, _ = check_window(windows, i, rows, 2, 2)
                assert windows.task[i] == (0, 0, 1, 1, 2)[row]
