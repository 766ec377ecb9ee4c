"""Balance: stand on a board on a ball that is fixed (simple) or rolls (hard).

Source: HumanoidBench (Sferrazza et al., arXiv 2403.10506), appendix on locomotion tasks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import mujoco

from ezm_pl.envs.robots.humanoid import Simulation, Task, Terms
from ezm_pl.envs.tasks.locomotion import STAND_HEIGHT, upright
from ezm_pl.envs.tasks.rewards import INF, quiet_forces, stillness, tolerance
from ezm_pl.envs.tasks.scene import BOX, SPHERE, add_free_body, add_solid


class Balance(Task):
    """Stand still on a board on a fixed ball.

    Nothing but the ball may touch the floor, and nothing but floor and board the ball.
    """

    name = "balance_simple"
    start = (-0.1, 0.0, 1.38)
    extra_qpos: ClassVar[Sequence[float]] = (0, 0, 0.37, 1, 0, 0, 0)
    BOARD_HEIGHT: ClassVar[float] = 0.37
    BALL_RADIUS: ClassVar[float] = 0.17

    def __init__(self, sim: Simulation) -> None:
        super().__init__(sim)
        self._floor, self._board, self._ball = (sim.model.geom(n).id for n in ("floor", "board", "ball"))

    @classmethod
    def build(cls, spec: mujoco.MjSpec) -> None:
        cls.add_things(spec)

    @classmethod
    def add_things(cls, spec: mujoco.MjSpec) -> mujoco.MjsBody:
        """The board, loose, and the ball, fixed; returns the ball's body."""
        board = add_free_body(spec, "stand_board", (0, 0, cls.BOARD_HEIGHT))
        add_solid(board, BOX, (0.15, 0.55, 0.03), name="board", rgba=(0.7, 0.7, 0.7, 1))
        ball = spec.worldbody.add_body(name="rolling_pivot", pos=[0, 0, cls.BALL_RADIUS])
        add_solid(ball, SPHERE, (cls.BALL_RADIUS,), name="ball", rgba=(0.3, 0.3, 0.3, 1))
        return ball

    def reward(self) -> tuple[float, Terms]:
        robot = self.robot
        stand = tolerance(robot.head_height, STAND_HEIGHT + 0.37, INF, margin=STAND_HEIGHT / 4)
        up = upright(robot.uprightness)
        small_control = quiet_forces(robot.forces)
        dont_move = stillness(robot.com_velocity)
        return small_control * stand * up * dont_move, {
            "small_control": small_control,
            "stand_reward": stand * up,
            "dont_move": dont_move,
            "standing": stand,
            "upright": up,
        }

    def fallen(self) -> bool:
        if self.robot.height < 0.8:
            return True
        for pair in self.sim.contacts():
            if self._ball in pair:
                if self._floor not in pair and self._board not in pair:
                    return True
            elif self._floor in pair:
                return True
        return False


class BalanceHard(Balance):
    """Stand still on a board on a ball that rolls."""

    name = "balance_hard"
    extra_qpos = (*Balance.extra_qpos, 0, 0, 0.17, 1, 0, 0, 0)

    @classmethod
    def build(cls, spec: mujoco.MjSpec) -> None:
        cls.add_things(spec).add_freejoint(name="free_rolling_pivot")
