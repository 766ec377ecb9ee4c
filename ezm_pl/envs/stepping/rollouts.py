"""Returns of a uniform-random policy, to set beside the published ones."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ezm_pl.envs.core import positive_int
from ezm_pl.envs.registry import Backend
from ezm_pl.envs.stepping.vector import Mode, MultiTaskVectorEnv


def random_returns(
    tasks: Sequence[str],
    episodes: int,
    seed: int,
    mode: Mode = "auto",
    action_repeat: int = 1,
    backend: Backend = "auto",
) -> dict[str, NDArray[np.float64]]:
    """Returns of `episodes` full episodes per task under actions drawn uniformly from [-1, 1].

    One environment per task and episode, each run to its first end: short episodes are not
    over-counted, as they would be if whichever ended first were taken. Falls end an episode, as in the
    published figures.

    Args:
        tasks: names. episodes: E, of each. seed: of environments and actions.
        mode: as in `MultiTaskVectorEnv`.
        action_repeat: control steps that an action is held for.
        backend: `humanoid_bench` measures the original package's tasks instead.

    Returns:
        Task -> returns [E].
    """
    each = positive_int("episodes", episodes)
    results: dict[str, NDArray[np.float64]] = {}
    for index, task in enumerate(tasks):
        # Task by task: a task whose episodes end early does not go on beside one whose do not.
        rng = np.random.default_rng([seed, index])
        env = MultiTaskVectorEnv(
            [task],
            num_envs=each,
            seed=seed + index,
            protocol="humanoidbench",
            mode=mode,
            action_repeat=action_repeat,
            backend=backend,
        )
        try:
            env.reset()
            running, total = np.ones(each, bool), np.zeros(each)
            while running.any():
                actions = rng.uniform(-1, 1, (each, env.sizes.action_size))
                _, reward, terminated, truncated, _ = env.step(actions)
                total += np.where(running, reward, 0.0)
                running &= ~(terminated | truncated)
        finally:
            env.close()
        results[task] = total
    return results
