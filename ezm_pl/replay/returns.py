"""The scale of each task's discounted returns, tracked online."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


class ReturnScale:
    """Root mean square of every task's running discounted return, at least 1.

    `reach` pays up to 20 per step, so its values leave the categorical support; dividing a task's rewards
    by this scale keeps them inside. Source: the reward normalisation of Engstrom et al. 2020, per task.

    Args:
        task_ids: `[N]` the task of each environment.
        tasks: `T`.
        discount: per decision.
    """

    def __init__(self, task_ids: NDArray[np.int64], tasks: int, discount: float) -> None:
        self._task, self._discount = task_ids, discount
        self._running = np.zeros(len(task_ids))
        self.squares = np.zeros(tasks)
        self.count = np.zeros(tasks)

    def update(self, reward: NDArray[np.float32], done: NDArray[np.bool_]) -> None:
        """Takes one step of every environment: rewards `[N]` and episode ends `[N]`."""
        self._running = self._discount * self._running + reward
        self.squares += np.bincount(self._task, self._running**2, len(self.squares))
        self.count += np.bincount(self._task, minlength=len(self.count))
        self._running[done] = 0.0

    @property
    def scale(self) -> NDArray[np.float32]:
        """What to divide each task's rewards by, `[T]`."""
        return return_scale(self.squares, self.count)


def return_scale(squares: NDArray[np.float64], count: NDArray[np.float64]) -> NDArray[np.float32]:
    """The scale of returns whose squares, `[T]`, sum to `squares` over `count` of them."""
    return np.sqrt(np.maximum(squares / np.maximum(count, 1), 1.0)).astype(np.float32)
