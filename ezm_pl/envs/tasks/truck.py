"""Truck: unload five packages from a truck onto a table.

Source: HumanoidBench (Sferrazza et al., arXiv 2403.10506), appendix on manipulation tasks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar, NamedTuple

import mujoco
import numpy as np

from ezm_pl.envs.core import FloatArray
from ezm_pl.envs.robots.h1 import STANDING_HEIGHT, Vector
from ezm_pl.envs.robots.humanoid import Simulation, Task, Terms
from ezm_pl.envs.tasks.locomotion import upright
from ezm_pl.envs.tasks.rewards import distance, tolerance
from ezm_pl.envs.tasks.scene import (
    BOX,
    CARDBOARD,
    CYLINDER,
    Z_TO_Y,
    add_camera,
    add_free_body,
    add_invisible,
    add_package,
    add_picture,
    add_solid,
    add_table,
)

PAINT = (0.75, 0.2, 0.15, 1.0)
CANVAS = (0.75, 0.2, 0.15, 0.25)
TYRE = (0.12, 0.12, 0.12, 1.0)
RAMP = (0.45, 0.47, 0.5, 1.0)


class Package(NamedTuple):
    """A box of cardboard: half size, m, and where it starts."""

    size: Vector
    pos: Vector
    quat: Vector = (1, 0, 0, 0)


class Truck(Task):
    """Carry five packages out of a truck and put them on a table.

    Quirks, gone with `quirks=False`: which package is where (on the truck, picked up, on the table) and the
    heights that count as lifted are kept from episode to episode, until the environment is re-seeded; and
    of two neighbours in such a list only the first moves to the next list in a control step, as the
    package after one that leaves is passed over.
    """

    name = "truck"
    own_state = ("on_truck", "picked_up", "on_table", "first_heights")
    native_ccd = False
    camera = "cam_truck"
    start = (2.0, 0.0, STANDING_HEIGHT)
    PACKAGES: ClassVar[dict[str, Package]] = {
        "a": Package((0.2, 0.1, 0.15), (5, 0, 1.1), (0.707105, -0.707108, 0, 0)),
        "b": Package((0.25, 0.2, 0.1), (5.1, 0, 1.3), (0.706752, 0, 0, 0.707462)),
        "c": Package((0.2, 0.3, 0.1), (5, 0.35, 1.3), (0.707105, 0.707108, 0, 0)),
        "d": Package((0.25, 0.3, 0.1), (5, -0.5, 1.1)),
        "e": Package((0.2, 0.2, 0.2), (5.1, -0.6, 1.4)),
    }
    extra_qpos = tuple(float(v) for package in PACKAGES.values() for v in (*package.pos, *package.quat))
    TABLE: ClassVar[Vector] = (2.0, -1.7, 0.45)
    LIFTED: ClassVar[float] = 0.1
    """A package is picked up once it is this much above where it was first, m."""
    ON_TABLE: ClassVar[float] = 0.35
    """A package is on the table within this of its middle, in x and in y, m ..."""
    ABOVE: ClassVar[float] = 0.5
    """... and above this height, m."""
    BONUS: ClassVar[float] = 100.0

    def __init__(self, sim: Simulation) -> None:
        super().__init__(sim)
        self._places: list[FloatArray] = [sim.data.body(f"package_{name}").xpos for name in self.PACKAGES]
        self.forget()

    @classmethod
    def build(cls, spec: mujoco.MjSpec) -> None:
        world = spec.worldbody
        truck = world.add_body(name="truck", pos=[8, 0, 0])
        add_picture(truck, BOX, (4, 1.2, 0.2), (0, 0, 0.8), rgba=PAINT)
        for x in (-3.5, 3.5):
            for y in (0.8, -0.8):
                add_picture(truck, CYLINDER, (0.5, 0.2), (x, y, 0.5), quat=Z_TO_Y, rgba=TYRE)
        add_invisible(truck, BOX, (4, 1.2, 0.5), (0, 0, 0.5))
        for y in (1.15, -1.15):
            add_solid(truck, BOX, (4, 0.05, 1), (0, y, 2), rgba=CANVAS)
        add_solid(truck, BOX, (0.05, 1.2, 1), (4, 0, 2), rgba=PAINT)
        add_solid(truck, BOX, (4, 1.2, 0.05), (0, 0, 3.05), rgba=CANVAS)
        tilt = (np.cos(-0.25), 0, np.sin(-0.25), 0)
        add_solid(truck, BOX, (0.85, 1.2, 0.1), (-4.7, 0, 0.5), quat=tilt, rgba=RAMP)

        add_table(spec, cls.TABLE)
        # Nine stacked boxes to look at, one to touch.
        wall = world.add_body(name="package_wall", pos=[7, 0, 1])
        for y, x, half_width, half_height, z in (
            *((0.7, 0, 0.4, 0.2, 0.2), (-0.7, 0, 0.4, 0.3, 0.3), (0, 0.16, 0.3, 0.35, 0.35)),
            *((0.7, 0.1, 0.4, 0.4, 0.7), (-0.7, 0.1, 0.4, 0.4, 0.7), (0, 0.2, 0.3, 0.35, 0.7)),
            *((0.7, 0.14, 0.4, 0.4, 1.1), (-0.7, 0.14, 0.4, 0.4, 1.1), (0, 0.24, 0.3, 0.35, 1.05)),
        ):
            add_picture(wall, BOX, (0.2, half_width, half_height), (x, y, z), rgba=CARDBOARD)
        add_invisible(wall, BOX, (0.2, 1.1, 0.9), (0, 0, 0.9))

        for name, package in cls.PACKAGES.items():
            add_package(add_free_body(spec, f"package_{name}", package.pos, package.quat), package.size)
        add_camera(spec, "cam_truck", (0.4, 7.5, 4.2), (4.4, 0, 0.9))

    def forget(self) -> None:
        self.on_truck = list(range(len(self.PACKAGES)))
        self.picked_up: list[int] = []
        self.on_table: list[int] = []
        self.first_heights: list[float] = []

    def reset(self, rng: np.random.Generator) -> None:
        if not self.quirks:
            self.forget()

    def restore(self, internal: Mapping[str, Sequence[float]]) -> None:
        self.forget()
        if "packages_on_truck" in internal:
            self.on_truck = [int(number) for number in internal["packages_on_truck"]]
            self.picked_up = [int(number) for number in internal["packages_picked_up"]]
            self.on_table = [int(number) for number in internal["packages_on_table"]]
            self.first_heights = [float(height) for height in internal["initial_zs"]]

    def internal(self) -> dict[str, list[float]]:
        return {
            "packages_on_truck": [float(number) for number in self.on_truck],
            "packages_picked_up": [float(number) for number in self.picked_up],
            "packages_on_table": [float(number) for number in self.on_table],
            "initialized": [float(bool(self.first_heights))],
            "initial_zs": list(self.first_heights),
        }

    def _lifted(self, package: int) -> bool:
        return bool(self._places[package][2] > self.first_heights[package] + self.LIFTED)

    def _over_table(self, package: int) -> bool:
        x, y, z = self._places[package]
        inside = abs(x - self.TABLE[0]) < self.ON_TABLE and abs(y - self.TABLE[1]) < self.ON_TABLE
        return bool(inside and z > self.ABOVE)

    def _move(self, source: list[int], target: list[int], leaves: Callable[[int], bool]) -> int:
        """Moves the packages that leave a list to the end of another; returns how many did."""
        moved, i = 0, 0
        while i < len(source):
            if leaves(source[i]):
                target.append(source.pop(i))
                moved += 1
                if not self.quirks:
                    continue
            i += 1
        return moved

    def _near(self, packages: list[int], point: FloatArray | Vector) -> float:
        """How near the nearest of some packages is to a point: 1 within 0.2 m, 0 at 4.2 m or of none."""
        if not packages:
            return 0.0
        nearest = min(distance(self._places[package], point) for package in packages)
        return tolerance(nearest, 0, 0.2, margin=4, sigmoid="linear")

    def reward(self) -> tuple[float, Terms]:
        if not self.first_heights:
            self.first_heights = [float(place[2]) for place in self._places]
        moves = self._move(self.on_truck, self.picked_up, self._lifted)
        moves += self._move(self.picked_up, self.on_table, self._over_table)
        moves -= self._move(self.on_table, self.picked_up, lambda package: not self._over_table(package))
        up = upright(self.robot.uprightness)
        pelvis = self.robot.qpos[:3]
        to_truck, to_picked_up = self._near(self.on_truck, pelvis), self._near(self.picked_up, pelvis)
        to_table = self._near(self.picked_up, self.TABLE)
        success = float(self.solved())
        reward = self.BONUS * moves + up * (1 + to_truck + to_picked_up + to_table) + 1000 * success
        return reward, {
            "upright": up,
            "reward_robot_package_truck": to_truck,
            "reward_robot_package_picked_up": to_picked_up,
            "reward_package_table": to_table,
            "packages_on_truck": float(len(self.on_truck)),
            "packages_picked_up": float(len(self.picked_up)),
            "packages_on_table": float(len(self.on_table)),
            "success_subtasks": float(len(self.on_table)),
            "success": success,
        }

    def solved(self) -> bool:
        return len(self.on_table) == len(self.PACKAGES)
