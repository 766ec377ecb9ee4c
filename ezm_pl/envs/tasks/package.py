"""Package: carry a package to a place on the floor.

Source: HumanoidBench (Sferrazza et al., arXiv 2403.10506), appendix on manipulation tasks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import mujoco
import numpy as np

from ezm_pl.envs.core import FloatArray
from ezm_pl.envs.robots.h1 import set_inertial
from ezm_pl.envs.robots.humanoid import Simulation, Task, Terms
from ezm_pl.envs.tasks.locomotion import standing, upright
from ezm_pl.envs.tasks.rewards import distance, quiet_forces
from ezm_pl.envs.tasks.scene import add_camera, add_free_body, add_package


class Package(Task):
    """Carry a light package to its destination, somewhere within 2 m. Falls do not end the episode.

    Quirk of the benchmark: the observation that `reset` returns shows the destination of the episode
    before ((0, 0, 0.35) in the first one, here also in every first one after a seed was given).
    Without quirks it shows the present one, as every later observation does.
    """

    name = "package"
    own_state = ("destination", "first_shown")
    camera = "cam_package"
    extra_qpos = (0.75, 0, 0.35, 1, 0, 0, 0)
    HALF_HEIGHT: ClassVar[float] = 0.35
    NEAR: ClassVar[float] = 0.1
    """The package has arrived within this distance, m."""
    RANGE: ClassVar[float] = 2.0
    """Package and destination are drawn from this square's half width around the origin, m."""

    def __init__(self, sim: Simulation) -> None:
        super().__init__(sim)
        self._package: FloatArray = sim.data.qpos[sim.robot_nq :]
        self._package_speeds: FloatArray = sim.data.qvel[sim.robot_nq - 1 :]
        self.forget()

    @classmethod
    def build(cls, spec: mujoco.MjSpec) -> None:
        package = add_free_body(spec, "package_a", (0.5, 0, cls.HALF_HEIGHT), joint="free_package")
        add_package(package, (0.2, 0.1, cls.HALF_HEIGHT), density=5)
        destination = spec.worldbody.add_body(name="package_destination")
        set_inertial(destination, 3.5814156250923643, (0, 0, cls.HALF_HEIGHT), (0.0104175,) * 3)
        add_camera(spec, "cam_package", (3.6, 4.4, 2.6), (0, 0, 0.4))

    def forget(self) -> None:
        self.destination: FloatArray = np.array([0, 0, self.HALF_HEIGHT])
        self.first_shown = self.destination

    def reset(self, rng: np.random.Generator) -> None:
        r = self.RANGE
        self._package[:3] = rng.uniform(-r, r), rng.uniform(-r, r), self.HALF_HEIGHT
        before = self.destination
        self.destination = np.array([rng.uniform(-r, r), rng.uniform(-r, r), self.HALF_HEIGHT])
        self.first_shown = before if self.quirks else self.destination

    def restore(self, internal: Mapping[str, Sequence[float]]) -> None:
        if "destination" in internal:
            self.destination = np.array(internal["destination"], float)
        self.first_shown = np.array(internal.get("destination_stale", self.destination), float)

    def internal(self) -> dict[str, list[float]]:
        return {"destination": self.destination.tolist(), "destination_stale": self._shown().tolist()}

    def _shown(self) -> FloatArray:
        """What the observation shows as the destination [3]."""
        return self.destination if self.sim.data.time > 0 else self.first_shown

    def base_observation(self) -> Sequence[FloatArray]:
        return self.robot.qpos, self.robot.qvel

    def observation(self) -> Sequence[FloatArray]:
        hands = self.robot.left_hand.copy(), self.robot.right_hand.copy()
        return self._shown(), self._package.copy(), self._package_speeds.copy(), *hands

    def markers(self) -> Sequence[FloatArray]:
        return (self.destination,)

    def _gap(self) -> float:
        """From the package to its destination, m."""
        return distance(self._package[:3], self.destination)

    def reward(self) -> tuple[float, Terms]:
        robot = self.robot
        stand_reward = standing(robot.head_height) * upright(robot.uprightness, 0.8)
        small_control = quiet_forces(robot.forces)
        gap, (left, right) = self._gap(), robot.hand_distances(self._package[:3])
        height = min(float(self._package[2]), 1.0)
        success = float(gap < self.NEAR)
        reward = stand_reward * small_control - 3 * gap - 0.1 * (left + right) + height + 1000 * success
        return reward, {
            "stand_reward": stand_reward,
            "small_control": small_control,
            "dist_package_destination": gap,
            "dist_hand_package_right": right,
            "dist_hand_package_left": left,
            "package_height": height,
            "success": success,
        }

    def solved(self) -> bool:
        return self._gap() < self.NEAR
