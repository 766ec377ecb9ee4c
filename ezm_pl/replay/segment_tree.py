"""Sums and maxima of priorities, for many tasks at once, in O(log n) numpy operations."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


class SegmentTree:
    """`T` complete binary trees over `size` leaves each; every node holds the sum and the maximum below.

    Args:
        tasks: number of trees `T`.
        size: leaves per tree.
    """

    def __init__(self, tasks: int, size: int) -> None:
        self._depth = max(1, (size - 1).bit_length())
        # Level k of all trees lies in one array, tree after tree: the children of node i, whichever tree
        # it is of, are 2i and 2i + 1 one level below. Flat indices cost numpy a fraction of what pairs do.
        self._sum = [np.zeros(tasks << k) for k in range(self._depth + 1)]
        self._max = [np.zeros(tasks << k, np.float32) for k in range(self._depth + 1)]

    @property
    def nbytes(self) -> int:
        """Bytes of all levels."""
        return sum(level.nbytes for level in self._sum) + sum(level.nbytes for level in self._max)

    @property
    def total(self) -> NDArray[np.float64]:
        """Sum of all leaves, `[T]`."""
        return self._sum[0]

    @property
    def maximum(self) -> NDArray[np.float32]:
        """Largest leaf, `[T]`."""
        return self._max[0]

    def get(self, task: NDArray[np.int64], index: NDArray[np.int64]) -> NDArray[np.float64]:
        """Values `[B]` of the leaves at index `[B]` of trees `[B]`."""
        return self._sum[-1].take((task << self._depth) + index)

    def front(self, count: int) -> NDArray[np.float64]:
        """A copy of the first `count` leaves of every tree, `[T, count]`."""
        return self._sum[-1].reshape(-1, 1 << self._depth)[:, :count].copy()

    def set(self, task: NDArray[np.int64], index: NDArray[np.int64], value: NDArray[np.float64]) -> None:
        """Writes values `[B]`; of a leaf given twice the last one holds."""
        node = (task << self._depth) + index
        self._sum[-1][node] = value
        self._max[-1][node] = value
        for level in range(self._depth - 1, -1, -1):
            node >>= 1
            sums = self._sum[level + 1].reshape(-1, 2).take(node, axis=0)
            maxima = self._max[level + 1].reshape(-1, 2).take(node, axis=0)
            self._sum[level][node] = sums[:, 0] + sums[:, 1]
            self._max[level][node] = np.maximum(maxima[:, 0], maxima[:, 1])

    def find(self, task: NDArray[np.int64], mass: NDArray[np.float64]) -> NDArray[np.int64]:
        """The index `[B]` of the leaf at which each tree's running sum passes `mass` `[B]`, in [0, total).

        Trees `[B]` must hold something; then so does the leaf found.
        """
        node, mass = task.copy(), mass.copy()
        for sums in self._sum[1:]:
            node += node
            left = sums.take(node)
            right = mass >= left
            left *= right
            mass -= left
            node += right
        # Rounding may leave a little mass behind the last leaf that holds something: that one takes it.
        for i in np.flatnonzero(self._sum[-1].take(node) == 0):
            first = int(task[i]) << self._depth
            node[i] = first + np.flatnonzero(self._sum[-1][first : node[i]])[-1]
        return node - (task << self._depth)
