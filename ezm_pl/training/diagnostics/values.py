"""How well values match what the simulator pays, and whether Q ranks actions as it does."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import rankdata
from torch import Tensor

from ezm_pl.training.diagnostics.episodes import Visited, horizon
from ezm_pl.training.diagnostics.networks import Networks
from ezm_pl.training.diagnostics.simulators import Simulators

_RANKED_TAIL = 0.1
"""Discount at which a rollout that only ranks actions ends."""


@dataclass(frozen=True)
class Ranking:
    """Rank correlations over the candidate actions of a state, averaged over states.

    Attributes:
        q: of Q with the mean of all Monte-Carlo returns.
        ceiling: of the mean of half of the rollouts with that of the other half: their repeatability.
        spread: standard deviation of the mean returns over the actions of a state, averaged.
    """

    q: float
    ceiling: float
    spread: float


@dataclass(frozen=True)
class ValueFit:
    """Values against the returns of the agent's own episodes.

    Attributes:
        correlation: over all states.
        upright_correlation: over the states in which a humanoid stands.
        bias: mean value minus mean return; None where values are in units that are not known here.
        states: how many states have a complete return.
    """

    correlation: float
    upright_correlation: float
    bias: float | None
    states: int


def rank_actions(q: NDArray[np.float64], returns: NDArray[np.float64]) -> Ranking:
    """Compares Q `[N, C]` of candidate actions with their Monte-Carlo returns `[N, C, R]`."""
    half = returns.shape[-1] // 2
    return Ranking(
        q=rank_correlation(q, returns.mean(-1)),
        ceiling=rank_correlation(returns[..., :half].mean(-1), returns[..., half:].mean(-1)),
        spread=float(returns.mean(-1).std(-1).mean()),
    )


def monte_carlo_returns(
    networks: Networks,
    task: int,
    visited: Visited,
    picked: NDArray[np.int64],
    actions: Tensor,
    *,
    rollouts: int,
    seed: int,
) -> NDArray[np.float64]:
    """What the simulator pays for each state's candidate actions: discounted returns `[N, C, R]`.

    A rollout takes a candidate, then acts by draws from the policy until the discount is a tenth. Rollouts
    of different candidates share their noise, so that they differ by the candidate and not by luck.

    Args:
        networks, task: what is diagnosed.
        visited: episodes; picked: indices `[N]` of states in them.
        actions: `[N, C, A]` candidates.
        rollouts: `R` per candidate.
    """
    count, candidates, width = actions.shape
    discount = networks.experiment.targets.discount
    steps = horizon(discount, _RANKED_TAIL)
    generator = torch.Generator(networks.device).manual_seed(seed)
    returns = np.zeros((count, candidates, rollouts))
    with Simulators(networks, task, candidates * rollouts, protocol=None, seed=seed) as simulators:
        tasks = simulators.task_ids
        for number, index in enumerate(picked):
            simulators.restore([visited.states[index]] * len(simulators))
            action = actions[number].repeat_interleave(rollouts, 0)
            paid, alive = np.zeros(len(simulators)), np.ones(len(simulators), bool)
            for step in range(steps):
                reward, terminated, truncated = simulators.step(action)
                paid += discount**step * reward
                alive &= ~(terminated | truncated)
                if not alive.any():
                    break
                state, _ = networks.actor.root(simulators.observation(), tasks)
                noise = torch.randn(rollouts, width, generator=generator, device=networks.device)
                action = networks.actor.policy(state, tasks).action(noise.repeat(candidates, 1))
            returns[number] = paid.reshape(candidates, rollouts)
    return returns


def q_values(networks: Networks, task: int, observation: Tensor, actions: Tensor) -> NDArray[np.float64]:
    """Q of candidates `[N, C, A]` at observations `[N, O]`: `[N, C]`.

    The reward plus the discounted value, as the search has it of a root's children.
    """
    count, candidates, _ = actions.shape
    tasks = torch.full((count,), task, device=networks.device)
    state, _ = networks.actor.root(observation, tasks)
    rows = state.repeat_interleave(candidates, 0)
    _, reward, value = networks.actor.step(rows, actions.flatten(0, 1), tasks.repeat_interleave(candidates))
    q = reward + networks.experiment.targets.discount * value
    return q.double().cpu().numpy().reshape(count, candidates)


def rank_correlation(first: NDArray[np.float64], second: NDArray[np.float64]) -> float:
    """Spearman's correlation over the last axis of `[N, C]`, averaged over the rows that have one.

    NaN where none has: every row of either is constant.
    """
    a, b = rankdata(first, axis=-1), rankdata(second, axis=-1)
    a, b = a - a.mean(-1, keepdims=True), b - b.mean(-1, keepdims=True)
    lengths = np.sqrt((a * a).sum(-1) * (b * b).sum(-1))
    some = lengths > 0
    return float(((a * b).sum(-1)[some] / lengths[some]).mean()) if some.any() else float("nan")


def value_fit(networks: Networks, task: int, visited: Visited, scale: float | None) -> ValueFit:
    """Values of the states whose returns are complete, against these returns.

    Args:
        networks, task: what is diagnosed.
        visited: the episodes.
        scale: what the task's rewards are divided by in training; None: not known.
    """
    chosen = np.flatnonzero(visited.complete)
    returns, up = visited.returns[chosen], visited.upright[chosen]
    tasks = torch.full((len(chosen),), task, device=networks.device)
    _, found = networks.actor.root(visited.observation[chosen], tasks)
    values = found.double().cpu().numpy()
    return ValueFit(
        correlation=correlation(values, returns),
        upright_correlation=correlation(values[up], returns[up]),
        bias=None if scale is None or not len(chosen) else float(values.mean() * scale - returns.mean()),
        states=len(chosen),
    )


def correlation(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    """Pearson's correlation of `[N]` and `[N]`; NaN where either is constant or `N` is below 2."""
    if len(a) < 2 or a.std() == 0 or b.std() == 0:
        return float("nan")
    return float(np.corrcoef(a, b)[0, 1])
