"""High bar: swing up to a handstand on a high bar, held to it by constraints (simple) or by its hands (hard).

Source: HumanoidBench (Sferrazza et al., arXiv 2403.10506), appendix on manipulation tasks.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import mujoco
import numpy as np

from ezm_pl.envs.robots.humanoid import Task, Terms
from ezm_pl.envs.tasks.locomotion import upright
from ezm_pl.envs.tasks.rewards import INF, quiet_forces, tolerance
from ezm_pl.envs.tasks.scene import CYLINDER, STEEL, Z_TO_Y, add_solid


class HighBar(Task):
    """Swing up to a handstand on the bar, held to it at the elbows. A head below 2 m ends the episode.

    Quirk of the benchmark: the initial state is noisy in an environment's first episode only (here:
    in every first episode after a seed was given). Without quirks it is noisy in every episode.
    """

    name = "highbar_simple"
    own_state = ("reset_noise",)
    start = (0.27, 0.0, 1.74)
    pose: ClassVar[Mapping[str, float]] = {
        "left_shoulder_roll": 3.11,
        "left_elbow": 1.49,
        "right_shoulder_roll": -3.11,
        "right_elbow": 1.49,
    }
    NOISE: ClassVar[float] = Task.reset_noise
    BAR: ClassVar[tuple[float, float, float]] = (-0.19, 0.0, 2.8)
    """Middle of the bar in the frame's body."""
    HOLDS: ClassVar[dict[str, tuple[float, float, float]]] = {
        "left_elbow_link": (-0.19, 0.22, 2.82),
        "right_elbow_link": (-0.19, -0.22, 2.82),
    }
    """Link -> the point of the frame's body that it is held to."""

    @classmethod
    def build(cls, spec: mujoco.MjSpec) -> None:
        bar = cls.add_bar(spec)
        for link, point in cls.HOLDS.items():
            hold = spec.add_equality(
                type=mujoco.mjtEq.mjEQ_CONNECT,
                objtype=mujoco.mjtObj.mjOBJ_BODY,
                name1=bar.name,
                name2=link,
            )
            hold.data[:3] = point
            spec.add_exclude(bodyname1=link, bodyname2=bar.name)

    @classmethod
    def add_bar(cls, spec: mujoco.MjSpec) -> mujoco.MjsBody:
        """The bar along y, 2.8 m high, on two posts."""
        bar = spec.worldbody.add_body(name="athletic_high_bar", pos=[0.5, 0, 0])
        for y in (1.2, -1.2):
            add_solid(bar, CYLINDER, (0.02, 2), (-0.19, y, 2), rgba=STEEL)
        add_solid(bar, CYLINDER, (0.02, 1.2, 0.02), cls.BAR, quat=Z_TO_Y, rgba=STEEL)
        return bar

    def forget(self) -> None:
        self.reset_noise = self.NOISE

    def reset(self, rng: np.random.Generator) -> None:
        if self.quirks:
            self.reset_noise = 0.0

    def reward(self) -> tuple[float, Terms]:
        robot = self.robot
        upside_down = upright(-robot.uprightness)
        feet = 0.5 * float(robot.left_foot[2] + robot.right_foot[2])
        feet_reward = 0.5 * (1 + tolerance(feet, 4.8, INF, margin=2, sigmoid="linear"))
        small_control = quiet_forces(robot.forces)
        return upside_down * feet_reward * small_control, {
            "upright_reward": upside_down,
            "feet_reward": feet_reward,
            "small_control": small_control,
        }

    def fallen(self) -> bool:
        return self.robot.head_height < 2.0


def _fists() -> dict[str, float]:
    """Joint angles of hands that are closed round the bar; some lie beyond the joint's range, as there."""
    bent = {"J4": 0.0, "J3": 1.3, "J2": 0.7, "J1": 1.7}
    hand = {
        "WR": {"J2": 0.11, "J1": 0.33},
        "FF": bent,
        "MF": bent,
        "RF": bent,
        "LF": {"J5": 0.1, "J4": 0.0, "J3": 1.2, "J2": 0.77, "J1": 1.62},
        "TH": {"J5": 0.31, "J4": 1.35, "J3": 0.27, "J2": 0.27, "J1": 1.45},
    }
    angles = {part + joint: angle for part, joints in hand.items() for joint, angle in joints.items()}
    return {prefix + joint: angle for prefix in ("lh_", "rh_") for joint, angle in angles.items()}


class HighBarHard(HighBar):
    """Swing up to a handstand on the bar, held by nothing but the grip. A head below 2 m ends the episode."""

    name = "highbar_hard"
    native_ccd = False  # fingers overlap the bar by centimetres
    start = (0.27, 0.0, 1.62)
    pose: ClassVar[Mapping[str, float]] = {
        **HighBar.pose,
        "left_elbow": 1.6,
        "right_elbow": 1.6,
        **_fists(),
    }

    @classmethod
    def build(cls, spec: mujoco.MjSpec) -> None:
        cls.add_bar(spec)
