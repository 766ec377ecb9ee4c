"""Sums and maxima of priorities, for many tasks at once, in O(log n) numpy operations."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


class SegmentTree:
    """`T` complete binary trees over `size` leaves each; every node holds the sum and the maximum below.

    Args:
        tasks: number of trees `T`.
        size: leaves a tree.
    """

    def __init__(self, tasks: int, size: int) -> None:
        self.leaves = 1 << max(1, (size - 1).bit_length())
        self._width = 2 * self.leaves
        # All trees one after the other: a flat index costs numpy a fraction of what a pair of them does.
        self._sum = np.zeros(tasks * self._width)
        self._max = np.zeros(tasks * self._width, dtype=np.float32)
        self._sum_pairs, self._max_pairs = self._sum.reshape(-1, 2), self._max.reshape(-1, 2)

    @property
    def nbytes(self) -> int:
        """What it holds."""
        return self._sum.nbytes + self._max.nbytes

    @property
    def total(self) -> NDArray[np.float64]:
        """Sum of all leaves, `[T]`."""
        return self._sum[1 :: self._width]

    @property
    def maximum(self) -> NDArray[np.float32]:
        """Largest leaf, `[T]`."""
        return self._max[1 :: self._width]

    def get(self, task: NDArray[np.int64], leaf: NDArray[np.int64]) -> NDArray[np.float64]:
        """Values `[B]` of leaves `[B]` of trees `[B]`."""
        return self._sum.take(task * self._width + self.leaves + leaf)

    def front(self, count: int) -> NDArray[np.float64]:
        """A copy of the first `count` leaves of every tree, `[T, count]`."""
        return self._sum.reshape(-1, self._width)[:, self.leaves : self.leaves + count].copy()

    def set(self, task: NDArray[np.int64], leaf: NDArray[np.int64], value: NDArray[np.float64]) -> None:
        """Writes values `[B]`; of a leaf given twice the last one holds."""
        root = task * self._width
        node = self.leaves + leaf
        self._sum[root + node] = value
        self._max[root + node] = value
        while node.size and node[0] > 1:
            node = node >> 1
            parent = root + node
            below = (root >> 1) + node  # a node's children are neighbours: the pair of this number
            sums, largest = self._sum_pairs.take(below, axis=0), self._max_pairs.take(below, axis=0)
            self._sum[parent] = sums[:, 0] + sums[:, 1]
            self._max[parent] = np.maximum(largest[:, 0], largest[:, 1])

    def find(self, task: NDArray[np.int64], mass: NDArray[np.float64]) -> NDArray[np.int64]:
        """The leaf `[B]` at which each tree's running sum passes `mass` `[B]`, in [0, total)."""
        mass = mass.copy()
        pair = task * (self._width >> 1)
        node = np.ones_like(task)
        while node.size and node[0] < self.leaves:
            below = self._sum_pairs.take(pair + node, axis=0)
            left = below[:, 0]
            # Rounding may leave a little mass at an empty right child: stay left then.
            right = (mass >= left) & (below[:, 1] > 0)
            mass -= left * right
            node = 2 * node + right
        return node - self.leaves
