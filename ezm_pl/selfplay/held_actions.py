"""Exploration by random actions that are held: `docs/algorithm.md`, "Held random actions".

Source of the idea: temporally extended exploration (Dabney et al. 2021), here with opposite actions in turn.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ezm_pl.spec import Experiment

_MEAN_PAUSE = 20.0
"""Control steps from one burst to the next, on average."""
_FEWEST, _MOST = 4, 10
"""Actions of a burst."""


class HeldActions:
    """Replaces the actions, in some of the environments, by bursts of extreme ones.

    The share of these environments falls linearly from `collect.hold_share` to 0 at the end of training.
    A burst is an action at random bounds of all actuators and its opposite in turn, 4 to 10 in all, each
    held for 2/3 to 4/3 of `collect.hold_steps` control steps. Between two bursts the given actions are taken
    for about 20 control steps.

    Args:
        experiment: its `collect.hold_share` and `collect.hold_steps`.
        mask: `[N, A]`, 1 where an environment has an actuator; task-major, as `MultiTaskVectorEnv`'s rows.
        random: of the bursts; not drawn from where no environment explores.
    """

    def __init__(
        self, experiment: Experiment, mask: NDArray[np.float32], random: np.random.Generator
    ) -> None:
        env, collect = experiment.env, experiment.collect
        self._row = np.arange(len(mask)) % env.num_envs
        self._share, self._envs = collect.hold_share, env.num_envs
        self._mask, self._random = mask, random
        hold = collect.hold_steps / env.action_repeat
        self._shortest, self._longest = (max(1, round(share * hold)) for share in (2 / 3, 4 / 3))
        self._start = env.action_repeat / _MEAN_PAUSE
        self._actions = np.zeros(len(mask), np.int64)  # left of each row's burst
        self._decisions = np.zeros(len(mask), np.int64)  # left of its present action
        self._held = np.zeros_like(mask)

    def __call__(self, action: NDArray[np.float32], progress: float) -> NDArray[np.float32]:
        """The actions that are taken in place of the given ones, both `[N, A]`.

        Args:
            action: the agent's.
            progress: share of training that is done, in [0, 1].
        """
        exploring = round(self._share * (1 - progress) * self._envs)
        if not exploring:
            return action
        taken = action.copy()
        for row in np.flatnonzero(self._row >= self._envs - exploring):
            if self._decisions[row] == 0:
                self._next(row)
            if self._decisions[row]:
                self._decisions[row] -= 1
                taken[row] = self._held[row]
        return taken

    def _next(self, row: np.intp) -> None:
        """The next action of the row's burst, a new burst, or none."""
        random = self._random
        if self._actions[row]:
            self._held[row] *= -1
        elif random.random() < self._start:
            signs = random.choice(np.array([-1, 1], np.float32), self._mask.shape[1])
            self._held[row] = signs * self._mask[row]
            self._actions[row] = random.integers(_FEWEST, _MOST + 1)
        else:
            return
        self._actions[row] -= 1
        self._decisions[row] = random.integers(self._shortest, self._longest + 1)
