"""Environments: suites of tasks, the robots, padding and masks, vectorised stepping.

Importing this package registers the built-in HumanoidBench tasks with gymnasium, as
`ezm_pl/<task>-v0`; nothing is compiled until an environment is made.
"""

import gymnasium

from ezm_pl.envs import gl_settings  # noqa: F401 - first: it imports MuJoCo, whatever MUJOCO_GL says
from ezm_pl.envs.original import HumanoidBenchUnavailable
from ezm_pl.envs.registry import TaskSizes, check_tasks, make, register, sizes
from ezm_pl.envs.rendering import RenderingUnavailable, rendering_available
from ezm_pl.envs.stepping.rollouts import random_returns
from ezm_pl.envs.stepping.vector import MultiTaskVectorEnv
from ezm_pl.spec.tasks import HUMANOID_BENCH

__all__ = [
    "HumanoidBenchUnavailable",
    "MultiTaskVectorEnv",
    "RenderingUnavailable",
    "TaskSizes",
    "check_tasks",
    "make",
    "random_returns",
    "register",
    "rendering_available",
    "sizes",
]

for _task in HUMANOID_BENCH:
    if f"ezm_pl/{_task}-v0" not in gymnasium.registry:
        # The time limit is the environment's own, so that it can be changed: none is given here.
        gymnasium.register(
            f"ezm_pl/{_task}-v0", entry_point="ezm_pl.envs.registry:make", kwargs={"task": _task}
        )
