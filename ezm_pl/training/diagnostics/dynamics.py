"""How much of an action's real effect the dynamics predict."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ezm_pl.training.diagnostics.episodes import FOLLOWING, Visited
from ezm_pl.training.diagnostics.networks import Networks
from ezm_pl.training.diagnostics.simulators import Simulators

_ROUNDING = 1e-5
"""Share of a latent's length, or of a value, below which a difference may be float32's rounding."""


@dataclass(frozen=True)
class ActionEffect:
    """Predicted against real differences between the latents that follow different actions.

    Attributes:
        correlation: mean over states, 1 where the model sees exactly what an action changes.
        size: length of the predicted differences over that of the real ones, over all states.
        value_correlation: the same as `correlation`, of the latents' values.
    """

    correlation: float
    size: float
    value_correlation: float


def action_effects(
    networks: Networks, task: int, visited: Visited, picked: NDArray[np.int64], actions: Tensor, *, seed: int
) -> dict[int, ActionEffect]:
    """Steps ahead (1 and `FOLLOWING`) to how well the dynamics tell actions apart.

    From each picked state the simulator takes each of the state's candidate actions, then the actions that
    the agent took after that state. So does the model from the encoded observation. Falls end nothing.

    Args:
        networks, task: what is diagnosed.
        visited: episodes; picked: indices `[N]` of states in them.
        actions: `[N, C, A]` candidates.
    """
    candidates, width = actions.shape[1], networks.latent_size
    real: dict[int, list[Tensor]] = {1: [], FOLLOWING: []}  # latents, and their values as a last column
    imagined: dict[int, list[Tensor]] = {1: [], FOLLOWING: []}
    actor = networks.actor
    with Simulators(networks, task, candidates, protocol="ezm", seed=seed) as simulators:
        tasks = simulators.task_ids
        for index, own in zip(picked, actions, strict=True):
            simulators.restore([visited.states[index]] * candidates)
            state, _ = actor.root(simulators.observation(), tasks)
            for step in range(FOLLOWING):
                action = own if step == 0 else visited.action[index + step].expand_as(own)
                state, _, value = actor.step(state, action, tasks)
                simulators.step(action)
                if step + 1 in real:
                    seen, seen_value = actor.root(simulators.observation(), tasks)
                    real[step + 1].append(_with_value(seen[:, :width], seen_value))
                    imagined[step + 1].append(_with_value(state[:, :width], value))
    return {steps: compare_effects(torch.stack(imagined[steps]), torch.stack(real[steps])) for steps in real}


def _with_value(latent: Tensor, value: Tensor) -> Tensor:
    return torch.cat([latent.float(), value.float().unsqueeze(1)], 1)


def compare_effects(imagined: Tensor, real: Tensor) -> ActionEffect:
    """Latents and their values `[N, C, S + 1]` after `C` actions from each of `N` states: how they differ."""
    correlation, size = _compare(imagined[..., :-1], real[..., :-1])
    return ActionEffect(correlation, size, _compare(imagined[..., -1:], real[..., -1:])[0])


def _compare(imagined: Tensor, real: Tensor) -> tuple[float, float]:
    """Correlation and relative length of the differences between actions, of anything `[N, C, *]`.

    Where either does not differ beyond rounding, there is nothing to correlate: that state counts as 0.
    """
    between = [latents - latents.mean(1, keepdim=True) for latents in (imagined, real)]
    squares = [difference.square().sum((1, 2)) for difference in between]
    differ = [
        square > _ROUNDING**2 * latents.square().sum((1, 2))
        for square, latents in zip(squares, (imagined, real), strict=True)
    ]
    cosine = (between[0] * between[1]).sum((1, 2)) / (squares[0] * squares[1]).sqrt().clamp(min=1e-30)
    correlation = torch.where(differ[0] & differ[1], cosine, 0.0).mean()
    size = (squares[0].sum() / squares[1].sum().clamp(min=1e-30)).sqrt()
    return float(correlation), float(size)
