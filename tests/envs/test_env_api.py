"""One environment at a time: the door, gymnasium's contract, protocols, seeds, restore, errors."""

from __future__ import annotations

import gc
import itertools
import logging
import subprocess
import sys
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium
import mujoco
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

import ezm_pl.envs as envs
from ezm_pl.envs.core import ControlEnv, _on_warning
from ezm_pl.envs.robots.humanoid import HumanoidEnv, Task, Terms
from ezm_pl.envs.tasks.locomotion import Stand
from ezm_pl.envs.tasks.scene import BOX, add_solid
from ezm_pl.spec.tasks import HUMANOID_BENCH

HUMANOIDS = list(HUMANOID_BENCH)
DMC = ["dmc-cartpole-balance", "dmc-walker-walk"]


@pytest.fixture(scope="module", params=HUMANOIDS)
def humanoid(request: pytest.FixtureRequest) -> Iterator[str]:
    """A task at a time; its model lasts from one of its tests to the next."""
    env = envs.make(request.param)
    yield request.param
    env.close()


def rollout(env: gymnasium.Env[Any, Any], seed: int, steps: int = 20) -> list[Any]:
    rng = np.random.default_rng(7)
    seen: list[Any] = [env.reset(seed=seed)[0]]
    for _ in range(steps):
        obs, reward, terminated, truncated, _ = env.step(rng.uniform(-1, 1, env.action_space.shape))
        seen += [obs, reward, terminated, truncated]
    return seen


@pytest.mark.parametrize("task", DMC)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_gymnasiums_checker_passes(task: str) -> None:
    env = envs.make(task, episode_steps=20)
    check_env(env, skip_render_check=True)
    env.close()


def test_sizes_are_the_tables(humanoid: str) -> None:
    facts = HUMANOID_BENCH[humanoid]
    env = gymnasium.make(f"ezm_pl/{humanoid}-v0")
    simulation = env.unwrapped
    assert isinstance(simulation, HumanoidEnv)
    obs, _ = env.reset(seed=0)
    assert obs.shape == (facts.obs_size,) and obs.dtype == np.float32
    assert env.action_space.shape == (facts.action_size,)
    assert (simulation.model.nq, simulation.model.nv) == (facts.nq, facts.nv)
    assert simulation.episode_steps == facts.episode_steps
    assert np.linalg.norm(obs[3:7]) == pytest.approx(1, abs=1e-6)
    assert env.metadata["render_fps"] == 50
    env.close()


@pytest.mark.parametrize("task", ["h1-walk", "h1-maze", *DMC])
def test_a_seed_gives_the_same_episode(task: str) -> None:
    runs = []
    for kwargs in ({}, {"seed": 99}):
        env = envs.make(task, **kwargs)
        first = rollout(env, 3)
        runs += [first, rollout(env, 3)]
        assert not np.array_equal(env.reset()[0], first[0])
        env.close()
    for a, b in itertools.pairwise(runs):
        for x, y in zip(a, b, strict=True):
            np.testing.assert_array_equal(x, y)
    np.testing.assert_array_equal(envs.make(task, seed=5).reset()[0], envs.make(task).reset(seed=5)[0])


def test_a_seed_gives_the_same_episode_on_every_task(humanoid: str) -> None:
    a, b = envs.make(humanoid), envs.make(humanoid)
    rollout(b, 1, steps=1)
    for seed in (3, 4):
        for x, y in zip(rollout(a, seed, steps=3), rollout(b, seed, steps=3), strict=True):
            np.testing.assert_array_equal(x, y)


def test_a_fall_ends_the_episode_in_one_protocol_only() -> None:
    fell = {}
    for protocol in ("humanoidbench", "ezm"):
        env = envs.make("h1-pole", protocol=protocol, seed=0)  # type: ignore[arg-type]
        env.reset()
        rng = np.random.default_rng(0)
        steps, before = 0, 0.0
        while True:
            _, reward, terminated, truncated, info = env.step(rng.choice([-1.0, 1.0], 19))
            assert 0 <= reward <= 1 and not truncated
            steps += 1
            before += info["reward_before_fall"]
            if info["fell"]:
                break
        assert terminated is (protocol == "humanoidbench")
        fell[protocol] = steps, before
    assert fell["humanoidbench"] == fell["ezm"]


def test_time_limit_and_action_repeat() -> None:
    env = envs.make("h1-stand", protocol="ezm", action_repeat=4, episode_steps=10, seed=0)
    once = envs.make("h1-stand", protocol="ezm", episode_steps=10, seed=0)
    assert isinstance(env.unwrapped, ControlEnv)
    np.testing.assert_array_equal(env.reset()[0], once.reset()[0])
    action = np.full(19, 0.1)
    for held, last in ((4, False), (4, False), (2, True)):
        obs, reward, terminated, truncated, info = env.step(action)
        parts = [once.step(action) for _ in range(held)]
        assert info["steps"] == held and truncated is last and not terminated
        assert reward == pytest.approx(sum(float(part[1]) for part in parts))
        np.testing.assert_array_equal(obs, parts[-1][0])
        assert parts[-1][3] is last
    env.unwrapped.set_episode_steps(3)
    assert env.unwrapped.episode_steps == 10
    env.reset()
    assert env.unwrapped.episode_steps == 3
    _, _, _, truncated, info = env.step(action)
    assert truncated and info["steps"] == 3


def test_restore_continues_as_if_never_left() -> None:
    env = envs.make("h1-maze", seed=0)
    simulation = env.unwrapped
    assert isinstance(simulation, HumanoidEnv)
    env.reset()
    actions = np.random.default_rng(0).uniform(-1, 1, (15, 19))
    for action in actions[:5]:
        env.step(action)
    data, task = simulation.data, simulation.task
    saved = data.qpos.copy(), data.qvel.copy(), data.qacc_warmstart.copy()
    internal = {"maze_stage": [task.stage], "move_direction": [*task.heading, 0]}  # type: ignore[attr-defined]
    ahead = [env.step(action) for action in actions[5:]]
    obs = simulation.restore_recorded(*saved, internal)
    np.testing.assert_array_equal(obs[:26], saved[0].astype(np.float32))
    for action, (obs, reward, *_) in zip(actions[5:], ahead, strict=True):
        again, again_reward, *_ = env.step(action)
        np.testing.assert_array_equal(again, obs)
        assert again_reward == reward
    with pytest.raises(ValueError, match=r"qpos has shape \(3,\)"):
        simulation.restore_recorded(np.zeros(3), np.zeros(25))
    with pytest.raises(ValueError, match="warmstart"):
        simulation.restore_recorded(*saved[:2], np.zeros(2))


def test_restore_needs_no_reset_before() -> None:
    env = envs.make("h1-walk", seed=0)
    simulation = env.unwrapped
    assert isinstance(simulation, HumanoidEnv)
    simulation.restore_recorded(simulation.initial_qpos, np.zeros(25))
    assert np.isfinite(env.step(np.zeros(19))[1])


@pytest.mark.parametrize("task", ["h1-walk", "h1hand-reach", "dmc-walker-walk"])
def test_bad_actions_are_one_clear_error(task: str) -> None:
    env = envs.make(task, seed=0)
    size = env.action_space.shape[0]  # type: ignore[index]
    with pytest.raises(gymnasium.error.ResetNeeded, match="reset"):
        env.step(np.zeros(size))
    env.reset()
    with pytest.raises(ValueError, match=rf"shape \({size - 1},\), this task takes \({size},\)"):
        env.step(np.zeros(size - 1))
    bad = np.zeros(size)
    bad[2] = np.nan
    with pytest.raises(ValueError, match="NaN"):
        env.step(bad)
    env.reset(seed=1)
    clipped, *_ = env.step(np.full(size, 1e9))
    env.reset(seed=1)
    np.testing.assert_array_equal(clipped, env.step(np.ones(size))[0])


def test_diverging_physics_truncates_with_finite_numbers() -> None:
    env = envs.make("h1-walk", protocol="ezm", seed=0)
    simulation = env.unwrapped
    assert isinstance(simulation, HumanoidEnv)
    env.reset()
    env.step(np.zeros(19))
    before = simulation.data.qpos.copy()
    simulation.data.qvel[8] = 1e12
    with np.errstate(all="ignore"):
        obs, reward, terminated, truncated, info = env.step(np.zeros(19))
    assert truncated and not terminated and info["diverged"]
    assert np.isfinite(obs).all() and np.isfinite(reward)
    np.testing.assert_array_equal(simulation.data.qpos, before)
    assert np.isfinite(env.reset()[0]).all()
    assert not env.step(np.zeros(19))[4]["diverged"]


def test_diverging_physics_prints_and_writes_nothing(tmp_path: Path) -> None:
    """In a process of its own, without dm_control, which would take MuJoCo's warnings for itself."""
    program = """
import sys
import numpy as np
import ezm_pl.envs as envs
env = envs.make("h1-walk", protocol="ezm", seed=0)
env.reset()
env.step(np.zeros(19))
env.unwrapped.data.qvel[8] = 1e12
with np.errstate(all="ignore"):
    print(env.step(np.zeros(19))[4]["diverged"], "dm_control" in sys.modules)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert (done.stdout, done.stderr) == ("True False\n", "")
    assert not list(tmp_path.iterdir())


def test_other_warnings_of_mujoco_are_seen(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        _on_warning("Nan, Inf or huge value in QACC at DOF 0. The simulation is unstable. Time = 0.0000.")
        _on_warning("Contact buffer is full. Time = 0.0000.")
    assert [record.getMessage() for record in caplog.records] == [
        "MuJoCo: Contact buffer is full. Time = 0.0000."
    ]


def test_noise_at_the_limits_stays_finite(humanoid: str) -> None:
    env = envs.make(humanoid, protocol="ezm", seed=0)
    rng = np.random.default_rng(0)
    env.reset()
    for _ in range(100):
        obs, reward, terminated, _, info = env.step(rng.choice([-1.0, 1.0], env.action_space.shape))
        assert np.isfinite(obs).all() and np.isfinite(reward)
        assert not info["diverged"] and not terminated
    assert info["reward_terms"]["per_timestep_reward"] == reward
    assert all(isinstance(value, float) for value in info["reward_terms"].values())


def test_unknown_names_and_settings_are_one_clear_line() -> None:
    with pytest.raises(ValueError, match="did you mean 'h1-walk'"):
        envs.make("h1-wlak")
    with pytest.raises(ValueError, match="did you mean 'dmc-walker-run'"):
        envs.make("dmc-walker-runn")
    with pytest.raises(ValueError, match="backend must be one of"):
        envs.make("h1-walk", backend="mujoco")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="protocol must be one of"):
        envs.make("h1-walk", protocol="ez")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="render_mode must be"):
        envs.make("h1-walk", render_mode="human")
    for name in ("action_repeat", "episode_steps"):
        for value in (0, -1, 2.5, True):
            with pytest.raises(ValueError, match=f"{name} must be a whole number of at least 1"):
                envs.make("h1-walk", **{name: value})  # type: ignore[arg-type]


def test_dm_control_pays_and_ends_as_its_own() -> None:
    env = envs.make("dmc-cartpole-balance", episode_steps=30, seed=0)
    env.reset()
    for step in range(1, 31):
        obs, reward, terminated, truncated, info = env.step(np.zeros(1))
        assert obs.shape == (5,) and 0 <= reward <= 1 and not info["fell"] and not terminated
        assert truncated is (step == 30)
    assert isinstance(env.unwrapped, ControlEnv)
    assert envs.make("dmc-cartpole-balance").unwrapped.episode_steps == 1000  # type: ignore[attr-defined]


def test_random_returns_are_near_the_published() -> None:
    returns = envs.random_returns(["h1-run", "h1-walk"], episodes=10, seed=0)
    assert list(returns) == ["h1-run", "h1-walk"]
    for task, values in returns.items():
        assert values.shape == (10,)
        assert abs(values.mean() - HUMANOID_BENCH[task].random_score) <= 3
    again = envs.random_returns(["h1-run"], episodes=10, seed=0, mode="sync")
    np.testing.assert_array_equal(again["h1-run"], returns["h1-run"])


def test_a_newcomers_task_is_short() -> None:
    class Reach(Task):
        """Bring the left hand to a box."""

        @classmethod
        def build(cls, spec: mujoco.MjSpec) -> None:
            add_solid(spec.worldbody.add_body(name="box", pos=[0.5, 0, 1]), BOX, (0.1, 0.1, 0.1))

        def reward(self) -> tuple[float, Terms]:
            gap = float(np.linalg.norm(self.robot.left_hand - self.sim.data.body("box").xpos))
            return 1 - gap, {"gap": gap}

        def fallen(self) -> bool:
            return self.robot.height < 0.5

    env = HumanoidEnv("h1", Reach, seed=0)
    env.reset()
    _, reward, _, _, info = env.step(np.zeros(19))
    assert set(info["reward_terms"]) == {"gap", "per_timestep_reward"}
    assert reward == pytest.approx(1 - info["reward_terms"]["gap"])


def test_a_task_is_described(humanoid: str) -> None:
    from ezm_pl.envs import catalogue

    sentence = catalogue.description(humanoid)
    assert sentence[0].isupper() and sentence.endswith(".") and len(sentence) < 110
    family = catalogue.family(humanoid)  # a family is named after its task, but for the first
    assert family == "locomotion" or humanoid.split("-")[1].startswith(family)


def test_environments_of_a_task_share_the_model_as_long_as_there_are_any() -> None:
    class Alone(Stand):
        """A task that no other test has environments of."""

    a, b = HumanoidEnv("h1", Alone), HumanoidEnv("h1", Alone)
    assert a.model is b.model and a.data is not b.data
    model = weakref.ref(a.model)
    del a
    gc.collect()
    assert model() is b.model
    del b
    gc.collect()
    assert model() is None, "50 MB that nobody uses"
