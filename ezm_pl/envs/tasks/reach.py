"""Reach: bring the left hand to a point in space.

Source: HumanoidBench (Sferrazza et al., arXiv 2403.10506), appendix on locomotion tasks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import numpy as np

from ezm_pl.envs.core import FloatArray
from ezm_pl.envs.robots.humanoid import Simulation, Task, Terms
from ezm_pl.envs.tasks.rewards import distance


class Reach(Task):
    """Stay upright and hold the left hand at a random goal. Nothing ends the episode early."""

    name = "reach"
    own_state = ("goal",)
    GOAL_LOW: ClassVar[tuple[float, ...]] = (-2, -2, 0.2)
    GOAL_HIGH: ClassVar[tuple[float, ...]] = (2, 2, 2)

    def __init__(self, sim: Simulation) -> None:
        super().__init__(sim)
        self._pelvis = sim.data.body("pelvis").xmat
        self._speeds = sim.data.qvel
        self.goal: FloatArray = np.zeros(3)

    def reset(self, rng: np.random.Generator) -> None:
        self.goal = rng.uniform(self.GOAL_LOW, self.GOAL_HIGH)

    def restore(self, internal: Mapping[str, Sequence[float]]) -> None:
        if "goal" in internal:
            self.goal = np.array(internal["goal"], float)

    def observation(self) -> Sequence[FloatArray]:
        return self.robot.left_hand.copy(), self.goal

    def markers(self) -> Sequence[FloatArray]:
        return (self.goal,)

    def reward(self) -> tuple[float, Terms]:
        gap = distance(self.robot.left_hand, self.goal)
        healthy = 5.0 * float(self._pelvis[8])
        motion = float(self._speeds.dot(self._speeds))
        close = 5.0 if gap < 1 else 0.0
        success = 10.0 if gap < 0.05 else 0.0
        return healthy - 0.0001 * motion + close + success, {
            "hand_dist": gap,
            "healthy_reward": healthy,
            "motion_penalty": motion,
            "reward_close": close,
            "reward_success": success,
        }
