"""The original HumanoidBench package behind the same door, where somebody has installed it.

`humanoid_bench` (Sferrazza et al., MIT) is not on PyPI. It pins old versions of MuJoCo and gymnasium; put
on the path of this package's environment, without its pins, it starts here all the same, because the
adapter takes out of its tables what today's MuJoCo has dropped. Everything it offers as
`<robot>-<task>-v0` can be made, if it has a model of it.
"""

from __future__ import annotations

import copy
import importlib
import importlib.util
import math
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Unpack

import mujoco
import numpy as np

from ezm_pl.envs.core import PLAIN, ControlStep, FloatArray, Settings, physics_state, restore_physics
from ezm_pl.envs.wrapped import WrappedEnv, diverged
from ezm_pl.spec.errors import nearest

PACKAGE = "humanoid_bench"
NOT_TERMS = frozenset({"TimeLimit.truncated", "episode"})
LOWER_ROBOT = "g1"
"""Its tasks lower the package's module-wide heights for every robot of the process, once and for all."""

_global_generator = threading.Lock()


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
        _drop_fields_that_are_gone()
    except Exception as error:  # its pins make it fail in many ways, which all mean the same here
        raise HumanoidBenchUnavailable(f"humanoid_bench does not start: {_line(error)}") from error
    import gymnasium

    prefix = f"{PACKAGE}."
    return {
        name: spec
        for name, spec in gymnasium.registry.items()
        if isinstance(spec.entry_point, str) and spec.entry_point.startswith(prefix)
    }


def _drop_fields_that_are_gone() -> None:
    """Takes fields that MuJoCo has dropped since 3.1.6 out of the package's tables of all fields.

    It looks every one of them up when an environment is made, and uses none of those.
    """
    tables = importlib.import_module(f"{PACKAGE}.dmc_deps.dmc_sizes").array_sizes
    for table, struct in (("mjmodel", mujoco.MjModel), ("mjdata", mujoco.MjData)):
        for field in [field for field in tables[table] if not hasattr(struct, field)]:
            del tables[table][field]


def _line(error: Exception) -> str:
    """An exception in one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


_robots_here: set[str] = set()


def _check_robots(task: str) -> None:
    """Refuses robots that spoil each other's rewards in one process."""
    robot = task.split("-", 1)[0]
    lower = robot == LOWER_ROBOT
    if any((other == LOWER_ROBOT) != lower for other in _robots_here):
        raise ValueError(
            f"humanoid_bench cannot have {task!r} in one process with tasks of {', '.join(_robots_here)}: "
            "making a g1 task changes the heights that all its rewards are computed from"
        )
    _robots_here.add(robot)


@contextmanager
def _kept_generator(seed: int) -> Iterator[None]:
    """Seeds numpy's global generator, which most of its resets draw from, and puts it back afterwards."""
    with _global_generator:
        state = np.random.get_state()  # noqa: NPY002
        try:
            np.random.seed(seed)  # noqa: NPY002
            yield
        finally:
            np.random.set_state(state)  # noqa: NPY002


def _made(task: str, render_mode: str | None) -> Any:
    """The package's own environment, without gymnasium's wrappers."""
    import gymnasium

    # Without a render mode it needs no GL, but releases before April 2025 cannot do without.
    reason = ""
    for mode in (render_mode,) if render_mode else (None, "rgb_array"):
        try:
            return gymnasium.make(f"{task}-v0", render_mode=mode).unwrapped
        except Exception as error:  # noqa: BLE001 (whatever its versions do not agree on)
            if isinstance(error, OSError) and "does not exist" in str(error):
                raise ValueError(f"humanoid_bench has no model for {task!r}: {_line(error)}") from None
            reason = reason or _line(error)
    raise HumanoidBenchUnavailable(f"humanoid_bench does not start {task!r}: {reason}")


class OriginalEnv(WrappedEnv):
    """A task of the original package. Settings are `ControlEnv`'s.

    Args:
        task: `<robot>-<task>`, such as `h1touch-cube`.

    Raises:
        HumanoidBenchUnavailable: the package is not installed, or does not start.
        ValueError: it has no such task, or none for this robot, or robots that it cannot mix.
    """

    def __init__(self, task: str, **settings: Unpack[Settings]) -> None:
        registry = _registry()
        if f"{task}-v0" not in registry:
            names = [name.removesuffix("-v0") for name in registry]
            raise ValueError(f"humanoid_bench has no task {task!r}{nearest(task, names)}")
        _check_robots(task)
        env = _made(task, settings.get("render_mode"))
        super().__init__(
            task,
            env,
            observation_shape=env.observation_space.shape,
            action_shape=env.action_space.shape,
            full_episode_steps=registry[f"{task}-v0"].max_episode_steps,
            frames_per_second=50,
            **settings,
        )
        # Some of its tasks settle only with their first reset, and some build each reset on the last one's:
        # let the first be over, and start every episode from what it left.
        with _kept_generator(0):
            self._env.reset(seed=0)
        self._fresh = copy.deepcopy(self._task_side())

    def _task_side(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self._env.task).items() if isinstance(value, PLAIN)}

    def _saved(self) -> dict[str, Any]:
        return {
            "physics": physics_state(self._env.model, self._env.data),
            "bodies": self._env.model.body_pos.copy(),  # some of its tasks move a target there
            "task": self._task_side(),
            "observation": self._last,
        }

    def _load(self, saved: dict[str, Any]) -> None:
        self._env.model.body_pos[:] = saved["bodies"]
        restore_physics(self._env.model, self._env.data, saved["physics"])
        vars(self._env.task).update(saved["task"])
        self._last = saved["observation"]

    def _start_episode(self, reseeded: bool) -> None:
        seed = int(self.np_random.integers(2**31))
        vars(self._env.task).update(copy.deepcopy(self._fresh))
        with _kept_generator(seed):
            self._env.reset(seed=seed)
        # Some of its resets move things after the observation's positions have been computed.
        mujoco.mj_forward(self._env.model, self._env.data)
        self._read(self._env.task.get_obs())

    def _control_step(self, action: FloatArray) -> ControlStep:
        observation, reward, terminated, _, info = self._env.step(action.astype(np.float32))
        if not (math.isfinite(reward) and self._read(observation)):
            return diverged()
        terms = {
            name: float(value)
            for name, value in info.items()
            if name not in NOT_TERMS and np.ndim(value) == 0 and not isinstance(value, str)
        }
        return ControlStep(float(reward), terms, fell=bool(terminated))
