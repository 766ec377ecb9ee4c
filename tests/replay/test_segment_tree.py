"""The priority trees: sums, maxima and search, against plain numpy."""

from __future__ import annotations

import numpy as np
import pytest

from ezm_pl.replay import SegmentTree


def test_sums_and_maxima_by_hand() -> None:
    tree = SegmentTree(tasks=2, size=5)
    tree.set(np.array([0, 0, 1]), np.array([0, 4, 2]), np.array([1.5, 2.0, 7.0]))
    assert tree.total.tolist() == [3.5, 7.0]
    assert tree.maximum.tolist() == [2.0, 7.0]
    assert tree.get(np.array([0, 0, 1]), np.array([4, 3, 2])).tolist() == [2.0, 0.0, 7.0]
    tree.set(np.array([0]), np.array([4]), np.array([0.25]))
    assert tree.total.tolist() == [1.75, 7.0]
    assert tree.maximum.tolist() == [1.5, 7.0]


def test_find_by_hand() -> None:
    """Leaves 1, 0, 2, 3: masses [0, 1) -> 0, [1, 3) -> 2, [3, 6) -> 3."""
    tree = SegmentTree(tasks=1, size=4)
    tree.set(np.zeros(4, int), np.arange(4), np.array([1.0, 0.0, 2.0, 3.0]))
    masses = np.array([0.0, 0.99, 1.0, 2.99, 3.0, 5.99])
    assert tree.find(np.zeros(6, int), masses).tolist() == [0, 0, 2, 2, 3, 3]


def test_find_never_ends_at_an_empty_leaf() -> None:
    tree = SegmentTree(tasks=1, size=8)
    tree.set(np.zeros(2, int), np.array([2, 5]), np.array([0.1, 0.2]))
    masses = np.array([0.0, 0.1, 0.3, np.nextafter(0.3, 1), 0.3000001])
    assert tree.find(np.zeros(5, int), masses).tolist() == [2, 5, 5, 5, 5]


@pytest.mark.parametrize("seed", range(20))
def test_rounding_never_leads_to_an_empty_leaf(seed: int) -> None:
    """Sparse trees of unlike numbers: masses at, just below and just above every running sum."""
    random = np.random.default_rng(seed)
    size = int(random.integers(2, 300))
    tree, filled = SegmentTree(tasks=2, size=size), random.random(size) < 0.2
    filled[random.integers(size)] = True
    value = np.where(filled, 10.0 ** random.uniform(-9, 3, size), 0.0)
    tree.set(np.ones(size, int), np.arange(size), value)
    sums = np.append(value.cumsum(), tree.total[1])
    masses = np.concatenate([[0.0], sums, np.nextafter(sums, 0), np.nextafter(sums, np.inf)])
    task = np.ones(len(masses), int)
    leaf = tree.find(task, masses)
    assert (tree.get(task, leaf) > 0).all()
    assert leaf[0] == filled.argmax() and leaf[len(sums)] == np.flatnonzero(filled)[-1]


@pytest.mark.parametrize("size", [1, 2, 3, 7, 64, 100])
def test_against_numpy(size: int) -> None:
    random = np.random.default_rng(size)
    tasks = 3
    tree, plain = SegmentTree(tasks, size), np.zeros((tasks, size))
    for _ in range(30):
        count = int(random.integers(1, 2 * size + 1))
        task, leaf = random.integers(tasks, size=count), random.integers(size, size=count)
        value = random.integers(0, 100, count).astype(float)
        tree.set(task, leaf, value)
        plain[task, leaf] = value  # numpy, too, keeps the last of equal indices
        np.testing.assert_array_equal(tree.total, plain.sum(1))
        np.testing.assert_array_equal(tree.maximum, plain.max(1).astype(np.float32))
    running = plain.cumsum(1)
    for task in range(tasks):
        if running[task, -1] > 0:
            mass = random.random(200) * running[task, -1]
            expected = (running[task] <= mass[:, None]).sum(1)
            np.testing.assert_array_equal(tree.find(np.full(200, task), mass), expected)


def test_of_a_leaf_given_twice_the_last_value_holds() -> None:
    tree = SegmentTree(tasks=1, size=4)
    tree.set(np.zeros(3, int), np.array([1, 1, 2]), np.array([5.0, 3.0, 1.0]))
    assert tree.total.tolist() == [4.0]
    assert tree.maximum.tolist() == [3.0]


def test_setting_nothing_changes_nothing() -> None:
    tree = SegmentTree(tasks=1, size=4)
    tree.set(np.zeros(0, int), np.zeros(0, int), np.zeros(0))
    assert tree.total.tolist() == [0.0]
