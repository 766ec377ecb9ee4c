"""Rules of the tasks with objects: their ends, and the benchmark's bugs, kept and left out."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

import ezm_pl.envs as envs
from ezm_pl.envs.robots.humanoid import HumanoidEnv
from ezm_pl.envs.tasks.basketball import Basketball
from ezm_pl.envs.tasks.cube import turned
from ezm_pl.envs.tasks.truck import Truck

STILL = np.zeros(61)


def made(task: str, **settings: Any) -> HumanoidEnv:
    env = envs.make(task, seed=0, **settings).unwrapped
    assert isinstance(env, HumanoidEnv)
    env.reset()
    return env


def placed(
    env: HumanoidEnv, joint: str, values: Any, back: float = 0.0, **internal: list[float]
) -> dict[str, Any]:
    """One step with a joint's first entries at `values` and the robot `back` from its start; its info."""
    qpos = env.initial_qpos.copy()
    qpos[0] -= back
    start = env.model.joint(joint).qposadr[0]
    qpos[start : start + len(values)] = values
    env.restore_recorded(qpos, np.zeros(env.model.nv), internal=internal)
    _, reward, terminated, _, info = env.step(STILL)
    return {**info, "reward": reward, "terminated": terminated}


@pytest.mark.parametrize("protocol", ["humanoidbench", "ezm"])
def test_a_box_at_the_goal_ends_the_episode_and_is_no_fall(protocol: str) -> None:
    env = made("h1hand-push", protocol=protocol)
    info = placed(env, "free_object", (0.8, 0.1, 1.0), goal=[0.8, 0.12, 1.0])
    assert info["terminated"] and not info["fell"]
    assert info["reward"] == pytest.approx(1000, abs=1)
    info = placed(env, "free_object", (0.8, 0.1, 1.0), goal=[0.8, 0.2, 1.0])
    assert not info["terminated"] and info["reward"] < 0


def test_push_draws_goals_on_the_table() -> None:
    env = made("h1hand-push")
    goals = np.array([env.reset()[0][154:157] for _ in range(50)])
    assert (goals.min(0) >= (0.7, -0.5, 1)).all() and (goals.max(0) <= (1, 0.5, 1)).all()
    assert (np.ptp(goals, axis=0)[:2] > (0.2, 0.7)).all()


def test_a_fall_does_not_end_cabinet_and_ends_door() -> None:
    for task, ends in (("h1hand-cabinet", False), ("h1hand-door", True)):
        env = made(task)
        info = placed(env, "free_base", (0, 0, 0.4))
        assert info["fell"] == info["terminated"] == ends


def test_cabinet_counts_its_subtasks_and_starts_again() -> None:
    env = made("h1hand-cabinet")
    assert placed(env, "pull_door_slide", (-0.4,))["reward"] > 100
    assert env.task.internal() == {"current_subtask": [2.0]}
    assert placed(env, "drawer_slide", (0.44,), back=1.0, current_subtask=[2.0])["reward"] > 200
    # The fourth: the cube to the top compartment, through whatever doors.
    info = placed(env, "free_lateral_cabinet_cube", (0.9, 0.3, 1.45), current_subtask=[4.0])
    assert info["terminated"] and info["reward_terms"]["success"] == 1.0
    env.reset()
    assert env.task.internal() == {"current_subtask": [1.0]}


def truck_with_two_lifted(**settings: Any) -> tuple[HumanoidEnv, Truck]:
    """A truck whose packages a and b are high in the air, after one step."""
    env = made("h1hand-truck", **settings)
    env.step(STILL)
    task = env.task
    assert isinstance(task, Truck)
    lists = {key: task.internal()[key] for key in task.internal()}
    qpos = env.initial_qpos.copy()
    for name, y in (("a", 0.0), ("b", 0.6)):
        start = env.model.joint(f"free_package_{name}").qposadr[0]
        qpos[start : start + 3] = 4.6, y, 2.0
    env.restore_recorded(qpos, np.zeros(env.model.nv), internal=lists)
    env.step(STILL)
    return env, task


def test_of_two_neighbours_one_package_moves_a_step() -> None:
    env, task = truck_with_two_lifted()
    assert (task.on_truck, task.picked_up) == ([1, 2, 3, 4], [0])
    env.step(STILL)
    assert (task.on_truck, task.picked_up) == ([2, 3, 4], [0, 1])
    _, task = truck_with_two_lifted(quirks=False)
    assert (task.on_truck, task.picked_up) == ([2, 3, 4], [0, 1])


def test_what_was_lifted_stays_lifted_in_the_next_episode() -> None:
    env, task = truck_with_two_lifted()
    heights = list(task.first_heights)
    env.reset()
    assert task.picked_up == [0] and task.first_heights == heights
    env.reset(seed=3)
    assert task.picked_up == [] and task.first_heights == []
    env, task = truck_with_two_lifted(quirks=False)
    env.reset()
    assert task.picked_up == [] and task.first_heights == []


def test_a_cube_turned_alike_with_the_other_sign_counts_as_far_off() -> None:
    target = turned(np.array([0.4, -0.2, 0.1]))
    for quirks, aligned in ((True, 0.5), (False, 1.0)):
        env = made("h1hand-cube", quirks=quirks)
        qpos = env.initial_qpos.copy()
        qpos[79:83], qpos[86:90] = target, -target
        env.restore_recorded(qpos, np.zeros(env.model.nv), internal={"target_quat": target.tolist()})
        terms = env.step(STILL)[4]["reward_terms"]
        assert terms["orientation_alignment_reward"] == pytest.approx(aligned, abs=0.05)


def test_turned_is_roll_then_pitch_then_yaw() -> None:
    half = math.sqrt(0.5)
    np.testing.assert_allclose(turned(np.array([math.pi / 2, 0, 0])), (half, half, 0, 0), atol=1e-12)
    expected = (0.5, 0.5, 0.5, 0.5)  # x to y to z to x
    np.testing.assert_allclose(turned(np.array([math.pi / 2, 0, math.pi / 2])), expected, atol=1e-12)


def test_a_dropped_cube_ends_the_episode() -> None:
    env = made("h1hand-cube")
    assert placed(env, "free_left_cube_to_rotate", (0.6, 0.5, 0.5))["terminated"]
    assert placed(env, "free_right_cube_to_rotate", (0.6, -0.5, 0.5))["fell"]
    assert not placed(env, "free_left_cube_to_rotate", (0.6, 0.5, 1.2))["terminated"]


def test_the_ball_comes_flying_at_the_robot() -> None:
    env = made("h1hand-basketball")
    for _ in range(20):
        env.reset()
        ball, velocity = env.data.qpos[76:79], env.data.qvel[75:78]
        assert math.hypot(*ball[:2]) == pytest.approx(1.5)
        assert ball[0] > 0.17 and 1.2 < ball[2] < 1.8
        np.testing.assert_allclose(velocity, (-5 * ball[0], -5 * ball[1], 0), atol=1e-9)


def test_the_throw_begins_with_any_contact() -> None:
    for quirks in (True, False):
        env = made("h1hand-basketball", quirks=quirks)
        task = env.task
        assert isinstance(task, Basketball)
        placed(env, "free_basketball", (3.0, 0.0, 0.118))  # on the floor, far from the robot
        assert task.thrown == quirks
        placed(env, "free_basketball", (0.2, 0.0, 1.2))  # at the robot's chest
        assert task.thrown
        assert placed(env, "free_basketball", (5.9, 0.0, 2.25))["terminated"]


KEPT: dict[str, dict[str, list[float]]] = {
    "h1hand-push": {"goal": [0.9, -0.3, 1.0]},
    "h1hand-cabinet": {"current_subtask": [3.0]},
    "h1hand-truck": {
        "packages_on_truck": [3.0, 4.0],
        "packages_picked_up": [2.0, 0.0],
        "packages_on_table": [1.0],
        "initialized": [1.0],
        "initial_zs": [0.5, 0.6, 0.7, 1.1, 1.4],
    },
    "h1hand-cube": {"target_quat": [0.5, -0.5, 0.5, -0.5]},
    "h1hand-basketball": {"stage": [1.0]},
}


@pytest.mark.parametrize("task", KEPT)
def test_what_a_task_keeps_is_saved_with_the_environment(task: str) -> None:
    env, other = made(task), made(task)
    env.restore_recorded(env.initial_qpos, np.zeros(env.model.nv), internal=KEPT[task])
    assert env.task.internal() == KEPT[task]
    saved = env.state()

    def ahead(continued: HumanoidEnv) -> list[Any]:
        steps = [continued.step(STILL) for _ in range(5)]
        return [(obs.tolist(), reward, ended) for obs, reward, ended, _, _ in steps]

    expected, after = ahead(env), env.task.internal()
    env.reset(seed=1)
    for again in (env, other):
        again.restore(saved)
        assert again.task.internal() == KEPT[task]
        np.testing.assert_array_equal(again.data.mocap_quat.ravel(), KEPT[task].get("target_quat", []))
        assert ahead(again) == expected
        assert again.task.internal() == after
