"""Room: tidy up a room, so that six things stand close together.

Source: HumanoidBench (Sferrazza et al., arXiv 2403.10506), appendix on manipulation tasks.
"""

from __future__ import annotations

from typing import ClassVar

import mujoco
import numpy as np

from ezm_pl.envs.core import FloatArray
from ezm_pl.envs.robots.humanoid import Simulation, Task, Terms
from ezm_pl.envs.tasks.bookshelf import Bookshelf, add_shelf
from ezm_pl.envs.tasks.locomotion import standing, upright
from ezm_pl.envs.tasks.rewards import quiet_forces, tolerance
from ezm_pl.envs.tasks.scene import (
    BOX,
    add_camera,
    add_chair,
    add_free_body,
    add_package,
    add_solid,
    add_table,
)

WALL = (0.82, 0.8, 0.74, 0.25)
LYING = (0.0733422, 0.0519076, -0.240058, -0.966591)
"""Orientation of the headphone at the start."""


class Room(Task):
    """Tidy up: bring six things in a room closer together. A pelvis below 0.3 m ends the episode.

    Quirk of the benchmark: the loop that places the things starts one thing too early, at two joints of
    the right little finger. Every episode starts with them metres ("radians") outside their range, and
    they snap back in the first steps. Without quirks the finger starts where the others do.
    """

    name = "room"
    camera = "cam_room"
    extra_qpos: ClassVar[tuple[float, ...]] = (
        *(0, 0, 0, 1, 0, 0, 0),
        *(0, 0, 0, 1, 0, 0, 0),
        *(0, 0, 0, *LYING),
        *(0, 0, 0.1, 1, 0, 0, 0),
        *(0, 0, 0.1, 1, 0, 0, 0),
        *(0, 0, 0, 1, 0, 0, 0),
    )
    THINGS: ClassVar[dict[str, tuple[tuple[float, ...], tuple[float, ...]]]] = {
        "chair": ((-0.25, 0, 0), (1, 0, 0, 0)),
        "trophy": ((0.95, 0.02, 0), (1, 0, 0, 0)),
        "headphone": ((0.85, 0, 0), (0.8775825618903728, 0, 0, 0.479425538604203)),
        "package_a": ((1.2, 0, 0.1), (0.7071054825112364, -0.7071080798594737, 0, 0)),
        "package_b": ((1, 0.8, 0.1), (0.7067518400978545, 0, 0, 0.7074615441974897)),
        "snow_globe": ((0.95, 0.2, 0), (1, 0, 0, 0)),
    }
    """Name -> place and orientation in the model (episodes start elsewhere), in the order of qpos."""
    PACKAGES: ClassVar[dict[str, tuple[float, ...]]] = {
        "package_a": (0.2, 0.1, 0.15),
        "package_b": (0.25, 0.2, 0.1),
    }

    def __init__(self, sim: Simulation) -> None:
        super().__init__(sim)
        self._places: list[FloatArray] = [sim.data.body(name).xpos for name in self.THINGS]
        self._finger = [sim.model.joint(f"rh_LFJ{number}").qposadr[0] for number in (2, 1)]

    @classmethod
    def build(cls, spec: mujoco.MjSpec) -> None:
        world = spec.worldbody
        for x in (-4.15, 4.15):
            add_solid(world, BOX, (0.15, 4, 1.5), (x, 0, 1.5), rgba=WALL)
        for y in (3.85, -3.85):
            add_solid(world, BOX, (4, 0.15, 1.5), (0, y, 1.5), rgba=WALL)
        add_camera(spec, "cam_room", (-4.4, -6.2, 6.4), (0.3, -0.4, 0))
        add_table(spec, (2.7, -0.5, 0.45))
        add_shelf(spec, (2.7, 0.5, 0))
        for name, (place, quat) in cls.THINGS.items():
            thing = add_free_body(spec, name, place, quat)
            if name == "chair":
                add_chair(thing)
            elif name in cls.PACKAGES:
                add_package(thing, cls.PACKAGES[name])
            else:
                off_centre = name == "headphone"
                part = thing.add_body(name="centering_trick", pos=[0, -0.05, 0]) if off_centre else thing
                Bookshelf.add_thing(part, name)

    def reset(self, rng: np.random.Generator) -> None:
        qpos, first = self.sim.data.qpos, self.sim.robot_nq

        def place(number: int) -> tuple[float, float]:
            x = rng.uniform(number - 3.5, number - 2.5)
            return x, rng.uniform(1.2, 3.5) * rng.choice([1, -1])

        if self.quirks:
            qpos[self._finger] = place(0)
        for i in range(len(self.THINGS)):
            start = first + 7 * i
            qpos[start : start + 2] = place(i + 1)
        start = first + 7 * list(self.THINGS).index("headphone")
        qpos[start + 3 : start + 7] = LYING

    def reward(self) -> tuple[float, Terms]:
        robot = self.robot
        stand, up = standing(robot.head_height), upright(robot.uprightness)
        small_control = quiet_forces(robot.forces)
        spread = np.array(self._places)[:, :2].var(axis=0).max()
        organized = tolerance(float(spread), margin=3)
        return 0.2 * small_control * stand * up + 0.8 * organized, {
            "stand_reward": stand * up,
            "small_control": small_control,
            "standing": stand,
            "upright": up,
            "room_object_organized": organized,
        }

    def fallen(self) -> bool:
        return self.robot.height < 0.3
