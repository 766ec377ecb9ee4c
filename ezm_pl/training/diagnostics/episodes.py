"""Episodes that the agent plays in the simulator, with the state before each decision saved.

The states to diagnose come from here and not from replay, which keeps observations: the simulator cannot be
put into an observation.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ezm_pl.envs.core import EnvState
from ezm_pl.training.diagnostics.networks import Networks
from ezm_pl.training.diagnostics.simulators import Simulators
from ezm_pl.training.health import humanoid_tasks, upright

ROWS = 8
"""Episodes played side by side."""
FOLLOWING = 5
"""Decisions that must follow a state in its episode for it to be picked."""
_TAIL = 0.05
"""Discount at which a return counts as complete."""


@dataclass(frozen=True)
class Visited:
    """`N` decisions of a task: those of an episode follow each other.

    Attributes:
        observation: `[N, O]`, padded, before the decision.
        action: `[N, A]`, padded.
        returns: `[N]`, discounted, from the decision to the end of its episode.
        complete: `[N]`, whether that end is a termination, or so far ahead that it does not count.
        following: `[N]`, decisions that follow in the episode.
        upright: `[N]`, whether a humanoid stands; true in dm_control.
        states: `[N]`, of the simulator.
    """

    observation: Tensor
    action: Tensor
    returns: NDArray[np.float64]
    complete: NDArray[np.bool_]
    following: NDArray[np.int64]
    upright: NDArray[np.bool_]
    states: list[EnvState]

    def pick(self, count: int, generator: np.random.Generator) -> NDArray[np.int64]:
        """Indices of up to `count` upright states (any, where none is) that enough decisions follow."""
        enough = self.following >= FOLLOWING
        chosen = np.flatnonzero(enough & self.upright)
        if not len(chosen):
            chosen = np.flatnonzero(enough)
        return np.sort(generator.permutation(chosen)[:count])


def horizon(discount: float, left: float = _TAIL) -> int:
    """Decisions after which the discount has fallen to `left`."""
    return math.ceil(math.log(left) / math.log(discount))


def play(networks: Networks, task: int, *, seed: int, decisions: int = 100) -> Visited:
    """Plays episodes of a task as self-play does under the protocol of training.

    A robot that has been down for so long that it no longer counts for what came before starts again.

    Args:
        networks, task: what plays what.
        seed: of the episodes.
        decisions: per row, before those that only complete the returns.
    """
    experiment, discount = networks.experiment, networks.experiment.targets.discount
    far = horizon(discount)
    decisions += far
    humanoid = humanoid_tasks([experiment.tasks[task]]) is not None
    generator = torch.Generator(networks.device).manual_seed(seed)
    seen, actions, stands, states = [], [], [], []
    rewards, last, terminated = (np.zeros((decisions, ROWS)) for _ in range(3))
    down = np.zeros(ROWS, np.int64)
    with Simulators(networks, task, ROWS, protocol=None, seed=seed) as simulators:
        for row in range(ROWS):
            simulators.reset(row)
        for step in range(decisions):
            observation = simulators.observation()
            up = upright(observation).cpu().numpy() if humanoid else np.ones(ROWS, bool)
            action = networks.act(networks.actor, observation, simulators.task_ids, generator)
            states.append([simulators.state(row) for row in range(ROWS)])
            rewards[step], ends, cut = simulators.step(action)
            down = np.where(up, 0, down + 1)
            last[step] = ends | cut | (down >= far) | (step + 1 == decisions)
            terminated[step] = ends
            for row in np.flatnonzero(last[step]).tolist():
                simulators.reset(row)
                down[row] = 0
            seen.append(observation)
            actions.append(action)
            stands.append(up)
    returns, following, complete = look_back(rewards, last > 0, terminated > 0, discount, far)
    return Visited(
        observation=torch.stack(seen, 1).flatten(0, 1),
        action=torch.stack(actions, 1).flatten(0, 1),
        returns=returns.T.ravel(),
        complete=complete.T.ravel(),
        following=following.T.ravel(),
        upright=np.array(stands).T.ravel(),
        states=[states[step][row] for row in range(ROWS) for step in range(decisions)],
    )


def look_back(
    rewards: NDArray[np.float64],
    last: NDArray[np.bool_],
    terminated: NDArray[np.bool_],
    discount: float,
    far: int,
) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.bool_]]:
    """Returns, decisions that follow and complete returns, `[N, E]`, of rewards and ends `[N, E]`."""
    returns, following = np.zeros_like(rewards), np.zeros(rewards.shape, np.int64)
    ends = np.zeros(rewards.shape, bool)
    for step in reversed(range(len(rewards))):
        after = min(step + 1, len(rewards) - 1)
        returns[step] = rewards[step] + np.where(last[step], 0, discount * returns[after])
        following[step] = np.where(last[step], 0, following[after] + 1)
        ends[step] = np.where(last[step], terminated[step], ends[after])
    return returns, following, ends | (following >= far)
