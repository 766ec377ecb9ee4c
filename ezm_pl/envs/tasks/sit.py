"""Sit: sit down on a chair that stands fast (simple) or that can be pushed about (hard).

Source: HumanoidBench (Sferrazza et al., arXiv 2403.10506), appendix on locomotion tasks.
"""

from __future__ import annotations

import math

import mujoco
import numpy as np

from ezm_pl.envs.robots.humanoid import Simulation, Task, Terms
from ezm_pl.envs.tasks.rewards import INF, quiet_forces, stillness, tolerance
from ezm_pl.envs.tasks.scene import add_chair


class Sit(Task):
    """Sit down, upright and still, on a chair right behind."""

    name = "sit_simple"

    def __init__(self, sim: Simulation) -> None:
        super().__init__(sim)
        self._chair = sim.data.body("chair").xpos

    @classmethod
    def build(cls, spec: mujoco.MjSpec) -> None:
        cls.add_chair(spec)

    @staticmethod
    def add_chair(spec: mujoco.MjSpec) -> mujoco.MjsBody:
        """The chair, fixed as yet; returns its body."""
        chair = spec.worldbody.add_body(name="chair", pos=[-0.25, 0, 0])
        add_chair(chair)
        return chair

    def reward(self) -> tuple[float, Terms]:
        robot = self.robot
        sitting = tolerance(robot.height, 0.68, 0.72, margin=0.2)
        on_chair = tolerance(float(robot.qpos[0] - self._chair[0]), -0.19, 0.19, margin=0.2)
        on_chair *= tolerance(float(robot.qpos[1] - self._chair[1]), margin=0.1)
        posture = tolerance(robot.head_height - float(robot.imu[2]), 0.35, 0.45, margin=0.3)
        up = tolerance(robot.uprightness, 0.95, INF, margin=0.9, sigmoid="linear")
        sit_reward = 0.5 * (sitting + on_chair) * up * posture
        small_control = quiet_forces(robot.forces)
        dont_move = stillness(robot.com_velocity)
        return small_control * sit_reward * dont_move, {
            "small_control": small_control,
            "sit_reward": sit_reward,
            "dont_move": dont_move,
            "sitting": sitting,
            "upright": up,
            "sitting_posture": posture,
        }

    def fallen(self) -> bool:
        return self.robot.height < 0.5


class SitHard(Sit):
    """Sit down on a loose chair, from somewhere in front of it and facing anywhere."""

    name = "sit_hard"
    extra_qpos = (-0.25, 0, 0, 1, 0, 0, 0)

    @classmethod
    def build(cls, spec: mujoco.MjSpec) -> None:
        cls.add_chair(spec).add_freejoint(name="free_chair")

    def reset(self, rng: np.random.Generator) -> None:
        qpos = self.sim.data.qpos
        qpos[0] = rng.uniform(0.2, 0.4)
        qpos[1] = rng.uniform(-0.15, 0.15)
        half_turn = 0.5 * rng.uniform(-1.8, 1.8)
        qpos[3:7] = (math.cos(half_turn), 0, 0, math.sin(half_turn))
