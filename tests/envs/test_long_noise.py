"""10,000 control steps of noise at the action limits: MuJoCo warns of nothing, every number is finite."""

from __future__ import annotations

import os

import numpy as np
import pytest

import ezm_pl.envs as envs
from ezm_pl.envs.robots.humanoid import HumanoidEnv
from ezm_pl.spec.tasks import HUMANOID_BENCH

STEPS = int(os.environ.get("EZM_NOISE_STEPS", "10000"))


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("task", HUMANOID_BENCH)
def test_noise_at_the_limits_never_diverges(task: str) -> None:
    env = envs.make(task, protocol="ezm", seed=0)
    simulation = env.unwrapped
    assert isinstance(simulation, HumanoidEnv)
    rng = np.random.default_rng(0)
    env.reset()
    for _ in range(STEPS):
        obs, reward, terminated, truncated, info = env.step(rng.choice([-1.0, 1.0], env.action_space.shape))
        assert np.isfinite(obs).all() and np.isfinite(reward)
        assert not info["diverged"] and not terminated
        assert not any(warning.number for warning in simulation.data.warning)
        if truncated:
            env.reset()
    env.close()
