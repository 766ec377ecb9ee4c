"""Maze: walk from checkpoint to checkpoint between walls.

Source: HumanoidBench (Sferrazza et al., arXiv 2403.10506), appendix on locomotion tasks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import mujoco
import numpy as np

from ezm_pl.envs.robots.humanoid import Simulation, Task, Terms
from ezm_pl.envs.tasks.locomotion import standing, upright
from ezm_pl.envs.tasks.rewards import distance, quiet_forces, tolerance
from ezm_pl.envs.tasks.scene import BOX, SPHERE, add_picture, add_solid


class Maze(Task):
    """Reach the checkpoints in turn, at 2 m/s along the way; each reached pays a bonus once."""

    name = "maze"
    own_state = ("stage", "heading")
    camera = "cam_maze"
    SPEED: ClassVar[float] = 2.0
    REACHED: ClassVar[float] = 0.4
    """A checkpoint counts as reached with the pelvis within this distance, m."""
    CHECKPOINTS: ClassVar[tuple[tuple[float, float], ...]] = ((0, 0), (3, 0), (3, 6), (6, 6), (6, 6))
    HEADINGS: ClassVar[tuple[tuple[float, float], ...]] = ((1, 0), (0, 1), (1, 0), (0, 1))
    """Where to go after each checkpoint."""
    WALLS: ClassVar[tuple[str, ...]] = (
        "#######",
        "#.....#",
        "###.#.#",
        "#.....#",
        "#.#.###",
        "#.....#",
        "#######",
    )
    """The plan seen from above, x to the right and y upwards, a block every 1.5 m."""
    HALF_BLOCK: ClassVar[float] = 0.75

    def __init__(self, sim: Simulation) -> None:
        super().__init__(sim)
        self._walls = sim.geoms_of("maze")
        self.stage = 0
        self.heading = self.HEADINGS[0]

    @classmethod
    def build(cls, spec: mujoco.MjSpec) -> None:
        world = spec.worldbody
        for name, (x, y) in zip("abcd", cls.CHECKPOINTS, strict=False):
            add_picture(
                world, SPHERE, (0.05,), (x, y, 1), name=f"intersection_{name}", rgba=(0.9, 0.2, 0.1, 1)
            )
        maze = world.add_body(name="maze", pos=[-2.25, -2.25, 0])
        block = cls.HALF_BLOCK
        for row, line in enumerate(cls.WALLS):
            for column, cell in enumerate(line):
                if cell == "#":
                    x, y = (2 * column + 1) * block, (2 * (len(cls.WALLS) - row) - 1) * block
                    add_solid(
                        maze,
                        BOX,
                        (block, block, 0.6),
                        (x, y, 0.6),
                        name=f"block_collision_{row}{column}",
                        rgba=(0.4, 0.4, 0.4, 0.3),
                    )

    def reset(self, rng: np.random.Generator) -> None:
        self.stage, self.heading = 0, self.HEADINGS[0]

    def restore(self, internal: Mapping[str, Sequence[float]]) -> None:
        self.stage = int(internal.get("maze_stage", [0])[0])
        x, y = internal.get("move_direction", self.HEADINGS[0])[:2]
        self.heading = (x, y)

    def _advance(self) -> float:
        """Goes to the next stage where the checkpoint is reached; returns the bonus."""
        last = len(self.CHECKPOINTS) - 1
        if distance(self.robot.pelvis_position[:2], self.CHECKPOINTS[self.stage]) >= self.REACHED:
            return 0.0
        if self.stage == last:
            return 0.0
        self.heading = self.HEADINGS[self.stage]
        self.stage += 1
        return 100.0 * self.stage

    def reward(self) -> tuple[float, Terms]:
        robot = self.robot
        stand_reward = standing(robot.head_height) * upright(robot.uprightness)
        small_control = quiet_forces(robot.forces)
        discount = 0.1 if self.sim.touching(self._walls) else 1.0
        bonus = self._advance()
        move = 1.0
        if self.stage < len(self.CHECKPOINTS) - 1:
            for speed, towards in zip(robot.com_velocity, self.heading, strict=False):
                move *= tolerance(float(speed) - towards * self.SPEED, margin=1, sigmoid="linear")
        move = (5 * move + 1) / 6
        near = tolerance(distance(robot.imu[:2], self.CHECKPOINTS[self.stage]), margin=1)
        reward = (0.2 * stand_reward * small_control + 0.4 * move + 0.4 * near) * discount + bonus
        return reward, {
            "stand_reward": stand_reward,
            "small_control": small_control,
            "move": move,
            "wall_collision_discount": discount,
            "stage_convert_reward": bonus,
            "checkpoint_proximity_reward": near,
            "success_subtasks": float(self.stage),
        }

    def fallen(self) -> bool:
        return self.robot.height < 0.2
