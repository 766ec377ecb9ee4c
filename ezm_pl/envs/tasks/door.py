"""Door: turn a hatch, pull a door open and walk through it.

Source: HumanoidBench (Sferrazza et al., arXiv 2403.10506), appendix on manipulation tasks.
"""

from __future__ import annotations

import mujoco

from ezm_pl.envs.core import FloatArray
from ezm_pl.envs.robots.humanoid import Simulation, Task, Terms
from ezm_pl.envs.tasks.locomotion import standing, upright
from ezm_pl.envs.tasks.rewards import INF, quiet_forces, tolerance
from ezm_pl.envs.tasks.scene import (
    BOX,
    CYLINDER,
    DARK_WOOD,
    STEEL,
    WOOD,
    Z_TO_X,
    Z_TO_Y,
    add_camera,
    add_hinge,
    add_solid,
)

WALL = (0.86, 0.85, 0.8, 1.0)
GLASS = (0.86, 0.85, 0.8, 0.15)


class Door(Task):
    """Turn the hatch of a door, pull the door open and walk through it.

    Quirk: the benchmark squares how far the door is open but keeps the sign, so that a door pressed into
    its frame costs a little. Both settings keep it.
    """

    name = "door"
    native_ccd = False
    camera = "cam_door"
    extra_qpos = (0, 0)

    def __init__(self, sim: Simulation) -> None:
        super().__init__(sim)
        self._hinge: FloatArray = sim.data.joint("door_hinge").qpos
        self._turned: FloatArray = sim.data.joint("door_hatch_hinge").qpos
        self._hatch: FloatArray = sim.data.body("door_hatch").xpos

    @classmethod
    def build(cls, spec: mujoco.MjSpec) -> None:
        world = spec.worldbody
        door = world.add_body(name="door", pos=[0.8, 0, 0])
        add_hinge(door, "door_hinge", (0, 0, 1), (0, 1.4), pos=(-0.05, -0.5, 1), stiffness=50)
        add_solid(door, BOX, (0.07, 0.48, 0.99), (0, 0, 1), density=600, rgba=WOOD)
        hatch = door.add_body(name="door_hatch", pos=[0, 0.4, 1.2], gravcomp=1)
        add_hinge(hatch, "door_hatch_hinge", (1, 0, 0), (0, 2), stiffness=2)
        for x in (-0.12, 0.12):
            add_solid(hatch, CYLINDER, (0.05, 0.05), (x, 0, 0), quat=Z_TO_X, rgba=STEEL)
        for x in (-0.141, 0.141):
            add_solid(hatch, CYLINDER, (0.02, 0.1), (x, -0.1, 0), quat=Z_TO_Y, rgba=STEEL)
        for x in (0.15, -0.15):
            add_solid(hatch, CYLINDER, (0.01, 0.07), (x, 0.07, 0), quat=Z_TO_Y, rgba=STEEL)

        room = world.add_body(name="door_wall_connects", pos=[0.8, 0, 0])
        for y in (0.66, -0.66):
            add_solid(room, BOX, (0.12, 0.14, 1), (0, y, 1), rgba=DARK_WOOD)
        add_solid(room, BOX, (0.12, 0.82, 0.19), (0, 0, 2.19), rgba=DARK_WOOD)
        # Seen through: the camera looks into the room from its left.
        add_solid(room, BOX, (1.19, 0.12, 1.19), (-1.31, -0.7, 1.19), rgba=WALL)
        add_solid(room, BOX, (1.19, 0.12, 1.19), (-1.31, 0.7, 1.19), rgba=GLASS)
        add_solid(room, BOX, (0.15, 0.58, 1.19), (-2.35, 0, 1.19), rgba=WALL)
        add_camera(spec, "cam_door", (-2.2, 3.4, 2.3), (0.2, 0, 1))

    def reward(self) -> tuple[float, Terms]:
        robot = self.robot
        stand_reward = standing(robot.head_height) * upright(robot.uprightness, margin=0.9)
        small_control = quiet_forces(robot.forces)
        hinge = float(self._hinge[0])
        openness = min(1.0, hinge * abs(hinge))
        turned = tolerance(
            float(self._turned[0]), 0.75, 2, margin=0.75, sigmoid="linear", linear_at_margin=0.1
        )
        hand = min(robot.hand_distances(self._hatch))
        near = tolerance(hand, 0, 0.25, margin=1, sigmoid="linear", linear_at_margin=0.1)
        passage = tolerance(float(robot.imu[0]), 1.2, INF, margin=1, sigmoid="linear")
        reward = 0.1 * stand_reward * small_control + 0.45 * openness + 0.05 * turned + 0.05 * near
        return reward + 0.35 * passage, {
            "stand_reward": stand_reward,
            "small_control": small_control,
            "door_openness_reward": openness,
            "door_hatch_openness_reward": turned,
            "hand_hatch_proximity_reward": near,
            "passage_reward": passage,
        }

    def fallen(self) -> bool:
        return self.robot.height < 0.58
