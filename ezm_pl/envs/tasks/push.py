"""Push: slide a box to a place on a table.

Source: HumanoidBench (Sferrazza et al., arXiv 2403.10506), appendix on manipulation tasks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import mujoco
import numpy as np

from ezm_pl.envs.core import FloatArray
from ezm_pl.envs.robots.h1 import STANDING_POSE, set_inertial
from ezm_pl.envs.robots.humanoid import Simulation, Task, Terms
from ezm_pl.envs.tasks.rewards import distance
from ezm_pl.envs.tasks.scene import BOX, RED, add_free_body, add_low_table, add_solid


class Push(Task):
    """Push a box across a table to a goal with the left hand, within 500 control steps.

    Quirks: only the left hand's distance counts. The arms' initial pose is not symmetric (the left wrist
    and the right shoulder are turned); as nothing says which was meant, both settings keep it.
    """

    name = "push"
    own_state = ("goal",)
    episode_steps = 500
    native_ccd = False
    camera = "cam_tabletop"
    pose: ClassVar[Mapping[str, float]] = {
        **STANDING_POSE,
        "left_wrist_yaw": 1.57,
        "right_shoulder_pitch": 1.57,
    }
    extra_qpos = (0.7, 0, 1, 1, 0, 0, 0)
    NEAR: ClassVar[float] = 0.05
    """The box is at the goal within this distance, m."""
    GOAL_LOW: ClassVar[tuple[float, ...]] = (0.7, -0.5, 1.0)
    GOAL_HIGH: ClassVar[tuple[float, ...]] = (1.0, 0.5, 1.0)

    def __init__(self, sim: Simulation) -> None:
        super().__init__(sim)
        self._box: FloatArray = sim.data.joint("free_object").qpos[:3]
        self._box_velocity: FloatArray = sim.data.joint("free_object").qvel[:3]
        self.goal: FloatArray = np.array([1.0, 0.0, 1.0])

    @classmethod
    def build(cls, spec: mujoco.MjSpec) -> None:
        add_low_table(spec, (0.9, 0, 0.45), 1, 0.85)
        box = add_free_body(spec, "object", (0.7, 0, 1))
        add_solid(box, BOX, (0.1, 0.1, 0.1), rgba=RED)
        set_inertial(box, 0.3, (0, 0, 0), (0.001, 0.001, 0.001))

    def reset(self, rng: np.random.Generator) -> None:
        self.goal = rng.uniform(self.GOAL_LOW, self.GOAL_HIGH)

    def restore(self, internal: Mapping[str, Sequence[float]]) -> None:
        self.goal = np.array(internal.get("goal", self.goal), float)

    def internal(self) -> dict[str, list[float]]:
        return {"goal": self.goal.tolist()}

    def base_observation(self) -> Sequence[FloatArray]:
        return self.robot.qpos, self.robot.qvel

    def observation(self) -> Sequence[FloatArray]:
        return self.robot.left_hand, self.goal, self._box, self._box_velocity

    def markers(self) -> Sequence[FloatArray]:
        return (self.goal,)

    def reward(self) -> tuple[float, Terms]:
        hand = distance(self.robot.left_hand, self._box)
        gap = distance(self._box, self.goal)
        bonus = 1000.0 if self.solved() else 0.0
        return bonus - gap - 0.1 * hand, {
            "target_dist": gap,
            "hand_dist": hand,
            "reward_success": bonus,
            "success": float(self.solved()),
        }

    def solved(self) -> bool:
        return distance(self._box, self.goal) < self.NEAR
