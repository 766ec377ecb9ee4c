"""dm_control's suite behind the same door: `dmc-<domain>-<task>`.

Source: Tunyasuvunakool et al., "dm_control: Software and Tasks for Continuous Control" (2020).
"""

from __future__ import annotations

import logging
import math
import warnings
from typing import Any, Unpack

import mujoco
import numpy as np
from numpy.typing import NDArray

from ezm_pl.envs import rendering
from ezm_pl.envs.core import PLAIN, ControlStep, FloatArray, Settings, physics_state, restore_physics
from ezm_pl.envs.gl_settings import import_despite_gl
from ezm_pl.envs.wrapped import WrappedEnv, diverged
from ezm_pl.spec.tasks import DMC_EPISODE_STEPS

# dm_control reports its choice of a renderer, and its own models' use of deprecated attributes.
logging.getLogger("absl").setLevel(logging.ERROR)

RESET_MODEL = ("geom_pos", "geom_size", "light_pos", "site_pos", "site_size", "wrap_prm")
"""Fields of the model that the suite's tasks change when an episode starts: targets above all."""


def split_name(name: str) -> tuple[str, str]:
    """`dmc-cartpole-balance` -> (`cartpole`, `balance`)."""
    _, domain, task = name.split("-", 2)
    return domain, task


class DMControlEnv(WrappedEnv):
    """A task of dm_control's suite: observations flattened in dm_control's own key order.

    One control step is dm_control's own (`control_timestep`); a discount of 0 is a termination in
    both protocols; `fell` is always False. Settings are `ControlEnv`'s.

    Args:
        name: `dmc-<domain>-<task>`.
    """

    def __init__(self, name: str, **settings: Unpack[Settings]) -> None:
        with warnings.catch_warnings():
            # It tries GLFW at import, which warns where there is no display; nobody asked to render.
            warnings.simplefilter("ignore")
            try:
                suite = import_despite_gl("dm_control.suite")
            except ImportError as error:
                raise ValueError(
                    f"{name} needs dm_control, which cannot be imported here: {error} "
                    "(it has no wheels for Python 3.13; HumanoidBench's tasks do not need it)"
                ) from None

        # The generator that dm_control draws from is ours: every reset with a seed re-seeds it.
        self._random = np.random.RandomState(0)
        domain, task = split_name(name)
        # The time limit is ControlEnv's, so that it can change and be told from a termination.
        env = suite.load(domain, task, task_kwargs={"random": self._random, "time_limit": math.inf})
        observations, action_spec = env.observation_spec(), env.action_spec()
        self._keys = tuple(observations)
        self._low = np.asarray(action_spec.minimum, np.float64)
        self._range = np.asarray(action_spec.maximum, np.float64) - self._low
        super().__init__(
            name,
            env,
            observation_shape=(sum(math.prod(part.shape) for part in observations.values()),),
            action_shape=action_spec.shape,
            full_episode_steps=DMC_EPISODE_STEPS,
            frames_per_second=1.0 / env.control_timestep(),
            **settings,
        )
        # Not dm_control's own renderer: it settles on a GL when imported, even one that fails.
        self._frames = rendering.Frames(env.physics.model.ptr)

    def _start_episode(self, reseeded: bool) -> None:
        if reseeded:
            self._random.seed(int(self.np_random.integers(2**32)))
        self._read(self._flat(self._env.reset().observation))

    def _control_step(self, action: FloatArray) -> ControlStep:
        from dm_control.rl.control import PhysicsError

        try:
            step = self._env.step(self._low + 0.5 * (action + 1.0) * self._range)
        except PhysicsError:
            return diverged()
        reward = float(step.reward)
        if not (math.isfinite(reward) and self._read(self._flat(step.observation))):
            return diverged()
        return ControlStep(reward, {"reward": reward}, terminal=bool(step.last() and step.discount == 0.0))

    def _flat(self, observation: dict[str, Any]) -> FloatArray:
        return np.concatenate([np.ravel(observation[key]) for key in self._keys])

    def _saved(self) -> dict[str, Any]:
        physics, task = self._env.physics, vars(self._env.task)
        return {
            "physics": physics_state(physics.model.ptr, physics.data.ptr),
            "model": {name: getattr(physics.model, name).copy() for name in RESET_MODEL},
            "task": {name: value for name, value in task.items() if isinstance(value, PLAIN)},
            "random": self._random.get_state(),
            "steps": self._env._step_count,
            "ended": self._env._reset_next_step,
            "observation": self._last,
        }

    def _load(self, saved: dict[str, Any]) -> None:
        physics = self._env.physics
        for name, value in saved["model"].items():
            getattr(physics.model, name)[...] = value
        restore_physics(physics.model.ptr, physics.data.ptr, saved["physics"])
        # dm_control ends a control step with the first half of the next physics step.
        mujoco.mj_step1(physics.model.ptr, physics.data.ptr)
        vars(self._env.task).update(saved["task"])
        self._random.set_state(saved["random"])
        self._env._step_count, self._env._reset_next_step = saved["steps"], saved["ended"]
        self._last = saved["observation"]

    def _frame(self) -> NDArray[np.uint8]:
        return self._frames.draw(self._env.physics.data.ptr, 0)

    def close(self) -> None:
        self._frames.close()
        super().close()
