"""Basketball: catch a ball and throw it into a basket.

Source: HumanoidBench (Sferrazza et al., arXiv 2403.10506), appendix on manipulation tasks.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import ClassVar

import mujoco
import numpy as np

from ezm_pl.envs.core import FloatArray
from ezm_pl.envs.robots.h1 import set_inertial
from ezm_pl.envs.robots.humanoid import Simulation, Task, Terms
from ezm_pl.envs.tasks.locomotion import standing, upright
from ezm_pl.envs.tasks.rewards import distance, quiet_forces, tolerance
from ezm_pl.envs.tasks.scene import (
    BOX,
    CAPSULE,
    CYLINDER,
    SPHERE,
    STEEL,
    add_camera,
    add_free_body,
    add_invisible,
    add_picture,
    add_solid,
)

LEATHER = (0.85, 0.4, 0.12, 1.0)
SEAM = (0.15, 0.1, 0.08, 1.0)
RIM = (0.9, 0.3, 0.1, 1.0)
NET = (0.95, 0.95, 0.95, 0.9)
BOARD = (0.95, 0.95, 0.97, 1.0)
RING_PARTS = 24


class Basketball(Task):
    """Catch the ball that comes flying, then throw it into the basket, within 500 control steps.

    Quirks, gone with `quirks=False`: the throw begins with the ball's first contact with anything, the
    floor and the backboard included, where a contact with the robot was meant.
    Another one is in the model and stays: the four slanting walls of the basket are turned by 45
    radians (58 degrees), not by 45 degrees.
    """

    name = "basketball"
    own_state = ("thrown",)
    native_ccd = False
    episode_steps = 500
    camera = "cam_basketball"
    extra_qpos = (0.35, 0.9, 2, 1, 0, 0, 0)
    RADIUS: ClassVar[float] = 0.1193
    HOOP: ClassVar[tuple[float, ...]] = (5.9, 0, 2.25)
    IN: ClassVar[float] = 0.05
    """The ball is in the basket within this distance of the hoop's centre, m."""
    SPEED: ClassVar[float] = 7.5
    START_DISTANCE: ClassVar[float] = 1.5
    ABOVE_HAND: ClassVar[float] = 0.3924
    WIDEST: ClassVar[float] = 1.45
    """Largest angle from the robot's front that the ball comes from, rad."""

    def __init__(self, sim: Simulation) -> None:
        super().__init__(sim)
        self._state_of_ball = sim.data.joint("free_basketball")
        self._height: FloatArray = sim.data.joint("free_basketball").qpos[2:3]
        self._place: FloatArray = sim.data.body("basketball").xpos
        self._geom = sim.model.geom("basketball_collision").id
        bodies = sim.model.geom_bodyid
        of_robot = sim.model.body_rootid[bodies] == sim.model.body("pelvis").id
        self._robot_geoms = frozenset(np.flatnonzero(of_robot).tolist())
        self.thrown = False

    @classmethod
    def build(cls, spec: mujoco.MjSpec) -> None:
        world = spec.worldbody
        world.add_site(name="hoop_center", pos=cls.HOOP, size=[0.01] * 3, group=4)
        stand = world.add_body(name="basketball_hoop", pos=[6.0198, 0, 0])
        hoop = stand.add_body(name="baskethoop", pos=[-0.2, 0, 2.25])
        cls._basket_walls(hoop)
        add_solid(hoop, BOX, (0.01, 0.55, 0.35), (0.27, 0, 0.3), rgba=BOARD)
        add_solid(hoop, CYLINDER, (0.05, 1), (0.6, 0, -1.25), rgba=STEEL)
        add_solid(hoop, BOX, (0.35, 0.25, 0.08), (0.9, 0, -2.17), rgba=STEEL)
        set_inertial(hoop, 635.1815337803596, (0.61586, 0.00029, -1.20865), (635.67, 631.48, 39.8))
        cls._draw_basket(hoop)

        ball = add_free_body(spec, "basketball", cls.extra_qpos[:3])
        radius = cls.RADIUS
        add_solid(ball, SPHERE, (radius,), density=35, name="basketball_collision", rgba=LEATHER)
        for quat in ((1, 0, 0, 0), (0.5**0.5, 0.5**0.5, 0, 0), (0.5**0.5, 0, 0.5**0.5, 0)):
            add_picture(ball, CYLINDER, (radius + 0.0005, 0.003), quat=quat, mass=0, rgba=SEAM)
        add_camera(spec, "cam_basketball", (2.2, 8.4, 2.5), (2.6, 0, 1.25))

    @staticmethod
    def _basket_walls(hoop: mujoco.MjsBody) -> None:
        """Eight boxes round the ring, touched but not seen."""
        turn = (math.cos(22.5), 0, 0, -math.sin(22.5))  # -45 radians about z
        back = (math.cos(22.5), 0, 0, math.sin(22.5))
        for size, x, y, quat in (
            ((0.01, 0.2, 0.2), 0.25, 0, (1, 0, 0, 0)),
            ((0.15, 0.01, 0.2), 0.2, 0.2, turn),
            ((0.15, 0.01, 0.2), 0.2, -0.2, back),
            ((0.01, 0.2, 0.2), -0.3, 0, (1, 0, 0, 0)),
            ((0.15, 0.01, 0.2), -0.25, 0.2, back),
            ((0.15, 0.01, 0.2), -0.25, -0.2, turn),
            ((0.2, 0.01, 0.2), -0.05, 0.25, (1, 0, 0, 0)),
            ((0.2, 0.01, 0.2), -0.05, -0.25, (1, 0, 0, 0)),
        ):
            add_invisible(hoop, BOX, size, (x, y, -0.2), quat=quat)

    @staticmethod
    def _draw_basket(hoop: mujoco.MjsBody) -> None:
        """The ring, its net, the square on the board, and the arm that carries it: to look at only."""

        def bar(radius: float, start: tuple[float, ...], end: tuple[float, ...], colour: object) -> None:
            add_picture(hoop, CAPSULE, (radius,), fromto=[*start, *end], mass=0, rgba=colour)

        def ring(radius: float, z: float) -> list[tuple[float, ...]]:
            angles = np.linspace(0, 2 * math.pi, RING_PARTS + 1)
            return [(radius * math.cos(a) - 0.02, radius * math.sin(a), z) for a in angles]

        rim, middle, end = ring(0.24, 0), ring(0.18, -0.2), ring(0.15, -0.4)
        for i in range(RING_PARTS):
            bar(0.012, rim[i], rim[i + 1], RIM)
            for upper, lower in ((rim, middle), (middle, end)):
                if i % 2 == 0:
                    bar(0.003, upper[i], lower[i + 1], NET)
                    bar(0.003, upper[i + 1], lower[i], NET)
        bar(0.015, (0.22, 0, 0), (0.27, 0, 0), RIM)
        for y in (-0.25, 0.25):
            bar(0.01, (0.258, y, 0.1), (0.258, y, 0.42), RIM)
        for z in (0.1, 0.42):
            bar(0.01, (0.258, -0.25, z), (0.258, 0.25, z), RIM)
        bar(0.04, (0.33, 0, 0.15), (0.6, 0, -0.25), STEEL)
        bar(0.05, (0.6, 0, -2.2), (0.6, 0, -0.25), STEEL)

    def reset(self, rng: np.random.Generator) -> None:
        angle = rng.uniform(0, self.WIDEST) * rng.choice((-1, 1))
        towards = np.array([math.cos(angle), math.sin(angle)])
        self._state_of_ball.qpos[:2] = self.START_DISTANCE * towards
        self._state_of_ball.qpos[2] = self.robot.left_hand[2] + self.ABOVE_HAND
        self._state_of_ball.qvel[:2] = -self.SPEED * towards
        self.thrown = False

    def restore(self, internal: Mapping[str, Sequence[float]]) -> None:
        self.thrown = bool(internal.get("stage", [0])[0])

    def internal(self) -> dict[str, list[float]]:
        return {"stage": [float(self.thrown)]}

    def _caught(self) -> bool:
        """Whether the ball touches anything (without quirks: the robot)."""
        for pair in self.sim.contacts():
            if self._geom in pair:
                other = pair[1] if pair[0] == self._geom else pair[0]
                if self.quirks or other in self._robot_geoms:
                    return True
        return False

    def reward(self) -> tuple[float, Terms]:
        robot = self.robot
        stand_reward = standing(robot.head_height) * upright(robot.uprightness)
        small_control = quiet_forces(robot.forces)
        hands = tolerance(max(robot.hand_distances(self._place)), 0, 0.2, margin=1)
        gap = distance(self._place, self.HOOP)
        near = tolerance(gap, margin=7, sigmoid="linear", linear_at_margin=0.1)
        self.thrown = self.thrown or self._caught()
        if self.thrown:
            reward = 0.15 * stand_reward * small_control + 0.05 * hands + 0.8 * near
        else:
            reward = 0.5 * stand_reward * small_control + 0.5 * hands
        return reward + 1000.0 * self.solved(), {
            "reward_hand_proximity": hands,
            "reward_ball_success": near,
            "stand_reward": stand_reward,
            "small_control": small_control,
            "success_subtasks": float(self.thrown),
            "success": float(self.solved()),
        }

    def fallen(self) -> bool:
        return bool(self._height[0] < 0.5) or self.robot.height < 0.5

    def solved(self) -> bool:
        return distance(self._place, self.HOOP) < self.IN
