"""What the model and the search predict of the agent's own episodes, against what the simulator paid.

Shapes: `N` decisions of the episodes, `U` = `FOLLOWING` imagined decisions.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ezm_pl.training.diagnostics.episodes import FOLLOWING, Visited
from ezm_pl.training.diagnostics.networks import Networks
from ezm_pl.training.diagnostics.values import correlation

_MOST_STATES = 256
"""States that are unrolled and searched, at most."""


@dataclass(frozen=True)
class Predictions:
    """Predictions from `M` states whose returns are complete, in units of the tasks' own rewards.

    Attributes:
        returns: `[M]`, discounted, of the agent's episodes.
        values: `[M]`, of the network. search_values: `[M]`, of the search.
        reward_error: `[U]`, mean absolute error of the reward after 1, 2, ... imagined decisions.
        value_error: `[U + 1]`, of the value after 0, 1, ... imagined decisions against the return from there.
        reward_spread, return_spread: `[U]` and `[U + 1]`, mean absolute deviation of the real ones from their
            median: the error of a prediction that knows the task and the step and no more.
        search_correlation: of the search's values with the returns.
        search_bias: their mean less the mean return.
        choice_distance: distance of the search's choice from the policy's mode over the mean distance of its
            candidates from it: 0 where the search agrees with the policy, 1 where it chooses like chance.
        mode_chosen: share of states in which no candidate is nearer to the mode than the search's choice.
        at_floor: share of values at the spec's `value_floor`.
        beyond_support: share of returns that the support does not hold, without return scaling.
        beyond_scaled: the same, with returns divided by their task's scale; None: the scale is not known.
    """

    returns: list[float]
    values: list[float]
    search_values: list[float]
    reward_error: list[float]
    value_error: list[float]
    reward_spread: list[float]
    return_spread: list[float]
    search_correlation: float
    search_bias: float
    choice_distance: float
    mode_chosen: float
    at_floor: float
    beyond_support: float
    beyond_scaled: float | None


def predictions(
    networks: Networks, task: int, visited: Visited, *, units: float, scale: float | None, seed: int
) -> Predictions | None:
    """Compares what is predicted from states of the agent's episodes with what followed; None without any.

    Args:
        networks, task: what is diagnosed.
        visited: the episodes.
        units: what the task's rewards are divided by in training; 1 where nothing is.
        scale: the running scale of the task's returns; None: not known.
        seed: of the choice of states and of the search.
    """
    discount, spec = networks.experiment.targets.discount, networks.experiment.model
    last = np.minimum(np.arange(len(visited.returns)) + FOLLOWING, len(visited.returns) - 1)
    chosen = np.flatnonzero((visited.following >= FOLLOWING) & visited.complete & visited.complete[last])
    generator = np.random.default_rng(seed)
    chosen = np.sort(generator.permutation(chosen)[:_MOST_STATES])
    if not len(chosen):
        return None
    tasks = torch.full((len(chosen),), task, device=networks.device)
    seen = visited.observation[chosen]
    rewards, values = unrolled(networks, seen, visited, chosen, tasks)
    returns = visited.returns[chosen[:, None] + np.arange(FOLLOWING + 1)]
    paid = returns[:, :-1] - discount * returns[:, 1:]
    found = networks.planner(networks.actor, seen, tasks, _torch_generator(networks, seed))
    mode = networks.actor.policy(networks.actor.root(seen, tasks)[0], tasks).mode
    distance = (found.actions - mode.unsqueeze(1)).norm(dim=-1)
    own = (found.action - mode).norm(dim=-1)
    searched = units * found.value.double().cpu().numpy()
    floor = spec.value_floor
    return Predictions(
        returns=returns[:, 0].tolist(),
        values=(units * values[:, 0]).tolist(),
        search_values=searched.tolist(),
        reward_error=np.abs(units * rewards - paid).mean(0).tolist(),
        value_error=np.abs(units * values - returns).mean(0).tolist(),
        reward_spread=_spread(paid),
        return_spread=_spread(returns),
        search_correlation=correlation(searched, returns[:, 0]),
        search_bias=float((searched - returns[:, 0]).mean()),
        choice_distance=float(own.mean() / distance.mean().clamp(min=1e-9)),
        mode_chosen=float((own <= distance.amin(1) + 1e-6).float().mean()),
        at_floor=0.0 if floor is None else float((values[:, 0] <= floor).mean()),
        beyond_support=_beyond(visited.returns[visited.complete], spec.support),
        beyond_scaled=(
            None if scale is None else _beyond(visited.returns[visited.complete] / scale, spec.support)
        ),
    )


def unrolled(
    networks: Networks, seen: Tensor, visited: Visited, chosen: NDArray[np.int64], tasks: Tensor
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Rewards `[M, U]` and values `[M, U + 1]` that the model imagines along the actions that were taken."""
    state, value = networks.actor.root(seen, tasks)
    rewards, values = [], [value]
    for step in range(FOLLOWING):
        state, reward, value = networks.actor.step(state, visited.action[chosen + step], tasks)
        rewards.append(reward)
        values.append(value)
    found = [torch.stack(each, 1).double().cpu().numpy() for each in (rewards, values)]
    return found[0], found[1]


def embedding_map(networks: Networks) -> tuple[NDArray[np.float64], float]:
    """The task embeddings on two principal components `[T, 2]`, and their share of the variance."""
    table = networks.model.capped_embedding().detach().double().cpu().numpy()
    centred = table - table.mean(0)
    left, sizes, _ = np.linalg.svd(centred, full_matrices=False)
    at = np.zeros((len(table), 2))
    count = min(2, len(sizes))
    at[:, :count] = left[:, :count] * sizes[:count]
    whole = float((sizes**2).sum())
    return at, float((sizes[:count] ** 2).sum()) / whole if whole > 0 else 1.0


def _torch_generator(networks: Networks, seed: int) -> torch.Generator:
    return torch.Generator(networks.device).manual_seed(seed)


def _spread(values: NDArray[np.float64]) -> list[float]:
    spread: list[float] = np.abs(values - np.median(values, axis=0)).mean(0).tolist()
    return spread


def _beyond(returns: NDArray[np.float64], support: float) -> float:
    return float((np.abs(returns) > support).mean())
