"""What environments of other packages share: they return their observations, and are asked for none."""

from __future__ import annotations

import math
from typing import Any, Unpack

import numpy as np
from numpy.typing import NDArray

from ezm_pl.envs.core import ControlEnv, ControlStep, Observation, Settings


def diverged() -> ControlStep:
    """A control step after which something was not finite: no reward, and the observation of before."""
    return ControlStep(0.0, {"reward": 0.0}, diverged=True)


class WrappedEnv(ControlEnv):
    """An environment of another package, whose last finite observation is kept, flattened.

    Args:
        task: its name. env: the environment.
        observation_shape, action_shape: of the environment's own.
        full_episode_steps, frames_per_second: as in `ControlEnv`.
        settings: `ControlEnv`'s.
    """

    def __init__(
        self,
        task: str,
        env: Any,
        *,
        observation_shape: tuple[int, ...],
        action_shape: tuple[int, ...],
        full_episode_steps: int,
        frames_per_second: float,
        **settings: Unpack[Settings],
    ) -> None:
        self.task = task
        self._env = env
        self._last: NDArray[np.float32] = np.zeros(math.prod(observation_shape), np.float32)
        super().__init__(
            observation_size=self._last.size,
            action_size=math.prod(action_shape),
            full_episode_steps=full_episode_steps,
            frames_per_second=frames_per_second,
            **settings,
        )

    def _read(self, observation: Any) -> bool:
        """Keeps an observation if it is finite, and says whether it was."""
        flat = np.ravel(observation).astype(np.float32)
        finite = bool(np.isfinite(flat).all())
        if finite:
            self._last = flat
        return finite

    def _observation(self) -> Observation:
        return self._last.copy()

    def _frame(self) -> NDArray[np.uint8]:
        return np.array(self._env.render())

    def close(self) -> None:
        self._env.close()
