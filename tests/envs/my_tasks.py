"""A module of one's own with a task in it, as docs/extending.md shows it."""

from __future__ import annotations

import mujoco

from ezm_pl.envs import register
from ezm_pl.envs.robots.humanoid import Task, Terms
from ezm_pl.envs.tasks.rewards import distance, tolerance
from ezm_pl.envs.tasks.scene import SPHERE, add_picture


class Bell(Task):
    """Stand upright and bring the right hand to a bell."""

    BELL = (0.4, -0.4, 1.5)

    @classmethod
    def build(cls, spec: mujoco.MjSpec) -> None:
        add_picture(spec.worldbody, SPHERE, (0.06,), cls.BELL)

    def reward(self) -> tuple[float, Terms]:
        terms = {
            "near": tolerance(distance(self.robot.right_hand, self.BELL), upper=0.05, margin=1.0),
            "upright": max(0.0, self.robot.uprightness),
        }
        return terms["near"] * terms["upright"], terms

    def fallen(self) -> bool:
        return self.robot.height < 0.5


BELL = register("h1-bell", "h1", Bell, success_score=700)
