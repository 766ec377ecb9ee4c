"""Environments are saved and restored exactly, bit for bit, on every registered task."""

from __future__ import annotations

import pickle
from typing import Any

import gymnasium
import numpy as np
import pytest

import ezm_pl.envs as envs
from ezm_pl.envs.core import ControlEnv
from ezm_pl.spec.tasks import DMC, HUMANOID_BENCH

STEPS = 30
GYM = ("gym:Humanoid-v5", "gym:Hopper-v5", "gym:Pendulum-v1")


def made(task: str, **settings: Any) -> ControlEnv:
    env = envs.make(task, **settings).unwrapped
    assert isinstance(env, ControlEnv)
    return env


def rollout(env: ControlEnv, seed: int) -> list[Any]:
    """Steps and whatever resets come with them: observations, rewards, flags, reward terms, generator."""
    rng = np.random.default_rng(seed)
    seen: list[Any] = []
    for step in range(STEPS):
        # Small actions at first, so that some tasks last; large ones later, so that some end.
        scale = 0.3 if step < STEPS // 2 else 1.0
        obs, reward, terminated, truncated, info = env.step(
            scale * rng.uniform(-1, 1, env.action_space.shape)
        )
        seen.append((obs.tobytes(), reward, terminated, truncated, info["fell"], info["reward_terms"]))
        if terminated or truncated:
            seen.append(env.reset()[0].tobytes())
    seen.append(env.np_random.random())
    return seen


@pytest.mark.parametrize("task", [*HUMANOID_BENCH, *DMC, *GYM])
def test_a_restored_environment_continues_bit_for_bit(task: str) -> None:
    env, other = made(task, seed=0, episode_steps=24), made(task, seed=1, episode_steps=24)
    env.reset()
    rollout(env, 1)
    state = env.state()
    observation = env._observation()
    ahead = rollout(env, 2)
    # As often as wanted, from disk, and into an environment that has lived otherwise.
    other.reset()
    rollout(other, 4)
    for target, saved in ((env, state), (other, pickle.loads(pickle.dumps(state)))):
        np.testing.assert_array_equal(target.restore(saved), observation)
        assert target.state().elapsed == state.elapsed
        assert rollout(target, 2) == ahead
    env.close()
    other.close()


def test_what_cannot_be_restored_is_one_clear_error() -> None:
    env = made("h1-walk")
    with pytest.raises(gymnasium.error.ResetNeeded, match="reset"):
        env.state()
    for one, another in (("h1-walk", "h1-sit_hard"), ("gym:Hopper-v5", "gym:HalfCheetah-v5")):
        env, other = made(one), made(another, seed=0)
        other.reset()
        with pytest.raises(ValueError, match="another task's"):
            env.restore(other.state())
