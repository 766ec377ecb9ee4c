"""A run of padded environments that step together: what a thread or a worker process works on."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Box
from gymnasium.spaces import Dict as DictSpace
from numpy.typing import NDArray

from ezm_pl.envs.registry import TaskSizes, make

Batch = dict[str, NDArray[Any]]
"""What a group says of a step: the arrays of `EnvGroup`'s observation."""


class EnvGroup(gymnasium.Env[dict[str, NDArray[Any]], NDArray[np.float32]]):
    """A run of R padded environments that step and reset together, each on its own.

    To `AsyncVectorEnv` it looks like one environment that never ends: everything per row travels in
    the observation, a dict of `obs` and `final_obs` [R, O] float32, `reward` and
    `reward_before_fall` [R] float32, `terminated`, `truncated`, `fell`,
    `diverged` [R] int8 and `steps` [R] int32.

    Args:
        tasks: the task of each row [R].
        seeds: the seed of each row.
        first: which row of the whole the group starts at.
        task_sizes: what to pad to.
        settings: keyword arguments of `make`.
        without_quirks: the tasks that are made with `quirks=False`.
    """

    def __init__(
        self,
        tasks: Sequence[str],
        seeds: Sequence[int],
        first: int,
        task_sizes: TaskSizes,
        settings: dict[str, Any],
        without_quirks: Collection[str] = (),
    ) -> None:
        self._envs = [
            make(task, seed=seed, quirks=task not in without_quirks, **settings)
            for task, seed in zip(tasks, seeds, strict=True)
        ]
        self._first = first
        self.metadata = dict(self._envs[0].metadata)
        self._shapes = [(_length(env.observation_space), _length(env.action_space)) for env in self._envs]
        spaces = group_spaces(len(tasks), task_sizes)
        self.observation_space, self.action_space = spaces  # type: ignore[assignment]
        self.out: dict[str, NDArray[Any]] = {
            name: np.zeros(part.shape or (), part.dtype) for name, part in spaces[0].spaces.items()
        }

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
        """Resets every row; `options={"seeds": [N]}` (of all groups' rows) re-seeds; `seed` is not used."""
        given = (options or {}).get("seeds")
        rows = slice(self._first, self._first + len(self._envs))
        seeds = [None] * len(self._envs) if given is None else given[rows]
        for array in self.out.values():
            array[...] = 0
        for row, (env, (width, _)) in enumerate(zip(self._envs, self._shapes, strict=True)):
            self.out["obs"][row, :width] = env.reset(seed=seeds[row])[0]
        self.out["final_obs"][...] = self.out["obs"]
        return self.out, {}

    def step(
        self, action: NDArray[np.float32]
    ) -> tuple[dict[str, NDArray[Any]], float, bool, bool, dict[str, Any]]:
        """Steps every row under `action` [R, A] and resets those that ended."""
        for row in range(len(self._envs)):
            self.step_row(row, action[row])
        return self.out, 0.0, False, False, {}

    def step_row(self, row: int, action: NDArray[np.float32]) -> None:
        """Steps one row under `action` [A] and resets it if it ended. Rows may be stepped by any thread."""
        out, env, (width, actions) = self.out, self._envs[row], self._shapes[row]
        obs, reward, terminated, truncated, info = env.step(action[:actions])
        out["final_obs"][row, :width] = obs
        out["reward"][row] = reward
        out["terminated"][row] = terminated
        out["truncated"][row] = truncated
        out["fell"][row] = info["fell"]
        out["reward_before_fall"][row] = info["reward_before_fall"]
        out["diverged"][row] = info["diverged"]
        out["steps"][row] = info["steps"]
        if terminated or truncated:
            obs, _ = env.reset()
        out["obs"][row, :width] = obs

    def frames(self) -> list[NDArray[np.uint8]]:
        """A picture of each row."""
        return [np.asarray(env.render(), np.uint8) for env in self._envs]

    def set_episode_steps(self, steps: int | None) -> None:
        """Changes every row's time limit from its next reset on."""
        for env in self._envs:
            env.unwrapped.set_episode_steps(steps)  # type: ignore[attr-defined]

    def close(self) -> None:
        for env in self._envs:
            env.close()


def _length(space: gymnasium.Space[Any]) -> int:
    assert space.shape is not None and len(space.shape) == 1
    return space.shape[0]


def group_spaces(rows: int, task_sizes: TaskSizes) -> tuple[DictSpace, Box]:
    """The spaces of an `EnvGroup`'s observation and action: R rows, O and A wide."""
    width = task_sizes.obs_size

    def box(shape: tuple[int, ...], dtype: Any) -> Box:
        if np.issubdtype(dtype, np.integer):
            limits = np.iinfo(dtype)
            return Box(limits.min, limits.max, shape, dtype)
        return Box(-np.inf, np.inf, shape, dtype)

    flags = {name: box((rows,), np.int8) for name in ("terminated", "truncated", "fell", "diverged")}
    observation = DictSpace(
        {
            "obs": box((rows, width), np.float32),
            "final_obs": box((rows, width), np.float32),
            "reward": box((rows,), np.float32),
            "reward_before_fall": box((rows,), np.float32),
            "steps": box((rows,), np.int32),
            **flags,
        }
    )
    return observation, Box(-1.0, 1.0, (rows, task_sizes.action_size), np.float32)
