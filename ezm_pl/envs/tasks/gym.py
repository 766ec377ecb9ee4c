"""Any Gymnasium environment behind the same door: `gym:<id>`, such as `gym:Humanoid-v5`.

Observations and actions must be boxes. Sizes, time limit, seeding and rendering are the environment's own.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, Unpack

import gymnasium
import mujoco
import numpy as np
from gymnasium.spaces import Box
from numpy.typing import NDArray

from ezm_pl.envs import rendering
from ezm_pl.envs.core import PLAIN, ControlStep, FloatArray, Settings
from ezm_pl.envs.wrapped import WrappedEnv, diverged
from ezm_pl.spec.tasks import GYM


def _made(task: str, render_mode: str | None) -> gymnasium.Env[Any, Any]:
    """The environment, without gymnasium's time limit, which is `ControlEnv`'s here.

    Raises:
        ValueError: it cannot be made; in one line.
        RenderingUnavailable: it can, but not to be drawn.
    """
    try:
        # The checker only warns, and its first-step checks cost time.
        mode = {} if render_mode is None else {"render_mode": render_mode}
        return gymnasium.make(task.removeprefix(GYM), max_episode_steps=-1, disable_env_checker=True, **mode)
    except Exception as error:  # somebody else's environment: anything may be wrong with it
        if render_mode is not None:
            _made(task, None).close()
            raise _undrawn(task, error) from error
        raise ValueError(f"task {task!r}: gymnasium cannot make it: {_reason(error)}") from error


def _undrawn(task: str, error: Exception) -> rendering.RenderingUnavailable:
    return rendering.RenderingUnavailable(f"task {task!r} cannot be drawn: {_reason(error)}")


def _reason(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _checked(task: str, env: gymnasium.Env[Any, Any]) -> tuple[Box, Box, int]:
    """Observation space, action space and time limit.

    Raises:
        ValueError: the environment is none that an agent here can learn; in one line.
    """
    observations, actions = env.observation_space, env.action_space
    if not isinstance(observations, Box) or not isinstance(actions, Box):
        raise ValueError(
            f"task {task!r}: its observations are {observations} and its actions {actions}; "
            "only Box spaces can be learned here"
        )
    if not (np.isfinite(actions.low).all() and np.isfinite(actions.high).all()):
        raise ValueError(
            f"task {task!r}: its actions are unbounded; bounds are needed to scale [-1, 1] to them"
        )
    # The environment's own `spec` says that it was made without one.
    limit = None if env.spec is None else gymnasium.spec(env.spec.id).max_episode_steps
    if limit is None:
        raise ValueError(f"task {task!r}: it is registered without a time limit (max_episode_steps)")
    return observations, actions, limit


class GymEnv(WrappedEnv):
    """A Gymnasium environment: observations flattened, actions in [-1, 1] mapped onto its bounds.

    One control step is the environment's own step; its termination ends the episode in both protocols;
    `fell` is always False. Settings are `ControlEnv`'s.

    Args:
        task: `gym:<id>`; `<id>` is what `gymnasium.make` takes, `<module>:<name>` included.

    Raises:
        ValueError: there is no such environment, or one whose spaces or time limit cannot be used.
        RenderingUnavailable: `render_mode` is given and it cannot be drawn.
    """

    def __init__(self, task: str, **settings: Unpack[Settings]) -> None:
        env = _made(task, settings.get("render_mode"))
        observations, actions, limit = _checked(task, env)
        self._low = np.asarray(actions.low, np.float64)
        self._half = 0.5 * (np.asarray(actions.high, np.float64) - self._low)
        self._dtype = actions.dtype
        super().__init__(
            task,
            env,
            observation_shape=observations.shape,
            action_shape=actions.shape,
            full_episode_steps=limit,
            frames_per_second=env.metadata.get("render_fps", 50),
            **settings,
        )

    def _start_episode(self, reseeded: bool) -> None:
        self._read(self._env.reset(seed=self.np_random_seed if reseeded else None)[0])

    def _control_step(self, action: FloatArray) -> ControlStep:
        own = self._low + self._half * (action.reshape(self._low.shape) + 1.0)
        observation, reward, terminated, truncated, _ = self._env.step(own.astype(self._dtype))
        if not (math.isfinite(reward) and self._read(observation)):
            return diverged()
        terms = {"reward": float(reward)}
        return ControlStep(float(reward), terms, terminal=bool(terminated), truncated=bool(truncated))

    def _layers(self) -> Iterator[gymnasium.Env[Any, Any]]:
        """The environment and its wrappers, from the outermost in."""
        env = self._env
        while isinstance(env, gymnasium.Wrapper):
            yield env
            env = env.env
        yield env

    def _physics(self) -> mujoco.MjData | None:
        data = getattr(self._env.unwrapped, "data", None)
        return data if isinstance(data, mujoco.MjData) else None

    def _saved(self) -> dict[str, Any]:
        return {
            "task": self.task,
            "attributes": [
                {name: value for name, value in vars(layer).items() if isinstance(value, PLAIN)}
                for layer in self._layers()
            ],
            "generator": self._env.unwrapped.np_random,
            # All of it: rewards may read what the step before has left, such as centres of mass.
            "physics": self._physics(),
            "observation": self._last,
        }

    def _load(self, saved: dict[str, Any]) -> None:
        if saved["task"] != self.task:
            raise ValueError(f"the state is another task's: {saved['task']!r}, not {self.task!r}")
        for layer, attributes in zip(self._layers(), saved["attributes"], strict=True):
            vars(layer).update(attributes)
        self._env.unwrapped.np_random = saved["generator"]
        data = self._physics()
        if data is not None:
            mujoco.mj_copyData(data, self._env.unwrapped.model, saved["physics"])
        self._last = saved["observation"]

    def _frame(self) -> NDArray[np.uint8]:
        try:
            return super()._frame()
        except Exception as error:  # as above
            raise _undrawn(self.task, error) from error
