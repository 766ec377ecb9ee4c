"""Cube: turn a cube in each hand as a third one shows.

Source: HumanoidBench (Sferrazza et al., arXiv 2403.10506), appendix on manipulation tasks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import mujoco
import numpy as np

from ezm_pl.envs.core import FloatArray
from ezm_pl.envs.robots.humanoid import Simulation, Task, Terms
from ezm_pl.envs.tasks.locomotion import standing, upright
from ezm_pl.envs.tasks.rewards import distance, quiet_forces, stillness, tolerance
from ezm_pl.envs.tasks.scene import BLUE, BOX, GREEN, RED, YELLOW, add_free_body, add_picture, add_solid

WHITE = (0.95, 0.95, 0.95, 1.0)
ORANGE = (0.95, 0.5, 0.1, 1.0)
HALF = 0.025
"""Half an edge of a cube, m."""
FACES = ((0, 1, RED), (0, -1, ORANGE), (1, 1, GREEN), (1, -1, BLUE), (2, 1, WHITE), (2, -1, YELLOW))
"""Axis, direction and colour of each face."""


def add_faces(body: mujoco.MjsBody) -> None:
    """Colours a cube's six faces, so that one sees how it is turned."""
    for axis, direction, colour in FACES:
        size, pos = [0.9 * HALF] * 3, [0.0] * 3
        size[axis], pos[axis] = 0.0005, direction * HALF
        add_picture(body, BOX, size, pos, mass=0, rgba=colour)


def turned(angles: FloatArray) -> FloatArray:
    """The quaternion [4] of roll, pitch and yaw, applied to the fixed axes x, y, z in this order."""
    quat = np.zeros(4)
    mujoco.mju_euler2Quat(quat, angles, "XYZ")
    return quat


class Cube(Task):
    """Hold a cube in each hand and turn it as the cube in the air is turned, within 500 control steps.

    Quirk, gone with `quirks=False`: the difference of two orientations is that of their quaternions, so that
    the same orientation with the other sign counts as far off.
    """

    name = "cube"
    own_state = ("target",)
    native_ccd = False
    episode_steps = 500
    reset_noise = 0.0
    camera = "cam_inhand"
    extra_qpos = (0.45, 0.21, 1.125, 1, 0, 0, 0, 0.45, -0.21, 1.125, 1, 0, 0, 0)
    TARGET: ClassVar[tuple[float, ...]] = (0.5, 0, 1.5)
    DROPPED: ClassVar[float] = 0.6
    """Height under which a cube counts as dropped, m."""

    def __init__(self, sim: Simulation) -> None:
        super().__init__(sim)
        cubes = [sim.data.body(f"{side}_cube_to_rotate") for side in ("left", "right")]
        self._places: list[FloatArray] = [cube.xpos for cube in cubes]
        self._turns: list[FloatArray] = [cube.xquat for cube in cubes]
        self._starts: list[FloatArray] = [
            sim.data.joint(f"free_{side}_cube_to_rotate").qpos for side in ("left", "right")
        ]
        self.target: FloatArray = np.array([1.0, 0, 0, 0])

    @classmethod
    def build(cls, spec: mujoco.MjSpec) -> None:
        for side, y in (("left", 0.21), ("right", -0.21)):
            cube = add_free_body(spec, f"{side}_cube_to_rotate", (0.45, y, 1.25))
            add_solid(cube, BOX, (HALF, HALF, HALF), density=500, rgba=(0.1, 0.1, 0.1, 1))
            add_faces(cube)
        # A mocap body: how it is turned is part of the state, not of the model.
        target = spec.worldbody.add_body(name="target_cube", pos=cls.TARGET, mocap=True)
        add_picture(target, BOX, (HALF, HALF, HALF), density=500, rgba=(0.1, 0.1, 0.1, 1))
        add_faces(target)

    def _show(self, target: FloatArray) -> None:
        self.target = target
        self.sim.data.mocap_quat[0] = target

    def reset(self, rng: np.random.Generator) -> None:
        for start in self._starts:
            start[3:] = turned(rng.uniform(-3.14, 3.14, 3))
        self._show(turned(rng.uniform(-3.14, 3.14, 3)))

    def restore(self, internal: Mapping[str, Sequence[float]]) -> None:
        self._show(np.array(internal.get("target_quat", self.target), float))

    def internal(self) -> dict[str, list[float]]:
        return {"target_quat": self.target.tolist()}

    def observation(self) -> Sequence[FloatArray]:
        return (self.target,)

    def _aligned(self, turn: FloatArray) -> float:
        difference = distance(turn, self.target)
        if not self.quirks:
            difference = min(difference, distance(turn, -self.target))
        return tolerance(difference, margin=0.3)

    def reward(self) -> tuple[float, Terms]:
        robot = self.robot
        stand, up = standing(robot.head_height), upright(robot.uprightness)
        small_control = quiet_forces(robot.forces)
        still = stillness(robot.com_velocity)
        aligned = 0.5 * sum(self._aligned(turn) for turn in self._turns)
        hands = zip((robot.left_hand, robot.right_hand), self._places, strict=True)
        near = 0.5 * sum(tolerance(distance(hand, cube), 0, 0.1, margin=0.5) for hand, cube in hands)
        return 0.2 * small_control * stand * up * still + 0.5 * aligned + 0.3 * near, {
            "small_control": small_control,
            "stand_reward": stand * up,
            "dont_move": still,
            "standing": stand,
            "upright": up,
            "orientation_alignment_reward": aligned,
            "cube_closeness_reward": near,
        }

    def fallen(self) -> bool:
        return self.robot.height < 0.58 or any(place[2] < self.DROPPED for place in self._places)
