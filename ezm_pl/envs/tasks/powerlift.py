"""Powerlift: lift a barbell of 104 kg over the head.

Source: HumanoidBench (Sferrazza et al., arXiv 2403.10506), appendix on manipulation tasks.
"""

from __future__ import annotations

import mujoco

from ezm_pl.envs.core import FloatArray
from ezm_pl.envs.robots.humanoid import Simulation, Task, Terms
from ezm_pl.envs.tasks.locomotion import STAND_HEIGHT, upright
from ezm_pl.envs.tasks.rewards import INF, quiet_forces, tolerance
from ezm_pl.envs.tasks.scene import CYLINDER, STEEL, Z_TO_Y, add_free_body, add_picture, add_solid

IRON = (0.17, 0.18, 0.2, 1.0)
RED = (0.72, 0.16, 0.14, 1.0)


class Powerlift(Task):
    """Lift the barbell to a height of 2 m and keep standing."""

    name = "powerlift"
    extra_qpos = (0.5, 0, 0.2, 1, 0, 0, 0)

    def __init__(self, sim: Simulation) -> None:
        super().__init__(sim)
        self._dumbbell: FloatArray = sim.data.body("dumbbell").xpos

    @classmethod
    def build(cls, spec: mujoco.MjSpec) -> None:
        dumbbell = add_free_body(spec, "dumbbell", (0.5, 0, 0.2))
        add_solid(dumbbell, CYLINDER, (0.029, 0.65), quat=Z_TO_Y, rgba=STEEL)
        for y in (0.75, -0.75):
            add_solid(dumbbell, CYLINDER, (0.2, 0.2), (0, y, 0), quat=Z_TO_Y, rgba=IRON)
            for radius, half, colour in ((0.201, 0.03, RED), (0.12, 0.202, RED), (0.035, 0.22, STEEL)):
                add_picture(dumbbell, CYLINDER, (radius, half), (0, y, 0), quat=Z_TO_Y, mass=0, rgba=colour)

    def reward(self) -> tuple[float, Terms]:
        robot = self.robot
        stand = tolerance(robot.head_height, STAND_HEIGHT, INF, margin=STAND_HEIGHT / 3)
        up = upright(robot.uprightness, 0.8)
        small_control = quiet_forces(robot.forces)
        lifted = tolerance(float(self._dumbbell[2]), 1.9, 2.1, margin=2)
        return 0.2 * small_control * stand * up + 0.8 * lifted, {
            "stand_reward": stand * up,
            "small_control": small_control,
            "reward_dumbbell_lifted": lifted,
            "standing": stand,
            "upright": up,
        }

    def fallen(self) -> bool:
        return self.robot.height < 0.2
