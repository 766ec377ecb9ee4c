"""Pole: walk through a field of poles without touching them.

Source: HumanoidBench (Sferrazza et al., arXiv 2403.10506), appendix on locomotion tasks.
"""

from __future__ import annotations

from typing import ClassVar

import mujoco

from ezm_pl.envs.robots.humanoid import Simulation, Terms
from ezm_pl.envs.tasks.locomotion import Walk, moving
from ezm_pl.envs.tasks.scene import BOX, CYLINDER, add_solid


class Pole(Walk):
    """Walk forwards at 0.5 m/s or more between staggered rows of poles."""

    name = "pole"
    speed = 0.5
    ROWS: ClassVar[int] = 41
    EVEN_ROW: ClassVar[tuple[float, ...]] = (1.5, 0.0, -1.5)
    ODD_ROW: ClassVar[tuple[float, ...]] = (2.25, 0.75, -0.75, -2.25)

    def __init__(self, sim: Simulation) -> None:
        super().__init__(sim)
        self._poles = sim.geoms_of(*(f"pole_row_{row}" for row in range(1, self.ROWS + 1)))

    @classmethod
    def build(cls, spec: mujoco.MjSpec) -> None:
        world = spec.worldbody
        for name, size, pos in (
            ("left_barrier", (20.75, 0.15, 1), (20, -3.15, 1)),
            ("right_barrier", (20.75, 0.15, 1), (20, 3.15, 1)),
            ("behind_barrier", (0.15, 3, 1), (-0.6, 0, 1)),
        ):
            add_solid(world.add_body(name=name), BOX, size, pos, rgba=(0.9, 0.9, 0.9, 0.2))
        field = world.add_body(name="pole_rows")
        for row in range(1, cls.ROWS + 1):
            body = field.add_body(name=f"pole_row_{row}", pos=[row, 0, 0])
            for y in cls.ODD_ROW if row % 2 else cls.EVEN_ROW:
                add_solid(body, CYLINDER, (0.05, 1), (0, y, 1))

    def reward(self) -> tuple[float, Terms]:
        terms = self.posture()
        move = terms["move"] = moving(float(self.robot.com_velocity[0]), self.speed)
        discount = terms["collision_discount"] = 0.1 if self.sim.touching(self._poles) else 1.0
        return 0.5 * (terms["small_control"] * terms["stand_reward"] + move) * discount, terms

    def fallen(self) -> bool:
        return self.robot.height < 0.5
