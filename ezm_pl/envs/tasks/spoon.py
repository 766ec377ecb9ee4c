"""Spoon: take a spoon and stir a pot with it.

Source: HumanoidBench (Sferrazza et al., arXiv 2403.10506), appendix on manipulation tasks.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import ClassVar

import mujoco
import numpy as np

from ezm_pl.envs.core import FloatArray
from ezm_pl.envs.robots.humanoid import Simulation, Task, Terms
from ezm_pl.envs.tasks.locomotion import standing, upright
from ezm_pl.envs.tasks.rewards import distance, quiet_forces, tolerance
from ezm_pl.envs.tasks.scene import (
    BOX,
    CYLINDER,
    STEEL,
    Z_TO_X,
    add_free_body,
    add_invisible,
    add_low_table,
    add_picture,
    add_solid,
)


class Spoon(Task):
    """Keep the spoon's bowl at a point that circles in the pot, once in 40 control steps."""

    name = "spoon"
    own_state = ("steps",)
    camera = "cam_tabletop"
    extra_qpos = (0.75, 0.2, 0.9, 1, 0, 0, 0)
    CENTRE: ClassVar[tuple[float, ...]] = (0.75, -0.1, 0.95)
    RADIUS: ClassVar[float] = 0.06
    PERIOD: ClassVar[int] = 40

    def __init__(self, sim: Simulation) -> None:
        super().__init__(sim)
        self._handle: FloatArray = sim.data.geom("spoon_handle").xpos
        self._bowl: FloatArray = sim.data.geom("spoon_plate").xpos
        self._cup: FloatArray = sim.data.body("cup").xpos
        self.steps = 0

    @classmethod
    def build(cls, spec: mujoco.MjSpec) -> None:
        world = spec.worldbody
        world.add_site(name="goal", pos=[0.75, 0.1, 0.9], size=[0.01] * 3, group=4)
        add_low_table(spec, (1, 0, 0.45), 0.5, 0.4)

        cup = world.add_body(name="cup", pos=[0.75, -0.1, 0.9])
        for y in (0.1, -0.1):
            add_solid(cup, BOX, (0.12, 0.02, 0.1), (0, y, 0.1), rgba=STEEL)
        # Two walls and the bottom are seen (and weigh) a little shorter than they touch.
        for x in (-0.1, 0.1):
            add_picture(cup, BOX, (0.02, 0.08, 0.1), (x, 0, 0.1), rgba=STEEL)
            add_invisible(cup, BOX, (0.02, 0.12, 0.1), (x, 0, 0.1))
        add_picture(cup, BOX, (0.1, 0.1, 0.02), (0, 0, 0.01), rgba=STEEL)
        add_invisible(cup, BOX, (0.12, 0.12, 0.02), (0, 0, 0.01))
        add_solid(cup, CYLINDER, (0.01, 0.06), (0, 0.19, 0.08), rgba=STEEL)
        for z in (0.14, 0.02):
            add_solid(cup, BOX, (0.01, 0.05, 0.01), (0, 0.15, z), rgba=STEEL)

        spoon = add_free_body(spec, "spoon", (0.75, 0.2, 0.9))
        add_solid(
            spoon, CYLINDER, (0.007, 0.08), (0, 0, 0.0035), quat=Z_TO_X, name="spoon_handle", rgba=STEEL
        )
        add_solid(spoon, CYLINDER, (0.03, 0.005), (0.1, 0, 0.0035), name="spoon_plate", rgba=STEEL)
        spoon.add_site(name="spoon_plate", pos=[0.1, 0, 0.0035], group=4)

    def reset(self, rng: np.random.Generator) -> None:
        # The original's clock runs on from episode to episode; here each begins at its start, so that
        # a seed gives the same episode whatever came before.
        self.steps = 0

    def restore(self, internal: Mapping[str, Sequence[float]]) -> None:
        self.steps = int(internal.get("step_counter", [0])[0])

    def target(self) -> FloatArray:
        """Where the bowl should be now [3]."""
        angle = self.steps * (2 * math.pi / self.PERIOD)
        x, y, z = self.CENTRE
        return np.array([x + self.RADIUS * math.cos(angle), y + self.RADIUS * math.sin(angle), z])

    def observation(self) -> Sequence[FloatArray]:
        return (self.target(),)

    def markers(self) -> Sequence[FloatArray]:
        return (self.target(),)

    def reward(self) -> tuple[float, Terms]:
        robot = self.robot
        stand_reward = standing(robot.head_height) * upright(robot.uprightness)
        small_control = quiet_forces(robot.forces)
        near = tolerance(min(robot.hand_distances(self._handle)), 0, 0.2, margin=0.5)
        stirring = tolerance(distance(self._bowl, self.target()), margin=0.15)
        (x, y, z), (cup_x, cup_y, cup_z) = self._bowl, self._cup
        inside = float(max(abs(x - cup_x), abs(y - cup_y), abs(z - cup_z - 0.1)) < 0.1)
        self.steps += 1
        reward = 0.15 * stand_reward * small_control + 0.25 * near + 0.25 * inside + 0.35 * stirring
        return reward, {
            "stand_reward": stand_reward,
            "small_control": small_control,
            "hand_tool_proximity_reward": near,
            "reward_spoon_in_cup": inside,
            "spoon_spinning_reward": stirring,
        }

    def fallen(self) -> bool:
        return self.robot.height < 0.58
