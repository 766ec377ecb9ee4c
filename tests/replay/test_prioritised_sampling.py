"""Which positions are drawn, how often, and with which importance weights."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from replay_helpers import TRUNCATED, CountingRows, make_buffer, samplable

from ezm_pl.replay import ReplayBuffer


def filled(priorities: list[list[float]], **changes: float | bool) -> ReplayBuffer:
    """One block of positions per task, with these priorities."""
    tasks = len(priorities)
    buffer = make_buffer(list(range(tasks)), **changes)
    CountingRows(buffer, tasks).play_episode(6, TRUNCATED)
    for task, values in enumerate(priorities):
        assert len(values) == 6
        buffer.tree.set(np.full(6, task), np.arange(6), np.array(values))
    return buffer


def frequencies(buffer: ReplayBuffer, draws: int, batch: int) -> NDArray[np.float64]:
    """Share of each position `[T, 6]` among `draws` batches."""
    counts = np.zeros((buffer.tasks, 6))
    for _ in range(draws):
        windows = buffer.sample(batch)
        np.add.at(counts, (windows.task, windows.replay_index), 1)
    return counts / counts.sum()


def test_every_task_gives_equally_many_and_the_remainder_goes_round() -> None:
    buffer = filled([[1.0] * 6] * 3)
    extras = np.zeros(3, int)
    for _ in range(60):
        counts = np.bincount(buffer.sample(8).task, minlength=3)
        assert sorted(counts) == [2, 3, 3]
        extras += counts - 2
    assert (extras > 25).all(), "each task is the one with less about 20 times of 60"
    assert np.bincount(buffer.sample(9).task).tolist() == [3, 3, 3]


def test_sampling_follows_priorities_within_a_task() -> None:
    """Priorities 1 to 6: shares k/21; single draws, so that no stratum helps."""
    buffer = filled([[1, 2, 3, 4, 5, 6]])
    share = frequencies(buffer, 6000, 1)[0]
    expected = np.arange(1, 7) / 21
    chi_square = 6000 * ((share - expected) ** 2 / expected).sum()
    assert chi_square < 20.5, "the 0.1% point of 5 degrees of freedom"


def test_strata_make_a_batch_follow_priorities_more_closely() -> None:
    """21 draws of priorities 1 to 6 in 21 strata: position k exactly k times."""
    windows = filled([[1, 2, 3, 4, 5, 6]]).sample(21)
    assert np.bincount(windows.replay_index).tolist() == [1, 2, 3, 4, 5, 6]


def test_a_task_s_share_does_not_depend_on_its_priorities() -> None:
    share = frequencies(filled([[100.0] * 6, [0.01] * 6]), 20, 16)
    np.testing.assert_allclose(share.sum(1), [0.5, 0.5])


def test_shared_replay_samples_over_all_tasks_by_priority() -> None:
    """Task 0 holds 3/4 of all priority."""
    buffer = filled([[3.0] * 6, [1.0] * 6], shared=True)
    share = frequencies(buffer, 200, 16).sum(1)
    assert share[0] == pytest.approx(0.75, abs=0.035)  # 4 standard deviations of 3,200 draws


def test_importance_weights_by_hand() -> None:
    """P = (1, 2, 4, 1)/8 -> 1/P = 8, 4, 2, 8; over the largest: 1, 1/2, 1/4, 1."""
    buffer = filled([[1, 2, 4, 1, 0, 0]])
    windows = buffer.sample(64)
    expected = np.array([1, 0.5, 0.25, 1])
    np.testing.assert_allclose(windows.weight, expected[windows.replay_index], rtol=1e-6)


def test_importance_weights_are_clipped_from_below() -> None:
    buffer = filled([[1, 2, 4, 1, 0, 0]], min_importance=0.3)
    windows = buffer.sample(64)
    np.testing.assert_allclose(windows.weight, np.array([1, 0.5, 0.3, 1])[windows.replay_index], rtol=1e-6)


def test_the_importance_exponent() -> None:
    """beta = 1/2: the roots of 1, 1/2, 1/4; beta = 0: no correction."""
    windows = filled([[1, 2, 4, 1, 0, 0]], importance_exponent=0.5).sample(64)
    expected = np.array([1, 0.5**0.5, 0.5, 1])
    np.testing.assert_allclose(windows.weight, expected[windows.replay_index], rtol=1e-6)
    windows = filled([[1, 2, 4, 1, 0, 0]], importance_exponent=0.0).sample(64)
    np.testing.assert_array_equal(windows.weight, np.ones(64, np.float32))


def test_weights_are_normalised_by_the_batch_maximum_of_their_own_task() -> None:
    """Task 1's priorities are a thousand times those of task 0: its weights are the same."""
    buffer = filled([[1, 2, 4, 1, 0, 0], [1000, 2000, 4000, 1000, 0, 0]])
    windows = buffer.sample(64)
    expected = np.array([1, 0.5, 0.25, 1])
    np.testing.assert_allclose(windows.weight, expected[windows.replay_index], rtol=1e-6)


def test_shared_replay_weights_against_all_priorities() -> None:
    """Task 0 has twice the priority everywhere, so half the weight of task 1, the least likely one."""
    buffer = filled([[2, 4, 8, 2, 0, 0], [1, 2, 4, 1, 0, 0]], shared=True)
    windows = buffer.sample(64)
    expected = np.array([[0.5, 0.25, 0.125, 0.5], [1, 0.5, 0.25, 1]])
    np.testing.assert_allclose(windows.weight, expected[windows.task, windows.replay_index], rtol=1e-6)


def test_the_maximum_is_that_of_the_batch_not_of_the_buffer() -> None:
    """A batch of one position has the weight 1, however likely the position is."""
    buffer = filled([[1, 2, 4, 1, 0, 0]])
    assert all(buffer.sample(1).weight.tolist() == [1.0] for _ in range(20))


def test_new_data_gets_its_task_s_largest_priority() -> None:
    buffer = make_buffer([0, 1])
    rows = CountingRows(buffer, 2)
    rows.play_episode(6, TRUNCATED)
    np.testing.assert_array_equal(buffer.tree.total, [6, 6])  # nothing to go by yet: 1 each
    buffer.update_priorities(np.array([0]), np.array([3]), np.array([3]), np.array([5.0], np.float32))
    rows.play_episode(2, TRUNCATED)
    task, leaf = np.array([0, 0, 1, 1]), np.array([6, 7, 6, 7])
    np.testing.assert_allclose(buffer.tree.get(task, leaf), [5, 5, 1, 1], rtol=1e-5)


def test_new_priorities_are_errors_raised_to_the_exponent() -> None:
    """(|-3| + 1e-6)^2 = 9.000006; an error of zero still leaves something to draw."""
    buffer = filled([[1.0] * 6], priority_exponent=2.0)
    zero = np.zeros(2, np.int64)
    buffer.update_priorities(zero, np.array([0, 1]), np.array([0, 1]), np.array([-3.0, 0.0], np.float32))
    np.testing.assert_allclose(buffer.tree.get(zero, np.array([0, 1])), [9.000006, 1e-12], rtol=1e-6)
    assert [0, 0, 1] in samplable(buffer)


def test_the_same_seed_draws_the_same_batches() -> None:
    batches = [filled([[1, 2, 3, 4, 5, 6]] * 2, seed=s).sample(17).replay_index.tolist() for s in (7, 7, 8)]
    assert batches[0] == batches[1] != batches[2]
