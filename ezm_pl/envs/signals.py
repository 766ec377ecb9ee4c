"""What the numbers of a task's observations and actions are: names, units, ranges, control interval."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import mujoco
import numpy as np
from numpy.typing import NDArray

from ezm_pl.envs.registry import Backend, make
from ezm_pl.envs.robots.humanoid import SUBSTEPS, TIMESTEP, HumanoidEnv
from ezm_pl.envs.tasks.gym import GymEnv

_JOINT_UNITS = {mujoco.mjtJoint.mjJNT_HINGE: "rad", mujoco.mjtJoint.mjJNT_SLIDE: "m"}


@dataclass(frozen=True)
class Signal:
    """One number of an observation: its name and its unit, empty where it has none or it is not known."""

    name: str
    unit: str = ""


@dataclass(frozen=True)
class Actuator:
    """One number of an action: -1 stands for `low`, 1 for `high`, in the actuator's own unit."""

    name: str
    unit: str
    low: float
    high: float


@dataclass(frozen=True)
class TaskSignals:
    """A task's observation `[O]` and action `[A]`, number by number.

    Attributes:
        observation, action: in order.
        control_interval: seconds of one control step.
    """

    observation: list[Signal]
    action: list[Actuator]
    control_interval: float


def task_signals(task: str, backend: Backend = "auto") -> TaskSignals:
    """What a task's numbers are. Where an environment does not say, they are numbered.

    Raises:
        ValueError: an unknown task.
    """
    env = make(task, backend=backend)
    try:
        if isinstance(env, HumanoidEnv):
            return _humanoid(env)
        inner = getattr(env, "_env", None)
        if hasattr(inner, "observation_spec"):
            return _dm_control(inner)
        assert env.observation_space.shape is not None
        own: Any = env._env.action_space if isinstance(env, GymEnv) else env.action_space
        ranges = zip(np.ravel(own.low).tolist(), np.ravel(own.high).tolist(), strict=True)
        return TaskSignals(
            [Signal(f"observation[{i}]") for i in range(env.observation_space.shape[0])],
            [Actuator(f"action[{i}]", "", low, high) for i, (low, high) in enumerate(ranges)],
            float(getattr(getattr(inner, "unwrapped", None), "dt", 1.0 / env.metadata["render_fps"])),
        )
    finally:
        env.close()


def _humanoid(env: HumanoidEnv) -> TaskSignals:
    model, data = env.model, env.data
    positions, velocities = _joint_signals(model)
    known = ((data.qpos, positions), (data.qvel, velocities))
    observation: list[Signal] = []
    for number, part in enumerate((*env.task.base_observation(), *env.task.observation())):
        observation += next(
            (names[at : at + part.size] for view, names in known if (at := _offset(part, view)) is not None),
            [Signal(f"task{number}[{i}]") for i in range(part.size)],
        )
    actuators = [_actuator(model, index) for index in range(model.nu)]
    return TaskSignals(observation, actuators, SUBSTEPS * TIMESTEP)


def _offset(part: NDArray[Any], whole: NDArray[Any]) -> int | None:
    """Where in `whole` `[N]` a view of it begins; None where it is none."""
    if not np.shares_memory(part, whole):
        return None
    return (part.__array_interface__["data"][0] - whole.__array_interface__["data"][0]) // whole.itemsize


def _joint_signals(model: mujoco.MjModel) -> tuple[list[Signal], list[Signal]]:
    """The numbers of `qpos` `[nq]` and of `qvel` `[nv]`."""
    positions, velocities = [], []
    for index in range(model.njnt):
        joint = model.joint(index)
        name, kind = joint.name or f"joint{index}", int(joint.type[0])
        if kind in _JOINT_UNITS:
            unit = _JOINT_UNITS[mujoco.mjtJoint(kind)]
            positions.append(Signal(name, unit))
            velocities.append(Signal(f"{name} velocity", f"{unit}/s"))
            continue
        if kind == mujoco.mjtJoint.mjJNT_FREE:
            positions += [Signal(f"{name} {axis}", "m") for axis in "xyz"]
            velocities += [Signal(f"{name} {axis} velocity", "m/s") for axis in "xyz"]
        positions += [Signal(f"{name} quaternion {axis}") for axis in "wxyz"]
        velocities += [Signal(f"{name} angular velocity {axis}", "rad/s") for axis in "xyz"]
    return positions, velocities


def _actuator(model: mujoco.MjModel, index: int) -> Actuator:
    """A servo's unit is that of its joint's position; a motor's that of its force, if it is not scaled."""
    actuator = model.actuator(index)
    low, high = map(float, actuator.ctrlrange)
    unit = ""
    if actuator.trntype[0] == mujoco.mjtTrn.mjTRN_JOINT:
        position = _JOINT_UNITS.get(mujoco.mjtJoint(int(model.joint(int(actuator.trnid[0])).type[0])), "")
        scale = actuator.gear[0] * actuator.gainprm[0]
        if actuator.biastype[0] != mujoco.mjtBias.mjBIAS_NONE:
            unit = position
        elif scale == 1:
            unit = {"rad": "N m", "m": "N"}.get(position, "")
    return Actuator(actuator.name or f"actuator{index}", unit, low, high)


def _dm_control(env: Any) -> TaskSignals:
    observation = []
    for key, spec in env.observation_spec().items():
        size = int(np.prod(spec.shape, dtype=int))
        observation += [Signal(key)] if not spec.shape else [Signal(f"{key}[{i}]") for i in range(size)]
    actuators = [_actuator(env.physics.model.ptr, index) for index in range(env.physics.model.nu)]
    return TaskSignals(observation, actuators, env.control_timestep())
