"""Locomotion: stand, walk, run, crawl, stairs, slides, hurdles.

Source: HumanoidBench (Sferrazza et al., arXiv 2403.10506), appendix on locomotion tasks.
"""

from __future__ import annotations

from typing import ClassVar

import mujoco

from ezm_pl.envs.robots.humanoid import Simulation, Task, Terms
from ezm_pl.envs.tasks.rewards import INF, distance, quiet_forces, stillness, tolerance
from ezm_pl.envs.tasks.scene import BOX, MESH, add_invisible, add_picture, add_solid

STAND_HEIGHT = 1.65
"""Height of the head above which the robot counts as standing, m."""
WALK_SPEED = 1.0
RUN_SPEED = 5.0


def standing(height: float) -> float:
    """1 with the head at `STAND_HEIGHT` or above."""
    return tolerance(height, STAND_HEIGHT, INF, margin=STAND_HEIGHT / 4)


def upright(uprightness: float, bound: float = 0.9, margin: float = 1.9) -> float:
    """1 with the torso upright, falling linearly."""
    return tolerance(uprightness, bound, INF, margin=margin, sigmoid="linear")


def moving(speed: float, target: float) -> float:
    """1/6 at rest or backwards, 1 at the target speed, linear between."""
    return (5 * tolerance(speed, target, INF, margin=target, sigmoid="linear") + 1) / 6


class Walk(Task):
    """Walk forwards (along x) at 1 m/s or more."""

    name = "walk"
    speed: ClassVar[float] = WALK_SPEED
    upright_bound: ClassVar[float] = 0.9

    def posture(self) -> Terms:
        """Standing, upright, their product, and small forces."""
        stand = standing(self.robot.head_height)
        up = upright(self.robot.uprightness, self.upright_bound)
        return {
            "stand_reward": stand * up,
            "small_control": quiet_forces(self.robot.forces),
            "standing": stand,
            "upright": up,
        }

    def reward(self) -> tuple[float, Terms]:
        terms = self.posture()
        terms["move"] = moving(float(self.robot.com_velocity[0]), self.speed)
        return terms["small_control"] * terms["stand_reward"] * terms["move"], terms

    def fallen(self) -> bool:
        return self.robot.height < 0.2


class Stand(Walk):
    """Stand still."""

    name = "stand"

    def reward(self) -> tuple[float, Terms]:
        terms = self.posture()
        terms["dont_move"] = stillness(self.robot.com_velocity)
        return terms["small_control"] * terms["stand_reward"] * terms["dont_move"], terms


class Run(Walk):
    """Run forwards at 5 m/s or more."""

    name = "run"
    speed = RUN_SPEED


class Crawl(Task):
    """Crawl forwards through a tunnel, at 1 m/s or more. Nothing ends the episode early."""

    name = "crawl"
    camera = "cam_hurdle"
    CRAWL_HEIGHT: ClassVar[float] = 0.8

    @classmethod
    def build(cls, spec: mujoco.MjSpec) -> None:
        tunnel = spec.worldbody.add_body(name="tunnel", pos=[2.2, 0, 0])
        glass = (0.5, 0.5, 0.5, 0.3)
        add_solid(tunnel, BOX, (8, 0.2, 0.775), (8, -1.35, 0.775), name="left_wall", rgba=glass)
        add_solid(tunnel, BOX, (8, 0.2, 0.775), (8, 1.35, 0.775), name="right_wall", rgba=glass)
        add_solid(tunnel, BOX, (8, 1.15, 0.2), (8, 0, 1.35), name="ceiling", rgba=glass)

    def reward(self) -> tuple[float, Terms]:
        robot = self.robot
        low, high = self.CRAWL_HEIGHT - 0.2, self.CRAWL_HEIGHT + 0.2
        crawling = tolerance(float(robot.imu[2]), low, high, margin=1)
        crawling_head = tolerance(robot.head_height, low, high, margin=1)
        # The benchmark compares quaternions as plain vectors, with this (not quite unit) one.
        facing = tolerance(distance(robot.pelvis_quaternion, (0.75, 0, 0.65, 0)), margin=1)
        small_control = quiet_forces(robot.forces)
        move = moving(float(robot.com_velocity[0]), WALK_SPEED)
        in_tunnel = tolerance(float(robot.imu[1]), -1, 1)
        posture = 0.1 * small_control + 0.25 * min(crawling, crawling_head) + 0.25 * facing
        return (posture + 0.4 * move) * in_tunnel, {
            "crawling": crawling,
            "crawling_head": crawling_head,
            "small_control": small_control,
            "move": move,
            "in_tunnel": in_tunnel,
        }


class Climb(Walk):
    """Walk over uneven ground: standing is judged by the head's height over each foot."""

    upright_bound = 0.5

    def posture(self) -> Terms:
        robot = self.robot
        head = robot.head_height
        stand = tolerance(head - float(robot.left_foot[2]), 1.2, INF, margin=0.45)
        stand *= tolerance(head - float(robot.right_foot[2]), 1.2, INF, margin=0.45)
        up = upright(robot.uprightness, self.upright_bound)
        return {
            "stand_reward": stand * up,
            "small_control": quiet_forces(robot.forces),
            "standing": stand,
            "upright": up,
        }

    def fallen(self) -> bool:
        return self.robot.uprightness < 0.1


class Stair(Climb):
    """Walk up and down four flights of stairs."""

    name = "stair"
    FLIGHTS: ClassVar[dict[str, float]] = {"50": 3, "40": 9, "30": 15, "20": 21}
    """A flight's name and where it stands on x."""
    LAYERS: ClassVar[int] = 5
    HALF_RISE: ClassVar[float] = 0.09
    TREAD: ClassVar[float] = 0.6

    @classmethod
    def build(cls, spec: mujoco.MjSpec) -> None:
        world = spec.worldbody
        stairs = world.add_body(name="stairs", pos=[0.2, 0, 0])
        for flight, x in cls.FLIGHTS.items():
            body = stairs.add_body(name=f"stairs_{flight}", pos=[x, 0, 0])
            for layer in range(cls.LAYERS):
                half_length = (cls.LAYERS - layer - 0.5) * cls.TREAD
                add_solid(
                    body,
                    BOX,
                    (half_length, 5, cls.HALF_RISE),
                    (0, 0, (2 * layer + 1) * cls.HALF_RISE),
                    mass=0.02,
                    rgba=(0.8, 0.8, 0.83, 1),
                )
        add_invisible(world, BOX, (15.5, 0.1, 2), (13.5, -5.05, 2))
        add_invisible(world, BOX, (15.5, 0.1, 2), (13.5, 5.05, 2))
        add_invisible(world, BOX, (0.1, 7.25, 2), (-2.1, 0, 2))


class Slide(Climb):
    """Walk up and down nine wedges."""

    name = "slide"
    WEDGES: ClassVar[int] = 9
    LENGTH: ClassVar[float] = 10.0
    START: ClassVar[float] = 0.3
    HEIGHT: ClassVar[float] = 1.75

    @classmethod
    def build(cls, spec: mujoco.MjSpec) -> None:
        middle, end = cls.START + cls.LENGTH / 2, cls.START + cls.LENGTH
        profile = ((cls.START, 0.0), (middle, cls.HEIGHT), (end, 0.0))
        spec.add_mesh(name="slide", uservert=[v for x, z in profile for y in (5.0, -5.0) for v in (x, y, z)])
        world = spec.worldbody
        slides = world.add_body(name="slides")
        for i in range(cls.WEDGES):
            add_solid(slides, MESH, (), (cls.LENGTH * i, 0, 0), meshname="slide", rgba=(0.6, 0.6, 0.6, 1))
        add_invisible(world, BOX, (53, 0.15, 4), (48.85, -5.15, 4))
        add_invisible(world, BOX, (53, 0.15, 4), (48.85, 5.15, 4))
        add_invisible(world, BOX, (0.15, 5.15, 4), (-4, 0, 4))


class Hurdle(Walk):
    """Run forwards at 5 m/s over hurdles, without touching the barriers at the sides and behind."""

    name = "hurdle"
    speed = RUN_SPEED
    upright_bound = 0.8
    camera = "cam_hurdle"
    ROWS: ClassVar[int] = 10
    SPACING: ClassVar[float] = 7.0
    LANES: ClassVar[tuple[int, ...]] = (0, 1, -1, 2, -2, 3, -3, 4, -4)
    BARRIERS: ClassVar[tuple[str, ...]] = ("left_barrier", "right_barrier", "behind_barrier")

    def __init__(self, sim: Simulation) -> None:
        super().__init__(sim)
        self._barriers = sim.geoms_of(*self.BARRIERS)

    @classmethod
    def build(cls, spec: mujoco.MjSpec) -> None:
        world = spec.worldbody
        boxes = {
            "left_barrier": ((35.5, 0.275, 1), (35, -4.725, 1)),
            "right_barrier": ((35.5, 0.275, 1), (35, 4.725, 1)),
            "behind_barrier": ((0.05, 5, 1), (-0.525, 0, 1)),
        }
        for name in cls.BARRIERS:
            size, pos = boxes[name]
            add_solid(world.add_body(name=name), BOX, size, pos, rgba=(0.1, 0.1, 0.1, 0.1))
        rows = world.add_body(name="hurdle_array")
        for row in range(1, cls.ROWS + 1):
            # A row touches as one long box; the nine hurdles that are seen in it are pictures.
            add_invisible(world, BOX, (0.03, 5, 0.1875), (cls.SPACING * row, 0, 0.1875))
            for lane in cls.LANES:
                body = rows.add_body(name=f"starting_hurdle_{row}_{lane}", pos=[cls.SPACING * row, lane, 0])
                for side in (-0.47, 0.47):
                    add_picture(body, BOX, (0.15, 0.01, 0.01), (-0.1, side, 0.01))
                for side in (-0.47, 0.47):
                    add_picture(body, BOX, (0.01, 0.01, 0.2), (0, side, 0.2))
                add_picture(body, BOX, (0.01, 0.45, 0.03), (0, 0, 0.34), rgba=(0.6, 0.3, 0.2, 1))

    def reward(self) -> tuple[float, Terms]:
        reward, terms = super().reward()
        discount = 0.1 if self.sim.touching(self._barriers) else 1.0
        terms["wall_collision_discount"] = discount
        return reward * discount, terms
