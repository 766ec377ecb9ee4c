"""Insert: put the ends of a bar into two cups, of normal and of small size.

Source: HumanoidBench (Sferrazza et al., arXiv 2403.10506), appendix on manipulation tasks.
"""

from __future__ import annotations

from typing import ClassVar

import mujoco

from ezm_pl.envs.core import FloatArray
from ezm_pl.envs.robots.humanoid import Simulation, Task, Terms
from ezm_pl.envs.tasks.locomotion import standing, upright
from ezm_pl.envs.tasks.rewards import distance, quiet_forces, tolerance
from ezm_pl.envs.tasks.scene import BOX, add_free_body, add_invisible, add_picture, add_solid, add_table

DARK = (0.2, 0.2, 0.2, 1.0)
LIGHT = (0.8, 0.8, 0.8, 1.0)


class Insert(Task):
    """Lift two cups onto the ends of a bar, within 500 control steps."""

    name = "insert_normal"
    episode_steps = 500
    camera = "cam_inhand"
    extra_qpos = (0.8, -0.2, 0.95, 1, 0, 0, 0, 0.8, 0.2, 0.95, 1, 0, 0, 0, 0.6, 0, 0.95, 1, 0, 0, 0)
    # A cup: half size; half height of its bottom; half height of its walls; height of its mark, a and b.
    CUP: ClassVar[tuple[float, ...]] = (0.04, 0.005, 0.03)
    WALL: ClassVar[float] = 0.01
    MARKS: ClassVar[tuple[float, float]] = (0.01, 0.01)
    BAR: ClassVar[float] = 0.018
    """Half thickness of the bar."""
    TIP: ClassVar[float] = 0.025
    """Half length of the bar's coloured ends."""

    def __init__(self, sim: Simulation) -> None:
        super().__init__(sim)
        self._cups: list[FloatArray] = [sim.data.site(f"peg_{end}").xpos for end in "ab"]
        self._ends: list[FloatArray] = [sim.data.site(f"block_peg_{end}").xpos for end in "ab"]

    @classmethod
    def build(cls, spec: mujoco.MjSpec) -> None:
        add_table(spec, (0.9, 0, 0.45))

        half, bottom, high = cls.CUP
        for end, y, mark, colour in (("a", -0.2, cls.MARKS[0], DARK), ("b", 0.2, cls.MARKS[1], LIGHT)):
            cup = add_free_body(spec, f"peg_{end}", (0.8, y, 0.95))
            cup.add_site(name=f"peg_{end}", pos=[0, 0, mark], group=4)
            add_solid(cup, BOX, (half, half, bottom), (0, 0, bottom), rgba=colour)
            side, middle = half - cls.WALL, 2 * bottom + high
            for place in (-side, side):
                add_solid(cup, BOX, (half, cls.WALL, high), (0, place, middle), rgba=colour)
            for place in (-side, side):
                add_solid(cup, BOX, (cls.WALL, half, high), (place, 0, middle), rgba=colour)

        bar = add_free_body(spec, "block_a", (0.6, 0, 0.95))
        thick, tip = cls.BAR, cls.TIP
        for end, y in (("b", -0.15), ("a", 0.15)):
            bar.add_site(name=f"block_peg_{end}", pos=[0, y, thick], group=4)
        for y, length, colour in (
            (tip - 0.15, tip, LIGHT),
            (0, 0.15 - 2 * tip, (0.65, 0.65, 0.65, 1)),
            (0.15 - tip, tip, DARK),
        ):
            add_picture(bar, BOX, (thick, length, thick), (0, y, thick), rgba=colour)
        add_invisible(bar, BOX, (thick, 0.15, thick), (0, 0, thick))

    def reward(self) -> tuple[float, Terms]:
        robot = self.robot
        stand_reward = standing(robot.head_height) * upright(robot.uprightness)
        small_control = quiet_forces(robot.forces)

        def falling(gap: float, margin: float) -> float:
            return tolerance(gap, margin=margin, sigmoid="linear", linear_at_margin=0.1)

        gaps = [distance(end, cup) for end, cup in zip(self._ends, self._cups, strict=True)]
        inserted = 0.5 * sum(falling(gap, 0.5) for gap in gaps)
        lifted = 0.5 * sum(falling(float(cup[2]) - 1.1, 0.15) for cup in self._cups)
        hands = zip((robot.left_hand, robot.right_hand), self._cups, strict=True)
        near = tolerance(min(distance(hand, cup) for hand, cup in hands), 0, 0.2, margin=0.5)
        reward = 0.5 * (small_control * stand_reward + inserted) * 0.5 * (lifted + near)
        return reward, {
            "small_control": small_control,
            "stand_reward": stand_reward,
            "cube_target_reward": inserted,
            "hand_tool_proximity_reward": near,
            "peg_height_reward": lifted,
        }

    def fallen(self) -> bool:
        return self.robot.height < 0.5 or any(mark[2] < 0.5 for mark in (*self._ends, *self._cups))


class InsertSmall(Insert):
    """Lift two small cups onto the ends of a thin bar, within 500 control steps."""

    name = "insert_small"
    CUP = (0.02, 0.005, 0.01)
    WALL = 0.005
    MARKS = (0.005, 0.01)
    BAR = 0.008
    TIP = 0.005
