"""Rules of single tasks, worked out by hand: what pays, what ends, what resets draw."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from dm_control.utils import rewards as dm_rewards

import ezm_pl.envs as envs
from ezm_pl.envs.robots.humanoid import HumanoidEnv
from ezm_pl.envs.tasks import rewards
from ezm_pl.envs.tasks.bookshelf import Bookshelf


def made(task: str, **settings: Any) -> HumanoidEnv:
    env = envs.make(task, seed=0, **settings).unwrapped
    assert isinstance(env, HumanoidEnv)
    env.reset()
    return env


@pytest.mark.parametrize("sigmoid", ["gaussian", "linear"])
def test_tolerance_is_dm_controls(sigmoid: Any) -> None:
    for x in np.linspace(-4, 4, 33):
        for bounds in ((0.0, 0.0), (-1.0, 0.5), (0.5, math.inf)):
            for margin in (0.0, 0.3, 2.0):
                for at_margin in (0.0, 0.1) if sigmoid == "linear" else (0.1,):
                    expected = dm_rewards.tolerance(x, bounds, margin, sigmoid, at_margin)
                    got = rewards.tolerance(x, *bounds, margin, sigmoid, at_margin)
                    assert got == pytest.approx(expected, abs=1e-12)


def test_small_control_is_the_mean_of_parabolas() -> None:
    forces = np.array([0.0, 5.0, -10.0, 40.0])
    mean = dm_rewards.tolerance(forces, margin=10, value_at_margin=0, sigmoid="quadratic").mean()
    assert rewards.quiet_forces(forces) == pytest.approx((4 + mean) / 5)
    assert forces.tolist() == [0.0, 5.0, -10.0, 40.0]


def test_maze_pays_each_checkpoint_once() -> None:
    env = made("h1-maze")
    bonuses = []
    for x, y in ((0, 0), (3, 0), (3, 6), (6, 6), (6, 6)):
        qpos = env.initial_qpos.copy()
        qpos[:2] = x, y
        internal = {"maze_stage": [len(bonuses)], "move_direction": [1, 0, 0]}
        env.restore_recorded(qpos, np.zeros(25), internal=internal)
        terms = env.step(np.zeros(19))[4]["reward_terms"]
        bonuses.append(terms["stage_convert_reward"])
        assert terms["success_subtasks"] == min(len(bonuses), 4)
    assert bonuses == [100.0, 200.0, 300.0, 400.0, 0.0]
    env.restore_recorded(env.initial_qpos + 0, np.zeros(25), internal={"maze_stage": [4]})
    assert env.step(np.zeros(19))[4]["reward_terms"]["move"] == 1.0
    env.reset()
    assert env.task.stage == 0  # type: ignore[attr-defined]


def test_hurdle_discounts_touching_a_barrier() -> None:
    env = made("h1-hurdle")
    assert env.step(np.zeros(19))[4]["reward_terms"]["wall_collision_discount"] == 1.0
    qpos = env.initial_qpos.copy()
    qpos[0] = -0.5  # against the barrier behind
    env.restore_recorded(qpos, np.zeros(25))
    terms = env.step(np.zeros(19))[4]["reward_terms"]
    assert terms["wall_collision_discount"] == 0.1
    product = terms["stand_reward"] * terms["small_control"] * terms["move"]
    assert terms["per_timestep_reward"] == pytest.approx(0.1 * product)


@pytest.mark.parametrize("task", ["h1-crawl", "h1hand-reach"])
def test_lying_down_ends_nothing_where_the_benchmark_says_so(task: str) -> None:
    env = made(task)
    qpos = env.initial_qpos.copy()
    qpos[2] = 0.15
    env.restore_recorded(qpos, np.zeros(env.model.nv))
    assert not env.step(np.zeros(env.model.nu))[4]["fell"]


def test_sit_hard_starts_anywhere_before_the_chair() -> None:
    env = made("h1hand-sit_hard")
    starts = np.array([env.reset(seed=seed)[0][:7] for seed in range(40)])
    assert (starts[:, 0] >= 0.2).all() and (starts[:, 0] <= 0.4).all() and np.ptp(starts[:, 0]) > 0.1
    assert (np.abs(starts[:, 1]) <= 0.15).all()
    yaw = 2 * np.arctan2(starts[:, 6], starts[:, 3])
    assert (np.abs(yaw) <= 1.8001).all() and np.ptp(yaw) > 2


def test_balance_ends_when_the_board_touches_the_floor() -> None:
    env = made("h1hand-balance_simple")
    assert not env.step(np.zeros(61))[4]["fell"]
    qpos = env.initial_qpos.copy()
    qpos[76:79] = 1.5, 0, 0.03  # the board lies beside the ball
    env.restore_recorded(qpos, np.zeros(env.model.nv))
    assert env.step(np.zeros(61))[4]["fell"]


def test_spoon_circles_once_in_forty_steps() -> None:
    env = made("h1hand-spoon", protocol="ezm")
    first = env.reset(seed=1)[0][-3:]
    np.testing.assert_allclose(first, [0.81, -0.1, 0.95], atol=1e-6)
    seen = [env.step(np.zeros(61))[0][-3:] for _ in range(41)]
    np.testing.assert_array_equal(seen[0], first)  # the observation precedes the clock's tick
    np.testing.assert_allclose(seen[10], [0.75, -0.04, 0.95], atol=1e-6)
    np.testing.assert_allclose(seen[40], first, atol=1e-6)
    np.testing.assert_array_equal(env.reset(seed=1)[0][-3:], first)


def test_bookshelf_counts_what_is_in_its_place() -> None:
    env = made("h1hand-bookshelf_simple", protocol="ezm")
    task = env.task
    assert isinstance(task, Bookshelf)
    things, goals = [*task.FIXED_THINGS, task.FIXED_THINGS[-1]], np.array([*task.GOALS, task.GOALS[-1]])
    for done in range(5):
        qpos = env.initial_qpos.copy()
        start = 76 + 7 * (things[done] - task.FIRST)
        qpos[start : start + 3] = goals[done]
        internal = {
            "task_index": [done],
            "bookshelf_objects": things,
            "placement_goals": goals.ravel().tolist(),
        }
        obs = env.restore_recorded(qpos, np.zeros(env.model.nv), internal=internal)
        assert obs[-1] == things[done]
        obs, reward, terminated, _, info = env.step(np.zeros(61))
        assert obs[-1] == things[done]
        assert info["reward_terms"]["success_subtasks"] == done + 1
        assert reward > 100 * (done + 1)
        assert info["fell"] is (done == 4) and not terminated
    assert env.step(np.zeros(61))[1] < 1  # nothing left to earn


def test_bookshelf_hard_draws_things_and_places() -> None:
    env = made("h1hand-bookshelf_hard")
    task = env.task
    assert isinstance(task, Bookshelf)
    drawn = set()
    for seed in range(5):
        env.reset(seed=seed)
        assert len(set(task.things)) == 5 and all(-24 <= number <= -13 for number in task.things)
        assert sorted(map(tuple, task.goals)) == sorted(task.GOALS)
        drawn.add((*task.things, *task.goals.ravel()))
    assert len(drawn) == 5
    np.testing.assert_array_equal(env.reset(seed=0)[0], env.reset(seed=0)[0])


def test_insert_lasts_500_steps_and_ends_when_a_cup_falls() -> None:
    env = made("h1hand-insert_small")
    assert env.episode_steps == 500
    qpos = env.initial_qpos.copy()
    qpos[76:79] = 2.5, 0, 0.1  # cup a on the floor
    env.restore_recorded(qpos, np.zeros(env.model.nv))
    assert env.step(np.zeros(61))[4]["fell"]


def test_window_measures_the_head_from_where_it_began() -> None:
    env = made("h1hand-window")
    np.testing.assert_array_equal(env.task.first_head, env.sim.robot.head)  # type: ignore[attr-defined]
    env.restore_recorded(env.initial_qpos, np.zeros(env.model.nv), internal={"head_pos0": [1.0, 2.0, 3.0]})
    assert env.task.first_head.tolist() == [1.0, 2.0, 3.0]  # type: ignore[attr-defined]
