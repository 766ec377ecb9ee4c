"""Windows of consecutive steps, as they are sampled."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Windows:
    """A batch of windows: `B` positions of `U` unroll and `n` TD steps.

    Steps past an episode's end repeat its last observation and hold zero actions and rewards.

    Attributes:
        task: `[B]` int64.
        observation: `[B, U + n + 1, O]` float32.
        action: `[B, U, A]` float32.
        reward: `[B, U + n]` float32.
        length: `[B]` int64, real steps in the window.
        terminated: `[B]` bool, whether the window ends in a termination (not a time limit).
        return_scale: `[B]` float32, the scale of its task's returns so far.
        weight: `[B]` float32 importance weights.
        max_weight: `[T]` float64, the largest weight before normalisation by it: of each task, or of all
            tasks that share a table.
        age: `[B]` int64, transitions that its task has stored since.
        replay_index: `[B]` int64, index of the position among its task's positions.
        transition_id: `[B]` int64, number of the transition within its task: tells overwritten data apart.
    """

    task: NDArray[np.int64]
    observation: NDArray[np.float32]
    action: NDArray[np.float32]
    reward: NDArray[np.float32]
    length: NDArray[np.int64]
    terminated: NDArray[np.bool_]
    return_scale: NDArray[np.float32]
    weight: NDArray[np.float32]
    max_weight: NDArray[np.float64]
    age: NDArray[np.int64]
    replay_index: NDArray[np.int64]
    transition_id: NDArray[np.int64]


def copy_windows(stored: NDArray[Any], start: NDArray[np.int64], length: int) -> NDArray[Any]:
    """Copies `length` consecutive steps from each start: `[B, length, ...]`.

    Args:
        stored: `[T, K, W, ...]`, contiguous.
        start: `[B]` first step of each window, an index into the `T * K * W` stored steps.
        length: steps per window.
    """
    # The steps of a window are adjacent in memory, so a window is viewed as one item of `length` steps and
    # copied with one memcpy. (torch's index_select is faster on an idle machine, slower on a busy one.)
    step = stored[0, 0, 0].nbytes
    count = stored.nbytes // step - length + 1
    items = np.ndarray(count, f"V{length * step}", stored, strides=step)
    return items[start].view(stored.dtype).reshape(-1, length, *stored.shape[3:])
