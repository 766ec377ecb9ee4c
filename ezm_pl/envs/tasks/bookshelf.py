"""Bookshelf: carry five things, in turn, each to its place on the shelf.

Source: HumanoidBench (Sferrazza et al., arXiv 2403.10506), appendix on manipulation tasks.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import ClassVar

import mujoco
import numpy as np

from ezm_pl.envs.core import FloatArray
from ezm_pl.envs.robots.h1 import BLACK, Vector, set_inertial
from ezm_pl.envs.robots.humanoid import Simulation, Task, Terms
from ezm_pl.envs.tasks.locomotion import standing, upright
from ezm_pl.envs.tasks.rewards import distance, quiet_forces, tolerance
from ezm_pl.envs.tasks.scene import (
    BOX,
    CYLINDER,
    DARK_WOOD,
    GLASS,
    GOLD,
    HIDDEN_GROUP,
    SPHERE,
    WOOD,
    Z_TO_Y,
    add_free_body,
    add_solid,
)

BOOK_QUAT = (0.7085408516371904, -0.0031526762495705015, -0.0034787480650862517, 0.7056541791172296)
BOOK_INERTIA = (0.014334850302859215, 0.009709300003996921, 0.0055503816765057066)
BOOK_MASS = 2.2660261842895655
THICK_QUAT = (0.710033900978279, -0.0030118450049586637, -0.0036161965784738924, 0.704151767287096)
THICK_INERTIA = (0.02388129103583919, 0.01754449565992716, 0.010616560775237085)
THICK_MASS = 3.774040452785462
LYING = (0.7073882691671998, -0.706825181105366, 0.0, 0.0)


def add_shelf(spec: mujoco.MjSpec, pos: Vector) -> None:
    """A shelf of six boards and a top, 1.85 m high, open towards -x."""
    shelf = spec.worldbody.add_body(name="shelf", pos=pos)
    for size, place in (
        *(((0.3, 0.4, 0.025), (0, 0, 0.025 + 0.3 * i)) for i in range(6)),
        ((0.325, 0.45, 0.025), (0.025, 0, 1.825)),
        ((0.325, 0.025, 0.9), (0.025, 0.425, 0.9)),
        ((0.325, 0.025, 0.9), (0.025, -0.425, 0.9)),
        ((0.025, 0.4, 0.9), (0.325, 0, 0.9)),
    ):
        add_solid(shelf, BOX, size, place, rgba=WOOD)


class Bookshelf(Task):
    """Carry five things, in turn, each to its place on the shelf: the same in every episode.

    Numbers of things count from the end of the model's bodies, where the pictures of their goals
    follow them: -24 is the first thing, -13 the last. The observation ends with the present one's.
    """

    name = "bookshelf_simple"
    own_state = ("done", "things", "goals")
    reset_noise = 0.0
    several_contacts = True
    camera = "cam_hand_visible"
    THINGS: ClassVar[tuple[str, ...]] = (
        "book_a",
        "book_b",
        "book_c",
        "book_d",
        "book_e",
        "trophy",
        "book_flat",
        "soda_can",
        "book_thick",
        "chalk",
        "snow_globe",
        "headphone",
    )
    FIRST: ClassVar[int] = -24
    """Number of the first thing."""
    TO_CARRY: ClassVar[int] = 5
    NEAR: ClassVar[float] = 0.15
    """A thing is in its place within this distance, m."""
    FIXED_THINGS: ClassVar[tuple[int, ...]] = (-19, -22, -15, -20, -23)
    GOALS: ClassVar[Sequence[Vector]] = (
        (0.75, -0.25, 1.55),
        (0.8, 0.05, 0.95),
        (0.8, -0.25, 0.95),
        (0.85, 0.05, 0.35),
        (0.85, -0.25, 0.35),
    )
    extra_qpos: ClassVar[Sequence[float]] = (
        *(v for y in (-0.36, -0.3, -0.24, -0.18, -0.12, 0.02) for v in (0.95, y, 1.25, 1, 0, 0, 0)),
        *(0.95, 0.12, 1.255, 0.7073883, -0.7068252, 0, 0),
        *(v for y in (-0.3, -0.13, 0, 0.2) for v in (0.95, y, 0.65, 1, 0, 0, 0)),
        *(0.85, 0, 1.58, 0.8689313, -0.06692531, 0.12250874, 0.47483787),
    )
    BOOK_FLAT_HEIGHT: ClassVar[float] = 1.25
    HEADPHONE: ClassVar[tuple[Vector, Vector]] = ((0.85, 0, 1.55), (math.cos(0.5), 0, 0, math.sin(0.5)))
    """Where the headphone is in the model (episodes start from `extra_qpos`)."""

    def __init__(self, sim: Simulation) -> None:
        super().__init__(sim)
        self._places: dict[int, FloatArray] = {
            self.FIRST + i: sim.data.body(name).xpos for i, name in enumerate(self.THINGS)
        }
        self.done = 0
        self.things: list[int] = list(self.FIXED_THINGS)
        self.goals: FloatArray = np.array(self.GOALS)

    @classmethod
    def build(cls, spec: mujoco.MjSpec) -> None:
        world = spec.worldbody
        add_shelf(spec, (0.95, 0, 0))
        starts: dict[str, tuple[Vector, Vector]] = {
            name: (cls.extra_qpos[7 * i : 7 * i + 3], cls.extra_qpos[7 * i + 3 : 7 * i + 7])
            for i, name in enumerate(cls.THINGS)
        }
        starts["book_flat"] = ((0.95, 0.15, cls.BOOK_FLAT_HEIGHT), LYING)
        starts["headphone"] = cls.HEADPHONE
        for name, (place, quat) in starts.items():
            body = add_free_body(spec, name, place, quat)
            body.add_site(name=name, group=4)
            cls.add_thing(body, name)
        for name in cls.THINGS:
            # Stand-ins: the observation's numbering counts them. Goals are drawn as markers instead.
            picture = world.add_body(name=f"{name}_vision")
            picture.add_site(name=f"{name}_vision", group=4)
            cls.add_thing(picture, name)
            for geom in picture.geoms:
                geom.contype, geom.conaffinity, geom.group = 0, 0, HIDDEN_GROUP

    @staticmethod
    def add_thing(body: mujoco.MjsBody, name: str) -> None:
        """The shape and mass of one of the things, with its origin at its foot."""
        if name.startswith("book"):
            size: Vector
            pos: Vector
            if name == "book_flat":
                size, pos = (0.082, 0.028, 0.115), (0, -0.022, 0.115)
            elif name == "book_thick":
                size, pos = (0.082, 0.0415, 0.115), (0.0025, 0.003, 0.115)
            else:
                size, pos = (0.082, 0.025, 0.115), (0.0025, 0, 0.115)
            add_solid(body, BOX, size, pos, rgba=(0.59, 0.61, 0.62, 1))
            # A book's mass is that of its (not quite box-shaped) picture in the original.
            if name == "book_thick":
                com = (0.0008885008567198993, 0.004099829502964146, 0.11508564140094006)
                set_inertial(body, THICK_MASS, com, THICK_INERTIA, THICK_QUAT)
            else:
                y = 0.0023948381796961744 - (0.025 if name == "book_flat" else 0)
                com = (0.0008807096042771493, y, 0.115098614630868)
                set_inertial(body, BOOK_MASS, com, BOOK_INERTIA, BOOK_QUAT)
        elif name == "trophy":
            add_solid(body, CYLINDER, (0.1, 0.015), (0, 0, 0.015), rgba=DARK_WOOD)
            add_solid(body, CYLINDER, (0.025, 0.1), (0, 0, 0.115), rgba=GOLD)
            add_solid(body, SPHERE, (0.035,), (0, 0, 0.2), rgba=GOLD)
        elif name == "soda_can":
            add_solid(body, CYLINDER, (0.05, 0.1), (0, 0, 0.1))
        elif name == "chalk":
            add_solid(body, CYLINDER, (0.01, 0.07), (0, 0, 0.01), quat=(0.5**0.5, -0.5, 0.5, 0))
        elif name == "snow_globe":
            add_solid(body, CYLINDER, (0.1, 0.015), (0, 0, 0.015), rgba=DARK_WOOD)
            add_solid(body, SPHERE, (0.1,), (0, 0, 0.101), rgba=GLASS)
        else:  # the headphone
            for y in (-0.07, 0.07):
                add_solid(body, CYLINDER, (0.08, 0.025), (0.1, y, 0.08), quat=Z_TO_Y, rgba=BLACK)
            for y in (-0.07, 0.07):
                add_solid(body, BOX, (0.1, 0.02, 0.02), (0.2, y, 0.08))
            add_solid(body, BOX, (0.02, 0.08, 0.02), (0.3, 0, 0.08))

    def draw(self, rng: np.random.Generator) -> None:
        """Chooses what to carry where."""

    def reset(self, rng: np.random.Generator) -> None:
        self.done = 0
        self.draw(rng)

    def restore(self, internal: Mapping[str, Sequence[float]]) -> None:
        self.done = int(internal.get("task_index", [0])[0])
        if "bookshelf_objects" in internal:
            self.things = [int(number) for number in internal["bookshelf_objects"]][: self.TO_CARRY]
        if "placement_goals" in internal:
            self.goals = np.reshape(internal["placement_goals"], (-1, 3))[: self.TO_CARRY]

    def _present(self) -> int:
        """Which of the five is being carried; after the last, still the last."""
        return min(self.done, self.TO_CARRY - 1)

    def observation(self) -> Sequence[FloatArray]:
        return (np.array([self.things[self._present()]], float),)

    def markers(self) -> Sequence[FloatArray]:
        return (self.goals[self._present()],)

    def reward(self) -> tuple[float, Terms]:
        robot = self.robot
        stand_reward = standing(robot.head_height) * upright(robot.uprightness)
        small_control = quiet_forces(robot.forces)
        place = self._places[self.things[self._present()]]
        gap = distance(place, self.goals[self._present()])
        proximity = tolerance(gap, 0, self.NEAR, margin=1, sigmoid="linear", linear_at_margin=0.1)
        hands = math.exp(-min(robot.hand_distances(place)))
        reward = 0.2 * stand_reward * small_control + 0.4 * proximity + 0.4 * hands
        if gap < self.NEAR and self.done < self.TO_CARRY:
            self.done += 1
            reward += 100.0 * self.done
        return reward, {
            "stand_reward": stand_reward,
            "small_control": small_control,
            "reward_proximity": proximity,
            "reward_hand_proximity": hands,
            "obj_goal_dist": gap,
            "success_subtasks": float(self.done),
        }

    def fallen(self) -> bool:
        """The robot fell, the thing to carry fell, or all five are in their places."""
        if self.robot.height < 0.58 or self.done == self.TO_CARRY:
            return True
        return bool(self._places[self.things[self._present()]][2] < 0.5)


class BookshelfHard(Bookshelf):
    """Carry five things, in turn, each to its place on the shelf: others in every episode."""

    name = "bookshelf_hard"
    BOOK_FLAT_HEIGHT = 1.255
    HEADPHONE = ((0.85, 0, 1.58), (0.8689313, -0.06692531, 0.12250874, 0.47483787))

    def draw(self, rng: np.random.Generator) -> None:
        self.goals = rng.permutation(np.array(self.GOALS))
        numbers = np.arange(self.FIRST, self.FIRST + len(self.THINGS))
        self.things = [int(number) for number in rng.choice(numbers, self.TO_CARRY, replace=False)]
