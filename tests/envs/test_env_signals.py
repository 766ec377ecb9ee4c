"""Names and units of observations and actions, against the simulation itself."""

from __future__ import annotations

import mujoco
import numpy as np
import pytest

from ezm_pl.envs import make, sizes
from ezm_pl.envs.signals import task_signals

TASKS = ["h1-walk", "h1-reach", "h1hand-push", "h1hand-package", "h1hand-kitchen", "dmc-cheetah-run"]


@pytest.mark.parametrize("task", TASKS)
def test_every_number_has_a_name_of_its_own(task: str) -> None:
    signals, size = task_signals(task), sizes([task])
    names = [each.name for each in signals.observation]
    assert len(names) == len(set(names)) == size.obs_size
    assert len({each.name for each in signals.action}) == size.action_size
    assert all(names) and all(each.low < each.high for each in signals.action)


@pytest.mark.parametrize("joint", ["left_knee", "right_elbow"])
def test_a_name_stands_for_its_joint(joint: str) -> None:
    env = make("h1-walk")
    env.reset(seed=0)
    env.data.joint(joint).qpos, env.data.joint(joint).qvel = 0.25, -1.5
    mujoco.mj_forward(env.model, env.data)
    signals = task_signals("h1-walk")
    named = {
        each.name: (value, each.unit)
        for each, value in zip(signals.observation, env._observation(), strict=True)
    }
    assert named[joint] == (0.25, "rad") and named[f"{joint} velocity"] == (-1.5, "rad/s")
    actuator = next(each for each in signals.action if each.name == joint)
    assert (actuator.low, actuator.high) == tuple(env.model.actuator(joint).ctrlrange)
    assert signals.control_interval == pytest.approx(0.02)


def test_dm_control_names_its_parts() -> None:
    signals = task_signals("dmc-cheetah-run")
    assert [each.name for each in signals.observation][:2] == ["position[0]", "position[1]"]
    assert [each.name for each in signals.action][:2] == ["bthigh", "bshin"]
    assert np.isclose(signals.control_interval, 0.01)


def test_a_gymnasium_action_has_the_range_that_it_stands_for() -> None:
    (torque,) = task_signals("gym:Pendulum-v1").action
    assert (torque.low, torque.high) == (-2, 2)
