"""Whether an agent has learned: the returns of a checkpoint against fixed bars.

`experiments/learn_check.yaml` trains it. The same spec with `search.choice=random` (act on and learn
from a random candidate of the search) must fail, which shows that the check can.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ezm_pl.envs import random_returns
from ezm_pl.training.fault_tolerance.checkpoint import checkpoint_experiment
from ezm_pl.training.from_checkpoint import evaluate

BARS = {"dmc-cartpole-balance": 850.0, "dmc-cartpole-swingup": 600.0}
"""Mean return that a task must reach; a task without a bar must reach `TIMES_RANDOM` × random.

Random actions are held as long as the agent's.
"""
TIMES_RANDOM = 5.0
EPISODES = 4


@dataclass(frozen=True)
class LearnCheckRow:
    """One task of the check: mean evaluation return and what it must reach."""

    task: str
    mean_return: float
    bar: float

    @property
    def passed(self) -> bool:
        """Whether the bar is reached."""
        return self.mean_return >= self.bar


def learn_check(checkpoint: Path) -> list[LearnCheckRow]:
    """Plays `EPISODES` episodes per task with a checkpoint's planner and compares.

    Raises:
        CheckpointError: no checkpoint is there.
    """
    evaluation = evaluate(checkpoint, episodes=EPISODES, seed=0)
    returns = dict(zip(evaluation.tasks, evaluation.returns_ezm.mean(1), strict=True))
    others = [task for task in returns if task not in BARS]
    held = checkpoint_experiment(checkpoint).env.action_repeat
    random = random_returns(others, EPISODES, seed=0, action_repeat=held) if others else {}
    bars = BARS | {task: TIMES_RANDOM * float(random[task].mean()) for task in others}
    return [LearnCheckRow(task, float(value), bars[task]) for task, value in returns.items()]
