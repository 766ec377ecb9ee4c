"""For people who use only the environments: gymnasium's own ways in, and nothing of training behind them."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.envs.registration import EnvSpec
from gymnasium.utils.env_checker import check_env

import ezm_pl.envs as envs
from ezm_pl.spec.tasks import HUMANOID_BENCH

PROGRAM = """
import sys
import gymnasium
env = gymnasium.make("ezm_pl.envs:ezm_pl/h1-walk-v0")
env.reset(seed=0)
env.step(env.action_space.sample())
import ezm_pl.envs
ezm_pl.envs.random_returns(["h1-walk"], 1, 0)
heavy = {"torch", "mlflow", "lightning", "optuna", "matplotlib", "dm_control"} & set(sys.modules)
sys.exit(f"imported {heavy}" if heavy else 0)
"""


def test_the_environments_need_neither_torch_nor_mlflow() -> None:
    done = subprocess.run([sys.executable, "-W", "error::ImportWarning", "-c", PROGRAM], capture_output=True)
    assert done.returncode == 0, done.stderr.decode()


@pytest.mark.parametrize("task", HUMANOID_BENCH)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_every_task_is_registered_and_passes_the_checker(task: str) -> None:
    env = gymnasium.make(f"ezm_pl/{task}-v0", episode_steps=20)
    assert env.spec is not None and EnvSpec.from_json(env.spec.to_json()) == env.spec
    check_env(env.unwrapped, skip_render_check=True)
    env.close()


@pytest.mark.parametrize("mode", ["sync", "async"])
def test_gymnasiums_vectors(mode: Any) -> None:
    vector = gymnasium.make_vec("ezm_pl/h1-walk-v0", num_envs=2, vectorization_mode=mode, protocol="ezm")
    single = gymnasium.make("ezm_pl/h1-walk-v0", protocol="ezm")
    first, _ = vector.reset(seed=3)
    for row in range(2):
        np.testing.assert_array_equal(single.reset(seed=3 + row)[0], first[row])
    obs, reward, *_, info = vector.step(np.zeros((2, 19), np.float32))
    expected = single.step(np.zeros(19, np.float32))
    np.testing.assert_array_equal(obs[1], expected[0])
    assert reward[1] == expected[1]
    assert info["reward_terms"]["standing"][1] == expected[4]["reward_terms"]["standing"]
    vector.close()


def test_the_seed_is_gymnasiums() -> None:
    env = gymnasium.make("ezm_pl/h1hand-reach-v0")
    env.action_space.seed(4)
    runs = []
    for _ in range(2):
        obs, info = env.reset(seed=11)
        assert env.unwrapped.np_random_seed == 11 and info == {}
        runs.append([obs, *(env.step(np.full(61, 0.1, np.float32))[0] for _ in range(3))])
    np.testing.assert_array_equal(*runs)


def test_the_info_holds_reward_terms_and_success() -> None:
    env = gymnasium.make("ezm_pl/h1-walk-v0", protocol="ezm", episode_steps=30)
    env.unwrapped.success_return = 0.5  # type: ignore[attr-defined]
    total, reached = 0.0, []
    env.reset(seed=0)
    for _ in range(30):
        _, reward, _, _, info = env.step(np.zeros(19, np.float32))
        total += float(reward)
        assert info["success"] is (total >= 0.5)
        assert info["reward_terms"]["per_timestep_reward"] == reward
        reached.append(info["success"])
    assert not reached[0] and reached[-1]
    env.reset()
    assert not env.step(np.zeros(19, np.float32))[4]["success"]
    assert envs.make("h1-walk").unwrapped.success_return == 700  # type: ignore[attr-defined]


@pytest.mark.skipif(not envs.rendering_available()[0], reason=envs.rendering_available()[1])
def test_rendering_modes() -> None:
    assert gymnasium.make("ezm_pl/h1-walk-v0").render_mode is None
    env = gymnasium.make("ezm_pl/h1-walk-v0", render_mode="rgb_array_list")
    env.reset(seed=0)
    for _ in range(3):
        env.step(np.zeros(19, np.float32))
    frames = env.render()
    assert isinstance(frames, list) and [frame.shape for frame in frames] == [(480, 640, 3)] * 4
    env.close()
    with pytest.raises(ValueError, match="render_mode must be"):
        envs.make("h1-walk", render_mode="ansi")
