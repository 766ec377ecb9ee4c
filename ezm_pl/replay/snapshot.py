"""The state of a buffer at one instant, without its steps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass
class Snapshot:
    """Counters and priorities; the first `K` blocks per task are in use.

    Attributes:
        steps: `[T, K]` int64 steps stored in each block, its overlap included.
        first_id: `[T, K]` int64 transition id of each block's first step: tells overwritten blocks apart.
        complete: `[T, K]` uint8, 1 where nothing will be added to the block.
        priority: `[T, K, block_size]` float64.
        next_block, added: `[T]` int64 counters of the ring.
        return_squares, return_count: `[T]` float64, see `ReturnScale`.
        random: state of the sampling generator.
    """

    steps: NDArray[np.int64]
    first_id: NDArray[np.int64]
    complete: NDArray[np.uint8]
    priority: NDArray[np.float64]
    next_block: NDArray[np.int64]
    added: NDArray[np.int64]
    return_squares: NDArray[np.float64]
    return_count: NDArray[np.float64]
    random: dict[str, Any]

    def drop(self, task: NDArray[np.int64], block: NDArray[np.int64]) -> None:
        """Empties blocks `[M]`."""
        self.steps[task, block] = 0
        self.priority[task, block] = 0
