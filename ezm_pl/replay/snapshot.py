"""The state of a buffer at one instant, without its steps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ezm_pl.replay.blocks import Blocks


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

    def problem(self, blocks: Blocks) -> str | None:
        """Why this cannot be restored into `blocks`; None where it can. Shapes are right already."""
        stored = self.steps > 0
        beyond = np.arange(blocks.block_size) >= self.steps[:, :, None]
        wrong = {
            "steps": (self.steps < 0) | (self.steps > blocks.width),
            "completeness": self.complete > 1,
            "transition ids": stored & ((self.first_id < 0) | (self.first_id >= self.added[:, None])),
            "priorities": ~np.isfinite(self.priority) | (self.priority < 0),
            "priorities of empty positions": (self.priority > 0) & beyond,
            "next blocks": (self.next_block < 0) | (self.next_block >= blocks.num_blocks),
            "scales of returns": ~(np.isfinite(self.return_squares) & np.isfinite(self.return_count)),
        }
        names = [name for name, where in wrong.items() if where.any()]
        return f"holds impossible {', '.join(names)}" if names else None
