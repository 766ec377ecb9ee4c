"""An evaluation episode as one watches it: its frames, and what the search considered at each decision.

Shapes: `R` root candidates, `H` and `W` of a frame.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ezm_pl.selfplay import Actor
from ezm_pl.spec import Experiment, searches
from ezm_pl.training.agents import evaluation_planner, how_to_act
from ezm_pl.training.evaluation import evaluation_envs, rollout


@dataclass(frozen=True)
class Moment:
    """What one decision led to.

    Attributes:
        frame: `[H, W, 3]`, after it.
        seconds: of simulated time since the episode began.
        reward: of the decision. total: the return so far.
        fell: whether the robot has fallen in this episode.
        q: `[R]` imagined returns of the candidates, in their order; empty without a search.
        visits: `[R]`.
        chosen: index of the candidate that was acted on; None without a search.
    """

    frame: NDArray[np.uint8]
    seconds: float
    reward: float
    total: float
    fell: bool
    q: NDArray[np.float32]
    visits: NDArray[np.int64]
    chosen: int | None


class _Considered:
    """Decides as the planner does, and keeps what it found last."""

    def __init__(self, experiment: Experiment) -> None:
        self._plan = evaluation_planner(experiment)
        self.q, self.visits = np.zeros(0, np.float32), np.zeros(0, np.int64)
        self.chosen: int | None = None

    def __call__(self, model: Any, observation: Tensor, task: Tensor, generator: torch.Generator) -> Tensor:
        found = self._plan(model, observation, task, generator)
        self.q, self.visits = found.q[0].float().cpu().numpy(), found.visits[0].cpu().numpy()
        self.chosen = int(found.best[0])
        return found.action


def play(
    experiment: Experiment, actor: Actor, task: str, *, seed: int, search: bool = True
) -> Generator[Moment]:
    """Plays one evaluation episode of a task, decision by decision.

    Args:
        experiment: that the actor was trained by.
        actor: the network that decides.
        task: one of the experiment's.
        seed: of the episode and the search.
        search: plan, where the agent can; otherwise the policy decides alone.

    Raises:
        RenderingUnavailable: this system cannot render.
    """
    index = experiment.tasks.index(task)
    considered = _Considered(experiment) if searches(experiment, search=search) else None
    envs = evaluation_envs(experiment, 1, tasks=[index], render_mode="rgb_array")
    total, fell = 0.0, False
    try:
        interval = experiment.env.action_repeat / envs.metadata["render_fps"]
        steps = rollout(
            envs,
            actor,
            considered or how_to_act(experiment, search=False),
            seed=seed,
            heads=torch.Generator().manual_seed(seed),
            tasks=[index],
        )
        for decisions, step in enumerate(steps, 1):
            total, fell = total + float(step.reward[0]), fell or bool(step.info["fell"][0])
            if step.ended[0]:
                return  # the environment stands at its next episode already
            yield Moment(
                frame=envs.render()[0],
                seconds=decisions * interval,
                reward=float(step.reward[0]),
                total=total,
                fell=fell,
                q=considered.q if considered else np.zeros(0, np.float32),
                visits=considered.visits if considered else np.zeros(0, np.int64),
                chosen=considered.chosen if considered else None,
            )
    finally:
        envs.close()
