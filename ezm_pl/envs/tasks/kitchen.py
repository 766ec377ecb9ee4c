"""Kitchen: open the microwave, move the kettle, turn a knob, switch on the light, in this order.

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
from ezm_pl.envs.tasks.kitchen_scene import add_kitchen
from ezm_pl.envs.tasks.rewards import distance
from ezm_pl.envs.tasks.scene import add_camera

TURNED = math.hypot(1, 1.57)


class Kitchen(Task):
    """Do four things in a kitchen in order, within 500 control steps; each pays 1. Falls end nothing.

    Only positions are observed. Quirk of the benchmark: the robot starts turned by 115 degrees, away from
    the counters (1.57, an angle, stands in its quaternion). Without quirks it faces them. The floor
    takes no part in contacts of the furniture, which does not reach it anyway.
    """

    name = "kitchen"
    own_state = ("open",)
    reset_noise = 0.0
    episode_steps = 500
    camera = "cam_kitchen"
    start = (0.0, -0.6, 0.98)
    start_quaternion: ClassVar[Sequence[float]] = (1 / TURNED, 0, 0, 1.57 / TURNED)
    extra_qpos: ClassVar[tuple[float, ...]] = (
        *(
            1.25561e-05,
            1.57437e-07,
            1.25561e-05,
            1.57437e-07,
            1.25561e-05,
            1.57437e-07,
            1.25561e-05,
            1.57437e-07,
        ),
        *(8.24417e-05, 9.48283e-05, 0, 0, 0, 0),
        *(-0.269, 0.35, 0.994, 1, 0, -3.51612e-05, 0),
    )
    ELEMENTS: ClassVar[tuple[tuple[int, tuple[float, ...]], ...]] = (
        (13, (-0.75,)),  # microwave
        (14, (-0.23, 0.75, 1, 0.99, 0, 0, -0.06)),  # kettle
        (2, (-0.88, -0.01)),  # bottom burner
        (8, (-0.69, -0.05)),  # light switch
    )
    """Where an element's joints begin in the kitchen's qpos, and where they are to be."""
    NEAR: ClassVar[float] = 0.3
    """An element is done within this distance of its goal (m and rad mixed)."""

    def __init__(self, sim: Simulation) -> None:
        super().__init__(sim)
        kitchen: FloatArray = sim.data.qpos[sim.robot_nq :]
        self._elements = [kitchen[start : start + len(goal)] for start, goal in self.ELEMENTS]
        self.open: list[int] = list(range(len(self.ELEMENTS)))

    @classmethod
    def build(cls, spec: mujoco.MjSpec) -> None:
        spec.geom("floor").contype = 0
        add_kitchen(spec)
        add_camera(spec, "cam_kitchen", (2.1, -3.5, 2.5), (-0.1, 0.3, 1))

    def reset(self, rng: np.random.Generator) -> None:
        self.open = list(range(len(self.ELEMENTS)))
        if not self.quirks:
            self.robot.qpos[3:7] = 0.5**0.5, 0, 0, 0.5**0.5

    def restore(self, internal: Mapping[str, Sequence[float]]) -> None:
        self.open = [int(element) for element in internal.get("tasks_to_complete", range(len(self.ELEMENTS)))]

    def internal(self) -> dict[str, list[float]]:
        goal = np.zeros(len(self.extra_qpos))
        for start, values in self.ELEMENTS:
            goal[start : start + len(values)] = values
        return {"goal": goal.tolist(), "tasks_to_complete": [float(element) for element in self.open]}

    def base_observation(self) -> Sequence[FloatArray]:
        return (self.sim.data.qpos,)

    def reward(self) -> tuple[float, Terms]:
        done = 0
        for element in self.open:
            if distance(self._elements[element], self.ELEMENTS[element][1]) >= self.NEAR:
                break
            done += 1
        self.open = self.open[done:]
        return float(done), {
            "success_subtasks": float(len(self.ELEMENTS) - len(self.open)),
            "success": float(not self.open),
        }

    def solved(self) -> bool:
        return not self.open
