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
        self._sum = np.zeros((tasks, 2 * self.leaves))
        self._max = np.zeros((tasks, 2 * self.leaves), dtype=np.float32)

    @property
    def total(self) -> NDArray[np.float64]:
        """Sum of all leaves, `[T]`."""
        return self._sum[:, 1]

    @property
    def maximum(self) -> NDArray[np.float32]:
        """Largest leaf, `[T]`."""
        return self._max[:, 1]

    def get(self, task: NDArray[np.int64], leaf: NDArray[np.int64]) -> NDArray[np.float64]:
        """Values `[B]` of leaves `[B]` of trees `[B]`."""
        return self._sum[task, self.leaves + leaf]

    def set(self, task: NDArray[np.int64], leaf: NDArray[np.int64], value: NDArray[np.float64]) -> None:
        """Writes values `[B]`; of a leaf given twice the last one holds."""
        node = self.leaves + leaf
        self._sum[task, node] = value
        self._max[task, node] = value
        while node.size and node[0] > 1:
            node = node >> 1
            left = 2 * node
            self._sum[task, node] = self._sum[task, left] + self._sum[task, left + 1]
            self._max[task, node] = np.maximum(self._max[task, left], self._max[task, left + 1])

    def find(self, task: NDArray[np.int64], mass: NDArray[np.float64]) -> NDArray[np.int64]:
        """The leaf `[B]` at which each tree's running sum passes `mass` `[B]`, in [0, total)."""
        mass = mass.copy()
        node = np.ones_like(task)
        while node.size and node[0] < self.leaves:
            node = 2 * node
            left = self._sum[task, node]
            # Rounding may leave a little mass at an empty right child: stay left then.
            right = (mass >= left) & (self._sum[task, node + 1] > 0)
            mass -= left * right
            node += right
        return node - self.leaves
