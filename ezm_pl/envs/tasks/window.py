"""Window: clean a window with a wiper.

Source: HumanoidBench (Sferrazza et al., arXiv 2403.10506), appendix on manipulation tasks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import mujoco
import numpy as np

from ezm_pl.envs.core import FloatArray
from ezm_pl.envs.robots.h1 import add_velocity_sensor
from ezm_pl.envs.robots.humanoid import Simulation, Task, Terms
from ezm_pl.envs.tasks.locomotion import standing, upright
from ezm_pl.envs.tasks.rewards import distance, quiet_forces, tolerance
from ezm_pl.envs.tasks.scene import (
    BOX,
    CYLINDER,
    SPHERE,
    STEEL,
    Z_TO_Y,
    add_free_body,
    add_invisible,
    add_picture,
    add_solid,
)


class Window(Task):
    """Hold the wiper with both hands, press it to the pane and move it up and down."""

    name = "window"
    own_state = ("first_head",)
    camera = "cam_hand_visible"
    extra_qpos = (0.45, 0, 1.085, 1, 0, 0, 0, 1, 0, 0, 0)
    COLUMNS: ClassVar[tuple[float, ...]] = (-0.975, -0.325, 0.325, 0.975)
    PANES: ClassVar[tuple[float, ...]] = (-0.65, 0.0, 0.65)
    PANE_X: ClassVar[float] = 0.92
    """Where the wiper's corners touch the pane."""
    CORNERS: ClassVar[dict[str, tuple[float, ...]]] = {
        "wipe_contact_site_a": (0.1, 0.04, 0.07),
        "wipe_contact_site_b": (-0.1, 0.04, 0.07),
        "wipe_contact_site_c": (0.1, 0.04, -0.03),
        "wipe_contact_site_d": (-0.1, 0.04, -0.03),
        "wipe_contact_site_e": (0, 0.04, 0.02),
    }

    def __init__(self, sim: Simulation) -> None:
        super().__init__(sim)
        data = sim.data
        self._tool: FloatArray = data.body("window_wiping_tool").xpos
        self._tool_velocity: FloatArray = data.sensor("window_wiping_tool_velocity").data
        self._corners: list[FloatArray] = [data.site(name).xpos for name in self.CORNERS]
        self._wipe = sorted(sim.model.geom(name).id for name in ("pane", "wiper"))
        self.first_head: FloatArray = np.zeros(3)

    @classmethod
    def build(cls, spec: mujoco.MjSpec) -> None:
        window = spec.worldbody.add_body(name="window", pos=[1, 0, 0])

        def frame(size: Sequence[float], pos: Sequence[float]) -> None:
            add_solid(window, BOX, size, pos, rgba=STEEL)

        frame((0.1, 1, 0.35), (0, 0, 0.35))
        for y in cls.COLUMNS:
            frame((0.1, 0.025, 0.4), (0, y, 1.1))
        frame((0.1, 1, 0.025), (0, 0, 1.5125))
        for y in cls.COLUMNS:
            frame((0.1, 0.025, 0.2), (0, y, 1.7125))
        frame((0.1, 1, 0.025), (0, 0, 1.915))
        for half_height, z in ((0.4, 1.1), (0.2, 1.7125)):
            for y in cls.PANES:
                add_picture(window, BOX, (0.05, 0.3, half_height), (0, y, z), rgba=(0.2, 0.95, 0.95, 0.3))
        add_invisible(window, BOX, (0.05, 1, 0.97), (0, 0, 0.97), name="pane")

        tool = add_free_body(spec, "window_wiping_tool", (0.45, 0, 1.2))
        add_solid(tool, CYLINDER, (0.02, 0.5), (0, 0, 0.02), quat=Z_TO_Y, rgba=STEEL)
        head = tool.add_body(name="window_wiper_sphere", pos=[0, 0.5, 0.02])
        head.add_joint(type=mujoco.mjtJoint.mjJNT_BALL, limited=True, range=[0, 1.4])
        add_solid(head, SPHERE, (0.03,), rgba=STEEL)
        add_solid(head, BOX, (0.1, 0.01, 0.05), (0, 0.03, 0.02), name="wiper", rgba=(0.1, 0.1, 0.1, 1))
        for name, pos in cls.CORNERS.items():
            head.add_site(name=name, pos=pos, group=4)
        add_velocity_sensor(spec, "window_wiping_tool")

    def reset(self, rng: np.random.Generator) -> None:
        self.first_head = self.robot.head.copy()

    def restore(self, internal: Mapping[str, Sequence[float]]) -> None:
        self.first_head = np.array(internal.get("head_pos0", self.robot.head), float)

    def reward(self) -> tuple[float, Terms]:
        robot = self.robot
        stand_reward = standing(robot.head_height) * upright(robot.uprightness)
        small_control = quiet_forces(robot.forces)
        pressed = min(
            tolerance(
                float(corner[0]), self.PANE_X, self.PANE_X, margin=0.4, sigmoid="linear", linear_at_margin=0.1
            )
            for corner in self._corners
        )
        touching = float(any(sorted(pair) == self._wipe for pair in self.sim.contacts()))
        near = tolerance(max(robot.hand_distances(self._tool)), 0, 0.2, margin=0.5)
        wiping = tolerance(abs(float(self._tool_velocity[2])), 0.5, 0.5, margin=0.5)
        head_away = tolerance(distance(robot.head, self.first_head), 0.4, 0.4, margin=0.1)
        manipulation = 0.2 * stand_reward * small_control * head_away + 0.4 * wiping + 0.4 * near
        return 0.5 * manipulation + 0.5 * touching * pressed, {
            "stand_reward": stand_reward,
            "small_control": small_control,
            "moving_wipe_reward": wiping,
            "hand_tool_proximity_reward": near,
            "window_contact_reward": pressed,
            "window_contact_filter": touching,
            "window_contact_total_reward": touching * pressed,
        }

    def fallen(self) -> bool:
        return self.robot.height < 0.58 or self._tool[2] < 0.58
