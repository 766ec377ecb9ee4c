"""The original HumanoidBench package behind the same door, where somebody has installed it.

`humanoid_bench` (Sferrazza et al., MIT) is not on PyPI; it pins old versions of MuJoCo, gymnasium and
more, so it lives in an environment of its own. Everything it offers as `<robot>-<task>-v0` can be made.
"""

from __future__ import annotations

import importlib
import importlib.util
import math
from typing import Any

import numpy as np

from ezm_pl.envs.core import ControlEnv, ControlStep, FloatArray, Observation, Protocol
from ezm_pl.spec.tasks import nearest

PACKAGE = "humanoid_bench"
NOT_TERMS = frozenset({"TimeLimit.truncated", "episode"})


class HumanoidBenchUnavailable(RuntimeError):
    """The original package is not installed here, or does not start."""


def available() -> bool:
    """Whether the original package is installed (it may still fail to start)."""
    return importlib.util.find_spec(PACKAGE) is not None


def _registry() -> dict[str, Any]:
    """gymnasium's registry with the original tasks in it."""
    if not available():
        raise HumanoidBenchUnavailable(
            "backend 'humanoid_bench' needs the package humanoid_bench, which is not installed here; "
            "use backend 'builtin', or see github.com/carlosferrazza/humanoid-bench"
        )
    try:
        importlib.import_module(PACKAGE)
    except Exception as error:  # its pins make it fail in many ways, which all mean the same here
        raise HumanoidBenchUnavailable(f"humanoid_bench does not start: {error!r}") from error
    import gymnasium

    return dict(gymnasium.registry)


class OriginalEnv(ControlEnv):
    """A task of the original package. Settings are `ControlEnv`'s.

    Args:
        task: `<robot>-<task>`, such as `h1touch-cube`.

    Raises:
        HumanoidBenchUnavailable: the package is not installed, or does not start.
        ValueError: it has no such task.
    """

    def __init__(
        self,
        task: str,
        *,
        protocol: Protocol = "humanoidbench",
        seed: int | None = None,
        render_mode: str | None = None,
        action_repeat: int = 1,
        episode_steps: int | None = None,
    ) -> None:
        registry = _registry()
        if f"{task}-v0" not in registry:
            names = [name.removesuffix("-v0") for name in registry]
            raise ValueError(f"humanoid_bench has no task {task!r}{nearest(task, names)}")
        import gymnasium

        self.task = task
        spec = registry[f"{task}-v0"]
        # Its own render_mode of None breaks it; frames cost nothing until they are asked for.
        self._env: Any = gymnasium.make(f"{task}-v0", render_mode=render_mode or "rgb_array").unwrapped
        super().__init__(
            observation_size=int(np.prod(self._env.observation_space.shape or ())),
            action_size=int(np.prod(self._env.action_space.shape or ())),
            protocol=protocol,
            seed=seed,
            render_mode=render_mode,
            action_repeat=action_repeat,
            episode_steps=spec.max_episode_steps if episode_steps is None else episode_steps,
            frames_per_second=50,
        )
        self._last = np.zeros(self.observation_space.shape or (), np.float32)

    def _start_episode(self, reseeded: bool) -> None:
        if reseeded:
            seed = int(self.np_random.integers(2**31))
            # Some of its tasks draw from numpy's global generator: seed it, and put it back.
            state = np.random.get_state()  # noqa: NPY002
            np.random.seed(seed)  # noqa: NPY002
            observation, _ = self._env.reset(seed=seed)
            np.random.set_state(state)  # noqa: NPY002
        else:
            observation, _ = self._env.reset()
        self._last = np.asarray(observation, np.float32)

    def _control_step(self, action: FloatArray) -> ControlStep:
        observation, reward, terminated, _, info = self._env.step(action.astype(np.float32))
        if not (math.isfinite(reward) and np.isfinite(observation).all()):
            return ControlStep(0.0, {"per_timestep_reward": 0.0}, diverged=True)
        self._last = np.asarray(observation, np.float32)
        terms = {
            name: float(value)
            for name, value in info.items()
            if name not in NOT_TERMS and np.ndim(value) == 0 and not isinstance(value, str)
        }
        return ControlStep(float(reward), terms, fell=bool(terminated))

    def _observation(self) -> Observation:
        return self._last.copy()

    def render(self) -> Any:
        """A frame [H, W, 3] uint8, or None without `render_mode`."""
        return None if self.render_mode is None else self._env.render()

    def close(self) -> None:
        self._env.close()
