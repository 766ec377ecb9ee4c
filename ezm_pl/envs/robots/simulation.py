"""The robots by name, and the simulation that a task and its environment share."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import mujoco
import numpy as np

from ezm_pl.envs.core import FloatArray
from ezm_pl.envs.robots import h1, hand


class RobotKind(NamedTuple):
    """A robot: how to build it, and its size in qpos."""

    build: Callable[[mujoco.MjSpec], None]
    nq: int


ROBOTS: dict[str, RobotKind] = {
    "h1": RobotKind(h1.add_h1, 26),
    "h1hand": RobotKind(hand.add_h1hand, 76),
    "h1strong": RobotKind(hand.add_h1strong, 76),
}


class Robot:
    """Live views of a humanoid's state: plain floats and arrays that follow `mj_step` by themselves.

    As in the benchmark, positions of sites and bodies are those of the last physics step's start
    (what `mj_step` leaves in `mjData`), joint positions those of its end.

    Attributes:
        qpos: the robot's own generalised positions; [:3] is the pelvis, [3:7] its orientation.
        qvel: its own generalised velocities.
        com_velocity: [3], m/s, of the whole robot's centre of mass, world frame.
        forces: [A], N m, of the actuators.
        head, imu, left_foot, right_foot, left_hand, right_hand: [3] site positions, m.
        pelvis_position, pelvis_quaternion: [3] and [4], of the pelvis.
    """

    def __init__(self, data: mujoco.MjData, nq: int) -> None:
        self.qpos: FloatArray = data.qpos[:nq]
        self.qvel: FloatArray = data.qvel[: nq - 1]  # one number less for the pelvis's orientation
        self.forces: FloatArray = data.actuator_force
        self.pelvis_position: FloatArray = data.body("pelvis").xpos
        self.pelvis_quaternion: FloatArray = data.body("pelvis").xquat
        self.head: FloatArray = data.site("head").xpos
        self.imu: FloatArray = data.site("imu").xpos
        self.left_foot: FloatArray = data.site("left_foot").xpos
        self.right_foot: FloatArray = data.site("right_foot").xpos
        self.left_hand: FloatArray = data.site("left_hand").xpos
        self.right_hand: FloatArray = data.site("right_hand").xpos
        self.com_velocity: FloatArray = data.sensor("pelvis_velocity").data
        self._torso: FloatArray = data.body("torso_link").xmat

    @property
    def head_height(self) -> float:
        """Height of the head, m."""
        return float(self.head[2])

    @property
    def height(self) -> float:
        """Height of the pelvis, m, at the end of the last physics step."""
        return float(self.qpos[2])

    @property
    def uprightness(self) -> float:
        """Cosine of the angle between the torso's axis and the vertical."""
        return float(self._torso[8])

    def hand_distances(self, point: Sequence[float] | FloatArray) -> tuple[float, float]:
        """Distances of the left and the right hand to a point [3], m."""
        return math.dist(self.left_hand, point), math.dist(self.right_hand, point)


class Simulation:
    """A compiled model (shared between environments of a process), its own data, and the robot in it."""

    def __init__(self, model: mujoco.MjModel, robot_nq: int) -> None:
        self.model = model
        self.data = mujoco.MjData(model)
        self.robot = Robot(self.data, robot_nq)
        self.robot_nq = robot_nq

    def geoms(self, *names: str) -> frozenset[int]:
        """Ids of geoms by name."""
        return frozenset(self.model.geom(name).id for name in names)

    def geoms_of(self, *bodies: str) -> frozenset[int]:
        """Ids of the geoms of bodies, by the bodies' names."""
        wanted = [self.model.body(name).id for name in bodies]
        return frozenset(np.flatnonzero(np.isin(self.model.geom_bodyid, wanted)).tolist())

    def touching(self, geoms: frozenset[int]) -> bool:
        """Whether any contact involves one of `geoms`."""
        return self.data.ncon > 0 and not geoms.isdisjoint(self.data.contact.geom.ravel().tolist())

    def contacts(self) -> list[list[int]]:
        """Pairs of geom ids in contact."""
        return self.data.contact.geom.tolist() if self.data.ncon else []
